"""The screen Admin: each panel does through the public API what it shows."""

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from tests.e2e.conftest import KEY, Service
from tests.e2e.dashboard.conftest import HOSTILE, OpenPage, Watch, axe, check_width, show

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

PATIENCE_S = 60
PANELS = ("Health", "Usage", "Keys", "Webhooks", "Projects", "Policies")


def open_panel(page: "Page", name: str) -> None:
    """Show a panel and wait until it is filled."""
    page.get_by_role("tab", name=name).click()
    page.locator("[role=tabpanel] .skeleton:visible").first.wait_for(state="detached")


def test_every_panel_is_there_reads_well_and_fits_a_telephone(narrow_page: "Page") -> None:
    show(narrow_page, "#/admin", "Admin")
    for name in PANELS:
        open_panel(narrow_page, name)
        check_width(narrow_page)
        axe(narrow_page)
    assert narrow_page.get_by_role("tab").all_inner_texts() == list(PANELS)


def test_health_tells_workers_and_the_notary(page: "Page") -> None:
    show(page, "#/admin", "Admin")
    page.get_by_role("heading", name="Jobs can run").wait_for()
    page.get_by_text("1 alive").nth(2).wait_for()
    assert page.get_by_text("1 alive").count() == 3
    page.locator(".badge", has_text="signs").wait_for()


def test_health_keeps_its_table_and_the_keyboard_in_it(page: "Page") -> None:
    page.clock.install()
    show(page, "#/admin", "Admin")
    table = page.locator(".scroll[aria-label='Workers and queues']")
    table.focus()
    # The second reply is asked for once the first one was drawn.
    for _ in range(2):
        with page.expect_response("**/metrics"):
            page.clock.fast_forward("00:06")
    assert table.evaluate("(element) => element === document.activeElement")


def answer(reply: dict[str, Any], route: "Route") -> None:
    """Answer a request of the page in the server's place."""
    route.fulfill(**reply)


def test_health_is_unknown_where_something_else_answers(page: "Page", watch: Watch) -> None:
    watch.allow_status(502)
    for reply in ({"status": 502, "body": "Bad gateway"}, {"status": 200, "json": {"status": "ok"}}):
        page.route("**/readyz", partial(answer, reply))
        show(page, "#/jobs", "Jobs")
        show(page, "#/admin", "Admin")
        page.get_by_role("heading", name="Whether jobs can run is unknown").wait_for()
        assert page.get_by_role("heading", name="Jobs can run", exact=True).count() == 0


def test_a_question_goes_with_the_screen_that_asked_it(page: "Page") -> None:
    show(page, "#/admin", "Admin")
    open_panel(page, "Keys")
    page.get_by_role("button", name="Rotate").first.click()
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    page.evaluate("location.hash = '#/jobs'")
    dialog.wait_for(state="detached")


def test_a_key_is_made_shown_once_opens_and_is_revoked(page: "Page", service: Service) -> None:
    show(page, "#/admin", "Admin")
    open_panel(page, "Keys")
    page.get_by_label("Name").fill(HOSTILE)
    page.get_by_role("button", name="Make the key").click()
    page.get_by_text("copy it now").wait_for()
    made = page.locator("[aria-live] pre code").inner_text()
    bearer = {"authorization": f"Bearer {made}"}
    assert httpx.get(f"{service.url}/v1/files", headers=bearer).status_code == 200
    show(page, "#/jobs", "Jobs")
    show(page, "#/admin", "Admin")
    open_panel(page, "Keys")
    assert made not in page.content()
    row = page.locator("tr", has_text="onerror").first
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    row.get_by_text("revoked").wait_for()
    # Who is behind a key is remembered for a moment.
    deadline = time.monotonic() + PATIENCE_S
    while httpx.get(f"{service.url}/v1/files", headers=bearer).status_code != 401:
        assert time.monotonic() < deadline, "the key still opens"
        time.sleep(0.1)


def test_a_project_gets_limits_and_gives_them_up(page: "Page", service: Service, watch: Watch) -> None:
    show(page, "#/admin", "Admin")
    open_panel(page, "Projects")
    name = f"support {HOSTILE}"
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Make the project").click()
    card = page.locator("section.card", has=page.get_by_role("heading", name=name, exact=True))
    card.get_by_label("Jobs that run at once").fill("3")
    card.get_by_role("button", name="Save").click()
    page.get_by_text(f"Saved {name}.").wait_for()
    operator = {"authorization": f"Bearer {KEY}"}

    def own_limits() -> dict[str, int]:
        listed = httpx.get(f"{service.url}/v1/projects", headers=operator).json()["data"]
        return next(each["own_limits"] for each in listed if each["name"] == name)  # type: ignore[no-any-return]

    assert own_limits() == {"running_jobs": 3}
    page.locator(".toast").wait_for(state="detached")
    card.get_by_label("Jobs that run at once").fill("")
    card.get_by_role("button", name="Save").click()
    page.get_by_text(f"Saved {name}.").wait_for()
    assert own_limits() == {}
    # What was saved and cannot be read again is told.
    watch.allow_status(503)
    page.route("**/v1/projects?*", lambda route: route.fulfill(status=503), times=1)
    card.get_by_role("button", name="Save").click()
    page.locator(".toast.bad", has_text="status 503").wait_for()


def test_a_policy_is_stored_and_a_wrong_one_is_refused_with_its_field(
    open_page: OpenPage, watch: Watch
) -> None:
    page = open_page()
    show(page, "#/admin", "Admin")
    open_panel(page, "Policies")
    text = page.get_by_label("Policy, as TOML")
    watch.allow_status(400)
    text.fill('name = "x"\nversion = 1\nbeta_max_floor = 7')
    page.get_by_role("button", name="Store the policy").click()
    page.locator(".problem:visible", has_text="beta_max_floor").wait_for()
    text.fill('name = "careful"\nversion = 1\nbeta_max_floor = 0.9')
    page.get_by_role("button", name="Store the policy").click()
    page.get_by_role("heading", name="careful 1").wait_for()


def test_a_webhook_has_a_secret_shown_once_and_a_log_of_deliveries(page: "Page") -> None:
    show(page, "#/admin", "Admin")
    open_panel(page, "Webhooks")
    page.get_by_label("Name").fill(HOSTILE)
    page.get_by_label("URL").fill("https://hooks.example.com/tether")
    page.get_by_role("button", name="Add the endpoint").click()
    page.get_by_text("copy it now").wait_for()
    assert page.locator("[aria-live] pre code").inner_text().startswith("whsec_")
    card = page.locator("section.card", has=page.get_by_role("heading", name=HOSTILE, exact=True))
    card.get_by_text("Deliveries", exact=True).click()
    card.get_by_text("Nothing was sent yet.").wait_for()
    card.get_by_role("button", name="Disable").click()
    card.get_by_text("disabled").wait_for()
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    card.wait_for(state="detached")


def test_usage_names_the_month_that_was_chosen(page: "Page") -> None:
    show(page, "#/admin", "Admin")
    open_panel(page, "Usage")
    page.get_by_label("Month (UTC)").fill("2026-02")
    page.get_by_text("GPU time in 2026-02").wait_for()


def test_a_member_sees_the_panels_that_are_its_own(open_page: OpenPage, service: Service) -> None:
    reply = httpx.post(
        f"{service.url}/v1/api_keys",
        headers={"authorization": f"Bearer {KEY}"},
        json={"name": "member", "role": "member"},
    )
    page = open_page(key=reply.json()["key"])
    show(page, "#/admin", "Admin")
    assert page.get_by_role("tab").all_inner_texts() == ["Health", "Usage", "Webhooks"]
    page.get_by_text("Workers and queues are for keys with the scope metrics:read.").wait_for()
