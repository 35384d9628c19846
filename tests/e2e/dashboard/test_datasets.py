"""The screens Datasets and Dataset: files sent, told apart, reported on, and erased."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from openai import NotFoundError

from tests.e2e.conftest import Service
from tests.e2e.dashboard.conftest import OpenPage, Watch, axe, check_width, hold, show

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

GOOD = '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]}\n'
WRONG_ROLE = '{"messages": [{"role": "bot", "content": "Hello"}]}\n'
MADE_MS = 90_000
"""How long a report may take on a busy machine."""
NAME = "<img src=x onerror=alert(1)>.jsonl"


def send(page: "Page", content: str, name: str = NAME) -> None:
    """Choose a file where the page takes one."""
    payload = {"name": name, "mimeType": "application/jsonl", "buffer": content.encode()}
    page.locator("input[type=file]").set_input_files([payload])


def test_a_bad_file_is_told_line_by_line_and_sent_without_the_bad_lines(
    page: "Page", watch: Watch, service: Service
) -> None:
    watch.allow_status(400)
    show(page, "#/datasets", "Datasets")
    send(page, GOOD + WRONG_ROLE + GOOD + "nonsense\n")
    page.get_by_role("heading", name=f"{NAME} was not taken").wait_for()
    rows = page.get_by_role("region", name="Problems of the file").locator("tbody tr")
    rows.nth(1).wait_for()
    assert [row.locator("td").first.inner_text() for row in rows.all()] == ["2", "4"]
    assert "$.messages[0].role" in rows.nth(0).inner_text()
    assert "one JSON object per line" in rows.nth(1).inner_text()
    axe(page)
    page.get_by_role("button", name="Leave out these 2 lines and send the rest").click()
    # A good file has a screen of its own, with its name shown as the text that it is.
    page.get_by_role("heading", level=1, name=NAME).wait_for()
    file_id = page.url.rsplit("/", 1)[1]
    assert service.client.files.content(file_id).text == GOOD + GOOD
    page.get_by_role("heading", name="What the job would be").wait_for(timeout=MADE_MS)
    service.client.files.delete(file_id)


def test_a_large_file_goes_in_parts(page: "Page", service: Service) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    show(page, "#/datasets", "Datasets")
    page.get_by_label("What it is for").select_option("user_data")
    line = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}], "kind": "harmful"}) + "\n"
    content = line * 4500
    held = hold(page, "**/v1/uploads/*/parts", times=1)
    with page.expect_request("**/v1/uploads/*/parts"):
        send(page, content, "prompts.jsonl")
    # What the next file is for changes nothing of one that is under way.
    page.get_by_label("What it is for").select_option("fine-tune")
    assert page.get_by_text("Sending prompts.jsonl").is_visible()
    held[0].continue_()
    page.get_by_role("heading", level=1, name="prompts.jsonl").wait_for()
    assert sum(url.endswith("/parts") for url in sent) == 2
    file_id = page.url.rsplit("/", 1)[1]
    file = service.client.files.retrieve(file_id)
    assert (file.bytes, file.purpose) == (len(content), "user_data")
    service.client.files.delete(file_id)


def test_a_dataset_has_its_report_and_its_jobs(
    page: "Page", service: Service, finished_job: str, open_page: OpenPage
) -> None:
    job = service.client.fine_tuning.jobs.retrieve(finished_job)
    address = f"#/datasets/{job.training_file}"
    show(page, "#/datasets", "Datasets")
    page.get_by_label("Search").fill(job.training_file)
    found = page.get_by_role("region", name="Files").locator("tbody tr")
    found.nth(1).wait_for(state="detached")
    assert found.count() == 1
    axe(page)
    page.get_by_role("link", name="poisoned.jsonl").click()
    page.get_by_role("heading", name="The riskiest 80 of 80 rows").wait_for(timeout=MADE_MS)
    page.get_by_role("link", name=finished_job).wait_for()
    page.locator(".segments ins").first.wait_for()
    page.get_by_text("on held-out topics AUROC").first.wait_for()
    page.locator(".chart svg").nth(1).wait_for()
    axe(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download poisoned.jsonl").click()
    assert download.value.suggested_filename == "poisoned.jsonl"
    # A report does not stand under choices that it was not made for.
    held = hold(page, "**/report?*", times=1)
    with page.expect_request("**/report?*"):
        page.get_by_label("Protection that is expected").select_option("strict")
    assert page.locator(".waiting-report").is_visible()
    assert page.get_by_role("heading", name="The riskiest").count() == 0
    held[0].continue_()
    page.get_by_role("heading", name="The riskiest").wait_for(timeout=MADE_MS)
    narrow = open_page(width=375, theme="dark")
    narrow.goto(f"/{address}")
    narrow.get_by_role("heading", name="Lengths").wait_for()
    narrow.locator(".chart svg").nth(1).wait_for()
    check_width(narrow)
    axe(narrow)


def test_a_report_on_a_file_that_is_deleted_meanwhile_ends_with_what_is_wrong(
    page: "Page", watch: Watch, service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "gone.jsonl"
    path.write_text(GOOD.replace("Hello", "Good evening") * 3, encoding="utf-8")
    file_id = service.upload(path)
    watch.allow_status(404)

    def delete_first(route: "Route") -> None:
        service.client.files.delete(file_id)
        route.continue_()

    page.route("**/v1/reports/*", delete_first, times=1)
    page.goto(f"/#/datasets/{file_id}")
    page.get_by_role("alert").get_by_text("Not found").wait_for()
    assert page.locator(".waiting-report").count() == 0


def test_a_file_is_erased_after_a_question(page: "Page", service: Service, tmp_path: Path) -> None:
    path = tmp_path / "person.jsonl"
    path.write_text(GOOD.replace("Hello", "My name is Ada") * 2, encoding="utf-8")
    file_id = service.upload(path)
    twin = service.upload(path)
    page.goto(f"/#/datasets/{file_id}")
    page.get_by_role("button", name="Erase").click()
    page.get_by_role("button", name="Leave it as it is").click()
    # Whoever uses a keyboard is where they were.
    page.locator("button:focus", has_text="Erase").wait_for()
    service.client.files.retrieve(file_id)
    # A report reads the file meanwhile; it is made again for the other one.
    page.get_by_role("heading", name="What the job would be").wait_for(timeout=MADE_MS)
    page.get_by_role("button", name="Erase").click()
    page.get_by_role("button", name="Erase for good").click()
    page.get_by_role("heading", level=1, name="The file was erased").wait_for()
    page.get_by_role("link", name=twin).wait_for()
    with pytest.raises(NotFoundError):
        service.client.files.retrieve(file_id)
    service.client.files.delete(twin)
