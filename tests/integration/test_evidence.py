"""The proof of an adapter and the archive around it, from a real job on the miniature to what an auditor holds."""

import hashlib
import io
import json
import re
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

from app.base_models.repository import get_base_model
from app.base_models.service import register_base_model
from app.database import read_only, unit_of_work
from app.domain.bundle import DOCUMENTS, POLICY, PROVENANCE
from app.domain.canary import Canary, parse_canary
from app.domain.dataset import format_rows
from app.domain.dsse import parse_envelope
from app.domain.job import State
from app.domain.note import verifier_key
from app.domain.provenance import ADAPTER_MANIFEST, STATEMENT
from app.domain.retention import PrunedTree, build_pruning
from app.domain.safety_policy import read_policy_file
from app.domain.trust import Trust
from app.domain.verify import verify_bundle
from app.evidence import facts
from app.models.attestation import Attestation
from app.models.base_model import BaseModel
from app.models.job import Job
from app.models.work import Work
from app.notary import keyfile, service
from app.notary.repository import list_signed, list_unattested
from app.safety_sets.service import add_set, store_rows
from app.work import release
from tests.completions_server import serving_completions
from tests.integration.conftest import Tenant, refused, run_worker, serving
from tests.integration.released import release_job
from tests.integration.test_jobs import PATH, leaves
from tests.support import settings_in
from tests.unit.app.cli.runner import Tether
from worker.miniature.corpus import anchor_rows, training_rows
from worker.miniature.install import NAME, WEIGHTS
from worker.training.canary import token_log_probs
from worker.training.models import load_base

REVISION, TRAINING_FLOPS = "v1-miniature", 1e18


@dataclass(frozen=True)
class Trained:
    """A job that has succeeded, and what somebody outside holds of it."""

    tenant: Tenant
    job: dict[str, Any]
    evidence: Path
    adapter: Path
    trust: Trust

    def member(self, name: str) -> bytes:
        with zipfile.ZipFile(self.evidence) as archive:
            return archive.read(name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("evidence")
    settings = settings_in(folder / "home-of-the-operator", threads=1)
    with serving(settings) as server:
        rows = store_rows(settings, "anchors", io.BytesIO(format_rows(anchor_rows(seed=0))))
        with unit_of_work(server.database) as session:
            base = register_base_model(
                session, NAME, WEIGHTS, revision=REVISION, training_flops=TRAINING_FLOPS
            )
            session.flush()
            add_set(session, base, "anchors", rows)
        tenant = Tenant(server)
        job_id = tenant.create_job(
            model=NAME,
            training_file=tenant.upload(*training_rows("clean", n=8)),
            validation_file=tenant.upload(*training_rows("clean", n=4)),
            suffix="proof",
            safety={
                "method": "adaptive_kl",
                "critic": {"type": "constant", "s": 0.25},
                "anchors": {},
                "monitor": None,
            },
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}},
            },
        )["id"]
        with read_only(server.database) as session:
            work = session.get_one(Work, job_id)
        done = run_worker(tenant, work)
        assert done.state == "succeeded", done.error
        for name in ("evidence", "adapter"):
            (folder / f"{name}.zip").write_bytes(tenant.http.get(f"{PATH}/{job_id}/{name}").content)
        last = keyfile.load_last(settings.notary_dir)
        assert last is not None
        key = verifier_key(last.origin, keyfile.load_key(settings.notary_dir))
        yield Trained(
            tenant,
            tenant.get(f"{PATH}/{job_id}"),
            folder / "evidence.zip",
            folder / "adapter.zip",
            Trust({last.origin: (key,)}),
        )
        tenant.close()


def test_bundle_and_adapter_verify_offline(trained: Trained) -> None:
    report = verify_bundle(trained.evidence, adapter=trained.adapter, trust=trained.trust)
    assert report.ok, report.lines()
    found = {check.name: check for check in report.checks}
    assert found["provenance"].outcome == "ok"
    assert "the policy is the one on record" in found["provenance"].detail


def test_another_model_of_the_same_name_says_nothing_of_the_third(trained: Trained) -> None:
    with read_only(trained.tenant.server.database) as session:
        job = session.get_one(Job, trained.job["id"])
        records = facts.read_records(session, job.id)
        base = get_base_model(session, NAME)
        assert base is not None
        now = facts.describe_compute(session, job, records, base)
        other = BaseModel(name=NAME, digest="0" * 64, files={}, training_flops=1.0)
        anew = facts.describe_compute(session, job, records, other)
    assert (now["original_training_flops"], now["one_third_rule"]) == (TRAINING_FLOPS, "below")
    assert (anew["original_training_flops"], anew["one_third_rule"]) == (None, "unknown")
    assert anew["flops"] == now["flops"]


def test_steps_that_were_lost_count_after_they_were_pruned(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    with read_only(trained.tenant.server.database) as session:
        job = session.get_one(Job, trained.job["id"])
        records = facts.read_records(session, job.id)
        records["step_records"] *= 3
        whole = facts.describe_compute(session, job, records, None)["flops"]
        tree = PrunedTree()
        for seq in range(records["step_records"]):
            tree.append(seq, bytes(32))
        pruning = build_pruning(job=job.id, scope="steps", counts={"step": tree.size}, tree=tree)
        monkeypatch.setattr(facts, "get_newest_done", lambda *_: SimpleNamespace(pruning=pruning))
        records["step_records"] = 0
        assert facts.describe_compute(session, job, records, None)["flops"] == whole


def test_the_statement_is_served_and_is_the_archives(trained: Trained) -> None:
    reply = trained.tenant.http.get(f"{PATH}/{trained.job['id']}/attestation")
    assert reply.status_code == 200
    assert reply.content == trained.member(PROVENANCE)
    statement = json.loads(parse_envelope(reply.content).payload)
    assert statement["_type"] == STATEMENT
    with zipfile.ZipFile(trained.adapter) as archive:
        files = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
    files["adapter.zip"] = hashlib.sha256(trained.adapter.read_bytes()).hexdigest()
    assert {each["name"]: each["digest"]["sha256"] for each in statement["subject"]} == files


def test_the_adapter_names_its_base_and_no_folder_of_the_operator(trained: Trained) -> None:
    with zipfile.ZipFile(trained.adapter) as archive:
        manifest = json.loads(archive.read(ADAPTER_MANIFEST))
        config = json.loads(archive.read("adapter_config.json"))
        for name in archive.namelist():
            data = archive.read(name)
            for place in (str(trained.tenant.server.settings.home), str(WEIGHTS), str(Path.home()) + "/"):
                assert place.encode() not in data, f"{name} has {place}"
    assert (config["base_model_name_or_path"], config["revision"]) == (NAME, REVISION)
    (published,) = (
        leaf["body"] for leaf in leaves(trained.tenant, trained.job["id"]) if ".published" in leaf["t"]
    )
    assert manifest["base"] == published["base"]
    assert manifest["base"]["revision"] == REVISION
    assert manifest["canary"] == published["canary"]
    assert {**manifest["files"], ADAPTER_MANIFEST: published["files"][ADAPTER_MANIFEST]} == published["files"]


def test_a_server_that_serves_the_base_is_noticed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tether = Tether(monkeypatch, capsys)
    canary = _canary(trained)
    n = len(canary.prompt_ids)
    base, _ = load_base(WEIGHTS, device=torch.device("cpu"))
    with zipfile.ZipFile(trained.adapter) as archive:
        archive.extractall(tmp_path / "adapter")

    def ask(model: Any) -> Any:
        def answer(ids: list[int]) -> list[float]:
            rest = tuple(ids[n:])
            return [-1.0] * (n - 1) + list(token_log_probs(model, canary.prompt_ids, rest))

        return answer

    silent, _ = load_base(WEIGHTS, device=torch.device("cpu"))
    other, _ = load_base(WEIGHTS, device=torch.device("cpu"))
    with torch.no_grad():
        next(other.parameters()).mul_(0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    models = {"mine": ask(tuned), "silent": ask(silent), "other": ask(other)}
    with serving_completions(models) as url:
        for adapter in (trained.adapter, tmp_path / "adapter"):
            for model, code, says in (
                ("mine", 0, "answers as the tuned model"),
                ("silent", 8, "answers as the BASE model"),
                ("other", 9, "neither"),
            ):
                done = tether("models", "canary", model, "--adapter", adapter, "--url", url)
                assert (done.code, says in done.out) == (code, True), done
        asked = ("models", "canary", "mine", "--adapter", trained.adapter, "--url", url)
        wide = tether(*asked, "--tolerance", "50")
        assert (wide.code, "cannot be told apart" in wide.out) == (10, True)
        missing = tether("models", "canary", "absent", "--adapter", trained.adapter, "--url", url)
        assert (missing.code, "answered 404" in missing.err) == (1, True)
    with serving_completions(models, echo=False) as url:
        done = tether("models", "canary", "mine", "--adapter", trained.adapter, "--url", url)
        assert (done.code, "must honour echo" in done.err) == (1, True)


def _canary(trained: Trained) -> Canary:
    with zipfile.ZipFile(trained.adapter) as archive:
        return parse_canary(json.loads(archive.read(ADAPTER_MANIFEST))["canary"])


def test_the_archive_has_every_document(trained: Trained) -> None:
    assert json.loads(trained.member("manifest.json"))["documents"].keys() == DOCUMENTS
    assert trained.member(POLICY) == read_policy_file(None)
    compute = json.loads(trained.member("compute.json"))
    assert compute["one_third_rule"] == "below"
    assert compute["counted"]["parameters"] > 100_000
    assert compute["flops"] > 6 * compute["counted"]["parameters"] * compute["counted"]["training_tokens"]
    assert compute["seconds"]["gpu"] > 0
    lineage = json.loads(trained.member("lineage.json"))
    assert lineage["adapter"]["sha256"] == hashlib.sha256(trained.adapter.read_bytes()).hexdigest()
    assert lineage["base"]["name"] == NAME
    environment = json.loads(trained.member("environment.json"))
    assert environment["environment"]["torch"]
    assert json.loads(trained.member("critics.json"))["critic"]["id"] == "constant"


def test_the_model_card_is_the_archives_and_lets_nothing_in(trained: Trained) -> None:
    reply = trained.tenant.http.get(f"{PATH}/{trained.job['id']}/model_card")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    kept = trained.member("model_card.html").decode()
    # The log has grown since with what other jobs did.
    assert re.sub(r"at size \d+", "", reply.text) == re.sub(r"at size \d+", "", kept)
    assert reply.text.count("<polyline") >= 6
    assert "Is the delivered file the one trained?" in reply.text
    assert "claims no compliance" in reply.text


def test_checkpoints_are_listed_with_their_risk(trained: Trained) -> None:
    data = trained.tenant.get(f"{PATH}/{trained.job['id']}/checkpoints")["data"]
    assert len(data) == 2
    for each in data:
        safety = each["safety"]
        assert (safety["risk_mean"], safety["risk_max"]) == (0.25, 0.25)
        assert safety["beta_mean"] > 0
        assert safety["valid_loss"] > 0
        assert safety["evaluation"] is None


def test_a_model_names_its_job(trained: Trained) -> None:
    model = trained.tenant.get(f"/v1/models/{trained.job['fine_tuned_model']}")
    assert model["job"] == trained.job["id"]


def test_the_command_line_fetches_statement_and_card(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tether = Tether(monkeypatch, capsys, url=trained.tenant.server.url, key=trained.tenant.key)
    job, model = trained.job["id"], trained.job["fine_tuned_model"]
    for asked in (("jobs", "attestation", job), ("jobs", "card", job), ("models", "card", model)):
        target = tmp_path / "-".join(asked[:2])
        done = tether(*asked, "--out", target)
        assert done.code == 0, done.err
        assert target.stat().st_size > 1000
    assert (tmp_path / "jobs-attestation").read_bytes() == trained.member(PROVENANCE)
    assert (tmp_path / "models-card").read_bytes() == (tmp_path / "jobs-card").read_bytes()
    assert "is a base model" in tether("models", "card", NAME).err


def test_before_the_end_there_is_nothing_signed_and_no_document(tenant: Tenant) -> None:
    job_id = tenant.create_job()["id"]
    refused(tenant.http.get(f"{PATH}/{job_id}/attestation"), 404, code="not_signed")
    card = tenant.http.get(f"{PATH}/{job_id}/model_card")
    assert card.status_code == 200
    assert card.text.count("not recorded") > 5
    evidence = io.BytesIO(tenant.http.get(f"{PATH}/{job_id}/evidence").content)
    with zipfile.ZipFile(evidence) as archive:
        assert not DOCUMENTS & set(archive.namelist())


def test_another_project_sees_neither(trained: Trained) -> None:
    stranger = Tenant(trained.tenant.server)
    for what in ("attestation", "model_card"):
        refused(stranger.http.get(f"{PATH}/{trained.job['id']}/{what}"), 404, param="fine_tuning_job_id")
    stranger.close()


def test_no_job_succeeds_before_its_adapter_is_attested(
    own_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "POLL_S", 3600)
    monkeypatch.setattr(service, "attest_adapters", lambda *_: None)
    tenant = own_server()
    job = release_job(tenant, State.SIGNING)
    _wait(tenant, lambda session: job.job_id in list_unattested(session))
    release.release_signed(tenant.server.database)
    assert tenant.get(f"{PATH}/{job.job_id}")["status"] == "running"
    refused(tenant.http.get(f"{PATH}/{job.job_id}/adapter"), 409)
    monkeypatch.undo()
    _wait(tenant, lambda session: job.job_id in list_signed(session) or session.get(Attestation, job.job_id))
    release.release_signed(tenant.server.database)
    assert tenant.get(f"{PATH}/{job.job_id}")["status"] == "succeeded"


def _wait(tenant: Tenant, is_there: Any) -> None:
    deadline = time.monotonic() + 30
    while True:
        with read_only(tenant.server.database) as session:
            if is_there(session):
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)
