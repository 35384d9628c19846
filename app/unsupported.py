"""Paths of the wire that this service does not serve: each answers with what to do instead.

Tether trains and never generates. What serves an adapter is an inference server such as vLLM, whose command is in the
reply.
"""

import json
import shlex
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from sqlalchemy.orm import Session

from app.base_models.repository import get_base_model, get_tuned_model
from app.base_models.tuned import TunedModel
from app.dependencies import CallerDep, ReadSessionDep, needs
from app.domain.scopes import Scope
from app.errors import NotSupported

router = APIRouter(dependencies=[needs(Scope.MODELS_READ)], include_in_schema=False)

GENERATION = ("chat/completions", "completions", "responses")
OTHERS = {
    "embeddings": "it makes no embeddings; ask a server of embedding models",
    "moderations": "it moderates no text; the risk of training rows is in GET /v1/fine_tuning/jobs/{id}/risk, and of live"
    " text a moderation model tells",
    "batches": "it generates nothing, so it has no batches; send them to the server of the adapter",
    "fine_tuning/alpha/graders/run": "reinforcement fine-tuning is not supported, and graders belong to it; train with"
    " method.type 'supervised', and have a judge watch the run with safety.critic",
    "fine_tuning/alpha/graders/validate": "reinforcement fine-tuning is not supported, and graders belong to it; train with"
    " method.type 'supervised', and have a judge watch the run with safety.critic",
}
VLLM_RANKS = (8, 16, 32, 64, 128, 256)
"""Values that vLLM takes as the highest rank."""


async def read_model(request: Request) -> str | None:
    """Return the model that a body names, whatever else is in it."""
    try:
        body: Any = json.loads(await request.body())
    except (ValueError, RecursionError):
        return None
    model = body.get("model") if isinstance(body, dict) else None
    # Neither a NUL nor half of a surrogate pair can be looked up, and no name has one.
    return model if isinstance(model, str) and model.isprintable() else None


def refuse_generation(
    request: Request,
    caller: CallerDep,
    session: ReadSessionDep,
    model: Annotated[str | None, Depends(read_model)],
) -> None:
    """Say how to serve the model that was asked for."""
    raise NotSupported(
        f"{request.method} {request.url.path}: this service trains models and does not generate text."
        f" {how_to_serve(session, caller.project_id, model)}"
    )


def refuse_other(request: Request) -> None:
    """Say what to do instead of what was asked for."""
    instead = OTHERS[request.url.path.removeprefix("/v1/")]
    raise NotSupported(f"{request.method} {request.url.path}: this service trains models; {instead}")


def how_to_serve(session: Session, project_id: str, name: str | None) -> str:
    """Return the vLLM command that serves a model of the project."""
    base = get_base_model(session, name) if name is not None else None
    if base is not None:
        return f"Serve the base model with vLLM: vllm serve {shlex.quote(base.name)}"
    tuned = get_tuned_model(session, project_id, name) if name is not None else None
    if tuned is None:
        return (
            "Serve an adapter with vLLM: vllm serve BASE_MODEL --enable-lora --lora-modules NAME=FOLDER, where FOLDER is the"
            " unpacked zip of GET /v1/fine_tuning/jobs/{id}/adapter"
        )
    return f"{_fetch(tuned)} Then serve it with vLLM: {serve_command(tuned)}"


def serve_command(tuned: TunedModel) -> str:
    """Return the command that serves an adapter from the folder `adapter`, under the name that it has here."""
    rank = (tuned.job.spec or {}).get("lora_r", 16)
    highest = next(each for each in VLLM_RANKS if each >= rank)
    return (
        f"vllm serve {shlex.quote(tuned.job.model)} --enable-lora --max-lora-rank {highest}"
        f" --lora-modules {shlex.quote(f'{tuned.name}=adapter')}"
    )


def _fetch(tuned: TunedModel) -> str:
    part = "" if tuned.checkpoint is None else f"/checkpoints/{tuned.checkpoint.id}"
    return (
        f"Download the adapter from GET /v1/fine_tuning/jobs/{tuned.job.id}{part}/adapter and unpack it into the folder"
        " adapter."
    )


for _path in GENERATION:
    router.add_api_route(f"/v1/{_path}", refuse_generation, methods=["GET", "POST"])
for _path in OTHERS:
    router.add_api_route(f"/v1/{_path}", refuse_other, methods=["GET", "POST"])
