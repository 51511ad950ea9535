import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uncurtail.datanote import note_data, noted_data
from uncurtail.errors import UserError
from uncurtail.lm import data
from uncurtail.lm import prepare as preparing
from uncurtail.lm.data import Corpus, DataSection, Order, default_folder, permutation, prepare
from uncurtail.lm.grammar import grammar_documents
from uncurtail.lm.manifest import Manifest
from uncurtail.lm.model import ModelSection
from uncurtail.lm.prepare import prepare_tokenizer
from uncurtail.lm.tokenizer import Tokenizer, train_tokenizer

MODEL = ModelSection(depth=1, vocab_size=400, sequence_length=16)
DATA = DataSection(source="grammar", documents=80, val_share=0.1, seed=5)
T, B = 16, 4
MANY = DATA.model_copy(update={"shard_tokens": 700})  # about 40 shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "prepared"
    prepare(DATA, MODEL, folder)
    return folder


@pytest.fixture
def corpus(folder):
    return Corpus.open(folder)


def stream(folder, manifest):
    files = [folder / shard.name for shard in manifest.train]
    return np.concatenate([np.fromfile(file, dtype="<u2") for file in files])


def test_shards_hold_every_document_once_and_nothing_else(folder, corpus):
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    train = stream(folder, corpus.manifest)
    val = np.fromfile(folder / "val.bin", dtype="<u2")
    starts = [np.flatnonzero(part == tokenizer.bos) for part in (train, val)]
    found = [
        tokenizer.decode(document[1:].tolist())
        for part, start in zip((train, val), starts, strict=True)
        for document in np.split(part, start[1:])
    ]
    assert sorted(found) == sorted(grammar_documents(5, 80))
    assert len(starts[1]) > 1


def test_manifest_tells_what_is_there(folder, corpus):
    manifest = corpus.manifest
    text = list(grammar_documents(5, 80))
    assert manifest.train_bytes + manifest.val_bytes == sum(len(t.encode()) for t in text)
    assert manifest.train_tokens == len(stream(folder, manifest))
    assert 2 < manifest.mean_bytes_per_token < 6
    assert manifest.tokenizer_sha256 == Tokenizer.load(folder / "tokenizer.json").sha256
    for shard in (*manifest.train, manifest.val):
        content = (folder / shard.name).read_bytes()
        assert shard.size_bytes == len(content) == 2 * shard.tokens
        assert shard.sha256 == hashlib.sha256(content).hexdigest()
    assert json.loads((folder / "manifest.json").read_text())["train_tokens"]


def test_held_out_split_depends_on_the_document_alone(tmp_path):
    fewer = DATA.model_copy(update={"documents": 40})
    few, many = prepare(fewer, MODEL, tmp_path / "few"), prepare(DATA, MODEL, tmp_path / "many")

    def held_out(folder):
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        tokens = np.fromfile(folder / "val.bin", dtype="<u2")
        starts = np.flatnonzero(tokens == tokenizer.bos)[1:]
        return {tokenizer.decode(d[1:].tolist()) for d in np.split(tokens, starts)}

    assert few.split == many.split
    assert held_out(tmp_path / "few") <= held_out(tmp_path / "many")


def test_preparing_again_reuses_the_folder(folder):
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.*n")}
    stages = []
    prepare(DATA, MODEL, folder, lambda stage, share: stages.append((stage, share)))
    assert stages == [("ready", 1.0)]
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*.*n")} == before
    assert len(before) == 4


def test_whole_data_needs_no_lock(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / ".lock").unlink()
    (copy / ".lock").mkdir()  # as on a disk that can only be read: no lock is to be had there
    assert prepare(DATA, MODEL, copy) == Manifest.load(folder)
    assert prepare_tokenizer(DATA, MODEL, copy).sha256 == Manifest.load(folder).tokenizer_sha256
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="name another folder"):
        prepare(DATA, MODEL, copy)


def test_a_note_of_the_data_that_cannot_be_read_is_written_anew(folder, tmp_path):
    (tmp_path / "data.json").write_text('{"folder": ')
    with pytest.raises(UserError, match="names no data: --resume it"):
        noted_data(tmp_path)
    note_data(tmp_path, folder)
    assert noted_data(tmp_path) == folder


def test_two_that_prepare_one_folder_at_once_both_get_it(tmp_path):
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(prepare, DATA, MODEL, tmp_path) for _ in range(4)]
        manifests = [call.result() for call in calls]
    assert all(manifest == manifests[0] for manifest in manifests)
    Corpus.open(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_reader_is_not_disturbed_when_the_folder_is_made_anew(tmp_path):
    prepare(DATA, MODEL, tmp_path)
    reader = Corpus.open(tmp_path)
    before = reader.range_sha256(0, 0, 5, T, B)
    (tmp_path / "manifest.json").unlink()
    prepare(DATA.model_copy(update={"documents": 30}), MODEL, tmp_path)
    assert reader.range_sha256(0, 0, 5, T, B) == before


@pytest.mark.parametrize(
    ("broken", "how"),
    [
        ("manifest.json", "missing"),
        ("manifest.json", "cut"),
        ("tokenizer.json", "missing"),  # cut: its reader checks its hash, see test_tokenizer
        ("val.bin", "missing"),
        ("val.bin", "cut"),
        ("train-00000.bin", "missing"),
        ("train-00000.bin", "cut"),
    ],
)
def test_a_half_prepared_folder_is_refused_and_made_anew(folder, tmp_path, broken, how):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if how == "missing":
        (tmp_path / broken).unlink()
    else:
        (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:-2])
    with pytest.raises(ValueError, match="prepare"):
        Corpus.open(tmp_path)
    assert prepare(DATA, MODEL, tmp_path) == Manifest.load(folder)
    Corpus.open(tmp_path)


@pytest.mark.parametrize(
    ("section", "model"),
    [(DATA.model_copy(update={"seed": 6}), MODEL), (DATA, ModelSection(vocab_size=300))],
)
def test_a_whole_folder_of_other_data_is_left_as_it_is(folder, tmp_path, section, model):
    copy = shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(UserError, match=r"holds other data, .* name another folder, or delete it"):
        prepare(section, model, copy)
    for file in folder.iterdir():
        assert (copy / file.name).read_bytes() == file.read_bytes()


def test_too_little_text_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"raise data\.documents"):
        prepare(DATA.model_copy(update={"documents": 1}), MODEL, tmp_path)


def test_default_folder_is_named_by_what_decides_the_content(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = default_folder(DATA, MODEL)
    assert folder.parent == tmp_path / "uncurtail" / "data"
    longer = MODEL.model_copy(update={"sequence_length": 32})
    assert default_folder(DATA, longer) == folder
    for other in ({"vocab_size": 300},):
        assert default_folder(DATA, MODEL.model_copy(update=other)) != folder
    assert default_folder(DATA.model_copy(update={"seed": 6}), MODEL) != folder


def test_an_epoch_uses_every_sequence_once(folder, corpus):
    train = stream(folder, corpus.manifest)
    steps = corpus.steps_per_epoch(T, B)
    sequences = (len(train) - 1) // T
    assert steps == sequences // B
    order = np.array([*Order(5, 1, sequences, 10**6).read(0, sequences)])
    assert sorted(order.tolist()) == list(range(sequences))
    for step in range(steps):
        inputs, targets = corpus.batch(1, step, T, B)
        for row, index in enumerate(order[step * B : (step + 1) * B].tolist()):
            wanted = train[index * T : (index + 1) * T + 1].tolist()
            assert inputs[row].tolist() == wanted[:-1]
            assert targets[row].tolist() == wanted[1:]


def test_the_order_is_new_each_epoch_and_seed_but_the_same_everywhere():
    orders = [permutation(key, 1000) for key in ("0/0", "0/1", "1/0")]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (orders[a] == orders[b]).mean() < 0.02


# golden: another machine or numpy version must not give another order
@pytest.mark.parametrize(
    ("count", "window", "order"),
    [
        pytest.param(8, 8, [1, 3, 6, 4, 2, 5, 7, 0], id="one-window"),
        pytest.param(8, 100, [1, 3, 6, 4, 2, 5, 7, 0], id="less-than-one"),
        pytest.param(10, 3, [3, 4, 5, 6, 8, 7, 1, 2, 0, 9], id="windows-and-a-rest"),
    ],
)
def test_the_order_is_golden(count, window, order):
    assert [*Order(0, 0, count, window).read(0, count)] == order


@given(
    count=st.integers(0, 300),
    window=st.integers(1, 100),
    epoch=st.integers(0, 3),
    cuts=st.lists(st.integers(0, 300)),
)
def test_every_sequence_comes_once_however_the_epoch_is_cut(count, window, epoch, cuts):
    borders = [0, *sorted(min(cut, count) for cut in cuts), count]
    order = Order(9, epoch, count, window)
    read = [*chain.from_iterable(order.read(*pair) for pair in pairwise(borders))]
    assert sorted(read) == list(range(count))
    assert read == [*Order(9, epoch, count, window).read(0, count)]
    # a stretch of `window` positions lies in two windows at most
    for start in range(0, count - window, window):
        assert len({index // window for index in read[start : start + window]}) == 1


def test_no_step_beyond_the_epoch(corpus):
    for step in (-1, corpus.steps_per_epoch(T, B)):
        with pytest.raises(IndexError, match="beyond the epoch"):
            corpus.batch(0, step, T, B)


def test_range_hash_is_that_of_the_stored_bytes(folder, corpus):
    train = stream(folder, corpus.manifest)
    hasher = hashlib.sha256()
    for index in Order(5, 0, (len(train) - 1) // T, 10**6).read(3 * B, 6 * B):
        hasher.update(train[index * T : (index + 1) * T + 1].tobytes())
    assert corpus.range_sha256(0, 3, 6, T, B) == hasher.hexdigest()
    assert corpus.range_sha256(0, 3, 5, T, B) != hasher.hexdigest()
    assert corpus.range_sha256(0, 3, 3, T, B) == hashlib.sha256().hexdigest()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "many"
    prepare(MANY, MODEL, folder)
    return folder


def test_shard_borders_are_invisible(many, corpus):
    shards = Manifest.load(many).train
    assert len(shards) > 20
    assert all(700 <= shard.tokens < 1400 for shard in shards[:-1])
    steps = corpus.steps_per_epoch(T, B)
    assert Corpus.open(many).range_sha256(0, 0, steps, T, B) == corpus.range_sha256(
        0, 0, steps, T, B
    )


def test_more_shards_than_file_descriptors_can_be_read(many, monkeypatch):
    monkeypatch.setattr(data, "OPEN_SHARDS", 3)
    few = Corpus.open(many)
    steps = few.steps_per_epoch(T, B)
    assert few.range_sha256(0, 0, steps, T, B) == Corpus.open(many).range_sha256(0, 0, steps, T, B)
    assert len(few._train._maps) == 3


# -- fetching shards --


@pytest.fixture
def bare(many, tmp_path):
    """A site's folder before its first step, and what it has fetched."""
    for name in ("manifest.json", "tokenizer.json"):
        shutil.copy(many / name, tmp_path)
    return tmp_path


def names(folder):
    return {path.name for path in folder.glob("*.bin*")}


def test_a_site_fetches_the_shards_that_its_lease_touches_and_no_other(many, bare, monkeypatch):
    monkeypatch.setattr(data, "WINDOW_TOKENS", 64 * T)
    fetched = []

    def fetch(shard):
        fetched.append(shard.name)
        return many / shard.name

    site = Corpus.open(bare, fetch)
    whole = Corpus.open(many)
    assert site.steps_per_epoch(T, B) == whole.steps_per_epoch(T, B)
    assert fetched == []
    assert site.range_sha256(0, 16, 32, T, B) == whole.range_sha256(0, 16, 32, T, B)
    # 16 steps of 4 are one window of 64 sequences, 1,024 tokens: at most three shards of 700
    assert 1 <= len(fetched) <= 3
    assert names(bare) == set(fetched)
    again = Corpus.open(bare, fetch)
    again.range_sha256(0, 16, 32, T, B)
    assert len(fetched) == len(set(fetched))
    next(site.val_batches(T, 2, B))
    assert fetched[-1] == "val.bin"


@pytest.mark.parametrize("how", ["cut", "altered", "missing"])
def test_a_fetched_shard_that_is_not_the_manifests_is_not_kept(many, bare, tmp_path, how):
    def fetch(shard):
        broken = tmp_path / "broken"
        if how != "missing":
            content = bytearray((many / shard.name).read_bytes())
            content[7] ^= how == "altered"
            broken.write_bytes(content[: -2 if how == "cut" else None])
        return broken

    expected = FileNotFoundError if how == "missing" else UserError
    with pytest.raises(expected, match="broken"):
        Corpus.open(bare, fetch).batch(0, 0, T, B)
    assert names(bare) == set()
    assert Corpus.open(bare, lambda shard: many / shard.name).batch(0, 0, T, B)


def test_without_a_way_to_fetch_a_missing_shard_is_an_error(bare):
    with pytest.raises(UserError, match=r"has None bytes.*uncurtail data prepare"):
        Corpus.open(bare)


# -- interruptions --


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture
def encoded(monkeypatch):
    """Documents that the tokenizer was given, a batch of few at a time."""
    monkeypatch.setattr(preparing, "BATCH_DOCUMENTS", 5)
    given = []
    real = Tokenizer.encode_arrays

    def encode_arrays(self, documents, threads=2):
        given.extend(documents)
        return real(self, documents, threads)

    monkeypatch.setattr(Tokenizer, "encode_arrays", encode_arrays)
    return given


def interrupt(folder, after, section=MANY):
    """Prepare until so many calls for progress in tokens, as a kill would end it."""
    calls = []

    def tell(stage, share):
        calls.append(stage)
        if calls.count("tokens") >= after:
            raise Killed

    with pytest.raises(Killed):
        prepare(section, MODEL, folder, tell)


@pytest.mark.parametrize("after", [1, 4, 9, 16])
def test_preparing_goes_on_behind_the_last_finished_shard(many, tmp_path, encoded, after):
    interrupt(tmp_path, after)
    with pytest.raises(UserError, match="prepare"):
        Corpus.open(tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("train-*.bin")}
    encoded.clear()
    stages = []
    manifest = prepare(MANY, MODEL, tmp_path, lambda stage, share: stages.append(stage))
    assert manifest == Manifest.load(many)
    assert manifest.corruption(tmp_path, lambda share: None) is None
    assert "tokenizer" not in stages
    assert len(encoded) <= 80 - 5 * after + 6  # a shard is at most four documents
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*")}.items()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "train-00004.bin").unlink(),
        lambda folder: os.truncate(folder / "train-00004.bin", 100),
        lambda folder: (folder / "val.bin.tmp").unlink(),
        lambda folder: os.truncate(folder / "progress.jsonl", 900),
        lambda folder: (folder / "progress.jsonl").unlink(),
        lambda folder: (folder / "progress.jsonl").write_bytes(b"\xff\x00"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "train-00090.bin").write_bytes(b"from an older corpus"),
        lambda folder: (folder / "train-00011.bin.tmp").write_bytes(b"half a shard"),
    ],
    ids=["no-shard", "cut-shard", "no-val", "torn", "no-journal", "no-text", "no-vocabulary",
         "stray", "half"],
)  # fmt: skip
def test_whatever_an_interruption_leaves_the_result_is_the_same(many, tmp_path, encoded, damage):
    interrupt(tmp_path, 10)
    damage(tmp_path)
    assert prepare(MANY, MODEL, tmp_path) == Manifest.load(many)
    assert names(tmp_path) == names(many)
    for name in names(many):
        assert (tmp_path / name).read_bytes() == (many / name).read_bytes()


def test_an_interrupted_folder_that_is_then_made_from_other_text_has_none_of_the_old(tmp_path):
    interrupt(tmp_path, 1)
    other = MANY.model_copy(update={"seed": 6})
    assert prepare(other, MODEL, tmp_path) == prepare(other, MODEL, tmp_path / "fresh")


def test_a_kill_loses_one_shard_at_most(many, tmp_path):
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from uncurtail.lm import prepare as p\n"
        "from uncurtail.lm.sections import DataSection, ModelSection\n"
        "p.BATCH_DOCUMENTS = 5\n"
        "shares = []\n"
        "def tell(stage, share):\n"
        "    shares.append(stage)\n"
        "    shares.count('tokens') < 9 or os.kill(os.getpid(), signal.SIGKILL)\n"
        f"data = DataSection.model_validate_json({MANY.model_dump_json()!r})\n"
        f"model = ModelSection.model_validate_json({MODEL.model_dump_json()!r})\n"
        f"p.prepare(data, model, Path({str(tmp_path)!r}), tell)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) > 10
    assert prepare(MANY, MODEL, tmp_path) == Manifest.load(many)


def test_the_tokenizer_made_alone_is_the_one_that_prepare_then_uses(many, tmp_path):
    tokenizer = prepare_tokenizer(MANY, MODEL, tmp_path)
    stages = []
    manifest = prepare(MANY, MODEL, tmp_path, lambda stage, share: stages.append(stage))
    assert manifest == Manifest.load(many)
    assert manifest.tokenizer_sha256 == tokenizer.sha256
    assert "tokenizer" not in stages
    assert prepare_tokenizer(MANY, MODEL, tmp_path) == tokenizer


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device: make room"):
        prepare(DATA, MODEL, tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for make in (prepare, prepare_tokenizer):
        with pytest.raises(UserError, match=r"file.*: Not a directory: .*name another folder"):
            make(DATA, MODEL, tmp_path / "file" / "data")


# -- what does not belong together --


def test_another_tokenizer_than_the_tokens_were_made_with_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    train_tokenizer(["other text"], 300).save(copy / "tokenizer.json")
    corpus = Corpus.open(copy)
    with pytest.raises(UserError, match=r"not the tokenizer .* put that one back"):
        corpus.tokenizer()


def test_a_given_tokenizer_is_used_and_must_fit_the_model(tmp_path):
    own = train_tokenizer(["a tokenizer of my own, from other text"] * 3, 280)
    own.save(tmp_path / "own.json")
    section = DATA.model_copy(update={"tokenizer": tmp_path / "own.json"})
    assert prepare(section, MODEL, tmp_path / "a").tokenizer_sha256 == own.sha256
    assert Corpus.open(tmp_path / "a").tokenizer() == own
    small = ModelSection(vocab_size=257)
    with pytest.raises(UserError, match=rf"has {own.vocab_size} tokens, the model 257: set model"):
        prepare(section, small, tmp_path / "b")
    missing = DATA.model_copy(update={"tokenizer": tmp_path / "none.json"})
    with pytest.raises(UserError, match=r"none\.json: no such tokenizer; `uncurtail tokenizer"):
        prepare(missing, MODEL, tmp_path / "c")


def test_a_shard_that_does_not_come_out_the_same_is_not_put_among_the_others(many, tmp_path):
    copy = shutil.copytree(many, tmp_path / "copy")
    journal = copy / "progress.jsonl"
    told = Manifest.load(copy).train[7].sha256
    journal.write_text(journal.read_text().replace(told, "0" * 64))
    (copy / "train-00007.bin").unlink()
    assert prepare(MANY, MODEL, copy) == Manifest.load(many)


@pytest.mark.parametrize(("name", "most"), [("train-00007.bin", 20), ("val.bin", 80)])
def test_a_corrupt_shard_is_found_by_its_hash_and_made_again_alone(
    many, tmp_path, encoded, name, most
):
    copy = shutil.copytree(many, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[50] ^= 1
    (copy / name).write_bytes(content)
    manifest = Manifest.load(copy)
    assert manifest.damage(copy) is None
    assert f"{name} is corrupt" in (manifest.corruption(copy, lambda share: None) or "")
    (copy / name).unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in copy.glob("train-*.bin")}
    assert prepare(MANY, MODEL, copy) == manifest
    assert manifest.corruption(copy, lambda share: None) is None
    assert len(encoded) <= most
    if name != "val.bin":
        assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in copy.iterdir()}.items()


@pytest.mark.parametrize("sequences", [5, 10**6], ids=["some", "more-than-there-are"])
def test_validation_is_spread_over_the_held_out_text(folder, corpus, sequences):
    val = np.fromfile(folder / "val.bin", dtype="<u2")
    available = (len(val) - 1) // T
    batches = list(corpus.val_batches(T, sequences, B))
    count = sum(len(inputs) for inputs, _ in batches)
    assert count == min(sequences, available)
    assert batches[0][0][0].tolist() == val[:T].tolist()
    last = (count - 1) * available // count
    assert batches[-1][1][-1].tolist() == val[last * T + 1 : (last + 1) * T + 1].tolist()


def test_too_short_held_out_text_is_refused_with_the_remedy(corpus):
    with pytest.raises(ValueError, match="val_share"):
        next(corpus.val_batches(10**6, 1, 1))
