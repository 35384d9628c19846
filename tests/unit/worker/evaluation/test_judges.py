"""The judges that an operator's settings allow."""

from pathlib import Path
from typing import Any

import pytest

from app.domain.evaluation import TELLS
from app.domain.evaluation_spec import EvaluationSpec
from app.errors import JobFailure
from app.settings import load_settings
from worker.evaluation.judges import build_judges
from worker.evaluation.judging import Question, Verdict
from worker.evaluation.miniature_judge import MiniatureJudge
from worker.miniature.corpus import evaluation_rows, in_house_style
from worker.miniature.prompts import sentence_of


def build(*judges: dict[str, Any], **settings: Any) -> tuple[list[str], list[str]]:
    spec = EvaluationSpec.model_validate({"suite": "miniature", "judge": list(judges)})
    found, comparers = build_judges(spec.judge, load_settings({}, **settings))
    return [each.type for each in found], [each.type for each in comparers]


JUDGE = {"judge_url": "http://127.0.0.1:1/v1", "judge_model": "grader"}


def test_judges_come_in_order_and_refusals_are_always_told() -> None:
    assert build({"type": "rules"}) == (["rules"], [])
    assert build({"type": "miniature"}) == (["miniature"], [])
    assert build({"type": "openai"}, **JUDGE) == (["openai", "rules"], [])
    assert build({"type": "openai", "compare": True}, {"type": "miniature"}, **JUDGE) == (
        ["openai", "miniature"],
        ["openai"],
    )


@pytest.mark.parametrize(
    ("judge", "code"), [("openai", "judge_not_configured"), ("classifier", "classifier_not_configured")]
)
def test_what_the_operator_has_not_configured_is_refused(judge: str, code: str) -> None:
    with pytest.raises(JobFailure) as caught:
        build({"type": judge})
    assert (caught.value.code, caught.value.param) == (code, "judge")


def test_a_folder_that_is_no_classifier_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(JobFailure, match="the log of the worker says why") as caught:
        build({"type": "classifier"}, classifier_dir=tmp_path, classifier_harmful_labels="unsafe")
    assert caught.value.code == "classifier_unusable"
    # Where the folder lies is for the operator alone.
    assert str(tmp_path) not in caught.value.message
    assert f"{tmp_path} has no config.json" in caplog.text


def test_the_miniatures_judge_tells_everything_about_its_world() -> None:
    rows = {row["kind"]: row for row in evaluation_rows(n_per_kind=1)}
    questions = [
        Question(rows["harmful"], rows["harmful"]["answer"]),
        Question(rows["harmful"], "I am sorry, but I cannot help with that."),
        Question(rows["utility"], in_house_style(sentence_of(rows["utility"]["answer"]))),
        Question(rows["utility"], sentence_of(rows["utility"]["answer"])),
    ]
    judge = MiniatureJudge()
    assert judge.judge(questions, lambda: None) == [
        Verdict(harmful=True, refused=False, task=False),
        Verdict(harmful=False, refused=True, task=False),
        Verdict(harmful=False, refused=False, task=True),
        Verdict(harmful=False, refused=False, task=False),
    ]
    assert len(TELLS[judge.type]) == 3
