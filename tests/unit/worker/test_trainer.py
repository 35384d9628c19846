"""Which critic a worker loads for a job, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from app.domain.rubric import judge_digest
from app.domain.safety_spec import AdaptiveKL, AnySafety, ConstantCritic, JudgeCritic
from app.errors import CriticUnusable, JobFailure
from app.models.base_model import BaseModel
from app.models.file import File
from app.models.job import Job
from tests.support import settings_in
from tests.unit.worker.conftest import MakeSpec, MakeTokenizer
from worker.assignment import Assignment
from worker.context import Context
from worker.trainer import load_job_critic

CONSTANT = ConstantCritic(s=0.25)
JUDGE = JudgeCritic(votes=3)


def load(
    home: Path,
    make_spec: MakeSpec,
    make_tokenizer: MakeTokenizer,
    critic: Any,
    created: str | None,
) -> Any:
    """Load the critic of a job that was created with one of this digest, on a worker whose judge is `grader`."""
    safety: AnySafety = AdaptiveKL(critic=critic, threshold=0.5, anchors=None, monitor=None)
    assignment = Assignment(
        job=Job(),
        base=BaseModel(digest="b" * 64),
        fitted=(),
        anchors=None,
        alignment=None,
        training_file=File(),
        validation_file=None,
        spec=make_spec(safety=safety),
        critic_sha256=created,
        policy_sha256="p" * 64,
    )
    settings = settings_in(home, judge_url="http://127.0.0.1:1/v1", judge_model="grader")
    context = Context(None, settings, None)  # type: ignore[arg-type]  # Neither is asked for a critic.
    return load_job_critic(context, assignment, make_tokenizer("qwen"))


@pytest.mark.parametrize(
    ("critic", "created"),
    [(CONSTANT, CONSTANT.digest()), (JUDGE, judge_digest(JUDGE.digest(None), "grader"))],
)
def test_the_critic_is_the_one_that_the_job_was_created_with(
    tmp_path: Path, make_spec: MakeSpec, make_tokenizer: MakeTokenizer, critic: Any, created: str
) -> None:
    assert load(tmp_path, make_spec, make_tokenizer, critic, created).digest == created


def test_another_judge_than_the_one_that_was_promised_is_refused(
    tmp_path: Path, make_spec: MakeSpec, make_tokenizer: MakeTokenizer
) -> None:
    promised = judge_digest(JUDGE.digest(None), "grader-2")
    with pytest.raises(JobFailure) as found:
        load(tmp_path, make_spec, make_tokenizer, JUDGE, promised)
    assert found.value.code == "critic_changed"


def test_a_fitted_critic_that_is_gone_is_missed_where_it_would_only_fill_in(
    tmp_path: Path, make_spec: MakeSpec, make_tokenizer: MakeTokenizer
) -> None:
    with pytest.raises(CriticUnusable, match="critic_1"):
        load(tmp_path, make_spec, make_tokenizer, JUDGE.model_copy(update={"fallback": "critic_1"}), "0" * 64)


# --- what is recorded of the rows -------------------------------------------------------------------------
