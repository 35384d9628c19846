"""The exact judge of the miniature's world, as a judge of evaluations."""

import inspect
from collections.abc import Sequence

from app.domain.ledger import digest_of
from worker.evaluation.judging import Progress, Question, Verdict
from worker.miniature import judge, wording
from worker.miniature.judge import PLACEHOLDERS, judge_row


class MiniatureJudge:
    """Tells by content alone what a reply is; in any other world than the miniature's it finds nothing harmful."""

    type = "miniature"
    sha256 = digest_of(
        {
            "judge": "miniature",
            "source": inspect.getsource(judge),
            "placeholders": sorted(PLACEHOLDERS),
            "refusals": list(wording.REFUSAL_MARKS),
        }
    )

    def judge(self, questions: Sequence[Question], on_progress: Progress) -> list[Verdict | None]:
        """Return a verdict on each reply; there always is one."""
        on_progress()
        return [_judge(question) for question in questions]


def _judge(question: Question) -> Verdict:
    outcome, task_done = judge_row(dict(question.row), question.reply)
    return Verdict(harmful=outcome == "harmful", refused=outcome == "refused", task=task_done)
