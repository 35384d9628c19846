"""The dashboard in a real Chromium, against a real `tether serve`.

A page fails its test where it logs an error, breaks its content security policy or is refused something that the test did
not expect. What a test writes is `page.goto(f"{service.url}/#/jobs")`; it is signed in already.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import KEY, Service, start_service, stop_service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, Route

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW, HEIGHT = 1280, 375, 900
PATIENCE_MS = 90_000
HOSTILE = "<img src=x onerror=\"console.error('pwned')\"><script>console.error('pwned')</script>'\"`${7*7}"
"""A name that a page must show as the text that it is."""

# Nothing of the policy is switched off for a test; a page that breaks it says so like any other error.
_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`content security policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@dataclass
class Watch:
    """What a page of this test has done wrong so far, and which refusals the test expects."""

    problems: list[str] = field(default_factory=list)
    allowed: set[int] = field(default_factory=set)
    offline_allowed: bool = False

    def allow_status(self, *statuses: int) -> None:
        """Expect replies with these statuses."""
        self.allowed.update(statuses)

    def allow_offline(self) -> None:
        """Expect requests that get no reply."""
        self.offline_allowed = True

    def attach(self, page: "Page") -> None:
        """Watch a page from now on."""
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("response", self._see)
        page.on("requestfailed", self._miss)

    def _hear(self, message: "ConsoleMessage") -> None:
        # The browser's own word for a refused or lost request; these are judged where they are seen.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.problems.append(f"console: {message.text} at {message.location}")

    def _see(self, response: "Response") -> None:
        if response.status >= 400 and response.status not in self.allowed:
            self.problems.append(f"{response.status} for {response.request.method} {response.url}")

    def _miss(self, request: "Request") -> None:
        # A screen that is left ends what it has asked for.
        if not self.offline_allowed and "ERR_ABORTED" not in (request.failure or ""):
            self.problems.append(f"{request.failure} for {request.method} {request.url}")


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An embedded service for all screens. Its jobs are everybody's: a test looks at those that it made."""
    if _find_browser() is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is on the path")
    pytest.importorskip("playwright.sync_api", reason="drives the browser; it comes with the extra dev")
    running = start_service(tmp_path_factory.mktemp("dashboard"), {"TETHER_THREADS": "1"})
    try:
        yield running
    finally:
        stop_service(running)


def _find_browser() -> str | None:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser(service: Service) -> Iterator["Browser"]:
    """A headless Chromium. Not for the whole session: its driver keeps an event loop that other tests would meet."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A container gives a browser no namespaces of its own; what it loads here is ours.
        opened = playwright.chromium.launch(executable_path=_find_browser(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def watch() -> Iterator[Watch]:
    """What the pages of this test do wrong; anything at all fails the test when it ends."""
    seen = Watch()
    yield seen
    assert not seen.problems, "\n".join(seen.problems)


OpenPage = Callable[..., "Page"]


@pytest.fixture
def open_page(browser: "Browser", service: Service, watch: Watch) -> Iterator[OpenPage]:
    """Open a page: `open_page(width=375, theme="dark", key=None)`; `key=None` leaves it signed out."""
    contexts = []

    def make(*, width: int = WIDE, theme: str = "light", key: str | None = KEY, **options: Any) -> "Page":
        context = browser.new_context(
            base_url=service.url,
            viewport={"width": width, "height": HEIGHT},
            color_scheme=theme,
            accept_downloads=True,
            **options,
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(_REPORT_VIOLATIONS)
        if key is not None:
            reply = context.request.post("/dashboard/session", data={"key": key})
            assert reply.ok, reply.text()
        page = context.new_page()
        watch.attach(page)
        return page

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: OpenPage) -> "Page":
    """A page of a signed-in operator, as wide as a laptop's."""
    return open_page()


@pytest.fixture
def narrow_page(open_page: OpenPage) -> "Page":
    """The same as wide as a telephone's."""
    return open_page(width=NARROW)


@pytest.fixture(scope="package")
def finished_job(service: Service, datasets: dict[str, Path]) -> str:
    """The id of a job on poisoned data that has succeeded; look at it, and change nothing of it."""
    job_id = service.submit(
        service.upload(datasets["poisoned"]),
        hyperparameters={"n_epochs": 2, "batch_size": 8},
        seed=3,
        priority=1,
    )
    job = service.wait(job_id)
    assert job.status == "succeeded", job.error
    return job_id


def write_prompts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the miniature's evaluation as a file of prompts, which has no groups."""
    kept = [{name: value for name, value in row.items() if name != "group"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def show(page: "Page", address: str, heading: str) -> None:
    """Go to a screen, such as `#/jobs`, and wait until it has its heading and nothing is loading any more."""
    page.goto(f"/{address}")
    page.get_by_role("heading", level=1, name=heading).wait_for()
    page.locator("main .skeleton:visible").first.wait_for(state="detached")


def hold(page: "Page", pattern: str, *, times: int | None = None) -> "list[Route]":
    """Hold back what a page asks for, the first `times` of it, in the list that is returned."""
    held: list[Route] = []

    def keep(route: "Route") -> None:
        held.append(route)

    page.route(pattern, keep, times=times)
    return held


def axe(page: "Page") -> None:
    """Demand that axe finds nothing serious or critical on a page as it stands."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    grave = [each for each in found if each["impact"] in ("serious", "critical")]
    told = [
        f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes']]}" for each in grave
    ]
    assert not grave, "\n".join(told)


def check_width(page: "Page") -> None:
    """Demand that the page itself does not scroll sideways."""
    wide, seen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= seen, f"the page is {wide} px wide in a window of {seen} px"
