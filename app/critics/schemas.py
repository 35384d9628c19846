"""Critics on the wire."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.domain.frozen import Frozen
from app.domain.job import WIRE_STATUS, State
from app.domain.safety_spec import DEFAULT_CATEGORY, Category
from app.models.base_model import Critic
from app.models.work import Work

Layer = Annotated[int, Field(ge=1, strict=True)]
Pooling = Literal["mean"] | Layer
"""Which layers a critic reads: the mean of all, or one, counted from 1."""


class CriticCreate(Frozen):
    """The body of `POST /v1/critics`."""

    file: str = Field(description="Id of an uploaded file of labelled requests.")
    model: str = Field(description="Base model to fit the critic for.")
    pooling: Pooling = Field(
        "mean", description="Layers that the critic reads: the mean of all, or one, counted from 1."
    )
    category: Category = Field(
        DEFAULT_CATEGORY, description="Harm category that the label 1 stands for, such as `bias`."
    )


def critic_to_wire(work: Work | None, critic: Critic | None, *, whole: bool) -> dict[str, Any]:
    """Return a critic as an object of the wire; `whole` adds the report. Numbers are null until it is fitted."""
    asked = work or critic
    if asked is None:
        raise ValueError("a critic has a row of its own, or one of the work that fits it")
    found: dict[str, Any] = {
        "id": asked.id,
        "object": "critic",
        "created_at": int(asked.created_at.timestamp()),
        "model": critic.base_model if critic else work.args["base_model"] if work else None,
        "category": category_of(work, critic),
        "pooling": pooling_of(work, critic),
        "status": WIRE_STATUS[State(work.state)] if work else "succeeded",
        "error": work.error if work else None,
        "sha256": critic.digest if critic else None,
        "base_model_sha256": critic.base_digest if critic else None,
        "low": critic.low if critic else None,
        "high": critic.high if critic else None,
        "threshold": critic.threshold if critic else None,
        "quality": quality_of(critic) if critic else None,
    }
    if whole:
        found["report"] = critic.report if critic else None
    return found


def pooling_of(work: Work | None, critic: Critic | None) -> Any:
    """Return which layers a critic reads; all of them where it was asked for before one could be named."""
    fields = critic.report if critic else work.args if work else {}
    return fields.get("pooling", "mean")


def category_of(work: Work | None, critic: Critic | None) -> str:
    """Return the harm category of a critic; the default where it was asked for before there were any."""
    asked: str = work.args.get("category", DEFAULT_CATEGORY) if work else DEFAULT_CATEGORY
    return critic.category if critic else asked


def quality_of(critic: Critic) -> dict[str, float | None]:
    """Return the figures on held-out groups by which a critic is judged at a glance.

    Each recall is measured at points that were chosen without the rows it is counted on: `recall` is the share of
    harmful rows with any risk at all, `recall_at_threshold` of those that are replayed or dropped. Null is a figure
    that critics of earlier versions do not have.
    """
    points = critic.report.get("cross_points", {})
    return {
        "auroc": critic.report.get("auroc"),
        "tpr_at_1_percent_fpr": critic.report.get("tpr_at_1_percent_fpr"),
        "recall": _share(points, "low"),
        "recall_at_threshold": _share(points, "threshold"),
    }


def _share(points: dict[str, Any], name: str) -> float | None:
    found: float | None = points.get(name, {}).get("recall", {}).get("share")
    return found


def describe_recall(critic: Critic) -> str:
    """Return the recall, with its interval and the number of harmful rows that it was counted on, as far as known."""
    recall = critic.report.get("cross_points", {}).get("low", {}).get("recall", {})
    share, n, interval = (recall.get(name) for name in ("share", "n", "interval"))
    if share is None:
        return "unknown"
    if not n:
        return f"{share:.3f}"
    return f"{share:.3f} (95 %: {interval[0]:.3f} to {interval[1]:.3f}, n = {n})"
