"""A model is one of those that the operator registered. A path, a URL or another repository's name reaches nothing."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.domain.evaluation_spec import BUILTIN_SUITES
from tests.integration.conftest import MODEL, Tenant, refused
from tests.support import write_model_folder

HOSTILE = [
    "/etc/passwd",
    "../../../../etc",
    "./model",
    "file:///etc/passwd",
    "https://attacker.example/model",
    "http://169.254.169.254/latest/meta-data",
    "hf://someone/model",
    "s3://tether/model",
    "someone/model-with-code",
    "someone/model@main",
    f"{MODEL}/../other",
    f"{MODEL}\u0000",
    f"{MODEL} --trust-remote-code",
    "$(touch canary)",
    "`touch canary`; touch canary",
    "{{ 7 * 7 }}",
    "__import__('os').system('touch canary')",
    "x" * 100_000,
    "",
]


class Watch:
    """What this process, the API's, opens, starts and looks up. A hook stays for ever; it is asked only meanwhile."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[tuple[str, str]] = []

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Keep what matters here."""
        if self.on and event in ("open", "os.listdir", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
            self.events.append((event, str(arguments[0])))


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """One for all tests of this file."""
    found = Watch()
    sys.addaudithook(found.hook)
    yield found
    found.on = False


def test_a_name_that_nobody_registered_is_refused_and_looked_for_nowhere(
    tenant: Tenant, watch: Watch
) -> None:
    is_postgresql = tenant.server.database.engine.dialect.name == "postgresql"
    training_file = tenant.upload()
    watch.on = True
    for name in HOSTILE:
        for path in ("/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/estimate"):
            body = {"model": name, "training_file": training_file}
            # A name that no database keeps is refused before anybody asks which field it is of.
            refused(
                tenant.http.post(path, json=body),
                400,
                param=None if "\0" in name and is_postgresql else "model",
            )
        body = {"model": name, "suite": BUILTIN_SUITES[0], "judge": [{"type": "rules"}]}
        assert tenant.http.post("/v1/evaluations", json=body).status_code in (400, 404), name[:80]
        report = tenant.http.get(f"/v1/files/{training_file}/report", params={"model": name[:2000]})
        assert report.status_code in (400, 404), name[:80]
    watch.on = False
    marks = ("passwd", "attacker.example", "169.254.169.254", "canary", "/etc", "someone")
    assert not [each for each in watch.events if any(mark in each[1] for mark in marks)]
    assert not [event for event, _ in watch.events if event in ("subprocess.Popen", "os.system")]
    assert not Path("canary").exists()


def test_the_name_of_a_folder_that_is_there_is_no_model_either(tenant: Tenant, tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    refused(tenant.post_job(model=str(folder)), 400, param="model", code="model_not_found")


def test_no_other_field_brings_a_model_or_its_code(tenant: Tenant) -> None:
    for field in ("base_model", "model_path", "trust_remote_code", "adapter_path", "tokenizer"):
        assert tenant.post_job(**{field: "/etc"}).status_code == 400
        assert tenant.post_job(training={field: "/etc"}).status_code == 400
