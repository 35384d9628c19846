"""The installation's log over the API: which acts are in it, its tiles, an auditor's reading, and what a job waits for."""

import hashlib
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from app import doctor
from app.database import read_only, unit_of_work
from app.domain.installation_log import parse_checkpoint, parse_log_leaf
from app.domain.job import State
from app.domain.ledger import digest_of
from app.domain.safety_policy import load_policy
from app.domain.scopes import Role
from app.domain.trust import format_trust
from app.models.base import now_ms
from app.models.installation_log import LogEvent, LogLeaf, WeightDownload
from app.models.work import Work, Worker
from app.notary import keyfile, repository
from app.notary.service import NOTARY, fork_log, list_keys, rotate_key
from app.serve import prepare
from app.work.unsigned import tell_unsigned
from tests.integration.conftest import MODEL, Server, Tenant, jsonl, refused, serving
from tests.integration.released import release_job
from tests.support import settings_in, tampering
from tests.unit.app.cli.runner import Tether

JOBS = "/v1/fine_tuning/jobs"


def acts(server: Server) -> list[dict[str, Any]]:
    """Return every act that was noted, in order."""
    with read_only(server.database) as session:
        return [
            parse_log_leaf(leaf) for leaf in session.scalars(select(LogEvent.leaf).order_by(LogEvent.number))
        ]


def of(server: Server, event: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the acts of a kind that have these fields."""
    return [act for act in acts(server) if act["event"] == event and fields.items() <= act.items()]


def key_of(tenant: Tenant) -> str:
    """Return the id of a tenant's key."""
    return str(tenant.get("/v1/api_keys")["data"][0]["id"])


class TestActs:
    """Each act is in the log by the route that does it, with whose key did it and the digest of what."""

    def test_downloads_of_weights(self, tenant: Tenant) -> None:
        job = release_job(tenant)
        adapter, early = (hashlib.sha256(each).hexdigest() for each in (job.adapter, job.checkpoint_adapter))
        path = f"{JOBS}/{job.job_id}/adapter"
        refused(tenant.http.get(path, headers={"authorization": "Bearer junk"}), 401)
        assert not of(tenant.server, "weights.downloaded", sha256=adapter)
        for start in range(20):
            assert tenant.http.get(path, headers={"range": f"bytes={start}-{start}"}).status_code == 206
        (act,) = of(tenant.server, "weights.downloaded", sha256=adapter)
        assert (act["subject"], act["actor"]) == (job.job_id, act["actor"])
        assert act["actor"].startswith("key_")
        assert tenant.http.get(f"{JOBS}/{job.job_id}/checkpoints/{job.checkpoint_id}/adapter").content
        (act,) = of(tenant.server, "weights.downloaded", sha256=early)
        assert act["subject"] == job.checkpoint_id
        # The result file is the same artefact: told once an hour by whichever way.
        content = tenant.http.get(f"/v1/files/{job.results[0]}/content")
        assert content.content == job.adapter
        assert len(of(tenant.server, "weights.downloaded", sha256=adapter)) == 1
        with unit_of_work(tenant.server.database) as session:
            session.execute(update(WeightDownload).values(noted_at_ms=now_ms() - 3600 * 1000))
        assert tenant.http.get(f"/v1/files/{job.results[0]}/content").status_code == 200
        assert [each["subject"] for each in of(tenant.server, "weights.downloaded", sha256=adapter)] == [
            job.job_id,
            job.job_id,
        ]
        assert tenant.http.get(f"/v1/files/{tenant.upload()}/content").status_code == 200, "no weights"

    def test_permissions_and_the_end_of_a_model(
        self, server: Server, tenant: Tenant, stranger: Tenant
    ) -> None:
        owner = Tenant(server, Role.OPERATOR)
        job = release_job(tenant)
        sha256 = hashlib.sha256(job.adapter).hexdigest()
        path = f"/v1/fine_tuning/checkpoints/{job.model}/permissions"
        for _ in range(2):
            reply = owner.http.post(path, json={"project_ids": [stranger.project_id]})
            assert reply.status_code == 200, reply.text
        subject = f"{job.job_id}:{stranger.project_id}"
        assert len(of(server, "permission.granted", subject=subject, sha256=sha256)) == 1
        assert owner.http.delete(f"{path}/{reply.json()['data'][0]['id']}").status_code == 200
        assert len(of(server, "permission.revoked", subject=subject, sha256=sha256)) == 1
        model = Tenant(server, Role.OWNER)
        own = release_job(model)
        assert model.http.delete(f"/v1/models/{own.checkpoint}").status_code == 200
        assert len(of(server, "model.deleted", subject=own.checkpoint_id)) == 1
        assert model.http.delete(f"/v1/models/{own.model}").status_code == 200
        gone = hashlib.sha256(own.adapter).hexdigest()
        assert len(of(server, "model.deleted", subject=own.job_id, sha256=gone)) == 1
        for each in (owner, model):
            each.close()

    def test_projects_and_their_limits(self, operator: Tenant) -> None:
        made = operator.http.post(
            "/v1/projects", json={"name": "Secret Merger", "limits": {"queued_jobs": 3}}
        )
        project_id = made.json()["id"]
        (act,) = of(operator.server, "project.created", subject=project_id)
        assert act["sha256"] == digest_of({"queued_jobs": 3})
        path = f"/v1/projects/{project_id}"
        assert operator.http.patch(path, json={"name": "Other"}).status_code == 200
        assert not of(operator.server, "project.limited", subject=project_id), "a name changes no limit"
        assert operator.http.patch(path, json={"limits": {"queued_jobs": 9}}).status_code == 200
        (act,) = of(operator.server, "project.limited", subject=project_id)
        assert act["sha256"] == digest_of({"queued_jobs": 9})
        assert b"Merger" not in b"".join(json.dumps(each).encode() for each in acts(operator.server))

    def test_what_jobs_rest_on(self, operator: Tenant) -> None:
        server = operator.server
        (base,) = of(server, "base_model.registered", subject=MODEL)
        rows = jsonl(*({"messages": [{"role": "user", "content": f"{number}"}]} for number in range(8)))
        file = operator.post_file(rows, purpose="user_data").json()["id"]
        body = {"model": MODEL, "kind": "anchors", "file": file}
        made = operator.http.post("/v1/safety_sets", json=body)
        assert made.status_code == 200, made.text
        (act,) = of(server, "safety_set.registered", subject=made.json()["id"])
        assert act["sha256"] == hashlib.sha256(rows).hexdigest()
        assert act["actor"].startswith("key_")
        assert base["actor"] == "command-line"

    def test_the_policy_file_is_told_when_it_is_another(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path / "home")
        with serving(settings) as server:
            pass
        prepare(settings)
        policy = tmp_path / "policy.toml"
        _, shipped = load_policy(None)
        assert [act["sha256"] for act in of(server, "policy_file.changed", actor="start")] == [shipped]
        policy.write_text('name = "mine"\nbeta_max_floor = 0.5\n')
        prepare(settings_in(tmp_path / "home", policy_file=policy))
        _, own = load_policy(policy)
        prepare(settings)
        assert [act["sha256"] for act in of(server, "policy_file.changed")] == [shipped, own, shipped]
        server.database.engine.dispose()


@pytest.fixture
def auditor(own_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A server of its own with a signed log, and the command of somebody who audits it."""
    tenant = own_server(Role.OPERATOR)
    release_job(tenant, State.SIGNING)
    wait_for_size(tenant, 3)
    return tenant, Tether(monkeypatch, capsys, url=tenant.server.url, key=tenant.key)


def wait_for_size(tenant: Tenant, size: int) -> None:
    """Wait until so much is signed, and nothing waits."""
    deadline = time.monotonic() + 30
    while True:
        with read_only(tenant.server.database) as session:
            log = repository.get_log(session)
            found = repository.get_checkpoint(session, log.number) if log else None
            if found is not None and found.size >= size and not repository.list_pending_events(session):
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def write_policy(tenant: Tenant, path: Path) -> Path:
    """Write the trust policy as its operator gives it to auditors."""
    with read_only(tenant.server.database) as session:
        trusted, _ = list_keys(tenant.server.settings, repository.list_signers(session))
    path.write_text("\n".join(format_trust(origin, keys) for origin, keys in trusted.items()))
    return path


class TestTiles:
    def test_the_root_is_recomputed_from_what_the_server_gives(self, auditor: Any) -> None:
        tenant, _ = auditor
        note = tenant.http.get("/v1/log/1/checkpoint")
        assert note.headers["content-type"].startswith("text/plain")
        checkpoint = parse_checkpoint(note.text.partition("\n\n")[0] + "\n")
        size = checkpoint.size
        width = "" if size % 256 == 0 else f".p/{size}"
        tile = tenant.http.get(f"/v1/log/1/tile/0/000{width}")
        assert "immutable" in tile.headers["cache-control"]
        hashes = [tile.content[at : at + 32] for at in range(0, len(tile.content), 32)]
        assert len(hashes) == size
        assert reduce_root(hashes) == checkpoint.root
        entries = tenant.http.get(f"/v1/log/1/tile/entries/000{width}").content
        leaves = list(cut(io.BytesIO(entries)))
        assert [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves] == hashes
        assert tenant.http.get("/v1/log/1/tile/0/000.p/1").content == hashes[0]

    def test_what_is_not_signed_is_no_tile(self, auditor: Any) -> None:
        tenant, _ = auditor
        for path in (
            "1/tile/0/000",
            "1/tile/1/000.p/1",
            "1/tile/0/000.p/255",
            "1/tile/0/001.p/1",
            "1/tile/entries/x",
        ):
            refused(tenant.http.get(f"/v1/log/{path}"), 404, code="no_such_tile")
        refused(tenant.http.get("/v1/log/9/checkpoint"), 404, code="not_signed")
        refused(tenant.http.get("/v1/log/1/tile/9/000"), 400, param="level")

    def test_what_it_tells_of_all_projects_is_for_operators_and_their_auditors(
        self, auditor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tenant, tether = auditor
        paths = ("/v1/log/1/tile/0/000.p/1", "/v1/log/1/tile/entries/000.p/1")
        for scopes, status in ((["audit:read"], 403), (["log:read"], 200)):
            made = tenant.http.post(
                "/v1/api_keys", json={"name": "auditor", "role": "operator", "scopes": scopes}
            )
            header = {"authorization": f"Bearer {made.json()['key']}"}
            for path in paths:
                assert tenant.http.get(path, headers=header).status_code == status, (path, scopes)
            checkpoint = tenant.http.get("/v1/log/1/checkpoint", headers=header)
            assert checkpoint.status_code == 200, "a project's own auditor keeps copies of it"
        monkeypatch.setenv("TETHER_API_KEY", made.json()["key"])
        done = tether("log", "audit", "--policy", write_policy(tenant, tmp_path / "trust.toml"))
        assert done.code == 0, done.err


def reduce_root(hashes: list[bytes]) -> bytes:
    """Return the root of RFC 6962 over leaf hashes."""
    if len(hashes) == 1:
        return hashes[0]
    half = 1
    while half * 2 < len(hashes):
        half *= 2
    return hashlib.sha256(b"\x01" + reduce_root(hashes[:half]) + reduce_root(hashes[half:])).digest()


def cut(entries: io.BytesIO) -> Iterator[bytes]:
    """Yield the entries of a bundle."""
    while length := entries.read(2):
        yield entries.read(int.from_bytes(length, "big"))


class TestAudit:
    def test_an_auditor_follows_the_log_through_a_rotation_and_a_fork(
        self, auditor: Any, tmp_path: Path
    ) -> None:
        tenant, tether = auditor
        policy = write_policy(tenant, tmp_path / "trust.toml")
        kept = tmp_path / "kept"
        done = tether("log", "audit", "--policy", policy, "--save", kept)
        assert done.code == 0, done.err
        assert "next time: --since FILE" in done.out
        rotated = rotate_key(tenant.server.database, tenant.server.settings)
        with read_only(tenant.server.database) as session:
            over_it = repository.get_checkpoint(session, 1)
        assert over_it is not None
        # The checkpoint over the rotation has the old key's signature, too; the one after it has not.
        tenant.create_job()
        wait_for_size(tenant, over_it.size + 1)
        stale = tether("log", "audit", "--policy", policy, "--since", kept)
        assert stale.code == 1
        assert rotated.new.id.hex() in stale.err
        assert "tether log trust" in stale.err
        policy = write_policy(tenant, tmp_path / "trust.toml")
        found = tether("log", "audit", "--policy", policy, "--since", kept, "--save", kept, "--json").json[
            "data"
        ]
        assert [each["events"]["key.rotate"] for each in found] == [1]
        assert found[0]["since"] < found[0]["size"]

        origin = fork_log(tenant.server.database, tenant.server.settings)
        wait_for_size(tenant, 1)
        policy = write_policy(tenant, tmp_path / "trust.toml")
        both = tether("log", "audit", "--policy", policy, "--since", kept, "--json").json["data"]
        assert [each["origin"] for each in both] == [found[0]["origin"], origin]
        assert both[0]["since"] == both[0]["size"]
        assert both[1]["events"]["log.fork"] == 1

    def test_a_rewritten_history_is_found_by_who_kept_a_checkpoint(
        self, auditor: Any, tmp_path: Path
    ) -> None:
        tenant, tether = auditor
        settings = tenant.server.settings
        policy = write_policy(tenant, tmp_path / "trust.toml")
        kept = tmp_path / "kept"
        assert tether("log", "audit", "--policy", policy, "--save", kept).code == 0
        with tampering(tenant.server.database) as session:
            leaf = session.get_one(LogLeaf, (1, 0))
            leaf.leaf = re.sub(rb'"ts_db":\d+', b'"ts_db":1', leaf.leaf)
        edited = tether("log", "audit", "--policy", policy, "--since", kept)
        assert (edited.code, "have the root" in edited.err) == (1, True)
        # Who has database and key signs it anew; only what was kept outside shows it.
        last = keyfile.load_last(settings.notary_dir)
        assert last is not None
        # The notary that runs may sign at any moment; whoever has its key signs once more.
        for since, code, said in ([], 0, ""), (["--since", kept], 1, "a split view"):
            for _ in range(10):
                resign(tenant, last.origin)
                found = tether("log", "audit", "--policy", policy, *since)
                if found.code == code and said in found.err:
                    break
            assert (found.code, said in found.err) == (code, True), found.err

    def test_what_cannot_be_used_is_named(self, auditor: Any, tmp_path: Path) -> None:
        tenant, tether = auditor
        policy = write_policy(tenant, tmp_path / "trust.toml")
        kept = tmp_path / "kept"
        kept.write_text("not a note")
        done = tether("log", "audit", "--policy", policy, "--since", kept)
        assert (done.code, "kept: " in done.err) == (1, True)
        policy.write_text("[[logs]]\n")
        assert "trust.toml: " in tether("log", "audit", "--policy", policy).err


def resign(tenant: Tenant, origin: str) -> None:
    """Sign what the database has now in place of what was signed, as its owner with the notary's key can."""
    from app.domain.installation_log import Checkpoint, format_checkpoint
    from app.domain.merkle import leaf_hash, root
    from app.domain.note import sign_note
    from app.models.installation_log import LogCheckpoint

    key = keyfile.load_key(tenant.server.settings.notary_dir)
    with tampering(tenant.server.database) as session:
        newest = repository.get_checkpoint(session, 1)
        assert newest is not None
        leaves = list(repository.iterate_log(session, 1, end=newest.size))
        checkpoint = Checkpoint(origin, newest.size, root(map(leaf_hash, leaves)))
        session.execute(
            update(LogCheckpoint)
            .where(LogCheckpoint.size == newest.size)
            .values(
                note=sign_note(format_checkpoint(checkpoint), [(origin, key)]).decode(),
                root=checkpoint.root.hex(),
            )
        )


class TestWaiting:
    def test_a_job_says_that_the_notary_is_away_and_since_when(
        self, own_server: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from app.notary import service

        monkeypatch.setattr(service, "POLL_S", 3600)
        monkeypatch.setattr(doctor, "DEVICE", """print('{"device": "none", "threads": 1}')""")
        tenant = own_server()
        database = tenant.server.database
        job = release_job(tenant, State.SIGNING)
        path = f"{JOBS}/{job.job_id}"

        def warnings() -> list[str]:
            tell_unsigned(database)
            found = tenant.get(f"{path}/events", limit=100)["data"]
            return [each["message"] for each in reversed(found) if each["level"] == "warn"]

        said = warnings()
        assert len(said) == 1
        assert "no notary is running, nor was one before" in said[0]
        assert said == warnings(), "it is said once"
        assert tenant.get(path)["safety"]["waits_for"].startswith("no notary is running, nor")
        with unit_of_work(database) as session:
            session.add(Worker(id="notary_1", queue=NOTARY, host="h", seen_at_ms=now_ms() - 3600 * 1000))
        assert "no notary has been running since 20" in warnings()[-1]
        with unit_of_work(database) as session:
            repository.note_refusal(session, "the folder /secret/notary is another one")
        assert "the notary refuses to sign since 20" in warnings()[-1]
        assert "/secret" not in json.dumps([tenant.get(path), warnings()])
        with unit_of_work(database) as session:
            repository.take_back_refusal(session)
            session.execute(update(Worker).values(seen_at_ms=now_ms()))
            repository.note_refused_jobs(session, {job.job_id: "its ledger has 2 records; its row says 3"})
        assert "the notary refuses to sign for this job since 20" in warnings()[-1]
        assert tenant.get(path)["safety"]["waits_for"].startswith("the notary refuses to sign for this job")
        found = next(each for each in doctor.examine(tenant.server.settings) if job.job_id in each.what)
        assert found.todo == "its ledger has 2 records; its row says 3"

        def triggers() -> str | None:
            return next(
                each for each in doctor.examine(tenant.server.settings) if each.what == "triggers"
            ).todo

        assert triggers() is None
        with tampering(database):
            pass
        assert triggers() == "run: tether migrate"
        with unit_of_work(database) as session:
            repository.note_refused_jobs(session, {})
        assert len(warnings()) == 4
        assert tenant.get(path)["safety"]["waits_for"] is None
        with read_only(database) as session:
            assert session.get_one(Work, job.job_id).turn is None


def test_the_worker_is_told_who_asked_for_a_critic(operator: Tenant) -> None:
    rows = jsonl(
        *(
            {"messages": [{"role": "user", "content": f"{n} {m}"}], "label": m % 2, "group": f"{n}"}
            for n in range(4)
            for m in range(4)
        )
    )
    file = operator.post_file(rows, purpose="user_data").json()["id"]
    reply = operator.http.post("/v1/critics", json={"model": MODEL, "file": file})
    assert reply.status_code < 300, reply.text
    with read_only(operator.server.database) as session:
        assert session.get_one(Work, reply.json()["id"]).args["actor"].startswith("key_")
