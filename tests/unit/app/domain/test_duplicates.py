"""Rows that say the same."""

from typing import Any

from app.domain.duplicates import MAX_GROUPS, MAX_INDICES, digest_rows, find_duplicates, find_leaks


def row(question: str, answer: str = "Yes.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [row("Is it?"), row("is  IT?\n"), row("Is it?"), row("Is it?", "No."), row("\ufb01ne?"), row("fine?")]


def test_exact() -> None:
    found = find_duplicates(digest_rows(ROWS, "exact"))
    assert found == {"rows": 1, "groups": [{"count": 2, "rows": [0, 2]}], "group_count": 1}


def test_normalised_forgets_case_space_and_unicode_form() -> None:
    found = find_duplicates(digest_rows(ROWS, "normalised"))
    assert found["rows"] == 3
    assert [each["rows"] for each in found["groups"]] == [[0, 1, 2], [4, 5]]


def test_leaks_name_both_sides() -> None:
    training, validation = (
        digest_rows(ROWS, "normalised"),
        digest_rows([row("other"), row("IS IT?")], "normalised"),
    )
    assert find_leaks(training, validation) == {
        "rows": 1,
        "pairs": [{"validation_row": 1, "training_rows": [0, 1, 2]}],
    }


def test_lists_are_bounded_and_counts_are_not() -> None:
    many = [b"same"] * 50 + [bytes([n]) for n in range(200) for _ in range(2)]
    found = find_duplicates(many)
    assert found["rows"] == 249
    assert found["group_count"] == 201
    assert len(found["groups"]) == MAX_GROUPS
    assert found["groups"][0]["count"] == 50
    assert len(found["groups"][0]["rows"]) == MAX_INDICES
    assert find_leaks(many, many)["rows"] == 450
