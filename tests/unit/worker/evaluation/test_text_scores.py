"""Word scores against published examples."""

import random
from itertools import combinations

import pytest

from worker.evaluation.text_scores import common_subsequence, is_exact_match, rouge_l


@pytest.mark.parametrize(
    ("reply", "answer", "expected"),
    [
        # Lin (2004), section 3.1: with beta 1, S2 has 3/4 and S3 2/4 against S1.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        # The example of Google's rouge-score: precision 5/8, recall 5/9.
        ("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog", 10 / 17),
        ("The count is three.", "the count is three", 1.0),
        ("nothing alike", "other words entirely", 0.0),
        ("", "an answer", 0.0),
        ("a reply", "…", 0.0),
        ("Über 3 Äpfel!", "über 3 äpfel", 1.0),
    ],
)
def test_rouge_l(reply: str, answer: str, expected: float) -> None:
    assert rouge_l(reply, answer) == pytest.approx(expected)


def test_the_longest_common_subsequence_is_that_of_trying_all() -> None:
    draw = random.Random(3)  # noqa: S311
    for _ in range(60):
        first, second = ([draw.choice("abc") for _ in range(draw.randrange(8))] for _ in range(2))
        expected = max(
            length
            for length in range(len(first) + 1)
            if length == 0 or set(combinations(first, length)) & set(combinations(second, length))
        )
        assert common_subsequence(first, second) == expected


@pytest.mark.parametrize(
    ("reply", "answer", "same"),
    [
        ("  Three. ", "three", True),
        ("THE\ncount  is", "the count is.", True),
        ("three", "3", False),
        ("three apples", "three", False),
    ],
)
def test_exact_match(reply: str, answer: str, same: bool) -> None:
    assert is_exact_match(reply, answer) is same
