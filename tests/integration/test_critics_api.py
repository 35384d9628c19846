"""/v1/critics over HTTP."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from app.database import read_only, unit_of_work
from app.domain.scopes import Role
from app.models.base import new_id, utc_now
from app.models.base_model import BaseModel, Critic
from app.models.work import Work
from tests.integration.conftest import MODEL, Tenant, jsonl, refused, run_worker


def request(label: int = 0, group: str = "greetings") -> dict[str, Any]:
    """Return a labelled request whose bytes no other test has in storage."""
    return {"messages": [{"role": "user", "content": new_id("hello ")}], "label": label, "group": group}


def upload(tenant: Tenant, *rows: dict[str, Any]) -> str:
    """Upload labelled requests and return the file's id."""
    reply = tenant.post_file(jsonl(*(rows or (request(0), request(1)))), purpose="user_data")
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def ask(tenant: Tenant, **fields: Any) -> dict[str, Any]:
    """Ask for a critic and return its object."""
    reply = tenant.http.post("/v1/critics", json={"file": upload(tenant), "model": MODEL, **fields})
    assert reply.status_code == 202, reply.text
    asked: dict[str, Any] = reply.json()
    return asked


def finish(tenant: Tenant, critic_id: str) -> None:
    """Do what the worker does when it has fitted a critic."""
    with unit_of_work(tenant.server.database) as session:
        base = session.get_one(BaseModel, MODEL)
        session.execute(
            update(Work).where(Work.id == critic_id).values(state="succeeded", finished_at=utc_now())
        )
        session.add(
            Critic(
                id=critic_id,
                base_model=base.name,
                base_digest=base.digest,
                digest="d" * 64,
                files={},
                report={
                    "auroc": 0.9,
                    "tpr_at_1_percent_fpr": 0.5,
                    "cross_points": {
                        "low": {"recall": {"share": 0.99}},
                        "threshold": {"recall": {"share": 0.7}},
                    },
                    "prompt": {"layers": [{"layer": 1, "auroc": 0.8}]},
                },
                low=-3.0,
                high=2.0,
                threshold=1.5,
                # The base model's newest critic stays the one that the other tests expect.
                created_at=utc_now() - timedelta(days=1),
            )
        )


class TestCreateCritic:
    def test_it_is_asked_for_and_polled(self, operator: Tenant) -> None:
        asked = ask(operator)
        assert asked["id"].startswith("critic_")
        assert (asked["object"], asked["model"], asked["status"]) == ("critic", MODEL, "queued")
        for name in ("error", "sha256", "low", "high", "threshold", "quality", "report"):
            assert asked[name] is None
        assert operator.get(f"/v1/critics/{asked['id']}") == asked
        with read_only(operator.server.database) as session:
            work = session.get_one(Work, asked["id"])
        assert (work.kind, work.queue, work.project_id) == ("fit_critic", "gpu", operator.project_id)
        assert work.args["base_model"] == MODEL
        assert (asked["pooling"], work.args["pooling"]) == ("mean", "mean")
        assert any(work.id in path.read_text() for path in _knocks(operator)), "no worker would hear of it"

    def test_one_layer_may_be_named(self, operator: Tenant) -> None:
        asked = ask(operator, pooling=7)
        assert asked["pooling"] == 7
        with read_only(operator.server.database) as session:
            assert session.get_one(Work, asked["id"]).args["pooling"] == 7

    def test_it_is_of_a_harm_category(self, operator: Tenant) -> None:
        assert ask(operator)["category"] == "harm"
        asked = ask(operator, category="untruth")
        assert asked["category"] == "untruth"
        assert operator.get(f"/v1/critics/{asked['id']}") == asked
        with read_only(operator.server.database) as session:
            assert session.get_one(Work, asked["id"]).args["category"] == "untruth"

    @pytest.mark.parametrize("category", ["", "Hate speech", "a" * 65, 7, ["bias"]], ids=str)
    def test_category_is_a_short_word(self, operator: Tenant, category: Any) -> None:
        body = {"file": "file-x", "model": MODEL, "category": category}
        refused(operator.http.post("/v1/critics", json=body), 400, param="category")

    @pytest.mark.parametrize("pooling", [0, -1, "best", "7", 1.5, True, [1]])
    def test_pooling_is_the_mean_or_a_layer(self, operator: Tenant, pooling: Any) -> None:
        body = {"file": "file-x", "model": MODEL, "pooling": pooling}
        message = refused(operator.http.post("/v1/critics", json=body), 400, param="pooling")
        assert "pooling" in message

    def test_finished_one_has_its_numbers_and_its_report(self, operator: Tenant) -> None:
        asked = ask(operator)
        finish(operator, asked["id"])
        found = operator.get(f"/v1/critics/{asked['id']}")
        assert (found["status"], found["created_at"]) == ("succeeded", asked["created_at"])
        assert (found["low"], found["high"], found["threshold"]) == (-3.0, 2.0, 1.5)
        assert found["quality"] == {
            "auroc": 0.9,
            "tpr_at_1_percent_fpr": 0.5,
            "recall": 0.99,
            "recall_at_threshold": 0.7,
        }
        assert found["pooling"] == "mean"
        assert found["report"]["prompt"]["layers"] == [{"layer": 1, "auroc": 0.8}]
        assert found["sha256"] == "d" * 64

    def test_failure_is_shown(self, own_server: Any) -> None:
        operator = own_server(Role.OPERATOR)
        asked = ask(operator)
        with read_only(operator.server.database) as session:
            work = session.get_one(Work, asked["id"])
            weights = Path(session.get_one(BaseModel, MODEL).path) / "model.safetensors"
        weights.write_bytes(weights.read_bytes() + b"?")
        assert run_worker(operator, work).state == "failed"
        found = operator.get(f"/v1/critics/{asked['id']}")
        assert found["status"] == "failed"
        assert found["error"]["code"] == "invalid_base_model"
        assert "is not what was registered" in found["error"]["message"]
        assert found["report"] is None

    def test_every_problem_of_the_rows_is_told(self, operator: Tenant) -> None:
        file = upload(operator, request(), {**request(), "label": 3}, {**request(), "group": ""})
        reply = operator.http.post("/v1/critics", json={"file": file, "model": MODEL})
        message = refused(reply, 400, param="file", code="invalid_training_file")
        assert message.startswith(
            "2 problems in the file of labelled requests: line 2, $.label: found a number"
        )
        assert "line 3, $.group" in message
        with read_only(operator.server.database) as session:
            assert session.scalars(select(Work).where(Work.project_id == operator.project_id)).all() == []

    def test_what_is_named_must_be_there(self, operator: Tenant, tenant: Tenant) -> None:
        def post(**fields: Any) -> Any:
            return operator.http.post("/v1/critics", json={"file": "file-x", "model": MODEL, **fields})

        refused(post(), 404, param="file", code="file_not_found")
        refused(post(file=upload(tenant)), 404, param="file", code="file_not_found")
        refused(post(file=operator.upload()), 400, param="file")
        refused(post(file=upload(operator), model="other"), 400, param="model", code="model_not_found")
        refused(post(label=1), 400, param="label")


class TestRoles:
    """A tenant with flipped labels must not be able to switch safety off."""

    def test_tenant_cannot_have_one_fitted(self, tenant: Tenant) -> None:
        flipped = upload(tenant, *(request(label) for label in (1, 0)))
        reply = tenant.http.post("/v1/critics", json={"file": flipped, "model": MODEL})
        assert "'operator'" in refused(reply, 403, code="permission_denied")
        with read_only(tenant.server.database) as session:
            assert session.scalars(select(Work).where(Work.project_id == tenant.project_id)).all() == []

    def test_every_key_may_look(self, tenant: Tenant, operator: Tenant) -> None:
        asked = ask(operator)
        assert tenant.get(f"/v1/critics/{asked['id']}") == asked
        assert asked["id"] in [each["id"] for each in tenant.get("/v1/critics", limit=100)["data"]]


class TestListCritics:
    def test_pages_cover_the_fitted_and_those_under_way(self, operator: Tenant) -> None:
        made = [ask(operator)["id"] for _ in range(3)]
        finish(operator, made[1])
        page = operator.get("/v1/critics", limit=2)
        assert [(each["id"], each["status"]) for each in page["data"]] == [
            (made[2], "queued"),
            (made[1], "succeeded"),
        ]
        assert page["has_more"]
        rest = operator.get("/v1/critics", limit=100, after=page["last_id"])
        assert rest["data"][0]["id"] == made[0]
        ids = [each["id"] for each in operator.get("/v1/critics", limit=100)["data"]]
        assert len(ids) == len(set(ids))

    def test_critic_of_an_earlier_version_has_an_id_of_its_own(self, operator: Tenant) -> None:
        # Its work had another id, and ended; the critic was there before the column of thresholds was.
        asked = ask(operator)
        with unit_of_work(operator.server.database) as session:
            session.execute(update(Work).where(Work.id == asked["id"]).values(state="succeeded"))
            base = session.get_one(BaseModel, MODEL)
            newest = session.scalars(select(Critic).order_by(Critic.created_at.desc()).limit(1)).one()
        ids = [each["id"] for each in operator.get("/v1/critics", limit=100)["data"]]
        assert asked["id"] not in ids
        assert newest.id in ids
        found = operator.get(f"/v1/critics/{newest.id}")
        assert (found["status"], found["model"]) == ("succeeded", base.name)
        assert found["quality"] == {
            "auroc": 0.97,
            "tpr_at_1_percent_fpr": 0.88,
            "recall": None,
            "recall_at_threshold": None,
        }

    def test_work_of_another_kind_is_no_critic(self, operator: Tenant) -> None:
        job = operator.create_job()
        refused(operator.http.get(f"/v1/critics/{job['id']}"), 404, param="critic_id", code="not_found")
        refused(operator.http.get("/v1/critics", params={"after": job["id"]}), 400, param="after")


def _knocks(tenant: Tenant) -> list[Any]:
    return list((tenant.server.settings.home / "queue").glob("*.gpu.msg"))
