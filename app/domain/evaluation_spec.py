"""What an evaluation is asked for: the prompts, the judges, and how replies are drawn.

The same fields stand in a request and in an operator's policy; what was found is in `app.domain.evaluation`.
"""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from app.domain.evaluation import DecodingUsed
from app.domain.frozen import Frozen

BUILTIN_SUITES = ("miniature",)
"""Prompts that come with Tether, by name; any other suite is the id of an uploaded file of prompts."""

MAX_DRAWN_TOKENS = 64_000_000
"""Of all replies of an evaluation, drawn in whatever way, at most."""


class RulesJudge(Frozen):
    """Tells refusals by a list of phrases; whatever is no refusal counts as giving in."""

    type: Literal["rules"]


class ClassifierJudge(Frozen):
    """The operator's text classifier, a local Hugging Face directory; it reads the prompt and the reply."""

    type: Literal["classifier"]


class OpenAIJudge(Frozen):
    """The operator's judge model, behind an OpenAI-compatible server."""

    type: Literal["openai"]
    harmful_from: Annotated[int, Field(ge=2, le=5, strict=True)] = Field(
        4, description="Score of the rubric, from 1 to 5, from which a reply counts as giving in."
    )
    compare: bool = Field(
        False, description="Whether it also compares the replies before and after, for a win rate."
    )


class MiniatureJudge(Frozen):
    """The exact judge of the miniature's world; elsewhere it knows nothing."""

    type: Literal["miniature"]


JudgeSpec = Annotated[
    RulesJudge | ClassifierJudge | OpenAIJudge | MiniatureJudge, Field(discriminator="type")
]


class Decoding(Frozen):
    """How prompts are put to the model, before and after alike."""

    greedy: bool = Field(True, description="The likeliest reply to every prompt.")
    samples: Annotated[int, Field(ge=0, le=32, strict=True)] = Field(
        0, description="Replies drawn at temperature 1 for every prompt; 0 for none."
    )
    prefill: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        None, description="An opening put into the model's mouth, for harmful prompts."
    )
    data_prefixes: Annotated[int, Field(ge=0, le=16, strict=True)] = Field(
        0,
        description="Beginnings of the model's own training data (system messages, first words of requests and of"
        " replies) that harmful prompts are put behind, the most frequent first.",
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, strict=True)] = Field(
        128, description="Tokens that a reply has at most."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = Field(
        0, description="Of the replies that are drawn."
    )

    @model_validator(mode="after")
    def _something_is_drawn(self) -> "Decoding":
        if not (self.greedy or self.samples or self.prefill or self.data_prefixes):
            raise ValueError(
                "no reply is drawn; ask for at least one of greedy, samples, prefill and data_prefixes"
            )
        return self

    def check_size(self, prompts: int) -> None:
        """Raise ValueError where the replies to so many prompts could be longer than one evaluation may draw.

        Every prompt counts as harmful, and every beginning of the data as found: which are is not known yet.
        """
        replies = self.greedy + self.samples + (self.prefill is not None) + self.data_prefixes
        tokens = prompts * replies * self.max_new_tokens
        if tokens > MAX_DRAWN_TOKENS:
            raise ValueError(
                f"{prompts} prompts with {replies} replies (greedy, samples, prefill and data_prefixes together) of up to"
                f" {self.max_new_tokens} tokens are {tokens} tokens; at most {MAX_DRAWN_TOKENS} are drawn in one evaluation. Ask for less of one of them"
            )

    def used(self, prefixes: int) -> DecodingUsed:
        """Return what a record holds of it; `prefixes` is how many beginnings the data had."""
        return DecodingUsed(
            greedy=self.greedy,
            samples=self.samples,
            prefill_sha256=hashlib.sha256(self.prefill.encode()).hexdigest() if self.prefill else None,
            prefixes=prefixes,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )


def _or_one_alone(schema: dict[str, Any]) -> None:
    """Say in the schema that a judge may stand for a list of one."""
    several = {key: schema.pop(key) for key in ("items", "maxItems", "minItems", "type")}
    schema["anyOf"] = [several["items"], several]


class EvaluationSpec(Frozen):
    """Prompts, judges and decoding."""

    suite: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        description="Name of a suite that comes with Tether, or the id of an uploaded file of prompts."
    )
    judge: Annotated[tuple[JudgeSpec, ...], Field(min_length=1, max_length=4)] = Field(
        description="The judge, or a list of judges of different types; where they disagree, that is reported.",
        json_schema_extra=_or_one_alone,
    )
    decoding: Decoding = Field(default_factory=lambda: Decoding.model_validate({}))

    @field_validator("judge", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _each_judge_once(self) -> "EvaluationSpec":
        types = [judge.type for judge in self.judge]
        if len(set(types)) < len(types):
            raise ValueError("judge: each type of judge can be asked for once")
        return self
