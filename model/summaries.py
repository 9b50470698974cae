"""Extractive summaries: the sentences of a description that say most of what it says. Knows no model and no file.

A sentence counts by its mean cosine to the other sentences (words weighted by how few sentences have them): what many
sentences share is the subject. Made on the fly: a millisecond for the longest description that ingest keeps.
"""

from __future__ import annotations

import math
import re
from collections import Counter

MAX_SENTENCES = 1000
"""Later ones are not read: bounds the work that one hostile text can cause."""
_MAX_READ_CHARACTERS = 100_000
# After a full stop comes a space and no lower-case letter: "5 in. wide" is one sentence. Some scripts put no space.
_BOUNDARY = re.compile(r"(?<=[.!?…])\s++(?![a-zà-ÿ])|(?<=[。！？])|\n")
_WORD = re.compile(r"\w+")


def summarise(description: str, max_chars: int) -> str:
    """The most central sentences, as they are and in their order, joined by spaces: at most `max_chars` characters.

    All of them where they fit, a sentence that comes twice only once; the most central one cut between words where not
    even the shortest fits.
    """
    sentences = _sentences(description)
    if not sentences or len(" ".join(sentences)) <= max_chars:
        return " ".join(sentences)
    centrality = _centrality(sentences)
    best_first = sorted(range(len(sentences)), key=lambda at: (-centrality[at], at))
    chosen: list[int] = []
    room = max_chars
    for at in best_first:
        if len(sentences[at]) <= room:
            chosen.append(at)
            room -= len(sentences[at]) + 1
    if not chosen:
        return _cut(sentences[best_first[0]], max_chars)
    return " ".join(sentences[at] for at in sorted(chosen))


def _sentences(text: str) -> list[str]:
    parts = (part.strip() for part in _BOUNDARY.split(text[:_MAX_READ_CHARACTERS]))
    return list(dict.fromkeys(part for part in parts if part))[:MAX_SENTENCES]


def _centrality(sentences: list[str]) -> list[float]:
    """Of every sentence: the sum of its cosines to the others, as one product with the sum of their unit vectors."""
    counts = [Counter(_WORD.findall(sentence.lower())) for sentence in sentences]
    num_with = Counter(word for count in counts for word in count)
    vectors = [
        _unit({word: n * math.log(1 + len(sentences) / num_with[word]) for word, n in c.items()}) for c in counts
    ]
    total: Counter[str] = Counter()
    for vector in vectors:
        for word, weight in vector.items():
            total[word] += weight  # type: ignore[assignment]
    return [sum(weight * (total[word] - weight) for word, weight in vector.items()) for vector in vectors]


def _unit(vector: dict[str, float]) -> dict[str, float]:
    length = math.sqrt(sum(weight * weight for weight in vector.values())) or 1.0
    return {word: weight / length for word, weight in vector.items()}


def _cut(text: str, max_chars: int) -> str:
    if max_chars <= 0:
        return ""
    cut = text[:max_chars]
    if text[max_chars : max_chars + 1].isspace():
        return cut.rstrip()
    return (cut.rpartition(" ")[0] or cut).rstrip()
