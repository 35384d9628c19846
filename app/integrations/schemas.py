"""Where else a job is to be shown: the `integrations` of a job."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from app.domain.frozen import Frozen

# MLflow's own limits are wider; PostgreSQL keeps no NUL.
Name = Annotated[str, Field(min_length=1, max_length=250, pattern=r"^[^\x00]*$")]
TagName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. /-]*$")]
TagValue = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]


class MlflowRun(Frozen):
    """The run that a job becomes on the operator's MLflow tracking server."""

    experiment: Name = Field(description="Experiment of the run; it is made where it is missing.")
    run_name: Name | None = Field(None, description="Name of the run. Default: the job's id.")
    tags: Annotated[dict[TagName, TagValue], Field(max_length=20)] | None = Field(
        None, description="Tags of the run, beside those that Tether sets, which begin with `tether.`."
    )

    @model_validator(mode="after")
    def _tags_are_not_ours(self) -> "MlflowRun":
        for name in self.tags or ():
            if name.startswith(("tether.", "mlflow.")):
                raise ValueError(
                    f"the tag {name!r} has a prefix that is set by Tether or MLflow; name it otherwise"
                )
        return self


def _refuse_wandb(value: Any) -> Any:
    # OpenAI's export to W&B would send a project's data to somebody else's cloud.
    if value == "wandb":
        raise ValueError(
            "this service sends nothing to W&B; leave the integration out, and make a run of the job's metrics.csv with"
            " docs/examples/wandb_offline.py, which needs no network"
        )
    return value


class Integration(Frozen):
    """Export of a job to MLflow, the only kind that there is."""

    type: Annotated[Literal["mlflow"], BeforeValidator(_refuse_wandb)]
    mlflow: MlflowRun
