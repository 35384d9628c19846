"""Bundles of every released form, kept for ever in tests/golden: each is verified with the outcome that is kept beside it."""

from pathlib import Path

import pytest

from app.domain.verify_command import run

GOLDEN = Path(__file__).parents[3] / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/evidence.zip"))


def outcome(folder: Path) -> tuple[int, str]:
    """Return what the verifier says of a folder's bundle, held against all that lies beside it."""
    policy, receipt = folder / "trust.toml", folder / "receipt.tlog-proof"
    return run(
        bundle=folder / "evidence.zip",
        data=folder / "train.jsonl",
        policy=policy if policy.is_file() else None,
        receipt=[receipt] if receipt.is_file() else [],
    )


def numbered(lines: list[str]) -> dict[str, str]:
    """Return the lines of checks by their numbers."""
    return {line[:2]: line for line in lines if line[:2].strip().isdigit()}


def test_every_folder_is_in_the_list() -> None:
    text = (GOLDEN / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == {path.name for path in FOLDERS}
    assert [path.name for path in FOLDERS if f"| `{path.name}` |" not in text] == []
    assert len(FOLDERS) >= 4


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_golden_bundle_verifies_with_the_outcome_that_is_kept(folder: Path) -> None:
    code, text = outcome(folder)
    kept = (folder / "outcome.txt").read_text(encoding="utf-8").splitlines()
    lines = text.splitlines()
    found, expected = numbered(lines), numbered(kept)
    assert code == 0, text
    assert lines[:2] == kept[:2]
    assert {number: found[number] for number in expected} == expected
    # A check that came since has nothing to look at in an older record, or passes it.
    newer = [line for number, line in found.items() if number not in expected]
    assert [line for line in newer if "failed" in line[:30]] == []
    signed = kept[-1].rpartition("; ")[2]
    assert lines[-1].startswith("no check failed; ")
    assert lines[-1].endswith(signed)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_golden_bundle_is_still_refused_when_it_is_damaged(folder: Path, tmp_path: Path) -> None:
    """So that the outcome above is one of a verifier that looks."""
    whole = (folder / "evidence.zip").read_bytes()
    path = tmp_path / "evidence.zip"
    for at in range(100, len(whole) - 800, len(whole) // 20):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert run(bundle=path)[0] != 0, at
