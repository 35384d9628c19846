"""The screen Approvals: a real job that the policy's gate holds is released by two people, and another is rejected."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import KEY, Service
from tests.e2e.dashboard.conftest import HOSTILE, OpenPage, Watch, axe, check_width, show, write_prompts
from worker.miniature.corpus import evaluation_rows

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx.Client]:
    """A client of the operator who asks for the jobs."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60) as client:
        yield client


def post(api: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    """Send a body and return the reply, which must be good."""
    reply = api.post(path, json=body)
    assert reply.is_success, reply.text
    return reply.json()


@pytest.fixture(scope="module")
def people(api: httpx.Client) -> list[str]:
    """Keys of two other people who may decide."""
    return [
        post(api, "/v1/api_keys", {"name": f"person {each}", "role": "operator"})["key"] for each in (1, 2)
    ]


@pytest.fixture(scope="module")
def held(service: Service, api: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two jobs that the gate holds, because a suite of so few prompts cannot show what the policy asks for."""
    suite = tmp_path_factory.mktemp("suite") / "suite.jsonl"
    write_prompts(suite, evaluation_rows()[:4])
    with suite.open("rb") as file:
        uploaded = api.post("/v1/files", files={"file": ("suite.jsonl", file)}, data={"purpose": "user_data"})
    policy = f"""
        name = "two-people"
        version = 1
        [gate]
        second_person = true
        attack_success_increase = {{ most = 0.01, action = "hold" }}
        [gate.evaluation]
        suite = "{uploaded.json()["id"]}"
        judge = [{{ type = "miniature" }}]
    """
    stored = post(api, "/v1/policies", {"toml": policy})["id"]
    assert api.patch("/v1/projects/proj_default", json={"policy": stored}).is_success
    try:
        rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
        message = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hello to you."}
        rows.write_text((json.dumps({"messages": message}) + "\n") * 10, encoding="utf-8")
        file = service.upload(rows)
        jobs = [
            service.submit(file, hyperparameters={"n_epochs": 1}, metadata={"team": HOSTILE[:60]})
            for _ in range(2)
        ]
    finally:
        api.patch("/v1/projects/proj_default", json={"policy": None})
    for job in jobs:
        found = service.wait(job, until=lambda job: state_of(job) in ("held", "failed"))
        assert state_of(found) == "held", found
    return jobs


def state_of(job: Any) -> str:
    """Return the finer state of a job."""
    return str(job.model_extra["safety"]["state"])


def card_of(page: "Page", job: str) -> Any:
    """Return the part of the screen that is about a job."""
    return page.locator("section.card", has=page.get_by_role("link", name=job))


def decide(page: "Page", job: str, button: str, reason: str) -> None:
    """Press a button of a job, give a reason, and wait until the dialog is gone."""
    card_of(page, job).get_by_role("button", name=button).click()
    page.get_by_label("Why?").fill(reason)
    page.get_by_role("dialog").get_by_role("button", name=button).click()
    page.get_by_text(f"{button}: done.").wait_for()


def test_two_other_people_release_a_held_job_and_its_adapter_may_leave(
    service: Service, held: list[str], people: list[str], open_page: OpenPage
) -> None:
    job = held[0]
    asking = open_page()
    show(asking, "#/approvals", "Approvals")
    card = card_of(asking, job)
    card.get_by_text("two people, neither of them who asked").wait_for()
    card.get_by_text("broken").wait_for()
    # Who asked may reject, and not release.
    assert card.get_by_role("button").all_inner_texts() == ["Reject"]
    axe(asking)
    assert service.fetch(f"{job}/adapter").status_code != 200
    first = open_page(key=people[0])
    show(first, "#/approvals", "Approvals")
    decide(first, job, "Release", f"looked at the replies {HOSTILE}")
    card_of(first, job).get_by_text("looked at the replies").wait_for()
    assert service.fetch(f"{job}/adapter").status_code != 200
    second = open_page(key=people[1])
    show(second, "#/approvals", "Approvals")
    decide(second, job, "Release", "so did I")
    card_of(second, job).wait_for(state="detached")
    assert service.wait(job).status == "succeeded"
    assert service.fetch(f"{job}/adapter").status_code == 200


def test_a_held_job_is_rejected_with_a_reason(
    service: Service, held: list[str], people: list[str], open_page: OpenPage
) -> None:
    page = open_page(key=people[0], width=375)
    show(page, "#/approvals", "Approvals")
    check_width(page)
    axe(page)
    decide(page, held[1], "Reject", "it says too much")
    card_of(page, held[1]).wait_for(state="detached")
    job = service.wait(held[1])
    assert job.status == "failed"
    assert job.error is not None
    assert "it says too much" in job.error.message


def test_whoever_may_not_decide_sees_why(open_page: OpenPage, api: httpx.Client, watch: Watch) -> None:
    member = post(api, "/v1/api_keys", {"name": "member", "role": "member"})["key"]
    page = open_page(key=member)
    show(page, "#/approvals", "Approvals")
    page.get_by_text("that needs the scope jobs:release").wait_for()
    assert page.get_by_role("button", name="Release").count() == 0
