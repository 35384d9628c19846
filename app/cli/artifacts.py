"""tether jobs: what a job has made, to take away."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import DEFAULT_URL, Key, Url, connect
from app.cli.files import report_download, safe_name
from app.cli.jobs import JOBS, JobId
from app.cli.output import Json, print_line

group = typer.Typer()
Checkpoint = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Of this checkpoint, instead of the end of the job.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Where to. Default: named after the job, here.", show_default=False),
]


@group.command("adapter")
def download_adapter(
    job_id: JobId,
    checkpoint: Checkpoint = None,
    target: Out = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Download the adapter's zip, check its SHA-256, and go on where an earlier try stopped."""
    path = (*JOBS, job_id, *(("checkpoints", checkpoint) if checkpoint else ()), "adapter")
    download_as(
        path, target or Path(safe_name(f"{checkpoint or job_id}-adapter.zip")), url, key, as_json=as_json
    )


@group.command("card")
def download_card(
    job_id: JobId, target: Out = None, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Download the model card: one page with the curves, gate, evaluations and auditors' questions."""
    path = (*JOBS, job_id, "model_card")
    download_as(path, target or Path(safe_name(f"{job_id}-model-card.html")), url, key, as_json=as_json)


@group.command("attestation")
def download_attestation(
    job_id: JobId, target: Out = None, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Download the notary's signed statement about the adapter: in-toto in a DSSE envelope."""
    path = (*JOBS, job_id, "attestation")
    download_as(path, target or Path(safe_name(f"{job_id}.intoto.json")), url, key, as_json=as_json)


@group.command("receipt")
def download_receipt(
    job_id: JobId, target: Out = None, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Download the proof that the job's newest head is under a signed checkpoint; keep it outside of the service."""
    path = (*JOBS, job_id, "receipt")
    download_as(path, target or Path(safe_name(f"{job_id}.tlog-proof")), url, key, as_json=as_json)


@group.command("evidence")
def download_evidence(
    job_id: JobId, target: Out = None, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Download the evidence bundle, for `tether verify`."""
    path = (*JOBS, job_id, "evidence")
    target = target or Path(safe_name(f"{job_id}-evidence.zip"))
    download_as(path, target, url, key, as_json=as_json)
    if not as_json:
        print_line(
            f"next: tether verify {target} --policy FILE, which the operator makes with: tether log trust"
        )


def download_as(path: tuple[str, ...], target: Path, url: str, key: str | None, *, as_json: bool) -> None:
    """Download what a path answers and say where it lies."""
    from app.cli.transfer import download

    with connect(url, key) as server:
        sha256 = download(server, path, target)
    report_download(target, sha256, as_json=as_json)
