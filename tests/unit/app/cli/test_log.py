"""tether log, and the trust policy of tether verify, on an installation of their own."""

import re
from pathlib import Path

import pytest

from app.cli.common import database_of
from app.domain.trust import open_checkpoint, parse_trust
from app.notary.service import Notary
from app.settings import load_settings
from tests.unit.app.cli.runner import Tether


@pytest.fixture
def tether(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Tether:
    """The command with a home of its own, in which there is a key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TETHER_HOME", str(tmp_path / "home"))
    tether = Tether(monkeypatch, capsys)
    tether("migrate", "--json")
    tether("keys", "add", "--role", "member", "--name", "ada", "--json")
    return tether


def attend() -> None:
    """Let a notary do one round."""
    settings = load_settings()
    with database_of(settings) as database:
        Notary(database, settings).attend()


def test_before_a_notary_was_there(tether: Tether) -> None:
    shown = tether("log", "show", "--json").json
    assert shown == {
        "object": "log",
        "origin": None,
        "size": 0,
        "signed_size": 0,
        "signed_at": None,
        "root": None,
        "key": None,
        "pending_events": 1,
        "anchored_size": None,
        "anchored_at": None,
        "refused_since": None,
    }
    assert tether("log", "checkpoint").code == 1
    assert "has signed nothing yet" in tether("log", "rotate").err
    refused = tether("log", "trust")
    assert (refused.code, "nothing was signed here yet" in refused.err) == (1, True)


def test_what_was_signed_is_shown_and_can_be_trusted(tether: Tether, tmp_path: Path) -> None:
    attend()
    shown = tether("log", "show", "--json").json
    assert (shown["size"], shown["signed_size"], shown["pending_events"]) == (1, 1, 0)
    assert re.search(rf"origin +{shown['origin']}", tether("log", "show").out)
    trust = parse_trust(tether("log", "trust").out)
    ((origin, (key,)),) = trust.logs.items()
    assert origin == shown["origin"]
    assert tether("log", "trust", "--json").json == {"logs": [{"origin": origin, "keys": [str(key)]}]}
    assert re.search(r"signed_at +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", tether("log", "show").out)
    note = tether("log", "checkpoint").out
    assert open_checkpoint(note.encode(), trust)[0].size == 1
    assert tether("log", "checkpoint", "--json").json["note"] == note
    rotated = tether("log", "rotate", "--json").json
    assert rotated["old_key"] == str(key)
    after = parse_trust(tether("log", "trust").out)
    assert list(map(str, after.logs[origin])) == [rotated["old_key"], rotated["new_key"]]
    note = tether("log", "checkpoint").out.encode()
    assert len(open_checkpoint(note, after)[1]) == 2
    assert "next: give auditors the new trust policy" in tether("log", "rotate").out
    (tmp_path / "home" / "notary" / "former-keys.json").unlink()
    incomplete = tether("log", "trust")
    assert (incomplete.code, str(key) in incomplete.out) == (0, False)
    assert f"was signed by {key.id.hex()}" in incomplete.err


def test_a_fork_is_a_log_of_its_own(tether: Tether, tmp_path: Path) -> None:
    attend()
    old = tether("log", "show", "--json").json["origin"]
    (tmp_path / "home" / "notary" / "last-signed.json").unlink()
    asked = tether("log", "fork")
    assert (asked.code, "add: --yes" in asked.err) == (1, True)
    assert f"This ends the log {old}" in asked.err
    assert "there is no reason to do this" in asked.err
    assert tether("log", "show", "--json").json["origin"] == old
    first = tether("log", "fork", "--yes", "--json").json["origin"]
    assert first.startswith(f"{old}/fork-")
    second = re.search(r"opened the log (\S+);", tether("log", "fork", "--yes").out)
    assert second is not None
    attend()
    # The one in between was never signed, and there is nothing of it to trust.
    assert list(parse_trust(tether("log", "trust").out).logs) == [old, second[1]]


def test_a_policy_that_is_none_is_refused_by_its_field(tether: Tether, tmp_path: Path) -> None:
    bundle, policy = tmp_path / "evidence.zip", tmp_path / "trust.toml"
    bundle.write_bytes(b"")
    policy.write_text('[[logs]]\norigin = "o"\nkeys = ["a+b+c"]\n')
    refused = tether("verify", bundle, "--policy", policy)
    assert refused.code == 2
    assert "logs[0].keys[0]" in re.sub(r"[\s│]+", "", refused.err)
    missing = tether("verify", bundle, "--policy", tmp_path / "none.toml")
    assert (missing.code, "none.toml" in re.sub(r"[\s│]+", "", missing.err)) == (2, True)
