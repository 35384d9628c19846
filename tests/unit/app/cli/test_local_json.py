"""Every command on the local installation can speak to programs."""

import re
from pathlib import Path

import pytest

from app import doctor
from app.doctor import Finding
from tests.support import write_model_folder
from tests.unit.app.cli.runner import Tether
from tests.unit.app.cli.test_local import eight_anchors

ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.fixture
def tether(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Tether:
    """The command with a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TETHER_HOME", str(tmp_path / "home"))
    tether = Tether(monkeypatch, capsys)
    assert re.fullmatch(r"\w+", tether("migrate", "--json").json["revision"])
    return tether


def test_models_and_sets(tether: Tether, tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    model = tether("models", "add", "mine", folder, "--json").json
    assert (model["id"], model["critic"], model["anchors"]) == ("mine", None, 96)
    assert tether("models", "list", "--json").json == {"object": "list", "data": [model]}
    assert tether("models", "show", "mine", "--json").json == model
    assert "sha256" in tether("models", "show", "mine").out
    missing = tether("models", "show", "other")
    assert (missing.code, "no base model of this installation is called 'other'" in missing.err) == (1, True)
    assert tether("critics", "list", "--json").json == {"object": "list", "data": []}
    missing = tether("critics", "show", "critic_none")
    assert (missing.code, "critic_none" in missing.err) == (1, True)
    (tmp_path / "own.jsonl").write_text(eight_anchors())
    (tmp_path / "rows.jsonl").write_text(ROW)
    anchors = tether("anchors", "add", "--base", "mine", "--data", "own.jsonl", "--json").json
    assert (anchors["kind"], anchors["rows"]) == ("anchors", 8)
    assert tether("anchors", "list", "--json").json["data"][0] == anchors
    add = ("alignment", "add", "--base", "mine", "--data", "rows.jsonl", "--kind", "safe", "--json")
    alignment = tether(*add).json
    assert tether("alignment", "list", "--json").json["data"] == [alignment]


def test_projects_and_keys(tether: Tether) -> None:
    project = tether("projects", "add", "The \x1b[2J team", "--json").json
    assert project["name"] == "The \x1b[2J team"
    assert r"The \x1b[2J team" in tether("projects", "list").out
    assert project["id"] in [each["id"] for each in tether("projects", "list", "--json").json["data"]]
    key = tether(
        "keys", "add", "--project", project["id"], "--role", "member", "--name", "ada", "--json"
    ).json
    assert (key["project_id"], key["role"], "key" in key) == (project["id"], "member", True)
    new = tether("keys", "rotate", key["id"], "--json").json
    assert new["key"] != key["key"]
    revoked = tether("keys", "revoke", new["id"], "--json").json
    assert revoked["revoked_at"] is not None
    listed = tether("keys", "list", "--json")
    assert {key["id"], new["id"]} <= {each["id"] for each in listed.json["data"]}
    for secret in (key["key"], new["key"]):
        assert secret not in listed.out
    of_project = tether("keys", "list", "--project", project["id"])
    assert (key["id"] in of_project.out, "revoked" in of_project.out) == (True, True)
    assert of_project.err.startswith("in the local installation /")
    assert tether("keys", "list", "--project", "proj_none").out.startswith("no keys yet")


def test_limits_of_a_project(tether: Tether) -> None:
    project_id = tether("projects", "add", "Team", "--json").json["id"]
    change = ("projects", "change", project_id)
    changed = tether(*change, "--running-jobs", 2, "--queued-jobs", 0, "--name", "Crew", "--json").json
    assert changed["name"] == "Crew"
    assert changed["own_limits"] == {"running_jobs": 2, "queued_jobs": 0}
    done = tether(*change, "--running-jobs", "default")
    assert "queued_jobs no limit" in done.out
    assert tether("projects", "list", "--json").json["data"][0]["own_limits"] == {"queued_jobs": 0}
    for wrong in ((), ("--gpu-seconds", "-1"), ("--gpu-seconds", "many"), ("--storage-bytes", 2**63)):
        assert tether(*change, *wrong).code == 2


def test_doctor(tether: Tether, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("python", "3"), Finding("broker", "redis", "start it")]
    monkeypatch.setattr(doctor, "examine", lambda _: findings[:1])
    assert tether("doctor", "--json").json["data"] == [{"what": "python", "found": "3", "todo": None}]
    monkeypatch.setattr(doctor, "examine", lambda _: findings)
    done = tether("doctor")
    assert (done.code, "start it" in done.out) == (1, True)
