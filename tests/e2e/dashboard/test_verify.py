"""The screen Verify: what the browser recomputes is what the offline verifier says, also of damaged bundles."""

import base64
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from app.domain.trust import parse_trust
from app.domain.verify import verify_bundle
from tests.e2e.conftest import Service
from tests.e2e.dashboard.conftest import axe, check_width, hold, show
from tests.unit.app.domain.test_merkle import VECTORS

if TYPE_CHECKING:
    from playwright.sync_api import Page

GOLDEN = sorted(path.parent for path in (Path(__file__).parents[2] / "golden").glob("*/evidence.zip"))
SIGNED = next(folder for folder in GOLDEN if folder.name == "0006-signed")

CHECK = """
async ({ bundle, trust }) => {
  const { checkBundle } = await import("/dashboard/static/verify/checks.js");
  const { parseTrust } = await import("/dashboard/static/verify/note.js");
  const bytes = Uint8Array.from(atob(bundle), (character) => character.charCodeAt(0));
  const report = await checkBundle(new Blob([bytes]), { trust: trust && (await parseTrust(trust)) });
  return { outcomes: Object.fromEntries(report.checks.map((each) => [each.name, each.outcome])), bad: report.bad };
}
"""
PROVE = """
async (vectors) => {
  const { fromBase64, verifyInclusion } = await import("/dashboard/static/verify/merkle.js");
  const bytes = (text) => fromBase64(text ?? "");
  const said = [];
  for (const { leafHash, leafIdx, treeSize, proof, root } of vectors) {
    said.push(await verifyInclusion(bytes(leafHash), leafIdx, treeSize, (proof ?? []).map(bytes), bytes(root)));
  }
  return said;
}
"""


def check(page: "Page", bundle: bytes, trust: str | None = None) -> dict[str, Any]:
    """Return what the page's own checks say of a bundle."""
    found: dict[str, Any] = page.evaluate(
        CHECK, {"bundle": base64.b64encode(bundle).decode(), "trust": trust}
    )
    return found


def repack(bundle: Path, out: Path, **changed: bytes) -> bytes:
    """Write a bundle again with other members: `leaves.jsonl` is given as `leaves_jsonl`."""
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name.replace(".", "_"), old.read(name)))
    return out.read_bytes()


@pytest.fixture
def checks_page(page: "Page") -> "Page":
    """A page in which the modules can be loaded."""
    show(page, "#/verify", "Verify")
    return page


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_every_golden_bundle_has_the_outcome_that_the_offline_verifier_gives(
    checks_page: "Page", folder: Path
) -> None:
    policy = folder / "trust.toml"
    trust = policy.read_text(encoding="utf-8") if policy.exists() else None
    found = check(checks_page, (folder / "evidence.zip").read_bytes(), trust)["outcomes"]
    report = verify_bundle(folder / "evidence.zip", trust=parse_trust(trust) if trust else None)
    expected = {each.name: each.outcome for each in report.checks}
    assert found.pop("bundle") == "ok"
    assert found == {name: expected[name] for name in found}


def test_a_byte_changed_anywhere_is_found_as_the_offline_verifier_finds_it(
    checks_page: "Page", tmp_path: Path
) -> None:
    trust = (SIGNED / "trust.toml").read_text(encoding="utf-8")
    whole = (SIGNED / "evidence.zip").read_bytes()
    damaged = tmp_path / "damaged.zip"
    for at in range(40, len(whole), len(whole) // 60):
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        outcomes = check(checks_page, damaged.read_bytes(), trust)["outcomes"].values()
        offline = verify_bundle(damaged, trust=parse_trust(trust))
        # The offline verifier has checks beside these, so what only it finds may pass here; nothing may pass there alone.
        assert offline.ok <= ("failed" not in outcomes), at
        if offline.unreadable or any(each.outcome == "failed" for each in offline.checks[:5]):
            assert "failed" in outcomes, f"byte {at}: {offline.lines()}"


@pytest.mark.parametrize(
    ("edit", "first", "record"),
    [
        (lambda lines: [*lines[:3], lines[3].replace(b'"seq":3', b'"seq":3 '), *lines[4:]], "records", 3),
        (lambda lines: [*lines[:5], *lines[6:]], "sequence", 5),
        (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], "sequence", 4),
        (lambda lines: [lines[0].replace(b'"ts_db":1', b'"ts_db":2', 1), *lines[1:]], "chain", 1),
        (lambda lines: [*lines[:-1], lines[-1].replace(b'"ts_db":1', b'"ts_db":2', 1)], "root", None),
    ],
    ids=["not canonical", "dropped", "swapped", "edited", "edited last"],
)
def test_the_first_bad_record_is_named(
    checks_page: "Page", tmp_path: Path, edit: Any, first: str, record: int | None
) -> None:
    with zipfile.ZipFile(SIGNED / "evidence.zip") as archive:
        lines = archive.read("leaves.jsonl").splitlines()
    edited = b"".join(line + b"\n" for line in edit(lines))
    assert edited != b"".join(line + b"\n" for line in lines)
    bundle = repack(SIGNED / "evidence.zip", tmp_path / "edited.zip", leaves_jsonl=edited)
    found = check(checks_page, bundle)
    failed = [name for name, outcome in found["outcomes"].items() if outcome == "failed"]
    assert failed[0] == first
    assert found["bad"]["record"] == record


def test_a_history_made_anew_does_not_lead_to_the_signed_head(checks_page: "Page", tmp_path: Path) -> None:
    """Whoever rebuilds every record and the manifest still lacks the notary's key."""
    other = next(folder for folder in GOLDEN if folder.name == "0011-documents")
    with zipfile.ZipFile(other / "evidence.zip") as archive:
        checkpoint, heads = archive.read("checkpoint.note"), archive.read("heads.jsonl")
    bundle = repack(
        SIGNED / "evidence.zip", tmp_path / "other.zip", checkpoint_note=checkpoint, heads_jsonl=heads
    )
    trust = (SIGNED / "trust.toml").read_text(encoding="utf-8")
    outcomes = check(checks_page, bundle, trust)["outcomes"]
    assert (outcomes["root"], outcomes["heads"], outcomes["signature"]) == ("ok", "failed", "failed")


def test_published_inclusion_vectors(checks_page: "Page") -> None:
    if not VECTORS.exists():
        pytest.skip(f"the published vectors are not at {VECTORS}")
    vectors = json.loads(VECTORS.read_bytes())["inclusion"]
    assert checks_page.evaluate(PROVE, vectors) == [not vector["wantErr"] for vector in vectors]


class TestScreen:
    def test_a_job_of_the_project_is_verified_with_its_adapter(
        self, page: "Page", service: Service, finished_job: str, tmp_path: Path
    ) -> None:
        adapter = tmp_path / "adapter.zip"
        adapter.write_bytes(service.fetch(f"{finished_job}/adapter").content)
        show(page, f"#/verify?job={finished_job}", "Verify")
        page.get_by_label("Trust policy").fill(service.tether("log", "trust"))
        page.get_by_label("Choose an adapter").set_input_files(adapter)
        page.get_by_text(f"{finished_job}-evidence.zip").wait_for()
        page.get_by_role("button", name="Verify", exact=True).click()
        page.get_by_role("heading", name="No check failed").wait_for()
        assert page.locator("[data-check]").count() == 11
        assert page.locator('[data-check]:not([data-outcome="ok"])').count() == 0
        axe(page)
        # Another policy, and another bundle, take the verdict away: it was about the first ones.
        page.get_by_label("Trust policy").press("Enter")
        page.locator("#verdict").wait_for(state="detached")
        (tmp_path / "evidence.zip").write_bytes(service.fetch(f"{finished_job}/evidence").content)
        with zipfile.ZipFile(tmp_path / "evidence.zip") as archive:
            leaves = bytearray(archive.read("leaves.jsonl"))
        # One bit of one record: a digit of a number becomes another one.
        at = leaves.index(b'"beta_mean":0.') + len(b'"beta_mean":0.')
        leaves[at] ^= 1
        repack(tmp_path / "evidence.zip", tmp_path / "edited.zip", leaves_jsonl=bytes(leaves))
        page.get_by_label("Choose a bundle").set_input_files(tmp_path / "edited.zip")
        page.get_by_text("edited.zip").wait_for()
        page.get_by_role("button", name="Verify", exact=True).click()
        page.get_by_role("heading", name="This record does not hold").wait_for()
        # The record before it had promised another one.
        page.get_by_role("heading", name="The first bad record").wait_for()

    def test_a_bundle_that_comes_late_does_not_take_the_place_of_a_later_choice(
        self, page: "Page", finished_job: str
    ) -> None:
        late = hold(page, "**/evidence")
        with page.expect_request("**/evidence"):
            show(page, f"#/verify?job={finished_job}", "Verify")
        # Nothing can be verified until it is there.
        assert page.get_by_role("button", name="Verify", exact=True).is_disabled()
        page.get_by_label("Choose a bundle").set_input_files(SIGNED / "evidence.zip")
        chosen = page.get_by_text("evidence.zip, ")
        chosen.wait_for()
        late[0].continue_()
        page.wait_for_timeout(500)
        assert finished_job not in chosen.inner_text()

    def test_a_place_for_a_file_shows_that_it_has_the_keyboard(self, page: "Page") -> None:
        show(page, "#/verify", "Verify")
        page.get_by_label("Choose a bundle").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")
        button = page.locator(".drop .button", has_text="Choose a bundle")
        assert button.evaluate("(each) => getComputedStyle(each).outlineStyle") == "solid"

    def test_a_tampered_bundle_fails_and_the_record_is_shown(self, page: "Page", tmp_path: Path) -> None:
        with zipfile.ZipFile(SIGNED / "evidence.zip") as archive:
            lines = archive.read("leaves.jsonl").splitlines(keepends=True)
        lines[9] = lines[9].replace(b'"beta_mean":', b'"beta_mean":1', 1)
        repack(SIGNED / "evidence.zip", tmp_path / "edited.zip", leaves_jsonl=b"".join(lines))
        show(page, "#/verify", "Verify")
        page.get_by_label("Choose a bundle").set_input_files(tmp_path / "edited.zip")
        page.get_by_role("button", name="Verify", exact=True).click()
        page.get_by_role("heading", name="This record does not hold").wait_for()
        page.get_by_text("The first bad record").wait_for()
        assert "of leaves.jsonl" in page.inner_text("main")
        axe(page)

    def test_what_is_no_bundle_and_no_policy_is_told(self, narrow_page: "Page", tmp_path: Path) -> None:
        (tmp_path / "note.zip").write_bytes(b"this is no zip at all, whatever its name")
        show(narrow_page, "#/verify", "Verify")
        narrow_page.get_by_label("Choose a bundle").set_input_files(tmp_path / "note.zip")
        narrow_page.get_by_label("Trust policy").fill("trust me")
        narrow_page.get_by_role("button", name="Verify", exact=True).click()
        narrow_page.get_by_text("This is no trust policy").wait_for()
        narrow_page.get_by_label("Trust policy").fill("")
        narrow_page.get_by_role("button", name="Verify", exact=True).click()
        narrow_page.get_by_text("the file does not end as a zip").wait_for()
        check_width(narrow_page)
        axe(narrow_page)
