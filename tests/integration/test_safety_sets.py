"""/v1/safety_sets over HTTP."""

import hashlib
from typing import Any

import pytest

from app.database import read_only
from app.models.base import new_id
from app.models.base_model import BaseModel
from app.models.safety_set import SafetySet, SetKind
from app.safety_sets.repository import get_newest_set
from app.safety_sets.service import CHECKS
from app.storage import read_checked
from tests.integration.conftest import MODEL, Tenant, jsonl, refused, unlike_any_other


def anchor(text: str | None = None) -> dict[str, Any]:
    """Return a row of a set of anchors whose bytes no other test has in storage."""
    return {"messages": [{"role": "user", "content": text or new_id("Say something cruel to ")}]}


def upload(tenant: Tenant, *rows: dict[str, Any], purpose: str = "user_data") -> str:
    """Upload rows and return the file's id."""
    reply = tenant.post_file(jsonl(*rows), purpose=purpose)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def post_set(tenant: Tenant, file: str, kind: str, **fields: Any) -> Any:
    """Ask for a set to be registered."""
    return tenant.http.post("/v1/safety_sets", json={"file": file, "model": MODEL, "kind": kind, **fields})


class TestCreateSet:
    def test_object_and_row(self, operator: Tenant) -> None:
        content = jsonl(*(anchor() for _ in range(8)))
        file = operator.post_file(content, purpose="user_data").json()["id"]
        reply = post_set(operator, file, "anchors")
        assert reply.status_code == 200, reply.text
        created = reply.json()
        assert created == {
            "id": created["id"],
            "object": "safety_set",
            "created_at": created["created_at"],
            "model": MODEL,
            "kind": "anchors",
            "rows": 8,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        assert created["id"].startswith("set_")
        assert operator.get(f"/v1/safety_sets/{created['id']}") == created
        with read_only(operator.server.database) as session:
            row = session.get_one(SafetySet, created["id"])
            assert len(row.commitment_key) == 32
        # The rows are there for a trainer, and go on being there when the upload is forgotten.
        operator.openai.files.delete(file)
        assert read_checked(operator.server.settings.storage, created["sha256"]) == content

    @pytest.mark.parametrize("kind", ["alignment", "harmful"])
    def test_training_files_serve_as_alignment_data(self, operator: Tenant, kind: SetKind) -> None:
        file = upload(operator, unlike_any_other(), unlike_any_other(), purpose="fine-tune")
        created = post_set(operator, file, kind).json()
        assert (created["kind"], created["rows"]) == (kind, 2)

    def test_newest_of_its_kind_is_used(self, operator: Tenant) -> None:
        kinds: dict[str, SetKind] = {}
        for kind in ("alignment", "alignment", "harmful"):
            created = post_set(operator, upload(operator, unlike_any_other()), kind).json()
            kinds[created["id"]] = kind
        first, second, third = kinds
        with read_only(operator.server.database) as session:
            base = session.get_one(BaseModel, MODEL)
            found = {kind: get_newest_set(session, base, kind) for kind in ("alignment", "harmful")}
            other = BaseModel(name="another")
            assert get_newest_set(session, other, "alignment") is None
        assert {kind: each and each.id for kind, each in found.items()} == {
            "alignment": second,
            "harmful": third,
        }
        # A job that pinned the older one finds it still.
        assert operator.get(f"/v1/safety_sets/{first}")["id"] == first

    def test_every_problem_of_the_rows_is_told(self, operator: Tenant) -> None:
        rows = [anchor(), *(anchor() for _ in range(8))]
        rows[1] = unlike_any_other()
        rows[3] = {"messages": [], "note": 1}
        file = upload(operator, *rows)
        message = refused(
            post_set(operator, file, "anchors"), 400, param="file", code="invalid_training_file"
        )
        assert message == (
            "3 problems in the set of kind 'anchors':"
            " line 2, $.messages: the last message has the role assistant; expected the user's: the reply to an anchor is the"
            " base model's own;"
            " line 4, $.note: unknown key; expected a row here to have `messages` and nothing else;"
            " line 4, $.messages: found an empty list; expected a list of at least one message"
        )
        sha256 = hashlib.sha256(jsonl(*rows)).hexdigest()
        assert all(each["sha256"] != sha256 for each in operator.get("/v1/safety_sets", limit=100)["data"])

    def test_anchors_have_no_replies_to_learn(self, operator: Tenant) -> None:
        # A set of alignment data is no set of anchors, nor the other way round.
        rows = [unlike_any_other() for _ in range(8)]
        refused(post_set(operator, upload(operator, *rows), "anchors"), 400, param="file")
        anchors = upload(operator, *(anchor() for _ in range(8)))
        refused(post_set(operator, anchors, "alignment"), 400, param="file")

    @pytest.mark.parametrize("kind", CHECKS)
    def test_empty_file_is_refused(self, operator: Tenant, kind: str) -> None:
        file = operator.post_file(b"", purpose="user_data").json()["id"]
        refused(post_set(operator, file, kind), 400, param="file", code="invalid_training_file")

    def test_what_is_named_must_be_there(self, operator: Tenant, tenant: Tenant) -> None:
        file = upload(operator, unlike_any_other())
        refused(post_set(operator, "file-x", "harmful"), 404, param="file", code="file_not_found")
        theirs = upload(tenant, unlike_any_other())
        refused(post_set(operator, theirs, "harmful"), 404, param="file", code="file_not_found")
        reply = post_set(operator, file, "harmful", model="other")
        assert MODEL in refused(reply, 400, param="model", code="model_not_found")
        refused(post_set(operator, file, "safe"), 400, param="kind")
        refused(post_set(operator, file, "harmful", note="x"), 400, param="note")
        training = upload(operator, unlike_any_other(), purpose="fine-tune")
        assert "'user_data'" in refused(post_set(operator, training, "anchors"), 400, param="file")


class TestRoles:
    """A tenant who could choose the anchors could take the safety of every other project away."""

    def test_tenant_cannot_register_anything(self, tenant: Tenant, operator: Tenant) -> None:
        before = operator.get("/v1/safety_sets", limit=100)["data"]
        file = upload(tenant, *(anchor() for _ in range(8)))
        message = refused(post_set(tenant, file, "anchors"), 403, code="permission_denied")
        assert "'operator'" in message
        assert "'member'" in message
        for kind in ("alignment", "harmful"):
            reply = post_set(tenant, upload(tenant, unlike_any_other()), kind)
            refused(reply, 403, code="permission_denied")
            assert reply.headers["x-should-retry"] == "false"
        assert operator.get("/v1/safety_sets", limit=100)["data"] == before

    def test_role_is_looked_at_before_the_body(self, tenant: Tenant) -> None:
        refused(tenant.http.post("/v1/safety_sets", json={}), 403, code="permission_denied")

    def test_every_key_may_look(self, tenant: Tenant, operator: Tenant) -> None:
        created = post_set(operator, upload(operator, unlike_any_other()), "harmful").json()
        assert tenant.get(f"/v1/safety_sets/{created['id']}") == created
        assert created in tenant.get("/v1/safety_sets", kind="harmful", limit=100)["data"]


class TestListSets:
    def test_pages_cover_everything_newest_first(self, operator: Tenant) -> None:
        made = [
            post_set(operator, upload(operator, unlike_any_other()), "alignment").json()["id"]
            for _ in range(3)
        ]
        page = operator.get("/v1/safety_sets", kind="alignment", limit=2)
        assert [each["id"] for each in page["data"]] == [made[2], made[1]]
        assert (page["first_id"], page["last_id"], page["has_more"]) == (made[2], made[1], True)
        rest = operator.get("/v1/safety_sets", kind="alignment", limit=1, after=page["last_id"])
        assert [each["id"] for each in rest["data"]] == [made[0]]

    def test_kind_filters(self, operator: Tenant) -> None:
        post_set(operator, upload(operator, unlike_any_other()), "harmful")
        for kind in CHECKS:
            found = operator.get("/v1/safety_sets", kind=kind, limit=100)["data"]
            assert found
            assert {each["kind"] for each in found} == {kind}

    def test_unknown_set(self, operator: Tenant) -> None:
        refused(operator.http.get("/v1/safety_sets/set_x"), 404, param="set_id", code="not_found")
