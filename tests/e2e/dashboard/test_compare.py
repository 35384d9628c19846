"""The screen Compare: two jobs over each other, what they are worth, and in what they differ."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import Service
from tests.e2e.dashboard.conftest import HOSTILE, OpenPage, axe, check_width, show

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def unprotected_job(service: Service, datasets: dict[str, Path], finished_job: str) -> str:
    """A short job that nothing held to its reference, on the same data."""
    job_id = service.submit(
        service.client.fine_tuning.jobs.retrieve(finished_job).training_file,
        hyperparameters={"n_epochs": 1, "batch_size": 8},
        seed=3,
        suffix="open",
        metadata={"why": HOSTILE},
        safety="off",
    )
    assert service.wait(job_id).status == "succeeded"
    return job_id


def test_two_jobs_are_compared(
    page: "Page", service: Service, finished_job: str, unprotected_job: str, open_page: OpenPage
) -> None:
    show(page, "#/compare", "Compare jobs")
    page.get_by_role("heading", name="Choose up to six jobs").wait_for()
    for job_id in (finished_job, unprotected_job):
        page.locator(f"input[type=checkbox][value='{job_id}']").check()
    page.wait_for_function("ids => location.hash.endsWith(ids)", arg=f"{finished_job},{unprotected_job}")
    named = page.get_by_role("region", name="The compared jobs")
    named.get_by_text("unprotected").wait_for()
    named.locator("tbody tr").nth(1).wait_for()
    assert named.locator("tbody tr").count() == 2
    page.get_by_text("The numbers as a table").first.click()
    numbers = page.get_by_role("region", name="The chosen number of each job").locator("tbody tr")
    # Two passes over 80 rows by 8, and one. A table is made after it was asked for.
    numbers.nth(20 + 10 - 1).wait_for()
    assert numbers.count() == 20 + 10
    page.get_by_label("Number", exact=True).select_option("beta_mean")
    page.get_by_label("Along", exact=True).select_option("share")
    page.locator(".chart svg text", has_text="Beta, mean, 0 to 1").wait_for()
    page.locator(".chart svg text", has_text="share of the run").wait_for()
    # The table that stands open has the same numbers.
    curve = service.fetch(f"{finished_job}/risk").json()
    last = curve["rows"][-1][curve["columns"].index("beta_mean")]
    numbers.nth(20 - 1).get_by_text(f"{last:.3g}").wait_for()
    # Another choice of jobs keeps the number and the axis, and so does the address.
    other = page.locator(f"input[type=checkbox][value='{finished_job}']")
    other.uncheck()
    named.locator("tbody tr").nth(1).wait_for(state="detached")
    # An old picture does not stand for numbers that are not there: nothing watched how far this job moved.
    page.get_by_label("Number", exact=True).select_option("drift")
    page.get_by_text("There is nothing to draw.").wait_for()
    page.get_by_label("Number", exact=True).select_option("beta_mean")
    page.locator(".chart svg text", has_text="Beta, mean, 0 to 1").wait_for()
    other.check()
    named.locator("tbody tr").nth(1).wait_for()
    assert page.get_by_label("Number", exact=True).input_value() == "beta_mean"
    assert page.get_by_label("Along", exact=True).input_value() == "share"
    assert page.url.endswith(f"jobs={unprotected_job},{finished_job}&metric=beta_mean&axis=share")

    different = page.get_by_role("region", name="The differences")
    different.get_by_text("safety.method").wait_for()
    assert HOSTILE in different.inner_text()
    assert "seed" not in different.inner_text()
    page.get_by_role("heading", name="Not on the chart").wait_for()
    axe(page)
    narrow = open_page(width=375, theme="dark")
    show(narrow, f"#/compare?jobs={finished_job},{unprotected_job}", "Compare jobs")
    narrow.get_by_role("heading", name="What is different").wait_for()
    narrow.locator(".chart svg").first.wait_for()
    # Where the cells of a row stand under each other, each says whose it is.
    cell = narrow.get_by_role("region", name="The differences").get_by_role("cell").nth(1)
    assert finished_job[-6:] in (cell.get_attribute("data-title") or "")
    check_width(narrow)
    axe(narrow)
