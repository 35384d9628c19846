"""The pictures of docs/dashboard.md: `python -m tests.e2e.dashboard.screenshots OUT`, or `make screenshots`.

A service of its own trains jobs on the miniature, and a real browser takes a picture of each screen.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.e2e.conftest import KEY, Service, start_service, stop_service
from tests.e2e.dashboard.conftest import BROWSERS
from worker.miniature.corpus import training_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDE, HEIGHT = 1280, 860
NARROW = 375


class Picture(NamedTuple):
    """A screen as it is shown in the documentation."""

    name: str
    address: str
    theme: str = "light"
    width: int = WIDE
    whole: bool = False
    """Whether the picture has all of a long screen."""
    card: str | None = None
    """The heading of the part that alone is shown."""
    charts: bool = False
    """Whether the screen has charts, which are waited for."""


def main() -> None:
    """Take every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the pictures")
    out = parser.parse_args().out
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"no browser is installed: none of {', '.join(BROWSERS)} is on the path")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        service = start_service(Path(folder) / "home", {})
        try:
            take(service, Path(folder), browser, out)
        finally:
            stop_service(service)


def take(service: Service, folder: Path, executable: str, out: Path) -> None:
    """Train the jobs that are shown, and take the pictures."""
    from playwright.sync_api import sync_playwright

    jobs = train(service, folder)
    pictures = (
        Picture("jobs", "#/jobs"),
        Picture("job", f"#/jobs/{jobs['default']}", card="Curves", charts=True),
        Picture("job-dark", f"#/jobs/{jobs['default']}", theme="dark", whole=True, charts=True),
        Picture("job-narrow", f"#/jobs/{jobs['default']}", width=NARROW, charts=True),
        Picture(
            "compare",
            f"#/compare?jobs={','.join(jobs.values())}&metric=beta_mean",
            card="Curves over each other",
            charts=True,
        ),
        Picture("verify", f"#/verify?job={jobs['default']}", whole=True),
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for picture in pictures:
            shoot(browser, service, picture, out)
            print(out / f"{picture.name}.png")
        browser.close()


def train(service: Service, folder: Path) -> dict[str, str]:
    """Run one dataset under three presets, and return the jobs by preset."""
    rows = folder / "support-tickets.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in training_rows("poisoned")), encoding="utf-8")
    file = service.upload(rows)
    jobs = {
        preset: service.submit(file, safety=preset, suffix=preset, seed=7, hyperparameters={"n_epochs": 3})
        for preset in ("default", "paper", "off")
    }
    for job in jobs.values():
        service.wait(job)
    return jobs


def shoot(browser: "Browser", service: Service, picture: Picture, out: Path) -> None:
    """Take one picture, once everything on the screen has been drawn."""
    context = browser.new_context(
        base_url=service.url,
        viewport={"width": picture.width, "height": HEIGHT},
        color_scheme="dark" if picture.theme == "dark" else "light",
        reduced_motion="reduce",
    )
    context.request.post("/dashboard/session", data={"key": KEY})
    page = context.new_page()
    page.goto(f"/{picture.address}")
    if picture.name == "verify":
        page.get_by_label("Trust policy").fill(service.tether("log", "trust"))
        page.get_by_role("button", name="Verify", exact=True).click()
        page.locator("#verdict").wait_for()
    page.locator("main .skeleton:visible").first.wait_for(state="detached")
    if picture.charts:
        # The first chart of all waits for the library, which the server builds once.
        page.locator(".chart .canvas svg").first.wait_for()
        for canvas in page.locator(".chart .canvas:visible").all():
            canvas.locator("svg").first.wait_for()
    page.wait_for_timeout(500)
    path = out / f"{picture.name}.png"
    if picture.card is None:
        page.screenshot(path=path, full_page=picture.whole)
    else:
        heading = page.get_by_role("heading", name=picture.card, exact=True)
        page.locator("section.card", has=heading).screenshot(path=path)
    context.close()


if __name__ == "__main__":
    main()
