"""What pictures say of who measured the risk."""

from typing import Any

import pytest

from app.jobs.schemas import describe_critic

ACTIVATION = {
    "type": "activation",
    "id": "critic_1",
    "quality": {"auroc": 0.97, "tpr_at_1_percent_fpr": 0.875},
}
JUDGE = {"type": "judge", "votes": 3}


@pytest.mark.parametrize(
    ("critic", "words"),
    [
        (None, "no critic measured the risk"),
        ({"type": "constant", "s": 0.5}, "risk by a constant critic: s = 0.5 for every row"),
        (ACTIVATION, "risk by critic_1; on held-out topics AUROC 0.970, TPR at 1 % FPR 0.875"),
        (JUDGE, "risk by a judge, 3 votes a text"),
        (
            {"type": "combined", "rule": "max", "critics": [JUDGE, ACTIVATION]},
            "risk by the highest of: a judge, 3 votes a text; critic_1; on held-out topics AUROC 0.970,"
            " TPR at 1 % FPR 0.875",
        ),
        (
            {
                "type": "combined",
                "rule": "weighted",
                "weights": [0.75, 0.25],
                "critics": [JUDGE, ACTIVATION | {"category": "bias"}],
            },
            "risk by the weighted sum of: 0.75 × a judge, 3 votes a text; 0.25 × critic_1 (bias); on held-out topics"
            " AUROC 0.970, TPR at 1 % FPR 0.875",
        ),
    ],
)
def test_a_critic_in_words(critic: dict[str, Any] | None, words: str) -> None:
    assert describe_critic(critic) == words
