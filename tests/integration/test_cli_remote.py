"""The tether command against a real server: what people and programs see of it."""

import csv
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.cli import follow, transfer, watch
from app.database import read_only, unit_of_work
from app.domain.scopes import Role
from app.keys.service import add_key
from app.models.upload import Upload
from app.models.work import Work
from app.reconciler import reconcile
from app.work.service import ask_for_pause
from tests.integration.conftest import MODEL, Tenant, jsonl, unlike_any_other
from tests.integration.released import release_job
from tests.integration.test_held import hold
from tests.integration.test_live import Run
from tests.unit.app.cli.runner import Tether
from tests.webhook_receiver import receiving


@pytest.fixture
def tether(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Tether:
    """The command as the tenant uses it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watch, "POLL_S", 0.02)
    monkeypatch.setattr(follow, "POLL_S", 0.02)
    return Tether(monkeypatch, capsys, url=tenant.server.url, key=tenant.key)


@pytest.fixture
def alone(
    own_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Tether:
    """The command on a server of its own, where no other test adds models or critics."""
    monkeypatch.chdir(tmp_path)
    tenant = own_server()
    return Tether(monkeypatch, capsys, url=tenant.server.url, key=tenant.key)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A good training file."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(*(unlike_any_other() for _ in range(10))))
    return path


def break_connections(
    monkeypatch: pytest.MonkeyPatch, breaks: dict[str, int], *, damage: bool = False
) -> list[str]:
    """Lose as many replies to paths that end like this, or change a byte of each part; return the paths asked for."""
    send, asked = httpx.HTTPTransport.handle_request, list[str]()

    def lose_some(self: Any, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        asked.append(path)
        if damage and path.endswith("/parts"):
            body = request.read().replace(b"hello", b"hullo", 1)
            request = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        reply = send(self, request)
        for end, left in breaks.items():
            if path.endswith(end) and left:
                breaks[end] = left - 1
                reply.read()
                raise httpx.ReadError("broken")
        return reply

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lose_some)
    return asked


def on_a_terminal(tenant: Tenant, *arguments: str, kind: str = "xterm") -> tuple[int, str]:
    """Run the command on a terminal and return its exit code and all that it wrote there."""
    parent, child = os.openpty()
    environment = {
        **os.environ,
        "TETHER_URL": tenant.server.url,
        "TETHER_API_KEY": tenant.key,
        "TERM": kind,
    }
    command = [sys.executable, "-m", "app", *arguments]
    with subprocess.Popen(command, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        shown = b""
        try:
            while piece := os.read(parent, 65536):
                shown += piece
        except OSError:
            pass  # The terminal is gone with the process.
        os.close(parent)
    return process.returncode, shown.decode()


class TestFiles:
    def test_from_upload_to_deletion(self, tether: Tether, rows: Path, tmp_path: Path) -> None:
        file = tether("files", "upload", rows, "--wait", "--json").json
        assert (file["filename"], file["status"]) == ("rows.jsonl", "processed")
        assert "uploaded rows.jsonl as file-" in tether("files", "upload", rows).out
        listed = tether("files", "list", "--json").json
        assert file["id"] in [each["id"] for each in listed["data"]]
        assert len(tether("files", "list", "--json", "--limit", 1).json["data"]) == 1
        assert file["id"] in tether("files", "list", "--purpose", "fine-tune").out
        assert file["id"] not in tether("files", "list", "--purpose", "user_data").out
        assert "processed" in tether("files", "show", file["id"]).out
        assert tether("files", "show", file["id"], "--json").json == file
        done = tether("files", "download", file["id"], "--out", "copy.jsonl", "--json").json
        assert (done["path"], done["bytes"]) == ("copy.jsonl", file["bytes"])
        assert (tmp_path / "copy.jsonl").read_bytes() == rows.read_bytes()
        again = tether("files", "download", file["id"])
        assert (again.code, "rows.jsonl is there already" in again.err) == (1, True)
        assert tether("files", "delete", file["id"]).out == f"deleted {file['id']}\n"
        assert tether("files", "show", file["id"]).code == 1

    def test_broken_download_goes_on_by_range(self, tether: Tether, tenant: Tenant, tmp_path: Path) -> None:
        content = jsonl(*(unlike_any_other() for _ in range(1000)))
        file_id = tenant.post_file(content).json()["id"]
        sha256 = tether("files", "download", file_id, "--out", "whole", "--json").json["sha256"]
        (tmp_path / f".{sha256}.part").write_bytes(content[:30_000])
        assert sha256 in tether("files", "download", file_id, "--out", "rest").out
        assert (tmp_path / "rest").read_bytes() == content
        (tmp_path / f".{sha256}.part").write_bytes(b"?" + content[1:30_000])
        damaged = tether("files", "download", file_id, "--out", "damaged")
        assert (damaged.code, "not what the server has" in damaged.err) == (1, True)
        assert not (tmp_path / "damaged").exists()

    def test_every_problem_of_a_file_is_listed(self, tether: Tether, tmp_path: Path) -> None:
        (tmp_path / "bad.jsonl").write_text('{"messages": []}\nnope\n{"a": 1}\n')
        done = tether("files", "upload", "bad.jsonl")
        assert (done.code, done.out) == (1, "")
        lines = done.err.splitlines()
        assert lines[0] == "error: 3 problems in the training file:"
        assert [line[:10] for line in lines[1:4]] == ["  line 1, ", "  line 2, ", "  line 3, "]
        assert "how to mend" in lines[4]
        assert tether("files", "list", "--json").json["data"] == []

    def test_file_beyond_the_servers_limit_is_refused_in_words(
        self,
        own_server: Any,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        tenant = own_server(max_file_bytes=1000)
        (tmp_path / "large.jsonl").write_bytes(b" " * 20_000_000)
        tether = Tether(monkeypatch, capsys, url=tenant.server.url, key=tenant.key)
        done = tether("files", "upload", tmp_path / "large.jsonl")
        assert (done.code, done.out) == (1, "")
        assert "the largest file of this service has 1000 bytes" in done.err

    def test_file_beyond_the_servers_limit_in_one_piece_too(
        self,
        own_server: Any,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        tenant = own_server(max_file_bytes=1000)
        (tmp_path / "large.jsonl").write_bytes(b" " * 10_000_000)
        tether = Tether(monkeypatch, capsys, url=tenant.server.url, key=tenant.key)
        done = tether("files", "upload", tmp_path / "large.jsonl")
        assert (done.code, done.out) == (1, "")
        assert "larger" in done.err

    def test_large_file_goes_in_parts_and_comes_back_the_same(
        self, tether: Tether, tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfer, "PART_BYTES", 50_000)
        monkeypatch.setattr(transfer, "PAUSE_S", 0.01)
        content = jsonl(*(unlike_any_other() for _ in range(2000)))
        (tmp_path / "large.jsonl").write_bytes(content)
        parts = -(-len(content) // 50_000)
        assert parts > 3
        asked = break_connections(monkeypatch, {"/parts": 2, "/complete": 1})
        done = tether("files", "upload", "large.jsonl", "--wait", "--json").json
        assert (done["filename"], done["bytes"], done["status"]) == ("large.jsonl", len(content), "processed")
        assert tenant.http.get(f"/v1/files/{done['id']}/content").content == content
        # Two parts and the completion were sent twice, and that made nothing twice.
        assert [path.rpartition("/")[2] for path in asked].count("parts") == parts + 2
        assert len(tether("files", "list", "--json").json["data"]) == 1

    def test_large_file_that_is_wrong_or_damaged_leaves_no_upload(
        self, tether: Tether, tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfer, "PART_BYTES", 50_000)
        content = jsonl(*(unlike_any_other() for _ in range(1000)))
        (tmp_path / "wrong.jsonl").write_bytes(content + b"nope\n")
        done = tether("files", "upload", "wrong.jsonl")
        assert (done.code, "line 1001" in done.err) == (1, True)
        (tmp_path / "good.jsonl").write_bytes(content)
        asked = break_connections(monkeypatch, {}, damage=True)
        done = tether("files", "upload", "good.jsonl")
        assert (done.code, "md5: found" in done.err) == (1, True)
        assert asked[-1].endswith("/cancel")
        assert tether("files", "list", "--json").json["data"] == []
        with read_only(tenant.server.database) as session:
            uploads = session.scalars(select(Upload).where(Upload.project_id == tenant.project_id)).all()
        assert [each.status for each in uploads] == ["cancelled", "cancelled"]

    def test_rows_are_left_out_and_the_job_runs_again(self, tether: Tether, tenant: Tenant) -> None:
        file_id = tenant.upload(*(unlike_any_other() for _ in range(10)))
        job = tenant.create_job(training_file=file_id, metadata={"team": "red"})
        exclude = ("files", "exclude", file_id)
        done = tether(*exclude, "--rows", "1,4-6", "--run-again", job["id"], "--json").json
        assert done["file"]["derived_from"]["excluded_rows"] == [1, 4, 5, 6]
        assert (done["job"]["training_file"], done["job"]["metadata"]) == (
            done["file"]["id"],
            {"team": "red"},
        )
        shown = tether(*exclude, "--rows", "0").out
        assert "without 1 of the rows of" in shown
        assert "next: tether jobs create --model NAME --training-file file-" in shown
        assert "tether jobs follow ftjob-" in tether(*exclude, "--rows", "0", "--run-again", job["id"]).out
        beyond = tether(*exclude, "--rows", "10")
        assert (beyond.code, "rows" in beyond.err) == (1, True)
        no_report = tether(*exclude, "--risk-above", 0.8, "--model", MODEL)
        assert (no_report.code, "report" in no_report.err) == (1, True)
        for wrong in ((), ("--rows", "1", "--risk-above", "0.5"), ("--risk-above", "0.5"), ("--rows", "x")):
            assert tether(*exclude, *wrong).code == 2

    def test_report_of_a_file_that_is_wrong_says_why(self, tether: Tether, tenant: Tenant) -> None:
        file_id = tenant.upload()
        with unit_of_work(tenant.server.database) as session:
            from app.models.file import File

            file = session.get_one(File, file_id)
            file.status = "error"
            file.status_details = "1 problem in the training file: line 1"
        done = tether("files", "report", file_id, "--model", MODEL)
        assert (done.code, "invalid: 1 problem" in done.out) == (1, True)


class TestJobs:
    def test_options_become_the_request(self, tether: Tether, rows: Path) -> None:
        training = '{"lora_r": 4}'
        (rows.parent / "safety.json").write_text('{"method": "fixed_kl", "beta": 0.4}')
        create = ["jobs", "create", "--model", MODEL, "--training-file", rows, "--validation-file", rows]
        create += ["--suffix", "mine", "--seed", 7, "--metadata", "team=red", "--metadata", "n=1", "--json"]
        create += ["--epochs", 2, "--batch-size", 4, "--learning-rate-multiplier", 0.5, "--priority", -3]
        job = tether(*create, "--safety", "@safety.json", "--training", training).json
        assert (job["seed"], job["priority"], job["metadata"]) == (7, -3, {"team": "red", "n": "1"})
        assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
        assert (job["safety"]["method"], job["safety"]["beta"], job["training"]["lora_r"]) == (
            "fixed_kl",
            0.4,
            4,
        )
        assert job["validation_file"].startswith("file-")
        plain = tether(
            "jobs", "create", "--model", MODEL, "--training-file", job["training_file"], "--safety", "off"
        )
        other = plain.out.split()[1].rstrip(",")
        assert "UNPROTECTED" in tether("jobs", "show", other).out
        found = tether("jobs", "list", "--metadata", "team=red", "--json").json
        assert [each["id"] for each in found["data"]] == [job["id"]]
        listed = tether("jobs", "list").out
        assert (job["id"] in listed, other in listed) == (True, True)
        assert tether("jobs", "show", job["id"], "--json").json == job

    def test_integration_becomes_part_of_the_request(
        self,
        own_server: Any,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        tenant = own_server(mlflow_tracking_uri="http://127.0.0.1:1")
        tether = Tether(monkeypatch, capsys, url=tenant.server.url, key=tenant.key)
        create = ("jobs", "create", "--model", MODEL, "--training-file", tenant.upload(), "--json")
        wanted = {"type": "mlflow", "mlflow": {"experiment": "support"}}
        job = tether(*create, "--integration", json.dumps(wanted)).json
        assert job["integrations"] == [wanted]
        refused = tether(*create, "--integrations", '[{"type": "wandb", "wandb": {"project": "x"}}]')
        assert (refused.code, "wandb_offline.py" in refused.err) == (1, True)

    def test_estimate_of_a_file_that_is_not_there(self, tether: Tether) -> None:
        estimate = ("jobs", "estimate", "--model", MODEL)
        done = tether(*estimate, "--training-file", "file-none")
        assert (done.code, "no file has the id 'file-none'" in done.err) == (1, True)
        assert "tether files list" in done.err
        done = tether(*estimate)
        assert (done.code, "--training-file" in done.err) == (2, True)

    def test_refusal_names_the_field(self, tether: Tether, tenant: Tenant) -> None:
        create = ("jobs", "create", "--model", MODEL, "--training-file", tenant.upload())
        done = tether(*create, "--epochs", 1000)
        assert (done.code, "n_epochs" in done.err) == (1, True)
        done = tether(*create[:-1], "no-such-file.jsonl")
        assert (
            done.code,
            "neither the id of a file nor a file here" in " ".join(done.err.replace("│", " ").split()),
        ) == (
            2,
            True,
        )

    def test_lost_reply_makes_no_second_job(
        self, tether: Tether, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        send, lost = httpx.HTTPTransport.handle_request, []

        def lose_first(self: Any, request: httpx.Request) -> httpx.Response:
            reply = send(self, request)
            if request.method == "POST" and not lost:
                lost.append(request.headers["idempotency-key"])
                reply.read()
                raise httpx.ReadTimeout("lost")
            return reply

        file_id = tenant.upload()
        monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lose_first)
        job = tether("jobs", "create", "--model", MODEL, "--training-file", file_id, "--json").json
        assert len(lost) == 1
        assert [each["id"] for each in tether("jobs", "list", "--json").json["data"]] == [job["id"]]

    def test_commands_move_a_job(self, tether: Tether, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        assert tether("jobs", "pause", job_id).out == f"{job_id}: pause requested; it is paused\n"
        assert tether("jobs", "resume", job_id, "--json").json["status"] == "queued"
        assert tether("jobs", "cancel", job_id).out == f"{job_id}: cancel requested; it is cancelled\n"
        again = tether("jobs", "cancel", job_id)
        assert (again.code, "has ended as cancelled" in again.err) == (1, True)
        events = tether("jobs", "events", job_id).out.splitlines()
        assert "Created" in events[0]
        assert "cancelled" in events[-1]
        assert (
            tether("jobs", "events", job_id, "--json", "--limit", 1).json["data"][0]["message"] in events[-1]
        )

    @pytest.mark.parametrize(
        ("state", "code", "said"),
        [
            ("succeeded", 0, "next: tether jobs adapter"),
            ("failed", 3, "it broke"),
            ("cancelled", 4, "cancelled"),
            ("paused", 5, "the job goes on"),
            ("running", 5, "the job goes on"),
        ],
    )
    def test_wait_tells_the_end_by_its_exit_code(
        self, tether: Tether, tenant: Tenant, state: str, code: int, said: str
    ) -> None:
        job_id = tenant.create_job()["id"]
        with unit_of_work(tenant.server.database) as session:
            work = session.get_one(Work, job_id)
            work.state = state
            work.error = {"code": "x", "message": "it broke", "param": None} if state == "failed" else None
        done = tether("jobs", "wait", job_id, "--timeout", 0.1)
        assert (done.code, said in done.out) == (code, True), done
        as_json = tether("jobs", "wait", job_id, "--timeout", 0, "--json")
        assert (as_json.code, json.loads(as_json.out)["safety"]["state"]) == (code, state)

    def test_wait_ends_where_the_job_has_paused_itself(self, tether: Tether, tenant: Tenant) -> None:
        def hold() -> None:
            while not (jobs := tenant.get("/v1/fine_tuning/jobs")["data"]):
                time.sleep(0.02)
            with unit_of_work(tenant.server.database) as session:
                work = session.get_one(Work, jobs[0]["id"])
                ask_for_pause(session, work, by="monitor", reason="the model has drifted")
            reconcile(tenant.server.database, tenant.server.settings)

        file_id = tenant.upload()
        holding = threading.Thread(target=hold)
        holding.start()
        done = tether("jobs", "create", "--model", MODEL, "--training-file", file_id, "--wait")
        holding.join()
        (job,) = tenant.get("/v1/fine_tuning/jobs")["data"]
        line = (
            f"{job['id']}: paused by itself: the model has drifted. When that is dealt with: tether jobs resume"
            f" {job['id']}; or give it up: tether jobs cancel {job['id']}"
        )
        assert (done.code, done.out.splitlines()[-1]) == (6, line)
        again = tether("jobs", "wait", job["id"], "--timeout", 30)
        assert (again.code, again.out, again.err) == (6, f"{line}\n", "")
        followed = tether("jobs", "follow", job["id"])
        assert (followed.code, followed.out.splitlines()[-1]) == (6, line)

    def test_held_job_shows_what_a_person_decides_by(self, tether: Tether, tenant: Tenant) -> None:
        job_id = hold(tenant, second_person=True).job_id
        shown = tether("jobs", "show", job_id).out
        assert re.search(
            r"^gate +hold; attack_success_increase: 0.5, the bound is 0.02$", shown, re.MULTILINE
        )
        assert "decisions" not in shown
        with unit_of_work(tenant.server.database) as session:
            made = add_key(session, name="ada", role=Role.OPERATOR, project_id=tenant.project_id)
        tether.monkeypatch.setenv("TETHER_API_KEY", made.secret)
        approved = tether("jobs", "release", job_id, "--reason", "row 3 is wrong").out
        assert "asks for another person's approval" in approved
        shown = tether("jobs", "show", job_id).out
        assert re.search(rf"^decisions +approved by {made.row.id} \(row 3 is wrong\)$", shown, re.MULTILINE)
        waited = tether("jobs", "wait", job_id)
        assert (waited.code, "held by the policy's gate (attack_success_increase)" in waited.out) == (7, True)
        with unit_of_work(tenant.server.database) as session:
            bob = add_key(session, name="bob", role=Role.OPERATOR, project_id=tenant.project_id)
        tether.monkeypatch.setenv("TETHER_API_KEY", bob.secret)
        released = tether("jobs", "release", job_id, "--reason", "so it is").out
        assert released.startswith(f"{job_id}: released; its weights leave once the notary has signed that")
        waited = tether("jobs", "wait", job_id, "--timeout", 30)
        assert (waited.code, waited.out.startswith(f"{job_id}: succeeded")) == (0, True)

    def test_wait_ends_when_the_job_does(
        self, tether: Tether, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = Run(tenant)
        asked = break_connections(monkeypatch, {})

        def fail_once_it_is_waited_for() -> None:
            deadline = time.monotonic() + 30
            while len(asked) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            run.fail()

        failing = threading.Thread(target=fail_once_it_is_waited_for)
        failing.start()
        done = tether("jobs", "wait", run.job_id, "--timeout", 20)
        failing.join()
        assert (done.code, done.out) == (3, f"{run.job_id}: failed: it broke\n")
        assert done.err == f"{run.job_id}: running\n", "the state is said once, and the end on the other side"

    def test_follow_shows_what_happens_until_the_end(self, tether: Tether, tenant: Tenant) -> None:
        run = Run(tenant)
        run.say("a line \x1b[2J that would clear the screen")
        run.step(1)

        def go_on() -> None:
            run.step(2)
            run.fail()

        timer = threading.Timer(0.3, go_on)
        timer.start()
        done = tether("jobs", "follow", run.job_id)
        timer.join()
        assert done.code == 3
        assert done.out.replace("\n", "").isprintable()
        said = [line.split("  ")[-1].strip() for line in done.out.splitlines()]
        assert (
            said.index(r"a line \x1b[2J that would clear the screen")
            < said.index("step 1")
            < said.index("step 2")
        )
        assert said[-1] == f"{run.job_id}: failed: it broke"
        messages = [
            json.loads(line) for line in tether("jobs", "follow", run.job_id, "--json").out.splitlines()
        ]
        assert {message["name"] for message in messages} == {"job", "event", "step"}

    def test_picture_on_a_terminal_and_lines_on_a_dumb_one(self, tenant: Tenant) -> None:
        run = Run(tenant)
        for step in range(1, 4):
            run.step(step, risk_max=step / 4)
        run.fail()
        code, shown = on_a_terminal(tenant, "jobs", "follow", run.job_id)
        assert code == 3, shown
        assert "\nrisk, highest row   ▃▅▇ 0.750\r" in shown
        code, lines = on_a_terminal(tenant, "jobs", "follow", run.job_id, kind="dumb")
        assert code == 3, lines
        assert "step 3" in lines
        assert lines.replace("\r\n", "").isprintable()

    def test_bars_are_drawn_on_a_terminal_alone(self, tenant: Tenant, rows: Path) -> None:
        code, shown = on_a_terminal(tenant, "files", "upload", str(rows))
        assert (code, "━" in shown) == (0, True), shown
        file_id = tenant.get("/v1/files")["data"][0]["id"]
        code, shown = on_a_terminal(tenant, "files", "download", file_id, "--out", str(rows.parent / "copy"))
        assert (code, "━" in shown) == (0, True), shown
        code, shown = on_a_terminal(tenant, "files", "upload", str(rows), kind="dumb")
        assert code == 0, shown
        assert shown.startswith("uploaded rows.jsonl as file-")
        assert shown.replace("\r\n", "").isprintable()

    def test_steps_and_curve(self, tether: Tether, tenant: Tenant, tmp_path: Path) -> None:
        run = Run(tenant)
        assert "has no steps yet" in tether("risk", run.job_id).out
        for step in range(1, 9):
            run.step(step, risk_max=step / 10)
        shown = tether("risk", run.job_id, "--table")
        assert "steps 1 to 8 of" in shown.out
        assert "risk by critic_" in shown.out, "who measured it stands beside a risk"
        assert "▁▂▃▄▅▅▆▇" in shown.out
        curve = tether("risk", run.job_id, "--points", 4, "--json").json
        assert len(curve["rows"]) <= 4
        steps = tether("jobs", "steps", run.job_id, "--after", 2, "--limit", 3, "--json").json
        assert [step["step"] for step in steps["data"]] == [3, 4, 5]
        assert "--after 5 has the next ones" in tether("jobs", "steps", run.job_id, "--limit", 5).out
        done = tether("risk", run.job_id, "--out", "risk.csv", "--json").json
        with (tmp_path / done["path"]).open() as file:
            assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(1, 9)]
        assert tether("risk", run.job_id, "--out", "risk.pdf").code == 2

    def test_what_a_job_released_comes_checked(self, tether: Tether, tenant: Tenant, tmp_path: Path) -> None:
        released = release_job(tenant)
        done = tether("jobs", "adapter", released.job_id)
        assert f"wrote {released.job_id}-adapter.zip" in done.out
        assert (tmp_path / f"{released.job_id}-adapter.zip").read_bytes() == released.adapter
        of_checkpoint = ("jobs", "adapter", released.job_id, "--checkpoint", released.checkpoint_id)
        path = tether(*of_checkpoint, "--json").json["path"]
        assert (tmp_path / path).read_bytes() == released.checkpoint_adapter
        assert released.checkpoint in tether("jobs", "checkpoints", released.job_id).out
        listed = tether("jobs", "checkpoints", released.job_id, "--json").json
        assert [each["id"] for each in listed["data"]] == [released.checkpoint_id]
        early = tether("jobs", "adapter", tenant.create_job()["id"])
        assert (early.code, "released when the job has succeeded" in early.err) == (1, True)

    def test_job_whose_model_was_deleted_offers_no_adapter(self, tether: Tether, tenant: Tenant) -> None:
        released = release_job(tenant)
        assert "next: tether jobs adapter" in tether("jobs", "wait", released.job_id).out
        tether("models", "delete", released.model)
        for command in ("wait", "follow"):
            done = tether("jobs", command, released.job_id)
            assert (done.code, "was deleted; its record stays" in done.out) == (0, True)
            assert "jobs adapter" not in done.out

    def test_lists_that_are_empty_say_what_to_do(self, tether: Tether, tenant: Tenant) -> None:
        assert tether("jobs", "list").out == (
            "no jobs yet; make one with: tether jobs create --model NAME --training-file FILE\n"
        )
        assert tether("jobs", "list", "--json").json["data"] == []
        assert tether("jobs", "list", "--metadata", "a=b").out.startswith("no job has the label a=b;")
        assert tether("files", "list").out.startswith("no files yet;")
        job_id = tenant.create_job()["id"]
        assert tether("jobs", "checkpoints", job_id).out.startswith(f"{job_id} has no checkpoints yet;")
        assert tether("jobs", "steps", job_id).out.startswith(f"{job_id} has no steps yet;")

    def test_receipt_is_what_the_server_signed(self, tether: Tether, tenant: Tenant, tmp_path: Path) -> None:
        job_id = tenant.create_job()["id"]
        path = f"/v1/fine_tuning/jobs/{job_id}/receipt"
        deadline = time.monotonic() + 30
        while tenant.http.get(path).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert f"wrote {job_id}.tlog-proof" in tether("jobs", "receipt", job_id).out
        proof = (tmp_path / f"{job_id}.tlog-proof").read_text()
        assert proof.splitlines()[0] == tenant.http.get(path).text.splitlines()[0]

    def test_evidence_goes_to_the_verifier(self, tether: Tether, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        path = tether("jobs", "evidence", job_id, "--json").json["path"]
        report = tether("verify", path, "--json").json
        assert (report["job"], report["ok"]) == (job_id, True)


class TestModelsAndCritics:
    def test_models(self, tether: Tether, tenant: Tenant) -> None:
        released = release_job(tenant)
        assert released.model in tether("models", "list").out
        names = [model["id"] for model in tether("models", "list", "--json").json["data"]]
        assert {MODEL, released.model} <= set(names)
        assert tether("models", "show", released.model, "--json").json["id"] == released.model
        assert tether("models", "delete", released.model).out == f"deleted {released.model}\n"
        gone = tether("models", "show", released.model)
        assert (gone.code, "tether models list" in gone.err) == (1, True)

    def test_critics(self, alone: Tether) -> None:
        tether = alone
        (critic,) = tether("critics", "list", "--json").json["data"]
        assert critic["id"] in tether("critics", "list").out
        assert "AUROC           0.970" in tether("critics", "show", critic["id"]).out
        assert tether("critics", "show", critic["id"], "--json").json["report"]["auroc"] == 0.97

    def test_home_goes_before_the_variable(self, alone: Tether, tmp_path: Path) -> None:
        tether = alone
        home = ("--home", tmp_path / "home")
        server_url = os.environ["TETHER_URL"]
        tether.monkeypatch.setenv("TETHER_URL", "http://127.0.0.1:1")
        (model,) = tether("models", "list", *home, "--json").json["data"]
        assert (model["id"], model["anchors"]) == (MODEL, 96)
        assert tether("models", "show", MODEL, *home, "--json").json == model
        critic = tether("critics", "show", model["critic"], *home, "--json").json
        assert critic["report"]["auroc"] == 0.97
        assert model["critic"] in tether("critics", "list", *home).out
        remote = tether("models", "show", MODEL)
        assert (remote.code, "cannot be reached" in remote.err) == (1, True)
        both = tether("models", "list", *home, "--url", server_url)
        assert (both.code, "not both" in both.err) == (2, True)


class TestKeysAndProjects:
    def owner(self, tenant: Tenant, role: Role) -> str:
        """Return a key of the tenant's project with another role."""
        with unit_of_work(tenant.server.database) as session:
            return add_key(session, name="boss", role=role, project_id=tenant.project_id).secret

    def test_keys_of_a_server(self, tether: Tether, tenant: Tenant) -> None:
        refused = tether("keys", "list")
        assert (refused.code, "keys:read" in refused.err) == (1, True)
        tether.monkeypatch.setenv("TETHER_API_KEY", self.owner(tenant, Role.OWNER))
        add = ("keys", "add", "--role", "member", "--name", "ci", "--scope", "jobs:read", "--days", 9)
        made = tether(*add, "--json").json
        assert (made["project_id"], made["scopes"]) == (tenant.project_id, ["jobs:read"])
        tether.monkeypatch.setenv("TETHER_API_KEY", made["key"])
        assert tether("jobs", "list").code == 0
        tether.monkeypatch.setenv("TETHER_API_KEY", self.owner(tenant, Role.OWNER))
        listed = tether("keys", "list")
        assert listed.err == f"at the server {tenant.server.url}\n"
        row = next(line for line in listed.out.splitlines() if made["id"] in line)
        assert ("jobs:read" in row, "live until 20" in row, made["key"] in listed.out) == (True, True, False)
        rotated = tether("keys", "rotate", made["id"], "--hours", 0).out.splitlines()
        assert rotated[0].startswith("key of ci (member), shown only now: ftk_")
        new = tether("keys", "rotate", tether("keys", "list", "--json").json["data"][0]["id"], "--json").json
        assert tether("keys", "revoke", new["id"]).out == f"{new['id']} opens nothing any more\n"
        states = {each["id"]: each["revoked_at"] for each in tether("keys", "list", "--json").json["data"]}
        assert states[new["id"]] is not None
        other = tether("keys", "list", "--project", "all")
        assert (other.code, "project_id" in other.err) == (1, True)

    def test_projects_and_usage_of_a_server(self, tether: Tether, tenant: Tenant) -> None:
        refused = tether("projects", "list")
        assert (refused.code, "admin" in refused.err) == (1, True)
        shown = tether("usage").out
        assert f"({tenant.project_id})" in shown
        assert "no limit" in shown
        used = tether("usage", "--month", "2026-01", "--json").json
        assert (used["month"], used["gpu_seconds_by_day"]) == ("2026-01", [])
        assert tether("usage", "--month", "January").code == 1
        tether.monkeypatch.setenv("TETHER_API_KEY", self.owner(tenant, Role.OPERATOR))
        made = tether("projects", "add", "Team").out.split()[1]
        done = tether("projects", "change", made, "--running-jobs", 1, "--gpu-seconds", 0, "--json").json
        assert done["own_limits"] == {"running_jobs": 1, "gpu_seconds": 0}
        assert "running_jobs" in tether("projects", "list").out
        everyone = tether("usage", "--project", "all")
        assert (made in everyone.out, tenant.project_id in everyone.out) == (True, True)


class TestWebhooks:
    def test_from_the_endpoint_to_its_deliveries(self, tether: Tether, tenant: Tenant) -> None:
        assert tether("webhooks", "list").out.startswith("no webhooks yet;")
        with receiving() as receiver:
            added = tether("webhooks", "add", receiver.url, "--name", "CI", "--event", "job.failed").out
            endpoint_id = added.split()[1].rstrip(";")
            assert "shown only now: whsec_" in added
            listed = tether("webhooks", "list").out
            assert ("job.failed" in listed, "whsec_…" in listed, "enabled" in listed) == (True, True, True)
            assert tether("webhooks", "deliveries", endpoint_id).out.startswith("nothing was sent to")
            test = tether("webhooks", "test", endpoint_id, "--event", "job.failed")
            assert test.out == f"sent fine_tuning.job.failed to {endpoint_id}; it answered 200\n"
            assert len(receiver.received) == 1
        (delivery,) = tether("webhooks", "deliveries", endpoint_id, "--json").json["data"]
        assert "delivered" in tether("webhooks", "deliveries", endpoint_id).out
        again = tether("webhooks", "redeliver", endpoint_id, delivery["id"], "--json").json
        assert (again["event_id"], again["status"]) == (delivery["event_id"], "pending")
        kept = tether("webhooks", "rotate", endpoint_id, "--keep-old").out
        assert "the old one signs too until 20" in kept
        assert "the old one signs nothing any more" in tether("webhooks", "rotate", endpoint_id).out
        tenant.http.post(f"/v1/webhook_endpoints/{endpoint_id}", json={"enabled": False})
        assert "disabled: by somebody" in tether("webhooks", "list").out
        assert tether("webhooks", "enable", endpoint_id, "--json").json["enabled"] is True
        assert tether("webhooks", "delete", endpoint_id).out == f"deleted {endpoint_id}\n"
        gone = tether("webhooks", "test", endpoint_id)
        assert (gone.code, "tether webhooks list" in gone.err) == (1, True)

    def test_every_event_unless_told_and_addresses_are_guarded(self, tether: Tether) -> None:
        made = tether("webhooks", "add", "https://ci.example/x", "--name", "CI", "--json").json
        assert "fine_tuning.job.safety_alert" in made["event_types"]
        refused = tether("webhooks", "add", "https://10.0.0.1/x", "--name", "CI")
        assert (refused.code, "TETHER_WEBHOOK_PRIVATE_HOSTS" in refused.err) == (1, True)


class TestErrors:
    def test_unknown_id_wrong_key_and_no_server_are_said_in_words(
        self, tether: Tether, tenant: Tenant, stranger: Tenant
    ) -> None:
        theirs = stranger.create_job()["id"]
        for job_id in ("ftjob-none", theirs):
            done = tether("jobs", "show", job_id)
            assert (done.code, done.out) == (1, "")
            assert f"no fine-tuning job has the id '{job_id}'" in done.err
            assert "tether jobs list" in done.err
        done = tether("jobs", "wait", "ftjob-none")
        assert done.code == 1, "which is none of the codes of a job's end"
        tether.monkeypatch.setenv("TETHER_API_KEY", "tether_wrong")
        done = tether("jobs", "list")
        assert (done.code, "TETHER_API_KEY" in done.err, "tether_wrong" in done.err) == (1, True, False)
        tether.monkeypatch.delenv("TETHER_API_KEY")
        assert "no API key: set TETHER_API_KEY" in tether("jobs", "list").err
        done = tether("jobs", "follow", "ftjob-none", "--url", "http://127.0.0.1:1", "--key", "x")
        assert (done.code, "cannot be reached" in done.err, "tether serve" in done.err) == (1, True, True)

    def test_text_of_the_server_does_not_steer_the_terminal(self, tether: Tether, tenant: Tenant) -> None:
        job_id = tenant.create_job(metadata={"note": "\x1b]0;title\x07\u202ereversed"})["id"]
        with unit_of_work(tenant.server.database) as session:
            session.get_one(Work, job_id).error = {"code": "x", "message": "\x1b[2J", "param": None}
        for done in (
            tether("jobs", "list"),
            tether("jobs", "show", job_id),
            tether("jobs", "show", "x\x1b[2J"),
            tether("jobs", "show", job_id, "--json"),
        ):
            assert (done.out + done.err).replace("\n", "").isprintable()
        assert r"\x1b]0;title\x07\u202ereversed" in tether("jobs", "show", job_id).out

    def test_key_is_in_no_output_and_no_log(
        self, tether: Tether, tenant: Tenant, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="httpx"):
            shown = [tether("jobs", "list"), tether("jobs", "show", "none"), tether("jobs", "list", "--help")]
        assert tenant.key not in "".join(done.out + done.err for done in shown)
        assert "GET" in caplog.text, "httpx did log"
        assert tenant.key not in caplog.text
