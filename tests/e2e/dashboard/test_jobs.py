"""The screen of all jobs: what is listed, found and asked for there."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import Service
from tests.e2e.dashboard.conftest import HOSTILE, OpenPage, Watch, axe, check_width, hold, show

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route


@pytest.fixture(scope="module")
def paused_job(service: Service, datasets: dict[str, Path]) -> str:
    """A job with a hostile label and the name of a file that is markup, which waits until it is cancelled."""
    named = datasets["clean"].with_name("<b onmouseover=alert(1)>rows.jsonl")
    named.write_bytes(datasets["clean"].read_bytes())
    job_id = service.submit(
        service.upload(named),
        metadata={HOSTILE[:60]: HOSTILE},
        suffix="waits",
        hyperparameters={"n_epochs": 40},
    )
    service.client.fine_tuning.jobs.pause(job_id)
    service.wait(job_id, until=lambda job: job.status == "paused")
    return job_id


def test_lists_each_job_with_its_state_and_risk(page: "Page", finished_job: str, paused_job: str) -> None:
    show(page, "#/jobs", "Jobs")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=finished_job))
    row.get_by_text("Succeeded").wait_for()
    row.get_by_text("steps").first.wait_for()
    # Its curve is fetched after the list.
    row.get_by_role("img", name=f"Risk over the steps of {finished_job}").wait_for()
    page.get_by_role("row").filter(has=page.get_by_role("link", name=paused_job)).get_by_text(
        "Paused"
    ).wait_for()
    axe(page)


def test_the_newest_jobs_are_shown_before_the_others_are_there(
    page: "Page", finished_job: str, watch: Watch
) -> None:
    def many(route: "Route") -> None:
        reply = route.fetch()
        body = reply.json()
        body["data"] = [{**body["data"][0], "id": f"ftjob-{number:03}"} for number in range(100)]
        route.fulfill(response=reply, json={**body, "has_more": True})

    # Their curves.
    watch.allow_status(404)
    page.route("**/v1/fine_tuning/jobs?*", many)
    held = hold(page, "**/v1/fine_tuning/jobs?*after=*")
    with page.expect_request("**/v1/fine_tuning/jobs?*after=*"):
        show(page, "#/jobs", "Jobs")
        page.get_by_role("link", name="ftjob-042").wait_for()
    # Each page says that there is another one, so that a browser left to itself would ask for ever.
    for route in held:
        route.fulfill(json={"object": "list", "data": [], "has_more": False})


def test_a_curve_that_cannot_be_read_is_no_matter_for_the_others(
    page: "Page", finished_job: str, watch: Watch
) -> None:
    def with_another(route: "Route") -> None:
        reply = route.fetch()
        body = reply.json()
        [job] = [each for each in body["data"] if each["id"] == finished_job]
        # What was made last is asked for first.
        broken = {**job, "id": "ftjob-broken", "created_at": job["created_at"] + 1}
        route.fulfill(response=reply, json={**body, "data": [broken, job]})

    watch.allow_status(404)
    page.route("**/v1/fine_tuning/jobs?*", with_another)
    with page.expect_response("**/ftjob-broken/risk?*"):
        show(page, "#/jobs", "Jobs")
    page.get_by_role("img", name=f"Risk over the steps of {finished_job}").wait_for()
    assert not page.get_by_text("Not updated since").is_visible()


def test_search_and_state_narrow_the_list_and_stay_in_the_address(
    page: "Page", finished_job: str, paused_job: str
) -> None:
    show(page, "#/jobs", "Jobs")
    waiting = page.get_by_role("link", name=paused_job)
    done = page.get_by_role("link", name=finished_job)
    page.get_by_label("Search").fill("waits miniature")
    done.wait_for(state="detached")
    waiting.wait_for()
    page.get_by_label("State").select_option("succeeded")
    page.get_by_text("No job is like that").wait_for()
    assert "q=waits+miniature&state=succeeded" in page.url
    page.reload()
    page.get_by_text("No job is like that").wait_for()
    # A hostile label is text to search for, and no markup.
    page.get_by_label("State").select_option("")
    page.get_by_label("Search").fill("onerror")
    waiting.wait_for()
    waiting.click()
    page.get_by_role("tab", name="Settings").click()
    settings = page.get_by_role("tabpanel", name="Settings")
    settings.get_by_text("console.error").first.wait_for()
    assert HOSTILE in settings.inner_text()
    assert page.locator("main img").count() == 0


def test_a_job_is_resumed_and_cancelled_from_the_list(
    page: "Page", service: Service, datasets: dict[str, Path]
) -> None:
    job_id = service.submit(
        service.upload(datasets["clean"]), hyperparameters={"n_epochs": 40}, suffix="list"
    )
    show(page, "#/jobs", "Jobs")
    page.get_by_role("button", name=f"Pause {job_id}").click()
    page.get_by_role("button", name=f"Resume {job_id}").wait_for()
    service.wait(job_id, until=lambda job: job.status == "paused")
    page.get_by_role("button", name=f"Cancel {job_id}").click()
    dialog = page.get_by_role("dialog", name="Cancel this job?")
    dialog.get_by_role("button", name="Leave it as it is").click()
    assert service.client.fine_tuning.jobs.retrieve(job_id).status == "paused"
    page.get_by_role("button", name=f"Cancel {job_id}").click()
    dialog.get_by_role("button", name="Cancel the job").click()
    page.get_by_role("button", name=f"Resume {job_id}").wait_for(state="detached")
    assert service.wait(job_id).status == "cancelled"


def test_fits_a_telephone_as_rows_under_each_other(narrow_page: "Page", finished_job: str) -> None:
    show(narrow_page, "#/jobs", "Jobs")
    narrow_page.get_by_role("link", name=finished_job).wait_for()
    check_width(narrow_page)
    box = narrow_page.get_by_role("region", name="Jobs")
    assert box.evaluate("(element) => element.scrollWidth <= element.clientWidth")
    axe(narrow_page)


def test_a_key_that_may_only_look_has_no_buttons(
    open_page: OpenPage, service: Service, watch: Watch, paused_job: str
) -> None:
    made = service.client.post(
        "/api_keys",
        body={"name": "eyes", "role": "member", "scopes": ["jobs:read"]},
        cast_to=dict[str, object],
    )
    page = open_page(key=str(made["key"]), theme="dark")
    show(page, "#/jobs", "Jobs")
    page.get_by_role("link", name=paused_job).wait_for()
    assert page.get_by_role("button", name=paused_job).count() == 0
    assert page.get_by_role("link", name="New job").count() == 0
    axe(page)


def test_how_long_ago_goes_on_with_the_clock(page: "Page", finished_job: str) -> None:
    page.clock.install()
    show(page, "#/jobs", "Jobs")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=finished_job))
    row.get_by_text("ago").wait_for()
    page.clock.fast_forward("25:00:00")
    row.get_by_text("yesterday").wait_for()
