"""The documented knobs are the knobs that exist: each table in docs/ is what the fields say of themselves."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from app.domain.safety_policy import SafetyPolicy
from app.domain.training_spec import (
    PRESETS,
    ActivationCritic,
    AdaptiveKL,
    ConstantCritic,
    FixedKL,
    Hyperparameters,
    NoPenalty,
    TrainingOptions,
)

DOCS = Path(__file__).parents[2] / "docs"
MODELS = (
    Hyperparameters,
    TrainingOptions,
    AdaptiveKL,
    FixedKL,
    NoPenalty,
    ActivationCritic,
    ConstantCritic,
    SafetyPolicy,
)


def render(model: type[BaseModel]) -> str:
    """Return the table of a model's fields as the documentation has it."""
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if field.description is None:
            continue
        default = "required" if field.default is PydanticUndefined else f"`{field.default}`"
        if field.default_factory is not None:
            default = "the base model's critic"
        lines.append(f"| `{name}` | {default} | {field.description.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_of_training_is_documented_as_it_is(model: type[BaseModel]) -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    assert render(model) in text, f"docs/training.md lacks this table:\n\n{render(model)}\n"


def test_every_preset_is_documented_as_it_is() -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        values = {
            key: value for key, value in preset.model_dump().items() if key.startswith(("method", "beta"))
        }
        line = f"| `{name}` | " + ", ".join(f"{key} {value}" for key, value in values.items()) + " |"
        assert line in text, line


def test_links_between_documents_lead_somewhere() -> None:
    root = DOCS.parent
    for document in (root / "README.md", root / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
