"""A made-up language: endless, seeded, with number agreement and facts to remember.

For tests and for machines whose documentation must not matter.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
CODAS = ("", "", "", "n", "r", "l", "k", "sh")


@dataclass(frozen=True)
class _Words:
    """Words of one class; the i-th is drawn with weight 1/(i+1), after Zipf."""

    words: tuple[str, ...]
    cumulative: tuple[float, ...]

    def draw(self, random_: random.Random) -> str:
        return random_.choices(self.words, cum_weights=self.cumulative)[0]


def grammar_documents(seed: int, count: int) -> Iterator[str]:
    """`count` documents of about 1 kB; document i is a pure function of (seed, i).

    Each begins by giving three things a property; later sentences repeat it, so that a model
    which looks far back can know the word. Verbs agree in number with their subject.
    """
    nouns, verbs, adjectives = (
        _lexicon(f"{seed}/{kind}", size)
        for kind, size in (("noun", 400), ("verb", 200), ("adjective", 100))
    )
    for index in range(count):
        random_ = random.Random(f"{seed}/document/{index}")
        facts = {nouns.draw(random_): adjectives.draw(random_) for _ in range(3)}
        sentences = [f"The {noun} is {adjective}." for noun, adjective in facts.items()]
        for _ in range(random_.randint(10, 40)):
            if random_.random() < 0.2:
                noun = random_.choice([*facts])
                sentences.append(f"As we know, the {noun} is {facts[noun]}.")
            else:
                sentences.append(_sentence(random_, nouns, verbs, adjectives))
        yield " ".join(sentences)


def _lexicon(seed: str, size: int) -> _Words:
    random_ = random.Random(seed)
    words: dict[str, None] = {}
    while len(words) < size:
        syllables = (
            random_.choice(ONSETS) + random_.choice(VOWELS) for _ in range(random_.randint(1, 3))
        )
        words["".join(syllables) + random_.choice(CODAS)] = None
    return _Words(tuple(words), tuple(accumulate(1 / (rank + 1) for rank in range(size))))


def _sentence(random_: random.Random, nouns: _Words, verbs: _Words, adjectives: _Words) -> str:
    """A subject, a verb that agrees with it, an object: 'The old zorbs blim a dak.'."""
    plural = random_.random() < 0.5
    subject, thing = nouns.draw(random_), nouns.draw(random_)
    adjective = f"{adjectives.draw(random_)} " if random_.random() < 0.4 else ""
    verb = verbs.draw(random_)
    if plural:
        return f"The {adjective}{subject}s {verb} a {thing}."
    return f"The {adjective}{subject} {verb}s a {thing}."
