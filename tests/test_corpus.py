import re
from collections import Counter
from itertools import islice

import pytest

from uncurtail.lm import corpus
from uncurtail.lm.corpus import embedded_documents, embedded_versions
from uncurtail.lm.grammar import grammar_documents


@pytest.fixture(scope="module")
def some_documents():
    return list(islice(embedded_documents(), 300))


def test_embedded_text_is_english_prose(some_documents):
    text = " ".join(some_documents)
    words = Counter(re.findall(r"[a-z]+", text.lower()))
    assert len(text) > 500_000
    assert words["the"] > 0.03 * words.total()


def test_embedded_text_comes_in_a_fixed_order(some_documents):
    assert list(islice(embedded_documents(), 300)) == some_documents


def test_what_decides_the_text_is_named():
    versions = embedded_versions()
    assert "python" in versions
    assert "numpy" in versions


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def test_only_new_prose_of_files_that_parse_is_taken(tmp_path, monkeypatch):
    prose = "This sentence is long enough to be taken for prose by any reasonable rule, we think."
    other = prose.replace("This", "Another")
    nested = prose.replace("This", "A nested")
    write(
        tmp_path,
        "a.py",
        f'"""{prose}"""\nclass A:\n    """{other}"""\n    def f(self):\n        """{nested}"""\n',
    )
    write(tmp_path, "b.py", f'"""{prose}"""\n')  # seen before
    write(tmp_path, "c.py", '"""' + "| 1.0 | 2.0 | 3.0 |\n" * 20 + '"""\n')  # a table
    write(tmp_path, "d.py", f'"""{prose}!"""\ndef (:\n')  # does not parse
    write(tmp_path, "e.py", '"""Short."""\n')
    write(tmp_path, "tests/f.py", f'"""{prose}?"""\n')
    (tmp_path / "g.py").write_bytes(b'"""\xff\xfe"""')  # not UTF-8
    monkeypatch.setattr(corpus, "topics", {"topic": "A topic.\n"})
    monkeypatch.setattr("uncurtail.lm.corpus.sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(corpus, "PACKAGES", ("no_such_package",))
    documents = list(embedded_documents())
    assert documents == ["A topic.", "\n\n".join([prose, other, nested])]
    assert set(embedded_versions()) == {"python"}


def test_grammar_document_is_a_function_of_seed_and_index():
    few, many = list(grammar_documents(7, 3)), list(grammar_documents(7, 10))
    assert many[:3] == few
    assert len(set(many)) == 10
    assert next(grammar_documents(8, 1)) != few[0]


def test_grammar_verbs_agree_with_their_subject():
    text = " ".join(grammar_documents(0, 50))
    sentences = [s.split() for s in re.findall(r"The ([a-z ]+) a [a-z]+\.", text)]
    endings = Counter((s[-2].endswith("s"), s[-1].endswith("s")) for s in sentences)
    assert set(endings) == {(True, False), (False, True)}


def test_grammar_keeps_its_facts_to_the_end():
    for text in grammar_documents(0, 20):
        facts = dict(re.findall(r"The (\w+) is (\w+)\.", text))
        recalled = re.findall(r"As we know, the (\w+) is (\w+)\.", text)
        assert all(facts[noun] == adjective for noun, adjective in recalled)


def test_grammar_words_are_zipfian():
    words = Counter(re.findall(r"a (\w+)\.", " ".join(grammar_documents(0, 200))))
    ranked = [count for _, count in words.most_common()]
    assert ranked[0] > 5 * ranked[20] > 0
