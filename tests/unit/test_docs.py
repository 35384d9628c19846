"""The documented knobs are the knobs that exist: each table in docs/ is what the fields say of themselves."""

import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from app.domain.dataset import Findings, check_prompt_lines
from app.domain.evaluation import NAMES, TELLS
from app.domain.evaluation_spec import Decoding, OpenAIJudge
from app.domain.gate_policy import Gate
from app.domain.safety_policy import SafetyPolicy, parse_policy
from app.domain.safety_spec import (
    PRESETS,
    ActivationCritic,
    Anchors,
    AnySafety,
    CombinedCritic,
    ConstantCritic,
    JudgeCritic,
    Monitor,
)
from app.domain.training_spec import Hyperparameters, TrainingOptions
from app.evaluations.schemas import EvaluationCreate
from app.jobs.schemas import JobCreate

DOCS = Path(__file__).parents[2] / "docs"
MODELS = (
    Hyperparameters,
    TrainingOptions,
    *get_args(AnySafety),
    Anchors,
    Monitor,
    ActivationCritic,
    JudgeCritic,
    ConstantCritic,
    CombinedCritic,
    SafetyPolicy,
)


def render(model: type[BaseModel]) -> str:
    """Return the table of a model's fields as the documentation has it."""
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if field.description is None:
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            default = json.dumps(default.model_dump(exclude_none=True), ensure_ascii=False)
        shown = "required" if default is PydanticUndefined else f"`{default}`"
        lines.append(f"| `{name}` | {shown} | {field.description.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_of_training_is_documented_as_it_is(model: type[BaseModel]) -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    assert render(model) in text, f"docs/training.md lacks this table:\n\n{render(model)}\n"


def test_every_limit_of_the_gate_is_documented_as_it_is() -> None:
    text = (DOCS / "gate.md").read_text(encoding="utf-8")
    assert render(Gate) in text, f"docs/gate.md lacks this table:\n\n{render(Gate)}\n"
    (policy,) = (
        parse_policy(block.encode()) for block in re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S)
    )
    assert policy.gate is not None
    assert {limit.action for limit in policy.gate.limits().values()} == {"warn", "tighten", "pause", "hold"}


def test_every_preset_is_documented_as_it_is() -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        full = {"method": preset.method, **preset.model_dump(exclude_defaults=True)}
        line = f"| `{name}` | `{json.dumps(full)}` |"
        assert line in text, line
        assert type(preset).model_validate(full) == preset


def test_every_body_of_a_job_in_the_documentation_is_one() -> None:
    bodies = [
        json.loads(block)
        for document in sorted(DOCS.glob("*.md"))
        for block in re.findall(r"^```json\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)
    ]
    jobs = [JobCreate.model_validate(body) for body in bodies if "training_file" in body]
    combined = [job.safety.critic for job in jobs if isinstance(job.safety.critic, CombinedCritic)]
    assert [critic.rule for critic in combined] == ["weighted"]
    policies = re.findall(
        r"^```toml\n(.*?)^```$", (DOCS / "training.md").read_text(encoding="utf-8"), re.M | re.S
    )
    (policy,) = (SafetyPolicy.model_validate(tomllib.loads(text)) for text in policies)
    assert policy.category_weights == {"harm": 0.5, "bias": 0.1}


def test_links_between_documents_lead_somewhere() -> None:
    root = DOCS.parent
    for document in (root / "README.md", root / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("model", [EvaluationCreate, Decoding, OpenAIJudge], ids=lambda model: model.__name__)
def test_every_field_of_an_evaluation_is_documented_as_it_is(model: type[BaseModel]) -> None:
    text = (DOCS / "evaluations.md").read_text(encoding="utf-8")
    assert render(model) in text, f"docs/evaluations.md lacks this table:\n\n{render(model)}\n"


def test_the_evaluation_in_the_documentation_is_one() -> None:
    text = (DOCS / "evaluations.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S)
    asked = EvaluationCreate.model_validate_json(body)
    # A server without a judge model must take it as it stands.
    assert [judge.type for judge in asked.judge] == ["rules"]
    prompts = [line.strip().encode() for line in text.splitlines() if line.startswith('    {"messages"')]
    assert check_prompt_lines(prompts) == Findings(rows=3)
    for type_ in TELLS:
        assert f"| `{type_}` |" in text
    for name in NAMES:
        assert f"| `{name}" in text
