from pydoc_data.topics import topics

import pytest
import torch

from tests.test_model import model_of
from uncurtail.lm.export import Trained, write_hf
from uncurtail.lm.model import GPT, ModelSection, initial_weights
from uncurtail.lm.optim import OptimSection, build_optimizers
from uncurtail.lm.sample import continue_text, generate
from uncurtail.lm.tokenizer import train_tokenizer

SECTION = ModelSection(depth=1, vocab_size=300, sequence_length=16)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices this small gain nothing from a second one, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return model_of(SECTION)


def test_greedy_takes_the_most_likely_token_each_time(model):
    seen = [1, 2, 3]
    found = generate(model, seen, 5)
    for token in found:
        assert token == int(model(torch.tensor([seen]))[0, -1].argmax())
        seen.append(token)
    assert len(found) == 5


def test_the_model_sees_no_more_than_its_sequence(model):
    long = list(range(40))
    assert generate(model, long, 20) == generate(model, long[-16:], 20)


def test_equal_seeds_give_equal_text(model):
    first, again, other = (
        generate(model, [1], 12, temperature=1.0, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again != other


def test_a_low_temperature_is_nearly_greedy_and_a_high_one_nearly_even(model):
    assert generate(model, [1], 8, temperature=1e-4) == generate(model, [1], 8)
    assert len(set(generate(model, [1], 80, temperature=1e4))) > 60  # of 300


@pytest.mark.parametrize("temperature", [1e-9, 1e-40, 1e-310])
def test_next_to_no_temperature_is_none(model, temperature):
    assert generate(model, [1], 8, temperature=temperature) == generate(model, [1], 8)


def test_draws_follow_the_odds(model):
    logits = model(torch.tensor([[7]]))[0, -1]
    odds = torch.softmax(logits.detach() / 2.0, dim=0)
    drawn = [generate(model, [7], 1, temperature=2.0, seed=seed)[0] for seed in range(400)]
    share = torch.bincount(torch.tensor(drawn), minlength=300) / 400
    likely = odds.topk(3).indices
    torch.testing.assert_close(share[likely], odds[likely], atol=0.07, rtol=0)


def test_the_stop_token_ends_the_text_and_is_dropped(model):
    whole = generate(model, [1], 6)
    assert generate(model, [1], 6, stop=whole[3]) == whole[: whole.index(whole[3])]


def test_without_a_token_to_begin_with_there_is_nothing_to_say(model):
    with pytest.raises(ValueError, match="give at least the start token"):
        generate(model, [], 3)


@pytest.fixture(scope="module")
def writer():
    """A model that has learnt a little of real text, and its vocabulary."""
    words = train_tokenizer(topics.values(), 1000)
    section = ModelSection(depth=2, vocab_size=1024, sequence_length=64)
    tokens = torch.tensor([t for row in words.encode_batch(list(topics.values())) for t in row])
    model = GPT(section)
    model.load_state_dict(initial_weights(section, 0))
    optimizers = build_optimizers(model, OptimSection())
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        starts = torch.randint(len(tokens) - 65, (8,), generator=generator)
        rows = torch.stack([tokens[start : start + 65] for start in starts])
        optimizers.zero_grad()
        loss = model.loss(rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizers.step(1.0, 0.9)
    assert loss.item() < 6.0  # of ln 1024 = 6.9: it knows some words
    return section, model, words


PROMPTS = ("The statement", "A class", "", "exception (see", "中文")


def test_greedy_text_equals_that_of_transformers_token_for_token(writer, tmp_path):
    transformers = pytest.importorskip("transformers")
    section, model, words = writer
    write_hf(Trained(section, model.state_dict(), words), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        (whole,) = theirs.generate(**given, max_new_tokens=40, do_sample=False).tolist()
        length = given["input_ids"].shape[1]
        new = [token for token in whole[length:] if token != words.bos]
        assert generate(model, whole[:length], 40, stop=words.bos) == new
        text = tokenizer.decode(whole, skip_special_tokens=True)
        assert continue_text(model, words, prompt, 40) == text


def test_a_token_without_text_is_left_out(writer):
    _, model, words = writer
    model.lm_head.weight.data[1023] = 0.0  # never trained, beyond the vocabulary of 1000
    text = continue_text(model, words, "A", 50, temperature=50.0, seed=1)
    assert text.startswith("A")
