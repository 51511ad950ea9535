import json

import pytest

from uncurtail.lm.grammar import grammar_documents
from uncurtail.lm.tokenizer import Tokenizer, train_tokenizer

DOCUMENTS = list(grammar_documents(seed=0, count=40))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 400)


@pytest.mark.parametrize(
    "text",
    ["", "plain words", "Größe, 日本語, 🌞", "a" * 5000, "\x00\r\n\t  ", "<|bos|>", "1234567"],
    ids=["empty", "ascii", "unicode", "run", "control", "special-as-text", "digits"],
)
def test_any_text_survives_encoding(tokenizer, text):
    (tokens,) = tokenizer.encode_batch([text])
    assert tokens[0] == tokenizer.bos
    assert tokenizer.bos not in tokens[1:]
    assert tokenizer.decode(tokens[1:]) == text


def test_vocabulary_has_the_size_asked_for(tokenizer):
    assert tokenizer.vocab_size == 400
    assert tokenizer.bos == 399
    assert max(max(t) for t in tokenizer.encode_batch(DOCUMENTS)) == 399


def test_token_bytes_add_up_to_the_text(tokenizer):
    for text, tokens in zip(DOCUMENTS, tokenizer.encode_batch(DOCUMENTS), strict=True):
        assert tokenizer.token_bytes[tokens].sum() == len(text.encode())


def test_training_and_encoding_are_deterministic(tokenizer):
    again = train_tokenizer(DOCUMENTS, 400)
    assert again.sha256 == tokenizer.sha256
    assert again.encode_batch(DOCUMENTS, threads=1) == tokenizer.encode_batch(DOCUMENTS, threads=4)


def test_saved_tokenizer_is_the_same_when_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json") == tokenizer


def damage_rank(content):
    content["ranks"][300] = content["ranks"][301]


def damage_pattern(content):
    content["pattern"] = "x"


def drop_hash(content):
    del content["sha256"]


@pytest.mark.parametrize("damage", [damage_rank, damage_pattern, drop_hash])
def test_an_altered_file_is_refused_with_its_name_and_the_remedy(tokenizer, tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json.*prepare the data again"):
        Tokenizer.load(path)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="prepare the data again"):
        Tokenizer.load(path)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="below 257"):
        train_tokenizer(DOCUMENTS, 256)
