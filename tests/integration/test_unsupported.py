"""What the wire has and this service does not: an answer that says what to do instead, and no retry."""

import json
import shlex
from typing import Any

import openai
import pytest
from sqlalchemy import update

from app.database import unit_of_work
from app.models.job import Job
from tests.integration.conftest import MODEL, Tenant, refused
from tests.integration.released import release_job

CHAT = "/v1/chat/completions"
PATHS = (
    CHAT,
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/moderations",
    "/v1/batches",
    "/v1/fine_tuning/alpha/graders/run",
    "/v1/fine_tuning/alpha/graders/validate",
)


def ask(tenant: Tenant, model: str) -> str:
    """Ask a model a question and return why it does not answer."""
    reply = tenant.http.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": "hi"}]})
    assert reply.headers["x-should-retry"] == "false"
    return refused(reply, 501, code="not_supported")


class TestPaths:
    def test_every_one_says_what_to_do(self, tenant: Tenant) -> None:
        for path in PATHS:
            for reply in (tenant.http.post(path, content=b"\xff"), tenant.http.get(path)):
                message = refused(reply, 501, code="not_supported")
                assert message.startswith(f"{reply.request.method} {path}: this service trains models")
                assert reply.headers["x-should-retry"] == "false"

    def test_nobody_is_told_without_a_key(self, tenant: Tenant) -> None:
        for path in PATHS:
            refused(tenant.http.post(path, headers={"authorization": "Bearer junk"}), 401)

    def test_the_client_shows_it_and_does_not_retry(self, tenant: Tenant) -> None:
        asked: list[Any] = []
        with openai.OpenAI(api_key=tenant.key, base_url=f"{tenant.server.url}/v1", max_retries=2) as client:
            client._client.event_hooks = {"request": [asked.append], "response": []}  # type: ignore[dict-item]
            with pytest.raises(openai.APIStatusError, match="vllm serve") as caught:
                client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hi"}])
        assert (caught.value.status_code, caught.value.code) == (501, "not_supported")
        assert len(asked) == 1


class TestServing:
    def test_command_serves_this_adapter(self, tenant: Tenant) -> None:
        released = release_job(tenant)
        message = ask(tenant, released.model)
        assert f"GET /v1/fine_tuning/jobs/{released.job_id}/adapter" in message
        command = shlex.split(message.partition("vLLM: ")[2])
        assert command == [
            "vllm",
            "serve",
            MODEL,
            "--enable-lora",
            "--max-lora-rank",
            "16",
            "--lora-modules",
            f"{released.model}=adapter",
        ]

    def test_checkpoint_and_rank(self, tenant: Tenant) -> None:
        released = release_job(tenant)
        with unit_of_work(tenant.server.database) as session:
            job = session.get_one(Job, released.job_id)
            session.execute(
                update(Job).where(Job.id == job.id).values(spec={**(job.spec or {}), "lora_r": 40})
            )
        message = ask(tenant, released.checkpoint)
        assert f"/checkpoints/{released.checkpoint_id}/adapter" in message
        assert "--max-lora-rank 64" in message
        assert f"{released.checkpoint}=adapter" in message

    def test_base_model(self, tenant: Tenant) -> None:
        assert ask(tenant, MODEL).endswith(f"vllm serve {MODEL}")

    def test_foreign_model_is_not_told(self, tenant: Tenant, stranger: Tenant) -> None:
        released = release_job(tenant)
        message = ask(stranger, released.model)
        assert released.job_id not in message
        assert message == ask(stranger, "nothing")

    @pytest.mark.parametrize("model", ["x; rm -rf /", "\\u0000", "\\ud800", "x" * 100_000])
    def test_hostile_model_is_not_echoed(self, tenant: Tenant, model: str) -> None:
        body = f'{{"model": "{model}"}}'.encode()
        reply = tenant.http.post(CHAT, content=body, headers={"content-type": "application/json"})
        message = refused(reply, 501, code="not_supported")
        assert message == ask(tenant, "nothing")


class TestMethods:
    @pytest.mark.parametrize("method", ["dpo", "reinforcement"])
    def test_method_says_what_to_do(self, tenant: Tenant, method: str) -> None:
        body: dict[str, Any] = {"type": method, method: {"hyperparameters": {"beta": 0.1}}}
        reply = tenant.post_job(method=body)
        message = refused(reply, 501, param="method.type", code="not_supported")
        assert "'supervised'" in message
        assert reply.headers["x-should-retry"] == "false"
        # By its status the client raises an InternalServerError; the type says the same.
        assert reply.json()["error"]["type"] == "server_error"
        assert tenant.get("/v1/fine_tuning/jobs")["data"] == []

    def test_unknown_method_is_invalid(self, tenant: Tenant) -> None:
        refused(tenant.post_job(method={"type": "magic"}), 400, param="method.type")

    def test_the_client_shows_it(self, tenant: Tenant) -> None:
        with pytest.raises(openai.APIStatusError, match="preference") as caught:
            tenant.openai.fine_tuning.jobs.create(
                model=MODEL, training_file=tenant.upload(), method={"type": "dpo"}
            )
        assert json.loads(caught.value.response.text)["error"]["param"] == "method.type"
