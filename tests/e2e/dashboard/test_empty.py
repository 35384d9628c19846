"""What a new project sees: every screen of the menu while there is nothing to list."""

from typing import Any

from tests.e2e.conftest import Service
from tests.e2e.dashboard.conftest import HOSTILE, OpenPage, axe, show

SCREENS = {
    "jobs": ("Jobs", "No jobs yet"),
    "datasets": ("Datasets", "No data yet"),
    # Base models and their critics are everybody's.
    "models": ("Models", "miniature"),
    "critics": ("Critics", "miniature"),
    "compare": ("Compare jobs", "Choose up to six jobs"),
    "approvals": ("Approvals", "Nothing waits"),
    "verify": ("Verify", "Choose"),
    "admin": ("Admin", "Jobs can run"),
}


def test_every_screen_of_a_new_project_says_what_it_is_for(open_page: OpenPage, service: Service) -> None:
    project = service.client.post("/projects", body={"name": f"new {HOSTILE}"}, cast_to=dict[str, Any])
    body = {"name": "first", "role": "owner", "project_id": project["id"]}
    page = open_page(key=service.client.post("/api_keys", body=body, cast_to=dict[str, Any])["key"])
    for address, (heading, said) in SCREENS.items():
        show(page, f"#/{address}", heading)
        page.get_by_text(said).first.wait_for()
        axe(page)
    for panel, said in {"Usage": "No job yet.", "Keys": "first", "Webhooks": "No endpoint"}.items():
        page.get_by_role("tab", name=panel).click()
        page.get_by_text(said).first.wait_for()
        axe(page)
    # The frame names the project on every screen.
    page.locator(".who").get_by_text(HOSTILE).wait_for()
