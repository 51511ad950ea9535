import json
import math

import pytest
import torch

from tests.runmaker import Spec, make_run
from uncurtail.config import dump, parse
from uncurtail.core import commit as commits
from uncurtail.core.commit import Commit
from uncurtail.core.leases import FreeSteps
from uncurtail.errors import UserError
from uncurtail.evaluating import Request, evaluate
from uncurtail.lm.checkpoint import encode_weights
from uncurtail.lm.core_tasks import (
    Question,
    TaskScore,
    core,
    load_tasks,
    mean_log_likelihoods,
    score_task,
)
from uncurtail.lm.data import Corpus, DataSection, prepare
from uncurtail.lm.evaluate import measure, section_of
from uncurtail.lm.model import ModelSection, initial_weights
from uncurtail.lm.sections import TrainSection
from uncurtail.lm.trainer import Trainer, TrainOrder
from uncurtail.runfolder import RunFolder

MODEL = ModelSection(depth=1, vocab_size=400, sequence_length=16)
TRAIN = TrainSection(budget_tokens=60 * 64, batch_sequences=4, val_sequences=8, dtype="fp32")


# -- tasks, by a model that is made by hand --


class Letters:
    """One token a character: 0 starts a text, then a is 1 and so on; a space is 27."""

    def encode_batch(self, documents):
        return [[0, *(27 if c == " " else ord(c) - 96 for c in text)] for text in documents]


def alphabet(tokens):
    """Expects the next letter of the alphabet with odds of e^2 against each other token."""
    logits = torch.zeros(*tokens.shape, 28)
    return logits.scatter_(-1, ((tokens + 1) % 28)[..., None], 2.0)


EXPECTED = 2.0 - math.log(math.exp(2.0) + 27)  # log-likelihood of a next letter
OTHER = -math.log(math.exp(2.0) + 27)


def test_a_continuation_is_scored_by_its_mean_log_likelihood():
    rows = Letters().encode_batch(["x abc", "x abd", "x acd", "x qqqqqqqq"])
    found = mean_log_likelihoods(alphabet, rows, 3, 100)
    assert found == pytest.approx(
        [
            (2 * EXPECTED + OTHER) / 3,  # a follows a space, which is not in the alphabet
            (EXPECTED + 2 * OTHER) / 3,
            (EXPECTED + 2 * OTHER) / 3,
            OTHER,  # length does not count
        ],
        abs=1e-6,
    )


def test_many_rows_are_scored_as_one_by_one(monkeypatch):
    rows = Letters().encode_batch(["x abc", "x abcdefghij", "x z", "x ace"])
    whole = mean_log_likelihoods(alphabet, rows, 3, 100)
    monkeypatch.setattr("uncurtail.lm.core_tasks.TOKENS_AT_ONCE", 1)
    assert mean_log_likelihoods(alphabet, rows, 3, 100) == pytest.approx(whole)


def test_a_row_that_does_not_fit_loses_its_beginning():
    (row,) = Letters().encode_batch(["zzzzzzzzzzabc"])
    widths = []

    def watched(tokens):
        widths.append(tokens.shape[1])
        return alphabet(tokens)

    assert mean_log_likelihoods(watched, [row], 11, 5) == pytest.approx(
        mean_log_likelihoods(alphabet, [row], 11, 100)
    )
    assert widths == [5]
    # even the continuation does not fit: what is left of it counts
    assert mean_log_likelihoods(alphabet, [row], 1, 2) == pytest.approx([EXPECTED])


QUESTIONS = (
    Question("what comes after a", ("qz", "bc"), 1),
    Question("and then", ("efg", "ege"), 0),
    Question("wrong on purpose", ("abc", "xxx"), 1),
    Question("two tails of one word", ("aac", "aab"), 1),
)


def test_the_choice_that_the_model_expects_is_its_answer():
    score = score_task(alphabet, Letters(), QUESTIONS, 100)
    assert score == TaskScore(questions=4, accuracy=0.75, centered=0.5)


def test_what_the_choices_have_in_common_is_not_scored():
    """It would count for more in a short choice: that of x, here, which comes as a surprise."""
    question = Question("abcdefghij", ("x", "qrsqrsqrs"), 1)
    rows = Letters().encode_batch([f"{question.query} {choice}" for choice in question.choices])
    of_x, of_q = mean_log_likelihoods(alphabet, rows, 1, 100)
    assert of_x > of_q
    assert score_task(alphabet, Letters(), [question], 100).accuracy == 1.0


def test_guessing_is_zero_whatever_the_number_of_choices():
    def knows_nothing(tokens):
        return torch.zeros(*tokens.shape, 28)

    one_of = [Question("q", tuple("abcdefgh"[:n]), gold) for n in (2, 4) for gold in range(n)]
    score = score_task(knows_nothing, Letters(), one_of, 100)
    assert score.accuracy == pytest.approx(2 / 6)
    assert score.centered == pytest.approx(0.0)  # the first of equals: right once in each n


def test_choices_that_begin_each_other_still_have_a_score():
    assert score_task(alphabet, Letters(), [Question("q", ("a", "ab"), 1)], 100).accuracy == 1.0


def test_core_is_the_mean_of_centered_accuracies():
    assert core({}) is None
    assert core({"a": TaskScore(9, 0.5, 0.0), "b": TaskScore(1, 1.0, 1.0)}) == 0.5


def test_tasks_are_read_by_name(tmp_path):
    lines = [{"query": "one", "choices": ["a", "b"], "gold": 1, "more": "is ignored"}]
    (tmp_path / "first.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "notes.txt").write_text("not a task")
    assert load_tasks(tmp_path) == {"first": (Question("one", ("a", "b"), 1),)}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"query": "q", "choices": ["a", "b"]}',
        '{"query": "q", "choices": ["a"], "gold": 0}',
        '{"query": "q", "choices": ["a", "b"], "gold": 2}',
        '{"query": "q", "choices": ["a", "b"], "gold": true}',
        '{"query": "q", "choices": "ab", "gold": 0}',
        '{"query": 1, "choices": ["a", "b"], "gold": 0}',
    ],
)
def test_a_line_that_is_no_question_is_named(line, tmp_path):
    good = json.dumps({"query": "q", "choices": ["a", "b"], "gold": 0})
    (tmp_path / "task.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=r"task\.jsonl:2"):
        load_tasks(tmp_path)


@pytest.mark.parametrize("content", [None, "\n"])
def test_no_task_and_an_empty_task_are_errors(content, tmp_path):
    if content is not None:
        (tmp_path / "task.jsonl").write_text(content)
    with pytest.raises(UserError, match="holds no"):
        load_tasks(tmp_path)


# -- a real model --


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(DataSection(source="grammar", documents=80, val_share=0.1), MODEL, folder)
    return folder


def test_an_untrained_model_knows_nothing(data):
    corpus = Corpus.open(data)
    measured = measure(MODEL, TRAIN, initial_weights(MODEL, 1), corpus, {"guess": QUESTIONS})
    assert measured.val_loss == pytest.approx(math.log(400), rel=1e-5)
    assert measured.bits_per_byte > math.log2(400) / 8
    assert measured.tasks["guess"].questions == 4


@pytest.mark.parametrize(
    "section",
    [
        ModelSection(depth=1, vocab_size=400),
        ModelSection(depth=4, vocab_size=300, kv_heads=1),
        ModelSection(depth=3, vocab_size=300, residual_scalars=True),
    ],
)
def test_a_models_size_is_read_from_its_weights(section):
    kv_heads = section.kv_heads or section.heads
    whole = ModelSection(**{**section.model_dump(), "kv_heads": kv_heads})
    assert section_of(initial_weights(section, 0), section.sequence_length) == whole


def test_weights_of_no_model_of_ours_are_refused():
    with pytest.raises(ValueError, match="no nanochat model"):
        section_of({"layer": torch.zeros(2, 2)}, 16)
    wide = initial_weights(MODEL, 0)
    wide["transformer.wte.weight"] = torch.zeros(400, 100)
    with pytest.raises(ValueError, match="width 100"):
        section_of(wide, 16)


# -- the command --


@pytest.fixture(scope="module")
def trained(data):
    """The weights of a model that knows something of the text, and of where in it a token is."""
    train, threads = TRAIN.model_copy(update={"threads": 1}), torch.get_num_threads()
    trainer = Trainer(MODEL, train, Corpus.open(data), 0)
    trainer.train(TrainOrder(((0, 0, 60),), 0, 1), bool, lambda _: None)
    torch.set_num_threads(threads)
    return trainer.weights()


@pytest.fixture
def run(tmp_path, data, trained):
    """A run folder whose versions 0 and 1 are untrained, and 2 is trained."""
    folder = RunFolder(tmp_path / "demo-1")
    folder.create()
    body = {
        "name": "demo",
        "sites": {"solar": {"preset": "solar"}},
        "model": MODEL.model_dump(),
        "train": TRAIN.model_dump(),
    }
    folder.resolved.write_text(dump(parse(body, "test")))
    note_data(folder, data)
    for version in range(3):
        weights = initial_weights(MODEL, 1) if version < 2 else trained
        weights["lm_head.weight"][version] += 0.01 * (version == 1)
        add_commit(folder, version, weights)
    return folder


def note_data(folder, data):
    body = {"folder": str(data), "manifest_sha256": Corpus.open(data).manifest.sha256}
    (folder.path / "data.json").write_text(json.dumps(body))


def add_commit(folder, version, weights):
    from uncurtail.adapters.blobs import ObjectStore

    blobs = ObjectStore(None, folder.path)
    commit = Commit(
        run=folder.run_id,
        version=version,
        epoch=1,
        round=version,
        parent_sha256=None,
        t=0.0,
        wall_s=0.0,
        model=blobs.put_hashed(encode_weights(weights)),
        outer=None,
        tokens=1000 * version,
        free=FreeSteps(10),
    )
    blobs.put_new(commits.key(version), commit.encode())
    return commit


def asked(folder, **options):
    return json.loads(evaluate(Request(folder.path, **options), as_json=True))


def test_the_newest_version_of_a_run_is_measured(run, tmp_path):
    found = asked(run)
    assert (found["version"], found["tokens"]) == (2, 2000)
    assert 0 < found["val_loss"] < 10
    assert found["bits_per_byte"] > 0
    assert (found["tasks"], found["core"]) == ({}, None)
    first = asked(run, version=0)
    assert first["val_loss"] == pytest.approx(math.log(400), rel=1e-5)
    assert first["val_loss"] != found["val_loss"]

    (tmp_path / "tasks").mkdir()
    lines = [{"query": "the", "choices": [" a", " b"], "gold": gold} for gold in (0, 1)]
    (tmp_path / "tasks/even.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = asked(run, tasks=tmp_path / "tasks")
    assert found["tasks"]["even"] == {"questions": 2, "accuracy": 0.5, "centered": 0.0}
    assert found["core"] == 0.0
    words = evaluate(Request(run.path, tasks=tmp_path / "tasks"), as_json=False)
    assert words.splitlines()[0] == "demo-1, version 2, 2,000 tokens"
    assert "bits per byte" in words
    assert "even" in words


def test_a_broken_newest_version_is_passed_over_and_left_alone(run):
    commit = run.read_commits()[-1]
    (run.path / commit.model).write_bytes(b"damaged")
    before = sorted(run.path.rglob("*"))
    assert asked(run)["version"] == 1
    assert sorted(run.path.rglob("*")) == before, "the run may be going on"


def test_a_model_of_a_run_is_measured_as_the_run_is(run, trained, tmp_path):
    of_run = asked(run)
    assert of_run["val_loss"] < math.log(400) - 1.0
    inside = run.path / run.read_commits()[-1].model
    assert json.loads(evaluate(Request(inside), as_json=True)) == of_run
    outside = tmp_path / "model.safetensors"
    outside.write_bytes(encode_weights(trained))
    assert json.loads(evaluate(Request(outside, run=run.path), as_json=True)) == of_run


def test_a_checkpoint_of_no_run_is_measured_at_the_length_that_is_given(
    run, trained, data, tmp_path
):
    file = tmp_path / "model.safetensors"
    file.write_bytes(encode_weights(trained))
    losses = {}
    for length in (4, 16):
        request = Request(file, data=data, sequences=8, sequence_length=length)
        found = json.loads(evaluate(request, as_json=True))
        assert (found["version"], found["tokens"]) == (None, None)
        losses[length] = found["val_loss"]
    assert losses[16] == pytest.approx(asked(run)["val_loss"], rel=1e-2)  # its dtype is auto
    assert abs(losses[4] - losses[16]) > 0.05


def test_a_task_is_given_as_much_context_as_the_model_was_trained_with(data):
    chance = torch.Generator().manual_seed(0)
    blank = initial_weights(MODEL, 0)
    weights = {n: 0.2 * torch.randn(w.shape, generator=chance) for n, w in blank.items()}
    corpus = Corpus.open(data)
    tokenizer = corpus.tokenizer()
    rows = next(corpus.val_batches(24, 30, 30))[0].tolist()
    texts = [tokenizer.decode([t for t in row if t < tokenizer.bos]) for row in rows]
    choices = tuple(tokenizer.decode(row[:3]) for row in rows if max(row[:3]) < tokenizer.bos)[:8]
    trainer = Trainer(MODEL, TRAIN, corpus, 0)
    trainer.load(weights)

    @torch.no_grad()
    def right(length, *questions):
        return score_task(trainer.model, tokenizer, questions, length).accuracy

    every = [[Question(text, choices, gold) for gold in range(len(choices))] for text in texts]
    answers = [next(q for q in same if right(16, q) == 1.0) for same in every]
    assert right(8, *answers) < 1.0, "the context matters here"
    measured = measure(MODEL, TRAIN, weights, corpus, {"next": answers})
    assert measured.tasks["next"].accuracy == 1.0


def test_more_sequences_can_be_asked_for(run):
    assert asked(run, sequences=1)["val_loss"] != asked(run, sequences=30)["val_loss"]


def refused(request):
    with pytest.raises(UserError) as raised:
        evaluate(request, as_json=True)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_missing_is_one_line_with_the_remedy(run, data, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(encode_weights(initial_weights(MODEL, 1)))
    assert "no run folder" in refused(Request(tmp_path))
    assert "does not exist" in refused(Request(tmp_path / "none", data=data))
    assert "--data FOLDER --sequence-length N" in refused(Request(file))
    assert "--data FOLDER --sequence-length N" in refused(Request(file, data=data))
    assert "--version" in refused(Request(file, version=1, data=data))
    assert "leave it out" in refused(Request(run.path, sequence_length=16))
    assert "the newest is 2" in refused(Request(run.path, version=7))
    assert "holds no data" in refused(Request(run.path, data=tmp_path))
    (run.path / run.read_commits()[1].model).unlink()
    assert "not kept" in refused(Request(run.path, version=1))
    (run.path / "data.json").unlink()
    assert "--data FOLDER" in refused(Request(run.path))


def test_a_run_without_a_commit_says_so(run):
    for path in (run.path / "commits").iterdir():
        path.unlink()
    assert "no commit yet" in refused(Request(run.path))


def test_a_run_of_which_nothing_can_be_read_says_so(tmp_path):
    folder = make_run(tmp_path / "demo-1", Spec(minutes=30))
    assert "not a safetensors file" in refused(Request(folder.path, data=tmp_path))


def test_other_data_than_the_runs_is_refused(run, tmp_path):
    other = tmp_path / "other"
    prepare(DataSection(source="grammar", documents=90, val_share=0.1), MODEL, other)
    note_data(run, other)
    body = json.loads((run.path / "data.json").read_text())
    (run.path / "data.json").write_text(json.dumps({**body, "manifest_sha256": "0" * 64}))
    assert "is not the data that" in refused(Request(run.path))
    assert evaluate(Request(run.path, data=other), as_json=True)


def test_another_vocabulary_or_architecture_is_refused(run, data, tmp_path):
    small = tmp_path / "small.safetensors"
    small.write_bytes(encode_weights(initial_weights(ModelSection(depth=1, vocab_size=300), 1)))
    assert "vocabulary" in refused(Request(small, data=data, sequence_length=16))
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(small.read_bytes().replace(b"nanochat-2025-10", b"nanochat-2031-01"))
    assert "architecture" in refused(Request(foreign, data=data, sequence_length=16))
    body = json.loads(run.resolved.read_text())
    body["model"]["depth"] = 2
    run.resolved.write_text(json.dumps(body))
    assert "another architecture" in refused(Request(run.path))
