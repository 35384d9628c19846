"""The screens Critics and Critic: what measures risk, and how good it is."""

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import KEY, Service
from tests.e2e.dashboard.conftest import OpenPage, Watch, axe, check_width, show

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def critic(service: Service) -> dict[str, Any]:
    """The critic that the miniature comes with."""
    reply = httpx.get(f"{service.url}/v1/critics", headers={"authorization": f"Bearer {KEY}"})
    return reply.json()["data"][0]  # type: ignore[no-any-return]


def test_a_critic_is_found_and_shows_its_worth(
    page: "Page", critic: dict[str, Any], open_page: OpenPage
) -> None:
    show(page, "#/critics", "Critics")
    sets = page.get_by_role("region", name="The registered sets")
    sets.get_by_text("Anchors").first.wait_for()
    axe(page)
    page.get_by_role("link", name=critic["id"]).click()
    page.get_by_role("heading", level=1, name=critic["id"]).wait_for()
    page.get_by_role("heading", name="Layer by layer").wait_for()
    page.locator(".chart svg").nth(1).wait_for()
    # Each layer of both probes by itself, and what is used.
    page.get_by_text("The numbers as a table").first.click()
    layers = page.get_by_role("region", name="AUROC of each layer by itself").locator("tbody tr")
    # A table is made after it was asked for.
    layers.nth(2 * (4 + 1) - 1).wait_for()
    assert layers.count() == 2 * (4 + 1)
    points = page.get_by_role("region", name="The points of the critic").inner_text()
    assert f"{critic['threshold']:.3f}" in points
    assert critic["sha256"] in page.locator("main").inner_text()
    axe(page)
    narrow = open_page(width=375, theme="dark")
    show(narrow, f"#/critics/{critic['id']}", critic["id"])
    narrow.locator(".chart svg").nth(1).wait_for()
    check_width(narrow)
    axe(narrow)


def test_a_critic_that_is_done_is_shown_although_a_request_fails(
    page: "Page", watch: Watch, critic: dict[str, Any]
) -> None:
    watch.allow_status(503)
    page.route(
        f"**/v1/critics/{critic['id']}",
        lambda route: route.fulfill(json={**critic, "status": "running", "report": None}),
        times=1,
    )
    page.route("**/v1/fine_tuning/jobs?*", lambda route: route.fulfill(status=503), times=1)
    page.goto(f"/#/critics/{critic['id']}")
    page.get_by_text("It is being fitted").wait_for()
    page.get_by_role("heading", name="Layer by layer").wait_for()
