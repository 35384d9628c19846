"""Which rows of a job were risky: their order, what became of them, and who sees their text."""

from typing import Any

import httpx
import pytest

from app.audit.repository import save_risk_table
from app.database import unit_of_work
from app.domain.risk_table import RiskRow, build_risk_table
from app.domain.scopes import Role, Scope
from app.jobs import repository
from app.keys.service import add_key
from app.models.work import Work
from tests.integration.conftest import Tenant, refused
from tests.unit.app.domain.leaf_examples import STEP_2

HOSTILE = "<script>alert(1)</script>"
S = (0.1, 1.0, 0.7, 0.4)


@pytest.fixture
def job(tenant: Tenant) -> dict[str, Any]:
    """A job of four rows whose reference pass is done and which is in its second pass over them."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{HOSTILE} {n}"},
                {"role": "assistant", "content": "x" * 400},
            ]
        }
        for n in range(4)
    ]
    safety = {
        "method": "adaptive_kl",
        "beta_min": 0.0,
        "beta_max": 0.8,
        "critic": {"type": "constant", "s": 0.5},
    }
    made = tenant.create_job(training_file=tenant.upload(*rows), safety={**safety, "replay": False})
    table = [RiskRow(n, f"{n}" * 64, (), s, "constant", "own") for n, s in enumerate(S)]
    entries, _ = build_risk_table(table, dropped=0, critic_sha256=None)
    with unit_of_work(tenant.server.database) as session:
        row = repository.load_job(session, made["id"])
        session.get_one(Work, made["id"])
        row.total_steps, row.step = 4, 3
        save_risk_table(session, made["id"], entries)
        for step, (data_epoch, seen) in enumerate([(0, [0, 1]), (0, [2, 3]), (1, [1, 0])], start=1):
            repository.save_step(
                session, row, step, {**STEP_2, "step": step, "data_epoch": data_epoch, "rows": seen}
            )
    return made


def read(tenant: Tenant, job: dict[str, Any], **query: Any) -> Any:
    return tenant.get(f"/v1/fine_tuning/jobs/{job['id']}/examples", **query)


def test_riskiest_rows_come_first_with_what_was_done_about_them(tenant: Tenant, job: dict[str, Any]) -> None:
    page = read(tenant, job)
    assert not page["has_more"]
    assert [(each["row"], each["risk"]) for each in page["data"]] == [(1, 1.0), (2, 0.7), (3, 0.4), (0, 0.1)]
    assert [each["beta"] for each in page["data"]] == pytest.approx([0.8, 0.56, 0.32, 0.08])
    assert [each["alpha"] + each["beta"] for each in page["data"]] == pytest.approx([1.0] * 4)
    # Every row was in the first pass, and two of them again in the second, which is not over.
    assert {each["row"]: each["times_seen"] for each in page["data"]} == {0: 2, 1: 2, 2: 1, 3: 1}
    first = page["data"][0]
    assert first["text"].startswith(f"user: {HOSTILE} 1\nassistant: xxx")
    assert len(first["text"]) == 301


def test_pages_go_on_where_the_last_one_ended(tenant: Tenant, job: dict[str, Any]) -> None:
    for sort, order in (("risk", [1, 2, 3, 0]), ("row", [0, 1, 2, 3])):
        found: list[int] = []
        after: dict[str, int] = {}
        while True:
            page = read(tenant, job, sort=sort, limit=1, **after)
            found += [each["row"] for each in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": found[-1]}
        assert found == order
    refused(
        tenant.http.get(f"/v1/fine_tuning/jobs/{job['id']}/examples", params={"sort": "beta"}),
        400,
        param="sort",
    )


def test_text_is_for_keys_that_may_read_files(tenant: Tenant, job: dict[str, Any]) -> None:
    with unit_of_work(tenant.server.database) as session:
        key = add_key(
            session,
            name="x",
            role=Role.MEMBER,
            project_id=tenant.project_id,
            scopes=frozenset({Scope.JOBS_READ}),
        ).secret
    reply = httpx.get(
        f"{tenant.server.url}/v1/fine_tuning/jobs/{job['id']}/examples",
        headers={"authorization": f"Bearer {key}"},
    )
    assert [each["risk"] for each in reply.json()["data"]] == [1.0, 0.7, 0.4, 0.1]
    assert all("text" not in each for each in reply.json()["data"])


def test_a_finished_job_has_seen_its_rows_once_a_pass_and_a_pruned_one_does_not_know(
    tenant: Tenant, job: dict[str, Any]
) -> None:
    with unit_of_work(tenant.server.database) as session:
        row = repository.load_job(session, job["id"])
        row.step = row.total_steps = 4
        repository.save_step(session, row, 4, {**STEP_2, "step": 4, "data_epoch": 1, "rows": [2, 3]})
    assert {each["times_seen"] for each in read(tenant, job)["data"]} == {2}
    with unit_of_work(tenant.server.database) as session:
        row = repository.load_job(session, job["id"])
        row.pruned_at = row.created_at
    assert {each["times_seen"] for each in read(tenant, job)["data"]} == {None}


def test_before_the_reference_pass_there_are_none(tenant: Tenant) -> None:
    assert read(tenant, tenant.create_job())["data"] == []


def test_a_part_of_the_curve(tenant: Tenant, job: dict[str, Any]) -> None:
    path = f"/v1/fine_tuning/jobs/{job['id']}/risk"
    assert [row[0] for row in tenant.get(path, from_step=2)["rows"]] == [2, 3]
    assert [row[0] for row in tenant.get(path, from_step=2, to_step=2)["rows"]] == [2]
    # Another part is another reply, with an ETag of its own.
    tags = {
        tenant.http.get(path, params=part).headers["etag"] for part in ({}, {"from_step": 2}, {"to_step": 2})
    }
    assert len(tags) == 3
    refused(tenant.http.get(path, params={"from_step": -1}), 400, param="from_step")
