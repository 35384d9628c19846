"""Checkpoint permissions: who may share a model with another project, and what that project may then do."""

from typing import Any

import openai
import pytest

from tests.integration.conftest import MODEL, Tenant, refused
from tests.integration.released import names, release_job
from tests.integration.wire_schema import check_wire

PATH = "/v1/fine_tuning/checkpoints/{}/permissions"


def share(operator: Tenant, model: str, *tenants: Tenant) -> Any:
    """Share a model and return the reply."""
    body = {"project_ids": [tenant.project_id for tenant in tenants]}
    return operator.http.post(PATH.format(model), json=body)


class TestPermissions:
    def test_the_client_creates_lists_retrieves_and_deletes(
        self, tenant: Tenant, stranger: Tenant, operator: Tenant
    ) -> None:
        released = release_job(tenant)
        permissions = operator.openai.fine_tuning.checkpoints.permissions
        created = list(
            permissions.create(released.checkpoint, project_ids=[stranger.project_id, operator.project_id])
        )
        assert {each.project_id for each in created} == {stranger.project_id, operator.project_id}
        listed = list(permissions.list(released.checkpoint, limit=1, order="ascending"))
        assert {each.id for each in listed} == {each.id for each in created}
        backwards = list(permissions.list(released.checkpoint, limit=1, order="descending"))
        assert [each.id for each in backwards] == [each.id for each in listed][::-1]
        (one,) = permissions.list(released.checkpoint, project_id=stranger.project_id)
        assert one.project_id == stranger.project_id
        with pytest.warns(DeprecationWarning):
            whole = permissions.retrieve(released.checkpoint)
        assert (len(whole.data), whole.has_more) == (2, False)
        deleted = permissions.delete(one.id, fine_tuned_model_checkpoint=released.checkpoint)
        assert deleted.deleted
        assert [each.project_id for each in permissions.list(released.checkpoint)] == [operator.project_id]

    def test_objects_are_the_wires(self, tenant: Tenant, stranger: Tenant, operator: Tenant) -> None:
        released = release_job(tenant)
        path = PATH.format(released.checkpoint)
        created = share(operator, released.checkpoint, stranger).json()
        check_wire("ListFineTuningCheckpointPermissionResponse", created)
        page = operator.get(path)
        assert page == created
        assert page["data"][0]["id"].startswith("cp_")
        deleted = operator.http.delete(f"{path}/{page['data'][0]['id']}").json()
        check_wire("DeleteFineTuningCheckpointPermissionResponse", deleted)
        assert operator.get(path)["data"] == []
        refused(operator.http.delete(f"{path}/{page['data'][0]['id']}"), 404, param="permission_id")

    def test_again_gives_the_same_permission(
        self, tenant: Tenant, stranger: Tenant, operator: Tenant
    ) -> None:
        released = release_job(tenant)
        first = share(operator, released.checkpoint, stranger, stranger).json()
        assert len(first["data"]) == 1
        assert share(operator, released.checkpoint, stranger).json() == first

    def test_member_may_not(self, tenant: Tenant, stranger: Tenant) -> None:
        released = release_job(tenant)
        assert share(tenant, released.checkpoint, stranger).status_code == 403
        reply = tenant.http.delete(PATH.format(released.checkpoint) + "/cp_1")
        assert reply.status_code == 403

    def test_what_cannot_be_shared(self, tenant: Tenant, stranger: Tenant, operator: Tenant) -> None:
        released = release_job(tenant)
        for name in (MODEL, "nothing", f"{released.model}:ckpt-step-9"):
            reply = share(operator, name, stranger)
            refused(reply, 404, param="fine_tuned_model_checkpoint", code="model_not_found")
        tenant.openai.models.delete(released.checkpoint)
        refused(share(operator, released.checkpoint, stranger), 404, param="fine_tuned_model_checkpoint")

    def test_unknown_project_is_named_and_nothing_is_shared(
        self, tenant: Tenant, stranger: Tenant, operator: Tenant
    ) -> None:
        released = release_job(tenant)
        path = PATH.format(released.checkpoint)
        body = {"project_ids": [stranger.project_id, "proj_nothing"]}
        refused(operator.http.post(path, json=body), 400, param="project_ids[1]", code="project_not_found")
        refused(operator.http.post(path, json={"project_ids": []}), 400, param="project_ids")
        assert operator.get(path)["data"] == []


class TestWhatAPermissionGives:
    def test_the_checkpoint_and_nothing_else(
        self, tenant: Tenant, stranger: Tenant, operator: Tenant
    ) -> None:
        released = release_job(tenant)
        assert share(operator, released.checkpoint, stranger).status_code == 200
        model = stranger.openai.models.retrieve(released.checkpoint)
        assert names(stranger) == [MODEL, released.checkpoint]
        assert model.owned_by == tenant.project_id
        path = stranger.get(f"/v1/models/{released.checkpoint}")["adapter"]
        assert stranger.http.get(path).content == released.checkpoint_adapter
        job = f"/v1/fine_tuning/jobs/{released.job_id}"
        for closed in (job, f"{job}/adapter", f"{job}/evidence", f"{job}/checkpoints", f"{job}/events"):
            refused(stranger.http.get(closed), 404, param="fine_tuning_job_id")
        with pytest.raises(openai.PermissionDeniedError, match="another project"):
            stranger.openai.models.delete(released.checkpoint)
        assert tenant.openai.models.retrieve(released.checkpoint).id == released.checkpoint

    def test_a_whole_model(self, tenant: Tenant, stranger: Tenant, operator: Tenant) -> None:
        released = release_job(tenant)
        assert share(operator, released.model, stranger).status_code == 200
        path = stranger.get(f"/v1/models/{released.model}")["adapter"]
        assert stranger.http.get(path).content == released.adapter

    def test_it_ends_with_the_permission(self, tenant: Tenant, stranger: Tenant, operator: Tenant) -> None:
        released = release_job(tenant)
        (permission,) = share(operator, released.checkpoint, stranger).json()["data"]
        path = stranger.get(f"/v1/models/{released.checkpoint}")["adapter"]
        operator.http.delete(f"{PATH.format(released.checkpoint)}/{permission['id']}")
        refused(stranger.http.get(f"/v1/models/{released.checkpoint}"), 404, param="model")
        refused(stranger.http.get(path), 404, param="checkpoint_id")
        assert names(stranger) == [MODEL]
