"""Text from files and commands: every kind is read whole, and what is wrong is named."""

import gzip
import json
import os
import subprocess
import sys
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from rich.console import Console

from tests.hubserver import COMMIT, REPO, serving
from uncurtail import datacommands
from uncurtail.adapters import hub
from uncurtail.errors import UserError
from uncurtail.lm import textfiles
from uncurtail.lm.data import Corpus, default_folder, prepare
from uncurtail.lm.grammar import grammar_documents
from uncurtail.lm.manifest import Manifest
from uncurtail.lm.sections import DataSection, ModelSection
from uncurtail.lm.textfiles import matching_files, read_documents
from uncurtail.lm.tokenizer import Tokenizer

TEXTS = [*grammar_documents(3, 60)]
MODEL = ModelSection(depth=1, vocab_size=400, sequence_length=16)


def write_parquet(path, texts, column="text"):
    table = pa.table({"id": list(range(len(texts))), column: texts})
    pq.write_table(table, path, row_group_size=7)
    return path


def write_jsonl(path, texts, column="text"):
    lines = "".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts)
    path.write_text(lines, encoding="utf-8")
    return path


def gz(path):
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


def read(path, column="text"):
    documents = [*read_documents(path, column)]
    shares = [share for _, share in documents]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    return [text for text, _ in documents]


def files(*patterns, **settings):
    settings = {"val_share": 0.1, **settings}
    return DataSection(source="files", files=tuple(map(str, patterns)), **settings)


# -- readers --


@pytest.mark.parametrize("write", [write_parquet, write_jsonl], ids=["parquet", "jsonl"])
def test_rows_are_documents_in_order_and_empty_ones_are_left_out(tmp_path, write):
    path = write(tmp_path / f"a.{write.__name__.removeprefix('write_')}", [*TEXTS, "", None, " \n"])
    assert read(path) == TEXTS
    other = write(tmp_path / f"b.{write.__name__.removeprefix('write_')}", TEXTS, "content")
    assert read(other, "content") == TEXTS


def test_packed_text_is_read_as_if_it_were_not(tmp_path):
    assert read(gz(write_jsonl(tmp_path / "a.jsonl", TEXTS))) == TEXTS
    plain = tmp_path / "a.txt"
    plain.write_text("\n\n".join(TEXTS))
    assert read(gz(plain)) == read(plain)


def test_a_text_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(TEXTS), encoding="utf-8")
    documents = read(path)
    assert "".join(documents) == "\n\n".join(TEXTS)
    assert len(documents) > 5
    assert all(len(text) >= textfiles.TEXT_DOCUMENT_CHARACTERS for text in documents[:-1])
    assert all(text.endswith("\n\n") for text in documents[:-1])


def test_a_text_without_blank_lines_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "LONGEST_DOCUMENT_CHARACTERS", 20_000)
    path = tmp_path / "log.txt"
    path.write_text("a line of a log\n" * 5000, encoding="utf-8")
    documents = read(path)
    assert "".join(documents) == path.read_text()
    assert max(map(len, documents)) < 20_100


def test_text_that_is_no_text_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 \xff\n")
    assert read(path) == ["caf\ufffd \ufffd\n"]
    half = tmp_path / "a.jsonl"
    half.write_text('{"text": "half a pair: \\ud83d."}\n')
    assert read(half) == ["half a pair: ?."]


def broken_parquet(folder):
    path = write_parquet(folder / "a.parquet", TEXTS)
    os.truncate(path, path.stat().st_size // 2)
    return path


def broken_page(folder):
    path = write_parquet(folder / "a.parquet", TEXTS)
    content = bytearray(path.read_bytes())
    content[200:2000] = bytes(1800)
    path.write_bytes(content)
    return path


def no_json(folder):
    path = write_jsonl(folder / "a.jsonl", TEXTS)
    path.write_text(path.read_text() + "{not json\n")
    return path


def a_number(folder):
    (folder / "a.jsonl").write_text('{"text": 7}\n')
    return folder / "a.jsonl"


def bad_gz(folder):
    path = gz(write_jsonl(folder / "a.jsonl", TEXTS))
    content = bytearray(path.read_bytes())
    content[12:20] = b"\xff" * 8  # behind gzip's own header: the packed data
    path.write_bytes(content)
    return path


def cut_gz(folder):
    path = gz(write_jsonl(folder / "a.jsonl", TEXTS))
    os.truncate(path, path.stat().st_size // 2)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken_parquet, r"a\.parquet is no whole Parquet file .*delete it and get it again"),
        (broken_page, r"a\.parquet"),
        (lambda f: write_parquet(f / "a.parquet", TEXTS, "body"), r"no column 'text': .* id, body"),
        (no_json, r"a\.jsonl, line 61: no JSON object with 'text'"),
        (lambda f: write_jsonl(f / "a.jsonl", TEXTS, "body"), r"line 1: .*data\.text_column"),
        (a_number, r"line 1: 'text' is no text"),
        (cut_gz, r"a\.jsonl\.gz cannot be read: .*replace it"),
        (bad_gz, r"a\.jsonl\.gz cannot be read: .*replace it"),
    ],
    ids=["cut", "damaged", "column", "no-json", "field", "number", "cut-gz", "bad-gz"],
)
def test_a_file_that_cannot_be_used_is_one_line_with_the_remedy(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        prepare(files(path), MODEL, tmp_path / "data")
    assert not list((tmp_path / "data").glob("*.json"))


# -- globs and sections --


def test_globs_name_files_once_and_sorted(tmp_path):
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = matching_files((f"{tmp_path}/**/*.txt", f"{tmp_path}/b.*", f"{tmp_path}/d.jsonl"))
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a.txt", "b.txt", "d.jsonl", "deep/er/c.txt",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"data\.files: '.*\*\.parquet' names no file"):
        matching_files((f"{tmp_path}/*.parquet",))
    (tmp_path / "e.pdf").write_text("x")
    with pytest.raises(UserError, match=r"e\.pdf is none of \.parquet, \.jsonl"):
        matching_files((f"{tmp_path}/e*",))


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "files"},
        {"files": ["a"]},
        {"source": "fineweb-edu"},
        {"source": "grammar", "shards": 2},
        {"source": "embedded", "documents": 5},
        {"source": "files", "files": ["a"], "documents": 5},
    ],
)
def test_a_source_without_what_it_reads_is_refused(settings):
    with pytest.raises(ValidationError, match=r"go together|leave documents out"):
        DataSection(**settings)


def test_a_changed_file_is_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    section = files(path)
    before = default_folder(section, MODEL)
    assert default_folder(section, MODEL) == before
    assert default_folder(files(path, shard_tokens=100), MODEL) == before
    assert default_folder(files(path, folder=tmp_path / "here"), MODEL) == tmp_path / "here"
    assert default_folder(files(path, tokenizer_chars=9999), MODEL) != before
    assert default_folder(files(path, text_column="body"), MODEL) != before
    write_jsonl(path, TEXTS[1:])
    assert default_folder(section, MODEL) != before


def test_settings_that_came_later_leave_old_folders_their_names(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    section = DataSection(source="grammar", documents=80, val_share=0.1, seed=5)
    assert default_folder(section, MODEL).name == "2e2472455118"


# -- preparing --


def test_the_same_text_gives_the_same_tokens_whatever_file_it_is_in(tmp_path):
    paths = [
        write_parquet(tmp_path / "a.parquet", TEXTS),
        write_jsonl(tmp_path / "a.jsonl", TEXTS),
        gz(write_jsonl(tmp_path / "b.jsonl", TEXTS)),
    ]
    made = [prepare(files(path), MODEL, tmp_path / str(i)) for i, path in enumerate(paths)]
    assert len({manifest.train[0].sha256 for manifest in made}) == 1
    assert len({manifest.val.sha256 for manifest in made}) == 1


def test_text_may_lie_in_many_files_of_several_kinds(tmp_path):
    write_parquet(tmp_path / "a.parquet", TEXTS[:20])
    write_jsonl(tmp_path / "b.jsonl", TEXTS[20:])
    whole = prepare(files(write_jsonl(tmp_path / "c.ndjson", TEXTS)), MODEL, tmp_path / "whole")
    section = files(f"{tmp_path}/?.parquet", f"{tmp_path}/?.jsonl")
    shares = []
    parts = prepare(section, MODEL, tmp_path / "parts", lambda *told: shares.append(told))
    assert parts.train == whole.train
    assert {stage for stage, _ in shares} == {"tokenizer", "tokens", "ready"}
    tokens = [share for stage, share in shares if stage == "tokens"]
    assert tokens == sorted(tokens)
    assert tokens[-1] == 1.0


def test_too_little_text_says_what_to_do(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:1])
    with pytest.raises(UserError, match=r"held-out tokens: give more text .*data\.files"):
        prepare(files(path), MODEL, tmp_path / "data")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """10 MB more text, and several times that as tokens in Python, in 20 MB more memory."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import pyarrow.parquet\n"
        "from uncurtail.lm.prepare import prepare\n"
        "from uncurtail.lm.sections import DataSection, ModelSection\n"
        "def go(name):\n"
        "    data = DataSection(source='files', files=(name,), tokenizer_chars=300_000,\n"
        "                       shard_tokens=1 << 18)\n"
        "    prepare(data, ModelSection(vocab_size=512), Path(f'{name}.data'))\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000\n"
        "first = go('small.jsonl')\n"
        "print(go('large.jsonl') - first)\n"
    )
    write_jsonl(tmp_path / "small.jsonl", TEXTS * 100)  # 5 MB: more than a batch
    write_jsonl(tmp_path / "large.jsonl", TEXTS * 300)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (tmp_path / "large.jsonl").stat().st_size > 15e6
    assert float(done.stdout) < 20


# -- the Hub, whole way --


@pytest.fixture
def repository(monkeypatch, tmp_path):
    content = {
        f"shard_{i:05d}.parquet": write_parquet(tmp_path / "t.parquet", TEXTS[i::3]).read_bytes()
        for i in range(3)
    }
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(content) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def test_a_downloaded_corpus_is_prepared_and_names_its_version(repository, tmp_path):
    section = DataSection(source="fineweb-edu", repo=REPO, shards=2, val_share=0.1)
    with pytest.raises(UserError, match=r"is not here: run `uncurtail data prepare`"):
        prepare(section, MODEL, tmp_path / "data")
    stages = []
    manifest = prepare(
        section, MODEL, tmp_path / "data", lambda stage, _: stages.append(stage),
        hub.download_shards,
    )  # fmt: skip
    assert manifest.origin == f"{REPO}@{COMMIT}, 2 files"
    assert Manifest.load(tmp_path / "data") == manifest
    assert [*dict.fromkeys(stages)] == ["download", "tokenizer", "tokens", "ready"]
    size = sum(len(text.encode()) for text in TEXTS[0::3] + TEXTS[1::3])
    assert manifest.train_bytes + manifest.val_bytes == size
    # whole: neither a network nor a way to download is asked for
    repository.requests.clear()
    assert prepare(section, MODEL, tmp_path / "data") == manifest
    assert not repository.requests


# -- commands --


EXPERIMENT = """
name = "own"
[sites.a]
preset = "duck"
[model]
depth = 1
vocab_size = 400
sequence_length = 16
[data]
source = "files"
files = ["TEXT"]
val_share = 0.1
[train]
budget_tokens = 1000
"""


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = write_jsonl(tmp_path / "text.jsonl", TEXTS)
    path = tmp_path / "own.toml"
    path.write_text(EXPERIMENT.replace("TEXT", str(text)))
    return path


@pytest.fixture
def console():
    return Console(quiet=True)


def test_data_prepare_says_what_is_there_and_what_comes_next(experiment, console, tmp_path):
    said, after = datacommands.prepare_command(experiment, [], None, console).splitlines()
    assert "training tokens in 1 shard" in said
    assert after == f"Next: uncurtail run {experiment}"
    assert said.startswith(str(tmp_path / "cache" / "uncurtail" / "data"))
    own = tmp_path / "own"
    said = datacommands.prepare_command(experiment, ["data.seed=4"], own, console)
    wanted = f"Next: uncurtail run {experiment} --set data.seed=4 --set data.folder={own}"
    assert said.splitlines()[-1] == wanted
    assert Corpus.open(own).manifest.seed == 4


def test_data_check_finds_what_sizes_do_not_show(experiment, console, tmp_path):
    with pytest.raises(UserError, match="holds no data"):
        datacommands.check_command(experiment, [], tmp_path / "own", console)
    datacommands.prepare_command(experiment, [], tmp_path / "own", console)
    said = datacommands.check_command(experiment, ["seed=2"], tmp_path / "own", console)
    assert said.startswith("Whole: ")
    wanted = f"uncurtail run {experiment} --set seed=2 --set data.folder={tmp_path / 'own'}"
    assert said.splitlines()[-1] == f"Next: {wanted}"
    shard = tmp_path / "own" / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[9] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.bin is corrupt: .*delete that file"):
        datacommands.check_command(experiment, [], tmp_path / "own", console)
    assert shard.read_bytes() == bytes(content)
    shard.unlink()
    datacommands.prepare_command(experiment, [], tmp_path / "own", console)
    datacommands.check_command(experiment, [], tmp_path / "own", console)


def test_tokenizer_train_makes_a_file_that_data_prepare_takes(experiment, console, tmp_path):
    out = tmp_path / "out" / "tokenizer.json"
    said = datacommands.tokenizer_of_files_command([str(tmp_path / "*.jsonl")], 300, out, console)
    assert said.splitlines()[0] == f"{out}: 300 tokens"
    datacommands.prepare_command(experiment, [f"data.tokenizer={out}"], tmp_path / "own", console)
    assert Corpus.open(tmp_path / "own").tokenizer() == Tokenizer.load(out)


def test_tokenizer_train_of_an_experiment_is_the_first_part_of_preparing(
    experiment, console, tmp_path
):
    out = tmp_path / "copy.json"
    split = ["data.val_share= 0.2"]
    said = datacommands.tokenizer_command(experiment, split, out, console)
    wanted = f"Next: uncurtail data prepare {experiment} --set 'data.val_share= 0.2'"
    assert said.splitlines()[1] == wanted
    datacommands.prepare_command(experiment, split, None, console)
    (folder,) = (tmp_path / "cache" / "uncurtail" / "data").iterdir()
    assert Corpus.open(folder).tokenizer() == Tokenizer.load(out)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["data", "prepare", "nothing.toml"], "nothing.toml: no such file"),
        (["data", "prepare", "{own}", "--set", "data.shard=3"], "did you mean shards?"),
        (["data", "prepare", "{own}", "--check"], "holds no data: run `uncurtail data prepare`"),
        (["tokenizer", "train"], "name either an EXPERIMENT, or --files GLOB"),
        (["tokenizer", "train", "{own}", "--vocab-size", "300"], "name either an EXPERIMENT"),
        (
            ["tokenizer", "train", "--files", "*.no", "--vocab-size", "300", "--out", "x"],
            "'*.no' names no file",
        ),
        (
            ["tokenizer", "train", "--files", "{own}", "--vocab-size", "300", "--out", "x"],
            "own.toml is none of .parquet",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(experiment, monkeypatch, capsys, arguments, wanted):
    arguments = [argument.format(own=experiment) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["uncurtail", *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # typer's, of click
        from uncurtail.cli import main

        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("uncurtail: ")
    assert wanted in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
