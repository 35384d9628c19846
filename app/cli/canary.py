"""tether models canary: which model does a server serve?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import Json, print_json, print_line
from app.errors import InvalidRequest, TetherError

if TYPE_CHECKING:
    from app.domain.canary import Answer, Canary

EXIT_CODES = {"tuned": 0, "base": 8, "neither": 9, "too_near": 10}
SAYS = {
    "tuned": "{model} answers as the tuned model",
    "base": "{model} answers as the BASE model: the adapter is not applied",
    "neither": "{model} answers as neither the tuned model nor its base: another model, other weights, or a precision that needs"
    " a wider --tolerance",
    "too_near": "{model} cannot be told apart: tuned model and base are {apart:.3f} nats a token apart on the canary, and a server"
    " may be off by {tolerance:g}",
}
TIMEOUT_S = 120.0


def ask_canary(
    model: Annotated[str, typer.Argument(help="The name under which the server serves the adapter.")],
    adapter: Annotated[
        Path, typer.Option(help="The adapter: its zip, or the folder that it was unpacked into.", exists=True)
    ],
    url: Annotated[
        str, typer.Option(help="Of an OpenAI-compatible server, such as http://localhost:8000/v1.")
    ],
    key: Annotated[
        str | None,
        typer.Option(
            help="Key of that server, where it wants one.", envvar="OPENAI_API_KEY", show_default=False
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Nats a token that the server may be off. Default: 0.05, which bfloat16 keeps to.",
            min=0,
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask a server for the adapter's canary: does it serve the tuned model, the base, or neither?

    It needs completions of token ids with echo and logprobs, as vLLM has them. Exit codes: 0 tuned, 8 base, 9 neither, 10 the
    two are too near to tell.
    """
    from app.domain.canary import TOLERANCE, compare_canary

    allowed = TOLERANCE if tolerance is None else tolerance
    canary = read_canary(adapter)
    found = compare_canary(canary, request_log_probs(url, key, model, canary), tolerance=allowed)
    if as_json:
        print_json(describe(model, found, allowed))
    else:
        print_line(SAYS[found.verdict].format(model=model, apart=found.apart, tolerance=allowed))
        print_line(
            f"nats a token from the tuned model {found.to_tuned:.4f}, from the base {found.to_base:.4f}"
        )
    raise typer.Exit(EXIT_CODES[found.verdict])


def describe(model: str, found: "Answer", tolerance: float) -> dict[str, Any]:
    """Return what was found as plain JSON."""
    return {
        "object": "canary_answer",
        "model": model,
        "verdict": found.verdict,
        "to_tuned": found.to_tuned,
        "to_base": found.to_base,
        "apart": found.apart,
        "tolerance": tolerance,
    }


def read_canary(adapter: Path) -> "Canary":
    """Return the canary that an adapter brings. Raises InvalidRequest where it brings none."""
    from app.domain.bundle import DAMAGE
    from app.domain.canary import parse_canary
    from app.domain.checks_files import read_adapter_manifest
    from app.domain.provenance import ADAPTER_MANIFEST

    try:
        if adapter.is_dir():
            data = (adapter / ADAPTER_MANIFEST).read_bytes()
        else:
            data = read_adapter_manifest(adapter)
        return parse_canary(json.loads(data)["canary"])
    except (*DAMAGE, KeyError, TypeError) as error:
        raise InvalidRequest(
            f"{adapter} brings no canary ({error}); adapters have one in {ADAPTER_MANIFEST} since it was introduced. Give the zip"
            " that the job released, or the folder that it was unpacked into",
            param="adapter",
        ) from None


def request_log_probs(url: str, key: str | None, model: str, canary: "Canary") -> list[float]:
    """Ask a server how likely it finds each token of the answer. Raises TetherError where it does not say."""
    import httpx

    body = {
        "model": model,
        "prompt": [*canary.prompt_ids, *canary.continuation_ids],
        "max_tokens": 1,
        "temperature": 0,
        "echo": True,
        "logprobs": 1,
    }
    headers = {"authorization": f"Bearer {key}"} if key else {}
    address = f"{url.rstrip('/')}/completions"
    try:
        reply = httpx.post(address, json=body, headers=headers, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TetherError(f"{address} cannot be asked: {error}; is the server running?") from None
    if reply.status_code != httpx.codes.OK:
        raise TetherError(f"{address} answered {reply.status_code}: {reply.text[:300]}")
    try:
        found = reply.json()["choices"][0]["logprobs"]["token_logprobs"]
        answer = found[len(canary.prompt_ids) : len(body["prompt"])]  # type: ignore[arg-type]
        if len(answer) == len(canary.tuned):
            return [float(each) for each in answer]
    except (LookupError, TypeError, ValueError):
        pass
    raise TetherError(
        f"{address} did not say how likely each token of the prompt is; it must honour echo with logprobs for a prompt of token"
        " ids, as vLLM does"
    )
