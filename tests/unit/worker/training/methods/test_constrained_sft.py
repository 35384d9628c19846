"""The schedule of the constraint; its loss and gradient are tested with the others in `test_loss.py`."""

import pytest

from app.domain.safety_spec import ConstrainedSFT
from app.domain.step_plan import Layout
from worker.training.data import TokenizedRow
from worker.training.methods.registry import build_method


def strengths(mask, prompt_ends, **fields):
    method = build_method(ConstrainedSFT(**fields), Layout(1, 0, 1, 1, 0))
    bears = tuple(character == "x" for character in mask)
    return method.constraint(TokenizedRow(0, tuple(range(len(mask))), bears, prompt_ends))


def test_the_papers_schedule():
    # arXiv 2406.05946, section 4.2: beta 0.5 at the first token, 2 up to the fifth, 0.1 after.
    assert strengths("...xxxxxxxx", (2,)) == pytest.approx([0.5, 2, 2, 2, 2, 0.1, 0.1, 0.1])


def test_each_turn_begins_anew():
    assert strengths("..xx..xxx", (1, 5)) == pytest.approx([0.5, 2, 0.5, 2, 2])
    assert strengths(".xxxx", (0, 2), early_tokens=1) == pytest.approx([0.5, 0.1, 0.5, 0.1]), (
        "no token between"
    )
