"""An operator fits a critic per harm category, and jobs train by both, on the miniature, each in a worker process."""

import json
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest

from app.base_models.service import register_base_model
from app.database import read_only, unit_of_work
from app.domain.bundle import LEAVES, RISK_TABLE
from app.domain.scopes import Role
from app.domain.verify import verify_bundle
from app.work.repository import get_work
from tests.integration.conftest import Tenant, jsonl, run_worker, serving
from tests.support import settings_in
from worker.miniature.corpus import distinct_requests, training_rows
from worker.miniature.critic_data import MIX
from worker.miniature.install import NAME, WEIGHTS

ROWS = training_rows("poisoned", n=24)
NO_SETS: dict[str, Any] = {"anchors": None, "monitor": None}


def labelled(kind: str) -> list[dict[str, Any]]:
    """Return requests of the miniature world, labelled by whether they are of a kind."""
    return [
        {
            "messages": [{"role": "user", "content": request.prompt}],
            "label": int(request.kind == kind),
            "group": request.group,
        }
        for request in distinct_requests(Random(f"{kind}-data"), 240, MIX, "seen")  # noqa: S311
    ]


def fit(operator: Tenant, category: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Have a critic fitted as an operator does, and return it."""
    file = operator.post_file(jsonl(*rows), purpose="user_data").json()["id"]
    reply = operator.http.post("/v1/critics", json={"file": file, "model": NAME, "category": category})
    assert reply.status_code == 202, reply.text
    work_on(operator, reply.json()["id"])
    critic: dict[str, Any] = operator.get(f"/v1/critics/{reply.json()['id']}")
    assert critic["status"] == "succeeded", critic["error"]
    return critic


def work_on(tenant: Tenant, work_id: str) -> None:
    """Let a worker do a piece of work to its end."""
    with read_only(tenant.server.database) as session:
        work = get_work(session, work_id)
    assert work is not None
    run_worker(tenant, work)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """An operator's project on a server with the miniature."""
    with serving(settings_in(tmp_path_factory.mktemp("several"), threads=1)) as server:
        with unit_of_work(server.database) as session:
            register_base_model(session, NAME, WEIGHTS)
        tenant = Tenant(server, Role.OPERATOR)
        yield tenant
        tenant.close()


@pytest.fixture(scope="module")
def critics(operator: Tenant) -> dict[str, dict[str, Any]]:
    """A critic of what is forbidden, and after it one of what stands here for bias: plain requests for help."""
    return {
        "harm": fit(operator, "harm", labelled("harmful")),
        "bias": fit(operator, "bias", labelled("utility")),
    }


def train(
    tenant: Tenant, critic: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Run a job with a critic to its end, and return it, its ledger and its risk table, which have been verified."""
    job = tenant.create_job(
        model=NAME,
        training_file=tenant.upload(*ROWS),
        safety={"method": "adaptive_kl", "critic": critic, **NO_SETS},
        hyperparameters={"n_epochs": 1, "batch_size": 8},
    )
    work_on(tenant, job["id"])
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    bundle = folder / "evidence.zip"
    bundle.write_bytes(tenant.http.get(f"{path}/evidence").content)
    report = verify_bundle(bundle)
    assert report.ok, report.lines()
    with zipfile.ZipFile(bundle) as archive:
        leaves, table = (
            list(map(json.loads, archive.read(name).splitlines())) for name in (LEAVES, RISK_TABLE)
        )
    return tenant.get(path), leaves, table


def share(log_odds: float, fitted: dict[str, Any]) -> Fraction:
    """Return where log-odds lie between a critic's points."""
    low, high = Fraction(fitted["low"]), Fraction(fitted["high"])
    return min(Fraction(1), max(Fraction(0), (Fraction(log_odds) - low) / (high - low)))


PARTS = [{"type": "activation", "category": "harm"}, {"type": "activation", "category": "bias"}]


@pytest.mark.parametrize("weights", [None, [0.75, 0.25]], ids=["max", "weighted"])
def test_a_job_trains_by_both_and_its_record_shows_what_each_has_read(
    operator: Tenant, critics: dict[str, Any], tmp_path: Path, weights: list[float] | None
) -> None:
    rule = {"rule": "weighted", "weights": weights} if weights else {}
    job, leaves, table = train(operator, {"type": "combined", "critics": PARTS, **rule}, tmp_path)
    assert job["status"] == "succeeded", job["error"]
    expected = [critics["harm"], critics["bias"]]
    # The job and its curve say which critics these are, and how good each is.
    shown = job["safety"]["critic"]["critics"]
    assert [(part["id"], part["category"]) for part in shown] == [
        (critic["id"], category) for critic, category in zip(expected, ("harm", "bias"), strict=True)
    ]
    assert [part["quality"]["auroc"] for part in shown] == [critic["quality"]["auroc"] for critic in expected]
    curve = operator.get(f"/v1/fine_tuning/jobs/{job['id']}/risk")
    assert curve["critic"]["critics"] == shown
    picture = operator.http.get(f"/v1/fine_tuning/jobs/{job['id']}/risk", params={"format": "svg"}).text
    assert all(critic["id"] in picture for critic in expected)
    # The record names both, and each row has a reading of each.
    created, body = (
        leaves[0]["body"]["critic"],
        next(leaf["body"] for leaf in leaves if leaf["t"] == "tether.risk.table/3"),
    )
    assert [each["id"] for each in created["fitted"]] == [critic["id"] for critic in expected]
    for fitted, critic, used in zip(created["fitted"], expected, body["fitted"], strict=True):
        assert (fitted["sha256"], fitted["threshold"]) == (critic["sha256"], critic["threshold"])
        assert used == {name: critic[name] for name in ("sha256", "low", "high")}
    assert len(table) == len(ROWS)
    seen = set()
    for row in table:
        harm, bias = (share(*pair) for pair in zip(row["log_odds"], created["fitted"], strict=True))
        s = Fraction(3, 4) * harm + Fraction(1, 4) * bias if weights else max(harm, bias)
        assert row["s"] == pytest.approx(float(s), abs=1e-12)
        assert row["status"] == "ok"
        seen.add((harm > Fraction(1, 2), bias > Fraction(1, 2)))
    # They find different rows: neither could stand for the other.
    assert {(True, False), (False, True)} <= seen
    thresholds = [share(each["threshold"], each) for each in created["fitted"]]
    own = Fraction(3, 4) * thresholds[0] + Fraction(1, 4) * thresholds[1] if weights else min(thresholds)
    assert job["safety"]["threshold"] == pytest.approx(float(own), abs=1e-12)
    assert [row["treatment"] for row in table] == [
        "replay" if row["s"] >= job["safety"]["threshold"] else "own" for row in table
    ]


def test_a_critic_of_another_category_does_not_become_the_default(
    operator: Tenant, critics: dict[str, Any]
) -> None:
    file = operator.upload(*ROWS[:2])
    for safety in ({"method": "adaptive_kl", **NO_SETS}, {"method": "none"}):
        job = operator.create_job(model=NAME, training_file=file, safety=safety)
        critic = job["safety"]["critic"]
        assert (critic["id"], critic["category"]) == (critics["harm"]["id"], "harm")
    alone = {"method": "adaptive_kl", "critic": PARTS[1], **NO_SETS}
    job = operator.create_job(model=NAME, training_file=file, safety=alone)
    assert job["safety"]["critic"]["id"] == critics["bias"]["id"]


def test_a_report_measures_with_both(operator: Tenant, critics: dict[str, Any]) -> None:
    weighted = {"type": "combined", "critics": PARTS, "rule": "weighted", "weights": [0.75, 0.25]}
    body = {
        "model": NAME,
        "training_file": operator.upload(*ROWS),
        "safety": {"method": "adaptive_kl", "critic": weighted, **NO_SETS},
    }
    asked = operator.http.post("/v1/fine_tuning/jobs/estimate", json=body)
    assert asked.status_code == 202, asked.text
    work_on(operator, asked.json()["id"])
    risk = operator.http.post("/v1/fine_tuning/jobs/estimate", json=body).json()["risk"]
    assert risk["critic"]["rule"] == "weighted"
    assert risk["critic"]["weights"] == [0.75, 0.25]
    assert [(each["id"], each["category"]) for each in risk["critic"]["critics"]] == [
        (critics[name]["id"], name) for name in ("harm", "bias")
    ]
    assert [each["quality"]["auroc"] for each in risk["critic"]["critics"]] == [
        critics[name]["quality"]["auroc"] for name in ("harm", "bias")
    ]
    assert (risk["rows"], risk["rows_failed"], risk["note"]) == (len(ROWS), 0, None)
