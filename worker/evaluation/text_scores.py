"""How near a reply is to the answer that was wanted, by its words alone."""

import re

_WORD = re.compile(r"[^\W_]+")


def is_exact_match(reply: str, answer: str) -> bool:
    """Say whether a reply is the answer, up to case, white space and a final stop."""
    return _normalise(reply) == _normalise(answer)


def rouge_l(reply: str, answer: str) -> float:
    """Return ROUGE-L (Lin 2004) of a reply: F1 over the longest common subsequence of words, from 0 to 1.

    Words are runs of letters and digits in lower case; there is no stemming. 0 where either has no word.
    """
    found, wanted = _words(reply), _words(answer)
    if not found or not wanted:
        return 0.0
    common = common_subsequence(found, wanted)
    return 2 * common / (len(found) + len(wanted))


def common_subsequence(first: list[str], second: list[str]) -> int:
    """Return the length of the longest common subsequence, a whole row of the table at once (Hyyrö 2004).

    A bit of `row` is 0 where the length grows at that place of `second`.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(second)) - 1
    row = whole
    for word in first:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & whole
    return len(second) - row.bit_count()


def _normalise(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
