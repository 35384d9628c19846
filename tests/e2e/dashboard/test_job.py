"""The screen of one job: its curves as they grow, what one asks of it, and what it leaves behind."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from app.database import Database, open_engine, unit_of_work
from app.domain.risk_curve import pack_steps
from app.models.job import CurvePiece, Job
from tests.e2e.conftest import KEY, Service, steps_completed
from tests.e2e.dashboard.conftest import OpenPage, Watch, axe, check_width, show
from tests.unit.app.domain.leaf_examples import STEP_2

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

WATCH_SHIFTS = """() => {
  window.shifts = [];
  const unasked = (entry) => !entry.hadRecentInput && entry.value > 0.001;
  const tell = ({ value, sources }) => `${value}: ${sources.map(({ node }) => node?.outerHTML?.slice(0, 80))}`;
  const take = (list) => shifts.push(...list.getEntries().filter(unasked).map(tell));
  new PerformanceObserver(take).observe({ type: "layout-shift" });
}"""
WATCH_TASKS = """() => {
  window.tasks = [0];
  const take = (list) => tasks.push(...list.getEntries().map((entry) => entry.duration));
  new PerformanceObserver(take).observe({ type: "longtask" });
}"""
LONGEST_TASK_MS = 1000
STEPS = 100_000
MOST_DRAWN = 1000
POINTS = ".curves svg path[aria-label*='name: risk, riskiest row']"


def tab(page: "Page", name: str) -> "Locator":
    """Open one of the details and return its panel."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel", name=name)


def newest_step(page: "Page") -> int:
    """Return the last step that the curves show."""
    said = page.get_by_role("status").filter(has_text="of them drawn").inner_text()
    found = re.search(r"Steps [\d,]+ to ([\d,]+)", said)
    assert found, said
    return int(found[1].replace(",", ""))


def test_curves_grow_while_a_job_runs_and_stop_while_it_is_paused(
    page: "Page", service: Service, datasets: dict[str, Path]
) -> None:
    job_id = service.submit(
        service.upload(datasets["clean"]), hyperparameters={"n_epochs": 40, "batch_size": 4}, suffix="live"
    )
    show(page, f"#/jobs/{job_id}", job_id)
    page.locator(".curves svg").wait_for()
    # Nothing moves while it streams: what is below the curves stays where it is, and a link keeps the keyboard.
    below = page.get_by_role("heading", name="Details")
    page.locator("dd a[href^='#/datasets/']").focus()
    page.evaluate(WATCH_SHIFTS)
    before, place = newest_step(page), below.bounding_box()
    page.wait_for_function(
        "(before) => Number(document.querySelector('main').innerText.match(/Steps [\\d,]+ to ([\\d,]+)/)[1].replaceAll(',', '')) > before + 2",
        arg=before,
    )
    assert below.bounding_box() == place
    assert page.evaluate("shifts") == []
    assert "#/datasets/" in page.evaluate("document.activeElement.href ?? ''")
    # The numbers that stand open go on, too.
    page.get_by_text("The numbers as a table").click()
    numbers = page.get_by_role("region", name="Numbers of the steps").get_by_role("row")
    numbers.nth(newest_step(page) + 2).wait_for()
    # Its rows came after it had begun to run, and no change of state told of them.
    tab(page, "Riskiest rows").get_by_role("row").nth(1).wait_for()
    page.get_by_role("button", name=f"Pause {job_id}").click()
    page.get_by_role("button", name=f"Resume {job_id}").wait_for()
    page.get_by_text("It holds no device").wait_for()
    paused_at = steps_completed(service.client.fine_tuning.jobs.retrieve(job_id))
    page.get_by_text(f"{paused_at} of 400 steps").wait_for()
    page.get_by_role("button", name=f"Resume {job_id}").click()
    page.wait_for_function(
        "(before) => Number(document.querySelector('main').innerText.match(/Steps [\\d,]+ to ([\\d,]+)/)[1].replaceAll(',', '')) > before",
        arg=paused_at,
    )
    # The pause is marked in the curves, and told among the events.
    marks = service.fetch(f"{job_id}/risk").json()["marks"]
    assert {"step": paused_at, "kind": "pause", "label": "paused"} in marks
    page.locator(".curves svg text", has_text="paused").wait_for(state="attached")
    tab(page, "Events").get_by_text(f"paused after step {paused_at}").first.wait_for()
    page.get_by_role("button", name=f"Cancel {job_id}").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    page.get_by_role("heading", name="Cancelled").wait_for()
    page.get_by_role("button", name=f"Resume {job_id}").wait_for(state="detached")


def test_a_finished_job_shows_its_rows_and_gives_its_files_away(
    page: "Page", finished_job: str, tmp_path: Path
) -> None:
    show(page, f"#/jobs/{finished_job}", finished_job)
    page.locator(".curves svg").wait_for()
    # A number of risk never stands without the critic that it is an estimate of.
    assert re.search(r"AUROC \d\.\d{3}", page.locator("main").inner_text())
    rows = tab(page, "Riskiest rows").get_by_role("row")
    rows.nth(1).wait_for()
    assert "1.00" in rows.nth(1).inner_text()
    files = tab(page, "Downloads")
    for title, name in (
        ("Adapter", "adapter.zip"),
        ("Evidence bundle", "evidence.zip"),
        ("Curves as PNG", "curves.png"),
    ):
        with page.expect_download() as asked:
            files.get_by_role("button", name=f"Download {title}").click()
        assert asked.value.suggested_filename == f"{finished_job}-{name}"
        asked.value.save_as(tmp_path / name)
    assert "adapter_model.safetensors" in zipfile.ZipFile(tmp_path / "adapter.zip").namelist()
    assert "leaves.jsonl" in zipfile.ZipFile(tmp_path / "evidence.zip").namelist()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in ("Before and after", "Gate", "Events", "Checkpoints", "Settings", "Submit again"):
        tab(page, name).filter(has_text=re.compile(r"\S")).wait_for()
    # All of it at once, as a reader that goes from one to the next meets it.
    page.evaluate("document.querySelectorAll('[role=tabpanel]').forEach((panel) => (panel.hidden = false))")
    axe(page)


def test_curves_are_looked_at_more_closely_and_whole_again(page: "Page", finished_job: str) -> None:
    show(page, f"#/jobs/{finished_job}", finished_job)
    page.locator(".curves svg").wait_for()
    page.get_by_label("From step").fill("9")
    page.get_by_label("To step").fill("5")
    page.get_by_label("To step").press("Enter")
    page.get_by_text("Steps 5 to 9 of 20, 5 of them drawn").wait_for()
    page.get_by_role("button", name="Whole run").click()
    page.get_by_text("Steps 1 to 20 of 20").wait_for()
    # Drawing a range over a panel does the same.
    page.wait_for_function("(points) => document.querySelectorAll(points).length === 20", arg=POINTS)
    page.locator(".curves .canvas").scroll_into_view_if_needed()
    box = page.locator(".curves .canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 230)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 240, steps=8)
    page.mouse.up()
    page.get_by_text(re.compile(r"Steps ([5-9]|10) to 1[0-6] of 20")).wait_for()


def test_fits_a_telephone_in_the_dark(open_page: OpenPage, finished_job: str) -> None:
    page = open_page(width=375, theme="dark")
    show(page, f"#/jobs/{finished_job}", finished_job)
    page.locator(".curves svg").wait_for()
    check_width(page)
    axe(page)
    light = page.locator(".curves svg text").first.evaluate("(text) => getComputedStyle(text).fill")
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("button", name="Change between light and dark").click()
    page.wait_for_function(
        "(light) => getComputedStyle(document.querySelector('.curves svg text')).fill !== light", arg=light
    )


def test_what_it_says_to_submit_the_job_again_does_so(
    page: "Page", service: Service, finished_job: str, tmp_path: Path
) -> None:
    show(page, f"#/jobs/{finished_job}", finished_job)
    panel = tab(page, "Submit again")
    environment = {
        **os.environ,
        "TETHER_API_KEY": KEY,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    wanted = _comparable(service, finished_job)
    for client in ("Python", "curl", "tether"):
        panel.get_by_role("tab", name=client, exact=True).click()
        text = panel.locator("pre:visible").inner_text()
        assert KEY not in text
        script = tmp_path / client
        script.write_text(text, encoding="utf-8")
        command = [sys.executable if client == "Python" else "bash", str(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = re.search(r"ftjob-\w+", done.stdout)
        assert found, done.stdout
        try:
            assert _comparable(service, found[0]) == wanted, client
        finally:
            service.client.fine_tuning.jobs.cancel(found[0])


def _comparable(service: Service, job_id: str) -> dict[str, Any]:
    job = service.client.fine_tuning.jobs.retrieve(job_id).to_dict()
    safety, training = dict(job["safety"]), dict(job["training"])  # type: ignore[call-overload]
    for name in ("state", "gate", "pause_reason", "waits_for", "risk_mean", "beta_mean", "attempts"):
        safety.pop(name)
    for name in ("started_at", "steps_completed", "total_steps"):
        training.pop(name)
    kept = (
        "model",
        "training_file",
        "validation_file",
        "suffix",
        "seed",
        "priority",
        "metadata",
        "hyperparameters",
    )
    return {"safety": safety, "training": training, **{name: job[name] for name in kept}}


def test_a_stream_that_is_refused_is_opened_again(page: "Page", watch: Watch, finished_job: str) -> None:
    watch.allow_status(503)
    stream = "**/stream?*"
    page.route(stream, lambda route: route.fulfill(status=503, body="a proxy's word"))
    show(page, f"#/jobs/{finished_job}", finished_job)
    banner = page.get_by_text("Not updated since")
    banner.wait_for()
    with page.expect_response(lambda reply: "/stream?after=" in reply.url and reply.ok):
        page.unroute(stream)
    banner.wait_for(state="hidden")


def test_a_chart_that_cannot_be_drawn_says_so_and_is_drawn_later(
    page: "Page", watch: Watch, finished_job: str
) -> None:
    watch.allow_offline()
    library = "**/dashboard/vega.js*"
    page.route(library, lambda route: route.abort())
    show(page, f"#/jobs/{finished_job}", finished_job)
    page.get_by_text("The chart library could not be loaded.").wait_for()
    axe(page)
    page.unroute(library)
    page.get_by_role("button", name="Try again").click()
    page.locator(".curves svg").wait_for()


def test_code_is_selected_where_the_page_has_no_clipboard(page: "Page", finished_job: str) -> None:
    # So it is wherever the service is reached over plain HTTP.
    page.add_init_script("Object.defineProperty(Navigator.prototype, 'clipboard', { value: undefined })")
    show(page, f"#/jobs/{finished_job}", finished_job)
    tab(page, "Submit again").get_by_role("button", name="Copy").locator("visible=true").click()
    page.get_by_text("press Ctrl+C").wait_for()
    assert "fine_tuning.jobs.create" in page.evaluate("getSelection().toString()")


@pytest.fixture(scope="module")
def long_job(service: Service, datasets: dict[str, Path]) -> str:
    """A paused job with the curve of a hundred thousand steps, of which a single one is as risky as can be."""
    job_id = service.submit(
        service.upload(datasets["clean"]), hyperparameters={"n_epochs": 40}, suffix="long"
    )
    service.client.fine_tuning.jobs.pause(job_id)
    service.wait(job_id, until=lambda job: job.status == "paused")
    records = [
        {**STEP_2, "step": step, "risk_max": 1.0 if step == 61_803 else 0.1} for step in range(1, STEPS + 1)
    ]
    database = Database(open_engine(f"sqlite:///{service.home}/tether.db"), publish=lambda *_: None)
    with unit_of_work(database) as session:
        job = session.get_one(Job, job_id)
        job.step, job.total_steps = STEPS, 2 * STEPS
        session.add(
            CurvePiece(
                job_id=job_id, project_id=job.project_id, last_step=STEPS, packed=pack_steps(records, None)
            )
        )
    database.engine.dispose()
    return job_id


def test_a_hundred_thousand_steps_are_drawn_as_few_and_each_is_in_reach(page: "Page", long_job: str) -> None:
    show(page, f"#/jobs/{long_job}", long_job)
    page.locator(".curves svg").wait_for()
    page.get_by_text("Steps 1 to 100,000 of 200,000").wait_for()
    assert 100 < page.locator(POINTS).count() <= MOST_DRAWN
    # The one step that is risky is among them, and every step is there for who looks closely.
    assert page.locator(".curves svg path[aria-label*='61,803']").count() == 1
    page.get_by_label("From step").fill("61800")
    page.get_by_label("To step").fill("61806")
    page.get_by_role("button", name="Show these steps").click()
    page.get_by_text("Steps 61,800 to 61,806 of 200,000, 7 of them drawn").wait_for()
    # Drawing the whole of it anew leaves the page to whoever uses it.
    page.evaluate(WATCH_TASKS)
    page.get_by_role("button", name="Whole run").click()
    page.wait_for_function("(points) => document.querySelectorAll(points).length > 100", arg=POINTS)
    # A task is told of after it has ended.
    page.wait_for_timeout(500)
    assert page.evaluate("Math.max(...tasks)") < LONGEST_TASK_MS
