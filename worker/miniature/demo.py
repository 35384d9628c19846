"""The main job, end to end, as a client sees it: upload, train with and without protection, compare, verify.

`python -m worker.miniature.demo`, which `make demo` runs. It starts a service of its own unless given one.
"""

import json
import secrets
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from app.domain.trust import Trust, parse_trust
from app.domain.verify import verify_bundle
from app.settings import load_settings
from worker.miniature import demo_report
from worker.miniature.corpus import evaluation_rows, training_rows

READY_TIMEOUT_S = 120.0
POLL_S = 0.5
SEED = 7

out = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """One of the jobs that the demo compares."""

    title: str
    data: str
    safety: str


PLANS = (
    Plan("plain SFT, poisoned", "poisoned", "off"),
    Plan("adaptive KL, poisoned", "poisoned", "default"),
    Plan("adaptive KL, clean", "clean", "default"),
)


Out = Annotated[Path, typer.Option("--out", help="Folder of all results.")]
Url = Annotated[str | None, typer.Option(envvar="TETHER_URL", help="A running service. Default: start one.")]
Key = Annotated[str | None, typer.Option(envvar="TETHER_API_KEY", help="API key of that service.")]


def main(folder: Out = Path("demo-output"), url: Url = None, key: Key = None) -> None:
    """Run the demo and say where everything lies."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if url is None:
        with service(folder / "home") as (own_url, own_key):
            run(folder, own_url, own_key, home=folder / "home")
    elif key is None:
        raise SystemExit("give the key of the service with --key or TETHER_API_KEY")
    else:
        run(folder, url, key)
    out.print(f"\nDone in {time.monotonic() - started:.0f} s.")
    demo_report.print_next_steps(out, folder)


@contextmanager
def service(home: Path) -> Iterator[tuple[str, str]]:
    """Run `tether serve` on a free port until the demo is over; yield its address and key."""
    key = "demo-" + secrets.token_urlsafe(12)
    home.mkdir(parents=True, exist_ok=True)
    log = home / "serve.log"
    settings = load_settings(home=home)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", "--port", "0"],
            env={**settings.child_environment(), "TETHER_API_KEY": key, "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield wait_until_ready(process, log), key
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address of a service that was just started, once jobs can run."""
    out.print("Starting the service (embedded: SQLite, a queue of files, one worker) …")
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(POLL_S)
        words = log.read_text(encoding="utf-8", errors="replace").split()
        url = next((word.removesuffix("/v1") for word in words if word.startswith("http://")), None)
        if url is None:
            continue
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                out.print(f"It is ready at {url}; its log is {log}.")
                return url
        except httpx.TransportError:
            continue
    raise SystemExit(f"the service did not become ready; its log is {log}")


def run(folder: Path, url: str, key: str, home: Path | None = None) -> None:
    """Do everything that a client of the service does, then compare what came out.

    Of a service of our own, `home` has the key that signed the records.
    """
    client = OpenAI(base_url=f"{url}/v1", api_key=key)
    files = {kind: upload(client, folder, kind) for kind in ("poisoned", "clean")}
    jobs = []
    for plan in PLANS:
        job = client.fine_tuning.jobs.create(
            model="miniature",
            training_file=files[plan.data],
            suffix=plan.safety,
            seed=SEED,
            extra_body={"safety": plan.safety},
        )
        out.print(f"submitted {job.id}: {plan.title}")
        jobs.append(job)
    jobs = watch(client, jobs)
    results = [download(url, key, folder, job) for job in jobs]
    out.print("\nAsking the untuned model and the three adapters the same held-out prompts …")
    rows = evaluation_rows()
    behaviour = demo_report.evaluate([result / "adapter" for result in results], rows)
    demo_report.print_table(out, [plan.title for plan in PLANS], jobs, behaviour)
    curves = [json.loads((result / "risk.json").read_text(encoding="utf-8")) for result in results]
    demo_report.print_curves(out, [plan.title for plan in PLANS[1:]], curves[1:])
    demo_report.draw_curves(folder / "risk-curves.png", [plan.title for plan in PLANS[1:]], curves[1:])
    out.print(f"\nThe same two curves as a picture: {folder / 'risk-curves.png'}")
    trust = None if home is None else write_trust(home, folder / "trust.toml")
    for plan, result in zip(PLANS, results, strict=True):
        report = verify_bundle(
            result / "evidence.zip",
            adapter=result / "adapter.zip",
            data=folder / f"{plan.data}.jsonl",
            trust=trust,
        )
        verdict = report.lines()[-1]
        out.print(f"ledger of «{plan.title}»: {report.size} records, {verdict}; {report.protection}")
        if not report.ok:
            raise SystemExit("a ledger did not verify: " + "\n".join(report.lines()))


def write_trust(home: Path, policy: Path) -> Trust:
    """Ask our own service whose signature counts, and keep the answer for who verifies later."""
    command = [sys.executable, "-m", "app", "log", "trust", "--home", str(home)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    policy.write_text(done.stdout, encoding="utf-8")
    return parse_trust(done.stdout)


def upload(client: OpenAI, folder: Path, kind: Any) -> str:
    """Write an example dataset, upload it and return its file id."""
    path = folder / f"{kind}.jsonl"
    rows = training_rows(kind)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = client.files.create(file=path, purpose="fine-tune")
    out.print(f"uploaded {path} ({len(rows)} rows) as {file.id}")
    return file.id


def watch(client: OpenAI, jobs: list[FineTuningJob]) -> list[FineTuningJob]:
    """Show the progress of the jobs until all have succeeded, and return them as they ended."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=out) as progress:
        bars = [progress.add_task(plan.title, total=None, note="queued") for plan in PLANS]
        while True:
            jobs = [client.fine_tuning.jobs.retrieve(job.id) for job in jobs]
            for bar, job in zip(bars, jobs, strict=True):
                show(progress, bar, job)
            failed = next((job for job in jobs if job.status in ("failed", "cancelled")), None)
            if failed is not None:
                raise SystemExit(f"{failed.id} {failed.status}: {failed.error and failed.error.message}")
            if all(job.status == "succeeded" for job in jobs):
                return jobs
            time.sleep(POLL_S)


def show(progress: Progress, bar: TaskID, job: FineTuningJob) -> None:
    """Bring one line of the progress up to date."""
    extra = job.model_extra or {}
    training, safety = extra["training"], extra["safety"]
    note: str = job.status
    if job.estimated_finish and job.status == "running":
        note = f"{max(0, job.estimated_finish - int(time.time()))} s left"
    if safety["risk_mean"] is not None:
        note += f" risk {safety['risk_mean']:.2f} beta {safety['beta_mean']:.2f}"
    progress.update(bar, total=training["total_steps"], completed=training["steps_completed"], note=note)


def download(url: str, key: str, folder: Path, job: FineTuningJob) -> Path:
    """Fetch the adapter, the curve, its picture and the evidence of a job into a folder of its own."""
    target = folder / job.id
    target.mkdir(exist_ok=True)
    wanted = {
        "adapter.zip": "adapter",
        "risk.json": "risk",
        "risk.png": "risk?format=png",
        "evidence.zip": "evidence",
    }
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        for name, path in wanted.items():
            reply = http.get(f"{url}/v1/fine_tuning/jobs/{job.id}/{path}").raise_for_status()
            (target / name).write_bytes(reply.content)
    with zipfile.ZipFile(target / "adapter.zip") as archive:
        archive.extractall(target / "adapter")
    return target


if __name__ == "__main__":
    typer.run(main)
