"""The screens Models and Model: where a model comes from, how it behaves, and what one may take away."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import Service
from tests.e2e.dashboard.conftest import OpenPage, Watch, axe, check_width, hold, show, write_prompts
from worker.miniature.corpus import evaluation_rows

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVALUATED_MS = 120_000
DRAWN_MS = 500


@pytest.fixture(scope="module")
def model(service: Service, finished_job: str) -> str:
    """A fine-tuned model that is protected."""
    return str(service.client.fine_tuning.jobs.retrieve(finished_job).fine_tuned_model)


def test_models_are_listed_with_their_protection(page: "Page", model: str, open_page: OpenPage) -> None:
    show(page, "#/models", "Models")
    grid = page.get_by_role("region", name="Models")
    row = grid.locator("tbody tr", has=page.get_by_role("link", name=model, exact=True))
    row.get_by_text("Fine-tuned").wait_for()
    row.get_by_title("Trained under a safety method").wait_for()
    page.get_by_label("Kind").select_option("base")
    grid.get_by_role("link", name="miniature", exact=True).wait_for()
    grid.locator("tbody tr").nth(1).wait_for(state="detached")
    assert grid.locator("tbody tr").count() == 1
    axe(page)
    narrow = open_page(width=375, theme="dark")
    show(narrow, "#/models", "Models")
    check_width(narrow)
    axe(narrow)


def test_a_model_is_evaluated_and_shown_before_and_after(
    page: "Page", service: Service, model: str, tmp_path: Path, open_page: OpenPage, watch: Watch
) -> None:
    suite = tmp_path / "<img src=x onerror=alert(1)>.jsonl"
    write_prompts(suite, [row for row in evaluation_rows(n_per_kind=6) if row["kind"] != "borderline"])
    file = service.client.files.create(file=suite, purpose="user_data")
    show(page, f"#/models/{model}", model)
    page.get_by_role("link", name="miniature", exact=True).first.wait_for()
    assert page.locator(".lineage li[aria-current]").inner_text().startswith(model)
    page.get_by_role("button", name="Evaluate").click()
    dialog = page.get_by_role("dialog")
    # Its name is shown as the text that it is.
    dialog.get_by_label("Prompts").select_option(label=suite.name)
    dialog.get_by_text("How replies are drawn").click()
    dialog.get_by_label("max new tokens").fill("8")
    axe(page)
    with page.expect_response(lambda reply: reply.request.method == "POST") as asked:
        dialog.get_by_role("button", name="Evaluate").click()
    assert asked.value.json()["suite"] == file.id
    evaluation = asked.value.json()["id"]
    page.get_by_role("code").get_by_text(evaluation).wait_for()
    page.locator("button:focus", has_text="Evaluate").wait_for()
    page.get_by_role("region", name="Every number of the evaluation").wait_for(timeout=EVALUATED_MS)
    numbers = page.get_by_role("region", name="Every number")
    numbers.get_by_text("Attack success, likeliest reply").first.wait_for()
    page.locator(".chart svg").first.wait_for()
    axe(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download Adapter").click()
    assert download.value.path().read_bytes()[:2] == b"PK"
    narrow = open_page(width=375, theme="dark")
    # A request that fails once is made again.
    watch.allow_status(503)
    narrow.route(f"**/v1/evaluations/{evaluation}", lambda route: route.fulfill(status=503), times=1)
    show(narrow, f"#/models/{model}", model)
    narrow.locator(".chart svg").first.wait_for()
    check_width(narrow)
    axe(narrow)
    check_order_of_replies(page, service, model, evaluation)


def check_order_of_replies(page: "Page", service: Service, model: str, evaluation: str) -> None:
    """Demand that an evaluation whose reply comes late does not take the place of the one that was chosen since."""
    found = service.client.get(f"/evaluations/{evaluation}", cast_to=dict[str, Any])
    late = {**found, "id": "late"}
    listed = {"object": "list", "data": [found, late], "has_more": False}
    page.route("**/v1/evaluations?*", lambda route: route.fulfill(json=listed))
    held = hold(page, "**/v1/evaluations/late")
    page.reload()
    choice = page.get_by_label("Evaluation", exact=True)
    choice.wait_for()
    with page.expect_request("**/v1/evaluations/late"):
        choice.select_option("late")
    choice.select_option(evaluation)
    page.get_by_role("region", name="Every number").wait_for()
    with page.expect_response("**/v1/evaluations/late"):
        held[0].fulfill(json=late)
    page.wait_for_timeout(DRAWN_MS)
    assert page.get_by_role("code").get_by_text(evaluation).is_visible()


def test_a_base_model_and_a_question_before_a_deletion(page: "Page", service: Service, model: str) -> None:
    show(page, "#/models/miniature", "miniature")
    page.get_by_text("SHA-256 of its files").wait_for()
    assert page.get_by_role("button", name="Delete").count() == 0
    show(page, f"#/models/{model}", model)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name=f"Delete {model}?").wait_for()
    page.get_by_role("button", name="Leave it as it is").click()
    # Whoever uses a keyboard is where they were.
    page.locator("button:focus", has_text="Delete").wait_for()
    assert service.client.models.retrieve(model).id == model
