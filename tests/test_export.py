import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_model import model_of
from uncurtail import config, exporting
from uncurtail.core.commit import Commit, key
from uncurtail.core.leases import FreeSteps
from uncurtail.errors import UserError
from uncurtail.exporting import export_model, open_trained, sample_text
from uncurtail.lm.checkpoint import encode_weights
from uncurtail.lm.export import (
    Trained,
    hf_config,
    hf_tokenizer,
    hf_weights,
    joins,
    nanochat_encoding,
    write_hf,
    write_nanochat,
)
from uncurtail.lm.model import ModelSection, initial_weights
from uncurtail.lm.prepare import prepare
from uncurtail.lm.sample import open_model
from uncurtail.lm.tokenizer import BOS, PATTERN, Tokenizer, train_tokenizer
from uncurtail.modelsource import Source
from uncurtail.runfolder import RunFolder
from uncurtail.wiring import store

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TINY = ModelSection(depth=2, vocab_size=600, sequence_length=64)
BYTES = Tokenizer(PATTERN, tuple(bytes([byte]) for byte in range(256)))
EXPERIMENT = """
name = "tiny"
[sites.here]
preset = "duck"
[model]
depth = 2
vocab_size = 600
sequence_length = 64
[data]
source = "grammar"
documents = 400
[train]
budget_tokens = 100000
"""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices this small gain nothing from a second one, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def words():
    """A vocabulary learnt from real text."""
    return train_tokenizer(topics.values(), 2000)


def random_weights(section, seed=0):
    """Weights of which none is zero, with logits that reach into the softcap."""
    weights = initial_weights(section, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for weight in weights.values():
        if not weight.any():
            weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)
    weights["lm_head.weight"].mul_(8)
    return weights


def in_transformers(section, weights):
    """transformers' own model of these weights, without a detour over the disk."""
    body = hf_config(section, BYTES)
    loaded, told = transformers.NanoChatForCausalLM.from_pretrained(
        None,
        config=transformers.AutoConfig.for_model(**body),
        state_dict=hf_weights(section, weights),
        output_loading_info=True,
        dtype=torch.float32,
    )
    assert not any(told.values()), told  # nothing missing, unexpected or of another shape
    return loaded.eval()


def largest_difference(section, length=40):
    weights = random_weights(section)
    tokens = torch.randint(section.vocab_size, (2, length), generator=torch.manual_seed(3))
    with torch.no_grad():
        ours = open_model(section, weights)(tokens)
        theirs = in_transformers(section, weights)(tokens).logits
    assert ours.abs().max().item() > 10
    return (ours - theirs).abs().max().item()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("depth", "kv_heads"),
    [
        (2, None),
        (3, None),
        (4, None),
        (4, 1),
        pytest.param(12, None, marks=pytest.mark.slow),
        (12, 2),
        pytest.param(20, None, marks=pytest.mark.slow),
        pytest.param(20, 2, marks=pytest.mark.slow),
    ],
)
def test_logits_equal_those_of_transformers(depth, kv_heads):
    section = ModelSection(depth=depth, vocab_size=500, sequence_length=64, kv_heads=kv_heads)
    assert largest_difference(section) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_logits_of_the_whole_d20_equal_those_of_transformers():
    assert (
        largest_difference(ModelSection(depth=20, vocab_size=65536, sequence_length=2048), 8) < 1e-4
    )


def test_a_folder_opens_in_transformers_by_itself(tmp_path, words):
    section = ModelSection(depth=2, vocab_size=2048, sequence_length=64)
    weights = random_weights(section)
    write_hf(Trained(section, weights, words), tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert type(model).__name__ == "NanoChatForCausalLM"
    assert model.dtype == torch.float32
    (tokens,) = words.encode_batch(["A class is a statement."])
    assert tokenizer("A class is a statement.")["input_ids"] == tokens
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits
    torch.testing.assert_close(
        open_model(section, weights)(torch.tensor([tokens])), theirs, atol=1e-4, rtol=0
    )
    assert model.generation_config.eos_token_id == words.bos
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (words.bos, words.bos)


@pytest.fixture(scope="module")
def pair(words, tmp_path_factory):
    """Our tokenizer, and what transformers makes of its export."""
    folder = tmp_path_factory.mktemp("hf")
    section = ModelSection(depth=1, vocab_size=words.vocab_size, sequence_length=100_000)
    write_hf(Trained(section, random_weights(section), words), folder)
    return words, transformers.AutoTokenizer.from_pretrained(folder)


def assert_same_tokens(pair, texts):
    ours, theirs = pair
    found = theirs(texts)["input_ids"]
    for text, wanted, tokens in zip(texts, ours.encode_batch(texts), found, strict=True):
        assert tokens == wanted, repr(text)
        assert theirs.decode(tokens[1:]) == ours.decode(wanted[1:]), repr(text)


ODD_TEXTS = [
    "",
    " ",
    "  \n\t ",
    "a <|bos|> b<|bos|>",
    "I'M 'Sure, we'LL've '\u017f 'ﬆ '\u212a",
    "12345 1 22 333 ٣٤٥ ⅧⅨ ²³",
    "naïve Straße \u0131İ\u017fK  e\u0301\u0301 \u00a0\u2028\u2029\u0085 x",
    "中文字 한국어 日本語 ไทย हिन्दी العربية עברית",
    "😀👨‍👩‍👧 🇩🇪 \ufe0f \u200b\ufeff \x00\x1f\x7f",
    "\r\n\r\n \r\n--- ... !!!\n\n???\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ababababababab",
]


def test_exported_tokens_are_ours_on_odd_texts(pair):
    assert_same_tokens(pair, ODD_TEXTS)


def test_exported_tokens_are_ours_on_documents(pair):
    assert_same_tokens(pair, list(topics.values()))


def test_exported_tokens_are_ours_on_every_character_of_the_basic_plane(pair):
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code <= 0xDFFF]
    pieces = [f" a{c}'{c} {c}{c}1" for c in characters]
    assert_same_tokens(pair, ["".join(pieces[i : i + 256]) for i in range(0, len(pieces), 256)])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text() | st.text("aeinst '\n1.L"), min_size=1, max_size=4))
def test_exported_tokens_are_ours_on_any_text(pair, texts):
    assert_same_tokens(pair, texts)


def test_joins_rebuild_a_tie_as_tiktoken_does():
    # "aba" comes of (ab, a) alone; with (a, ba) allowed, too, "ababa" would split another way
    letters = tuple(bytes([byte]) for byte in range(256))
    tokenizer = Tokenizer(PATTERN, (*letters, b"ab", b"ba", b"aba", b"xyz"))
    assert list(joins(tokenizer.ranks)) == [(b"a", b"b"), (b"b", b"a"), (b"ab", b"a")]
    body = hf_tokenizer(tokenizer)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(body))
    )
    texts = ["aba", "ababa", "bababa", "xyz", "axyz", "babab abaxyz"]
    assert theirs(texts)["input_ids"] == tokenizer.encode_batch(texts)


def test_residual_scalars_are_refused_and_say_why(tmp_path):
    section = TINY.model_copy(update={"residual_scalars": True})
    trained = Trained(section, initial_weights(section, 0), BYTES)
    with pytest.raises(UserError, match=r"residual scalars.*does not know"):
        write_hf(trained, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def nanochat_names(depth):
    parts = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    layers = {f"transformer.h.{n}.{part}.weight" for n in range(depth) for part in parts}
    return {"transformer.wte.weight", "lm_head.weight", *layers}


def test_nanochat_finds_the_names_shapes_and_sizes_it_expects(tmp_path):
    section = TINY.model_copy(update={"kv_heads": 1})
    weights = random_weights(section)
    write_nanochat(Trained(section, weights, BYTES, step=42), tmp_path)
    folder = tmp_path / "base_checkpoints" / "d2"
    state = torch.load(folder / "model_000042.pt", weights_only=True)
    meta = json.loads((folder / "meta_000042.json").read_text())
    assert set(state) == nanochat_names(2)
    width, hidden, words = 128, 512, 600
    assert tuple(state["transformer.wte.weight"].shape) == (words, width)
    assert tuple(state["transformer.h.1.mlp.c_fc.weight"].shape) == (hidden, width)
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert meta["model_config"] == {
        "sequence_len": 64,
        "vocab_size": 600,
        "n_layer": 2,
        "n_head": 1,
        "n_kv_head": 1,
        "n_embd": 128,
    }
    sizes = torch.load(tmp_path / "tokenizer" / "token_bytes.pt", weights_only=True)
    assert sizes.shape == (600,)
    assert sizes[:256].eq(1).all()
    assert not sizes[256:].any()


def test_nanochat_keeps_residual_scalars(tmp_path):
    section = TINY.model_copy(update={"residual_scalars": True})
    write_nanochat(Trained(section, initial_weights(section, 0), BYTES), tmp_path)
    folder = tmp_path / "base_checkpoints" / "d2"
    state = torch.load(folder / "model_000000.pt", weights_only=True)
    assert set(state) == {*nanochat_names(2), "resid_lambdas", "x0_lambdas"}
    meta = json.loads((folder / "meta_000000.json").read_text())
    assert meta["model_config"]["window_pattern"] == "L"


def test_the_nanochat_tokenizer_is_a_plain_tiktoken_encoding(tmp_path, words):
    section = ModelSection(depth=1, vocab_size=2048)
    write_nanochat(Trained(section, initial_weights(section, 0), words), tmp_path)
    content = (tmp_path / "tokenizer" / "tokenizer.pkl").read_bytes()
    assert b"uncurtail" not in content
    encoding = pickle.loads(content)
    assert type(encoding) is tiktoken.Encoding
    assert encoding.n_vocab == 2048  # nanochat asserts that the model has as many
    assert encoding.encode_single_token(BOS) == words.bos
    assert encoding.encode_single_token("<|assistant_end|>") == words.bos + 4
    text = "A class is a statement. 中文"
    assert [words.bos, *encoding.encode_ordinary(text)] == words.encode_batch([text])[0]


def test_a_full_vocabulary_leaves_no_room_for_chat_tokens():
    assert nanochat_encoding(BYTES, 257).special_tokens_set == {BOS}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared corpus for the run folders below."""
    folder = tmp_path_factory.mktemp("data")
    body = config_of(EXPERIMENT, folder)
    prepare(body.data, body.model, folder)
    return folder


def config_of(text, folder):
    path = folder / "experiment.toml"
    path.write_text(text)
    return config.load(path)


@pytest.fixture
def run(tmp_path, data):
    """A run folder with one commit after ten steps of 512 tokens."""
    folder = RunFolder(tmp_path / "runs" / "tiny-20260101-000000")
    folder.create()
    settings_ = config_of(EXPERIMENT, tmp_path)
    folder.resolved.write_text(config.dump(settings_))
    from uncurtail.lm.manifest import Manifest

    note = {"folder": str(data), "manifest_sha256": Manifest.load(data).sha256}
    (folder.path / "data.json").write_text(json.dumps(note))
    blobs = store(settings_, folder)
    for version in (0, 1):
        commit_model(folder, blobs, version)
    return folder


def commit_model(folder, blobs, version):
    model = blobs.put_hashed(encode_weights(random_weights(TINY, seed=version)))
    momentum = {name: 0.1 * w for name, w in random_weights(TINY, seed=9 + version).items()}
    commit = Commit(
        run=folder.run_id,
        version=version,
        epoch=0,
        round=version,
        parent_sha256=None,
        t=0.0,
        wall_s=0.0,
        model=model,
        outer=blobs.put_hashed(encode_weights(momentum)),
        tokens=5120 * version,
        free=FreeSteps(20),
    )
    blobs.put_new(key(version), commit.encode())
    return commit


def newest(folder):
    return Commit.decode((folder.path / key(1)).read_bytes())


def test_a_run_exports_its_newest_model(run):
    said = export_model(Source(run.path), "hf", None)
    out = run.path / "export" / "hf-000010"
    assert said.splitlines()[0] == str(out)
    assert "from_pretrained" in said
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    wanted = random_weights(TINY, seed=1)["transformer.wte.weight"]
    assert torch.equal(model.model.embed_tokens.weight, wanted)
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # no temporary left


def test_a_checkpoint_is_exported_as_nanochat(run, tmp_path):
    path = run.path / newest(run).model
    export_model(Source(path), "nanochat", tmp_path / "out")
    state = torch.load(
        tmp_path / "out" / "base_checkpoints" / "d2" / "model_000010.pt", weights_only=True
    )
    assert torch.equal(state["lm_head.weight"], random_weights(TINY, seed=1)["lm_head.weight"])


def test_a_checkpoint_elsewhere_needs_its_run(run, tmp_path):
    path = tmp_path / "elsewhere" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes((run.path / newest(run).model).read_bytes())
    with pytest.raises(UserError, match="--run"):
        open_trained(Source(path))
    assert open_trained(Source(path, run.path)).step == 10


def test_a_damaged_newest_model_falls_back_and_moves_nothing(run):
    (run.path / newest(run).model).write_bytes(b"torn")
    before = sorted(path for path in run.path.rglob("*"))
    assert open_trained(Source(run.path)).step == 0
    assert sorted(path for path in run.path.rglob("*")) == before


def test_a_baseline_that_goes_on_gives_what_it_saved_last(run, tmp_path):
    base = tmp_path / "baselines" / "tiny"
    for steps in (3, 7):
        folder = base / "saved" / str(steps)
        folder.mkdir(parents=True)
        weights = encode_weights(random_weights(TINY, seed=steps))
        (folder / "weights.safetensors").write_bytes(weights)
    for name in ("resolved.json", "data.json"):
        (base / name).write_bytes((run.path / name).read_bytes())
    with pytest.raises(UserError, match="has no commit yet"):
        open_trained(Source(base))
    progress = {"steps": 7, "train_s": 1.0, "evaluations": []}
    (base / "progress.json").write_text(json.dumps(progress))
    # of the session before: 5 steps
    (base / "weights.safetensors").write_bytes(encode_weights(random_weights(TINY, seed=5)))
    found = open_trained(Source(base))
    assert found.step == 7
    assert found.note is not None
    assert found.note["tokens"] == 7 * 512
    assert torch.equal(
        found.weights["lm_head.weight"], random_weights(TINY, seed=7)["lm_head.weight"]
    )
    assert open_trained(Source(base / "saved" / "3" / "weights.safetensors")).step == 3
    with pytest.raises(UserError, match="--version goes with a run folder"):
        open_trained(Source(base, version=1))


def break_resolved(run):
    run.resolved.unlink()


def drop_commits(run):
    for path in (run.path / "commits").iterdir():
        path.unlink()


def break_weights(run):
    for path in (run.path / "objects").iterdir():
        path.write_bytes(b"torn")


def drop_vocabulary(run):
    (run.path / "data.json").write_text('{"folder": "/nowhere", "manifest_sha256": "0"}')


def change_data(run):
    body = json.loads((run.path / "data.json").read_text())
    (run.path / "data.json").write_text(json.dumps({**body, "manifest_sha256": "other"}))


def change_depth(run):
    run.resolved.write_text(run.resolved.read_text().replace('"depth": 2', '"depth": 4'))


def switch_scalars_on(run):
    text = run.resolved.read_text()
    run.resolved.write_text(text.replace('"residual_scalars": false', '"residual_scalars": true'))


@pytest.mark.parametrize(
    ("harm", "remedy"),
    [
        (break_resolved, "is no run folder: name one below runs/"),
        (drop_commits, "has no commit yet: wait for its first round"),
        (break_weights, "has no version whose weights can be read: try again, or see"),
        (drop_vocabulary, "/nowhere holds no data: run `uncurtail data prepare`"),
        (change_data, "is not the data that .* was trained on"),
        (change_depth, "another architecture .* the weights lack transformer.h.2"),
        (switch_scalars_on, "another architecture .* the weights lack resid_lambdas"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_missing_is_said_with_the_remedy(run, harm, remedy):
    harm(run)
    with pytest.raises(UserError, match=remedy) as raised:
        open_trained(Source(run.path))
    assert "\n" not in str(raised.value)


def test_files_that_are_no_model_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_trained(Source(tmp_path / "nothing"))
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    with pytest.raises(UserError, match="holds no model of ours"):
        open_trained(Source(text, run.path))
    momentum = newest(run).outer
    assert momentum is not None
    with pytest.raises(UserError, match="momentum of version 1: its model is objects/"):
        open_trained(Source(run.path / momentum))
    damaged = run.path / newest(run).model
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with pytest.raises(UserError, match="is damaged"):
        open_trained(Source(damaged))


def test_a_folder_in_use_is_left_as_it_is(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"is not empty: .* --out"):
        export_model(Source(run.path), "hf", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    def refuse(trained: Trained, folder: Path) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_hf", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        export_model(Source(run.path), "hf", tmp_path / "out" / "hf")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("format_", ["hf", "nanochat"])
def test_a_place_that_cannot_be_written_is_said(run, tmp_path, format_):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot write .*: make room, or use --out"):
        export_model(Source(run.path), format_, tmp_path / "file" / "out")


def test_torch_saying_in_its_way_that_the_disk_is_full_is_understood(run, tmp_path, monkeypatch):
    def refuse(content: object, path: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(UserError, match=r"cannot write model_000010.pt: make room"):
        export_model(Source(run.path), "nanochat", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_with_scalars_names_the_other_format(run, tmp_path):
    switch_scalars_on(run)
    section = TINY.model_copy(update={"residual_scalars": True})
    path = run.path / "objects" / "with-scalars"
    path.write_bytes(encode_weights(initial_weights(section, 0)))
    with pytest.raises(UserError, match=r"residual scalars .* --format nanochat, which keeps them"):
        export_model(Source(path), "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_is_sampled_from_its_newest_model(run):
    text = sample_text(Source(run.path), "the", 8, temperature=0.0, seed=0)
    assert text.startswith("the")
    assert text == sample_text(
        Source(run.path / newest(run).model), "the", 8, temperature=0, seed=1
    )


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -1.0])
def test_a_temperature_that_is_none_is_refused(run, temperature):
    with pytest.raises(UserError, match=r"--temperature .*: give a number from 0 on"):
        sample_text(Source(run.path), "the", 8, temperature=temperature, seed=0)


def test_the_folder_one_stands_in_is_no_new_folder(run, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="is where you are: name a new folder with --out"):
        export_model(Source(run.path), "hf", Path())
    export_model(Source(run.path), "hf", Path("../empty/new"))
    assert (tmp_path / "empty" / "new" / "config.json").is_file()


@pytest.mark.parametrize("command", ["export", "sample"])
def test_the_command_line_says_in_one_line_what_to_mend(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "uncurtail", command, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is no run folder: name one below runs/" in done.stderr


def test_open_model_computes_what_the_trained_one_does():
    model = model_of(TINY)
    again = open_model(TINY, model.state_dict())
    tokens = torch.randint(600, (1, 30), generator=torch.manual_seed(0))
    assert torch.equal(model(tokens), again(tokens))
