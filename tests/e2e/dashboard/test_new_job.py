"""The screen New job: from data to a job that runs, and what is refused on the way."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.conftest import Service
from tests.e2e.dashboard.conftest import HOSTILE, OpenPage, Watch, axe, check_width, hold, show

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

MADE_MS = 90_000
"""How long a report may take on a busy machine."""


def submitted(page: "Page", service: Service) -> Any:
    """Submit what the form says, and return the job that it made."""
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url("**/#/jobs/ftjob-*")
    return service.client.fine_tuning.jobs.retrieve(page.url.rsplit("/", 1)[1])


def safety_of(job: Any) -> dict[str, Any]:
    """Return how a job is protected."""
    safety: dict[str, Any] = job.model_extra["safety"]
    return safety


def test_risky_rows_are_left_out_and_the_job_is_submitted(
    page: "Page", watch: Watch, service: Service, datasets: dict[str, Path]
) -> None:
    watch.allow_status(400)
    uploaded = service.upload(datasets["poisoned"])
    page.goto(f"/#/new?file={uploaded}")
    page.get_by_role("heading", name="The riskiest 80 of 80 rows").wait_for(timeout=MADE_MS)
    page.get_by_role("button", name="Leave out all rows with a risk from").click()
    page.get_by_role("button", name="Make the new file").click()
    # The new file is the one that is chosen, and has a report of its own.
    page.get_by_role("heading", name="of 72 rows").wait_for(timeout=MADE_MS)
    axe(page)

    page.get_by_text("Hyperparameters").click()
    page.get_by_label("n epochs").fill("99")
    page.get_by_text("The settings have changed since").wait_for()
    page.get_by_role("button", name="Submit the job").click()
    page.locator("[aria-invalid=true]").wait_for()
    assert "less than or equal to 50" in page.locator(".field:has([aria-invalid=true])").inner_text()
    page.get_by_label("n epochs").fill("1")
    page.get_by_text("Name, seed and order").click()
    page.get_by_label("suffix").fill("from-the-page")
    page.get_by_role("button", name="Add a pair").click()
    page.get_by_label("Key", exact=True).fill("team")
    page.get_by_label("Value", exact=True).fill(HOSTILE)
    job = submitted(page, service)
    service.client.fine_tuning.jobs.cancel(job.id)

    assert job.metadata == {"team": HOSTILE}
    assert job.hyperparameters.n_epochs == 1
    assert safety_of(job)["method"] == "adaptive_kl"
    file = service.client.files.retrieve(job.training_file)
    assert (file.model_extra or {})["rows"] == 72
    assert (file.model_extra or {})["derived_from"]["file"] == uploaded


def test_a_choice_that_is_taken_back_stops_what_was_asked_for(
    page: "Page", service: Service, datasets: dict[str, Path]
) -> None:
    uploaded = service.upload(datasets["clean"])
    hold(page, "**/jobs/estimate?*", times=1)
    with page.expect_request("**/jobs/estimate?*"):
        page.goto(f"/#/new?file={uploaded}")
    with page.expect_event("requestfailed"):
        page.get_by_label("Training data").select_option("")
    page.get_by_text("Choose a model and data").wait_for()
    assert page.locator(".waiting-report").count() == 0

    # A second file takes the place of one that is being sent.
    hold(page, "**/v1/files", times=1)
    row = datasets["clean"].read_bytes().splitlines(keepends=True)[0]
    first, second = (
        {"name": name, "mimeType": "application/jsonl", "buffer": row * 2}
        for name in ("first.jsonl", "second.jsonl")
    )
    page.locator("input[type=file]").set_input_files([first])
    page.get_by_text("Sending first.jsonl").wait_for()
    with page.expect_event("requestfailed"):
        page.locator("input[type=file]").set_input_files([second])
    page.get_by_label("Training data").locator("option:checked", has_text="second.jsonl").wait_for(
        state="attached"
    )
    assert page.get_by_text("nothing was kept").count() == 0


def test_a_complaint_is_shown_at_the_part_and_the_numbers_that_it_names(
    page: "Page", watch: Watch, service: Service, datasets: dict[str, Path]
) -> None:
    watch.allow_status(400)
    page.goto(f"/#/new?file={service.upload(datasets['clean'])}")
    page.get_by_text("own settings").click()
    page.get_by_label("critic", exact=True).select_option("combined")
    parts = page.locator(".part")
    parts.nth(1).get_by_label("Part").select_option("constant")
    parts.nth(1).get_by_label("s", exact=True).fill("0.5")
    # The second part is the first one from here on.
    parts.nth(0).get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Add a part").click()
    parts.nth(1).get_by_label("Part").select_option("constant")
    parts.nth(1).get_by_label("s", exact=True).fill("7")
    page.get_by_label("rule", exact=True).select_option("weighted")
    page.get_by_label("weights", exact=True).fill("1, heavy")
    submit = page.get_by_role("button", name="Submit the job")
    submit.click()
    parts.nth(1).locator("[aria-invalid=true]").wait_for()
    assert parts.nth(0).locator("[aria-invalid=true]").count() == 0
    parts.nth(1).get_by_label("s", exact=True).fill("0.7")
    submit.click()
    # What is no number is refused as what it is.
    page.locator(".field:has(> [aria-invalid=true])", has_text="heavy").wait_for()
    assert page.get_by_label("weights", exact=True).get_attribute("aria-invalid") == "true"
    assert parts.locator("[aria-invalid=true]").count() == 0


def test_own_settings_are_sent_and_another_job_can_be_sent_again(
    page: "Page", watch: Watch, service: Service, datasets: dict[str, Path]
) -> None:
    watch.allow_status(400)
    page.goto(f"/#/new?file={service.upload(datasets['clean'])}")
    page.get_by_text("own settings").click()
    # The meaning of a knob, and its bounds, come from the API's description.
    page.get_by_text("KL weight of a row without risk. (from 0 to 1)").wait_for()
    page.get_by_label("beta min").fill("2")
    page.get_by_role("button", name="Submit the job").click()
    page.locator("[aria-invalid=true]").wait_for()
    assert page.get_by_label("beta min").get_attribute("aria-invalid") == "true"
    page.get_by_label("beta min").fill("0.25")
    page.get_by_label("monitor", exact=True).uncheck()
    page.get_by_label("per step").fill("2")
    axe(page)
    first = submitted(page, service)
    service.client.fine_tuning.jobs.cancel(first.id)
    assert (safety_of(first)["beta_min"], safety_of(first)["monitor"]) == (0.25, None)
    assert safety_of(first)["anchors"]["per_step"] == 2

    def with_an_export(route: "Route") -> None:
        asked = {"type": "mlflow", "mlflow": {"experiment": HOSTILE}}
        route.fulfill(json={**route.fetch().json(), "integrations": [asked]})

    page.route(f"**/v1/fine_tuning/jobs/{first.id}", with_an_export)
    page.goto(f"/#/new?from={first.id}")
    page.get_by_text("with what you change").wait_for()
    # It is sent, and said at its place that this service has nowhere to send it to.
    page.get_by_role("button", name="Submit the job").click()
    page.locator(".problem:visible", has_text="no MLflow server").wait_for()
    page.get_by_label("mlflow").uncheck()
    again = submitted(page, service)
    service.client.fine_tuning.jobs.cancel(again.id)
    for name in ("method", "critic", "beta_min", "beta_max", "threshold", "anchors", "monitor", "replay"):
        assert safety_of(again)[name] == safety_of(first)[name]
    assert (again.seed, again.hyperparameters) == (first.seed, first.hyperparameters)
    assert again.training_file == first.training_file


def test_a_small_screen_in_the_dark(open_page: OpenPage) -> None:
    narrow = open_page(width=375, theme="dark")
    show(narrow, "#/new", "New job")
    narrow.get_by_text("Choose a model and data").wait_for()
    narrow.get_by_text("own settings").click()
    narrow.get_by_label("beta max").wait_for()
    check_width(narrow)
    axe(narrow)
    assert narrow.get_by_role("button", name="Submit the job").is_disabled()
    assert narrow.locator(".choice .badge", has_text="unprotected").is_visible()
