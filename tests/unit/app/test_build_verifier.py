"""tether-verify.pyz, in an environment that holds cryptography and nothing else: it says what `tether verify` says."""

import io
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from importlib.metadata import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.build_verifier import ROOT, build_verifier, list_sources
from app.cli import cli
from app.domain.bundle import write_bundle
from app.domain.installation_log import format_receipt, parse_head_line
from app.domain.report import EXIT_CODES, EXIT_OK
from app.domain.trust import format_trust
from tests.unit.app.domain.synthetic_job import ADAPTER, JOB, TRAINING_FILE, SyntheticJob, make_job
from tests.unit.app.domain.test_checks_log import ORIGIN, TRUST, Log
from tests.unit.test_architecture import VERIFIER

NEEDED = ("cryptography", "cffi")
"""cffi is what cryptography itself needs."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the standard library, cryptography, and what that needs."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for name in NEEDED:
        for each in files(name) or ():
            target = site_packages / each
            if ".." not in each.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(each.locate(), target)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dist") / "tether-verify.pyz"
    subprocess.run([sys.executable, "-m", "app.build_verifier", file], check=True, cwd=ROOT, timeout=120)
    return file


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed bundle, one with a record changed since, and what lies beside them."""
    folder = tmp_path_factory.mktemp("evidence")
    job = make_job()
    proof = Log(job).prove()
    save(folder / "good.zip", job, proof)
    save(folder / "unsigned.zip", make_job(), None)
    running = SyntheticJob(job.records[:-2], job.table)
    save(folder / "running.zip", running, None)
    job.records[-1].body |= {"state": "failed", "error": "training_failed"}
    save(folder / "bad.zip", job, proof)
    (folder / "trust.toml").write_text(format_trust(ORIGIN, list(TRUST.logs[ORIGIN])))
    (folder / "kept.tlog-proof").write_bytes(
        format_receipt(parse_head_line(proof.heads[-1]), proof.checkpoint)
    )
    (folder / "adapter.zip").write_bytes(ADAPTER)
    (folder / "train.jsonl").write_bytes(TRAINING_FILE)
    (folder / "cut.zip").write_bytes((folder / "good.zip").read_bytes()[:900])
    return folder


def save(path: Path, job: SyntheticJob, log: object) -> None:
    with path.open("wb") as file:
        write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table, log=log)  # type: ignore[arg-type]


def call(program: Sequence[str | Path], arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*program, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        env=environment | {"COLUMNS": "80"},
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 2 or not done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["good.zip"], EXIT_OK, "the signature was NOT VERIFIED, and proves nothing"),
        (["good.zip", "--policy", "trust.toml"], EXIT_OK, "all 16 records are under a signature"),
        (
            [
                "good.zip",
                "--policy",
                "trust.toml",
                "--adapter",
                "adapter.zip",
                "--data",
                "train.jsonl",
                "--require-ended",
            ],
            EXIT_OK,
            "the zip and its 2 files are those published",
        ),
        (["good.zip", "--receipt", "kept.tlog-proof"], EXIT_OK, "has the same first 16 records"),
        (["bad.zip", "--policy", "trust.toml"], EXIT_CODES["heads"], "NO record here is under the signature"),
        (["unsigned.zip"], EXIT_OK, "UNSIGNED: nothing here is under a signature"),
        (["unsigned.zip", "--policy", "trust.toml"], EXIT_CODES["signature"], "the bundle has none"),
        (["running.zip"], EXIT_OK, "the job had not ended"),
        (["running.zip", "--require-ended"], EXIT_CODES["end"], "the job had not ended"),
        (["cut.zip"], EXIT_CODES["records"], "it may be cut short"),
        (["."], EXIT_CODES["records"], "a bundle is one file"),
        (["good.zip", "--policy", "trust.toml", "--json"], EXIT_OK, '"signed_records": 16'),
        (["cut.zip", "--json"], EXIT_CODES["records"], '"ok": false'),
        (["absent.zip"], 2, ""),
        (["good.zip", "--policy", "good.zip"], 2, ""),
        (["good.zip", "--policy", "absent.toml"], 2, ""),
        (["good.zip", "--receipt", "."], 2, ""),
        (["good.zip", "--polisy", "trust.toml"], 2, ""),
        ([], 2, ""),
    ],
)
def test_the_file_alone_says_what_the_command_says(
    python: Path,
    verifier: Path,
    evidence: Path,
    arguments: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = call([python, "-I", verifier], arguments, evidence)
    assert alone[0] == code, alone[1]
    assert said in alone[1]
    monkeypatch.chdir(evidence)
    command = CliRunner().invoke(cli, ["verify", *arguments])
    assert alone == (command.exit_code, command.stdout)


def test_it_runs_where_nothing_else_is_installed(python: Path) -> None:
    for module in ("pydantic", "typer", "rich", "sqlalchemy", "app"):
        done = subprocess.run(
            [python, "-I", "-c", f"import {module}"], capture_output=True, timeout=60, check=False
        )
        assert b"ModuleNotFoundError" in done.stderr, module
    subprocess.run([python, "-I", "-c", "import cryptography"], check=True, timeout=60)


def test_without_cryptography_it_says_what_is_missing(verifier: Path, evidence: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", verifier, evidence / "good.zip"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "tether-verify needs the package cryptography: python -m pip install cryptography\n"


def test_the_same_sources_make_the_same_bytes(verifier: Path) -> None:
    assert verifier.read_bytes() == build_verifier()
    assert os.access(verifier, os.X_OK)


def test_it_holds_the_verifying_half_of_the_core_and_nothing_else() -> None:
    names = zipfile.ZipFile(io.BytesIO(build_verifier())).namelist()
    packages = {"app/__init__.py", "app/domain/__init__.py"}
    modules = {f"{module.replace('.', '/')}.py" for module in VERIFIER}
    assert (
        {"__main__.py", "LICENSE"} | packages <= set(names) <= {"__main__.py", "LICENSE"} | packages | modules
    )
    assert len(list_sources()) == len(names) - 2


def test_who_reads_may_stop_reading(verifier: Path, evidence: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, verifier, evidence / "good.zip", "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_report_for_programs_has_every_check(verifier: Path, evidence: Path) -> None:
    _, text = call([sys.executable, verifier], ["good.zip", "--policy", "trust.toml", "--json"], evidence)
    report = json.loads(text)
    assert [(each["number"] + 10, each["name"]) for each in report["checks"]] == [
        (code, name) for name, code in sorted(EXIT_CODES.items(), key=lambda item: item[1])
    ]
    assert (report["signature"], report["signed_records"], report["size"]) == ("verified", 16, 16)
