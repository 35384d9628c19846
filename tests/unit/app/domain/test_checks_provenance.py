"""The statement about an adapter: a bundle that has it verifies, and each lie in it is found by its check and no other."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.domain.bundle import POLICY, PROVENANCE, BundleError, read_bundle, write_bundle
from app.domain.canonical import canonical_bytes
from app.domain.dsse import sign_envelope
from app.domain.ledger import chain_hash, parse_leaf
from app.domain.note import verifier_key
from app.domain.provenance import (
    ADAPTER,
    ADAPTER_MANIFEST,
    PAYLOAD_TYPE,
    PREDICATE,
    STATEMENT,
    Chronicle,
    builder_id,
    format_statement,
    origin_of,
)
from app.domain.report import Report
from app.domain.trust import Trust
from app.domain.verify import verify_bundle
from tests.unit.app.domain.synthetic_job import JOB, SyntheticJob, manifest_of, outcomes
from tests.unit.app.domain.synthetic_run import ANCHORS, make_run
from tests.unit.app.domain.test_checks_log import KEY, ORIGIN, STRANGER, TRUST, Log, assert_only

BASE = {"name": "miniature-1", "revision": "v1.2", "sha256": "a" * 64}
CANARY = {"prompt_ids": [1, 2], "continuation_ids": [3, 4], "tuned": [-0.5, -1.25], "base": [-3.0, -2.0]}
COMPUTE = {
    "parameters": 1000,
    "adapter_parameters": 10,
    "layers": 2,
    "hidden_size": 8,
    "reference_tokens": 200,
    "reference_squares": 4000,
    "training_tokens": 300,
    "training_squares": 6000,
}
WEIGHTS = {"adapter_model.safetensors": b"weights", "adapter_config.json": b"{}"}
POLICY_TEXT = b"methods = ['adaptive_kl']\n"


def pack(base: object = BASE, canary: object = CANARY, files: object = None) -> tuple[bytes, dict[str, str]]:
    """Return an adapter's zip that says this of itself, and the digests of its files."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in WEIGHTS.items()}
    manifest = {"format": "tether.adapter/1", "base": base, "files": files or digests, "canary": canary}
    contents = {**WEIGHTS, ADAPTER_MANIFEST: canonical_bytes(manifest)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue(), {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def publish(job: SyntheticJob, adapter: tuple[bytes, dict[str, str]]) -> None:
    """Write the record of this adapter in its newest version."""
    record = job.records[job.find("adapter.published")]
    record.version = 2
    record.body.update(
        zip_sha256=hashlib.sha256(adapter[0]).hexdigest(),
        bytes=len(adapter[0]),
        files=adapter[1],
        base=BASE,
        canary=CANARY,
        compute=COMPUTE,
    )


@pytest.fixture
def adapter() -> bytes:
    return pack()[0]


@pytest.fixture
def job() -> SyntheticJob:
    job = make_run(version=4)
    created = job.records[0].body
    policy = hashlib.sha256(POLICY_TEXT).hexdigest()
    for record in job.records:
        if "policy_sha256" in record.body:
            record.body["policy_sha256"] = policy
    assert created["policy_sha256"] == policy
    publish(job, pack())
    return job


def state(job: SyntheticJob, origin: str = ORIGIN) -> dict[str, Any]:
    """Return the statement as the notary makes it."""
    chronicle = Chronicle()
    for leaf in job.leaves():
        chronicle.add(parse_leaf(leaf), chain_hash(leaf))
    return chronicle.state(manifest_of(job.leaves()), origin)


def sign(statement: object, key: Any = KEY, kind: str = PAYLOAD_TYPE) -> bytes:
    return sign_envelope(kind, canonical_bytes(statement), verifier_key(ORIGIN, key), key.sign)


def check(
    job: SyntheticJob,
    folder: Path,
    documents: dict[str, bytes],
    *,
    trust: Trust | None = TRUST,
    adapter: bytes | None = None,
) -> Report:
    path, beside = folder / "evidence.zip", None
    with path.open("wb") as file:
        write_bundle(
            file,
            job=JOB,
            leaves=job.leaves(),
            risk_table=job.table,
            log=Log(job).prove(),
            documents=documents,
        )
    if adapter is not None:
        beside = folder / "adapter.zip"
        beside.write_bytes(adapter)
    return verify_bundle(path, adapter=beside, trust=trust)


def detail(report: Report) -> str:
    return next(check.detail for check in report.checks if check.name == "provenance")


def test_a_signed_statement_verifies_with_the_zip_beside_it(
    job: SyntheticJob, adapter: bytes, tmp_path: Path
) -> None:
    documents = {PROVENANCE: sign(state(job)), POLICY: POLICY_TEXT, "model_card.html": b"<html>"}
    report = check(job, tmp_path, documents, adapter=adapter)
    assert report.ok, report.lines()
    assert outcomes(report)["provenance"] == "ok"
    assert f"signed by {ORIGIN}+{verifier_key(ORIGIN, KEY).id.hex()}" in detail(report)
    assert "the policy is the one on record" in detail(report)
    assert "model_card.html are derived from records and database, and prove nothing" in detail(report)


def test_the_statement_names_everything_that_went_in(job: SyntheticJob) -> None:
    job.records[0].body["parent"] = {"job": "ftjob-parent", "step": 9, "adapter_sha256": "9" * 64}
    statement = state(job, "tether.example/log/fork-1 é")
    assert (statement["_type"], statement["predicateType"]) == (STATEMENT, PREDICATE)
    subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    data, files = pack()
    assert subjects == {ADAPTER: hashlib.sha256(data).hexdigest(), **files}
    build = statement["predicate"]["buildDefinition"]
    materials = {each["name"]: each for each in build["resolvedDependencies"]}
    assert set(materials) == {
        "base:miniature-1",
        "training_file",
        "policy",
        "critic:activation",
        "fitted:critic-1",
        f"anchors:{ANCHORS['id']}",
        "parent_adapter",
    }
    assert materials["base:miniature-1"]["annotations"] == {"revision": "v1.2"}
    assert materials["training_file"]["digest"] == {"sha256": "1" * 64}
    assert materials["parent_adapter"]["annotations"] == {"job": "ftjob-parent", "step": 9}
    details = statement["predicate"]["runDetails"]
    assert origin_of(statement) == "tether.example/log/fork-1 é"
    assert " " not in details["builder"]["id"] == builder_id("tether.example/log/fork-1 é")
    ledger = details["byproducts"][0]
    assert ledger["annotations"] == {
        "size": len(job.leaves()),
        "root": manifest_of(job.leaves())["root"],
    }
    assert details["metadata"]["finishedOn"].endswith("Z")


def test_what_a_resume_threw_away_is_not_in_the_statement(job: SyntheticJob) -> None:
    at = job.find("ckpt")
    lost = json.loads(json.dumps(job.records[at].body)) | {"step": 3, "adapter_sha256": "6" * 64}
    kept = job.records[at]
    kept.version, kept.body = 2, kept.body | {"adapter_sha256": "5" * 64}
    resumed = job.find("job.resume")
    job.records.insert(resumed, type(kept)("ckpt", lost, 1, 1, version=2))
    names = [each["name"] for each in state(job)["predicate"]["runDetails"]["byproducts"]]
    assert names == ["ledger", "checkpoint-step-2.zip"]


def test_without_a_policy_the_content_is_compared_and_nobody_vouches(
    job: SyntheticJob, adapter: bytes, tmp_path: Path
) -> None:
    report = check(job, tmp_path, {PROVENANCE: sign(state(job), STRANGER)}, trust=None, adapter=adapter)
    assert report.ok
    assert outcomes(report)["provenance"] == "not checked"
    assert "the statement is what the records say" in detail(report)
    report = check(job, tmp_path, {PROVENANCE: sign(state(job) | {"subject": []})}, trust=None)
    assert_only(report, "provenance", "other files")


def test_a_bundle_from_before_there_were_statements_is_not_checked(tmp_path: Path) -> None:
    report = check(make_run(), tmp_path, {})
    assert report.ok
    assert outcomes(report)["provenance"] == "not checked"


def test_who_has_an_adapter_can_ask_for_its_statement(
    job: SyntheticJob, adapter: bytes, tmp_path: Path
) -> None:
    assert check(job, tmp_path, {}).ok, "the job may not be released yet"
    assert_only(check(job, tmp_path, {}, adapter=adapter), "provenance", "the bundle has none")


def set_in(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Return what sets one value in a statement."""

    def change(statement: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            statement = statement[int(name)] if isinstance(statement, list) else statement[name]
        statement[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_in("subject.0.digest", {"sha256": "0" * 64}), "other files"),
        (set_in("predicateType", "https://example.com/other"), "its form"),
        (set_in("predicate.buildDefinition.buildType", "urn:tether:fine-tuning:2"), "buildDefinition"),
        (set_in("predicate.buildDefinition.resolvedDependencies", []), "buildDefinition"),
        (set_in("predicate.buildDefinition.externalParameters.actor", "somebody"), "buildDefinition"),
        (set_in("predicate.runDetails.byproducts", []), "runDetails"),
        (set_in("predicate.runDetails.metadata.invocationId", "ftjob-other"), "runDetails"),
        (set_in("predicate.runDetails.builder.id", "urn:other"), "which log"),
        (set_in("more", 1), "its form"),
    ],
)
def test_a_statement_that_says_anything_else_is_found_though_it_is_signed(
    job: SyntheticJob, tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    statement = state(job)
    change(statement)
    assert_only(check(job, tmp_path, {PROVENANCE: sign(statement)}), "provenance", says)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda job: sign(state(job), STRANGER), "none of the keys"),
        (lambda job: sign(state(job, "other.example/log")), "does not name"),
        (lambda job: sign(state(job), kind="text/plain"), "expected application/vnd.in-toto+json"),
        (lambda job: sign([]), "which log"),
        (lambda job: sign({"predicate": {"runDetails": 1}}), "which log"),
        (lambda job: b"not json", "not JSON"),
        (lambda job: b"{}", "fields"),
    ],
)
def test_an_envelope_that_does_not_count(
    job: SyntheticJob, tmp_path: Path, make: Callable[[SyntheticJob], bytes], says: str
) -> None:
    assert_only(check(job, tmp_path, {PROVENANCE: make(job)}), "provenance", says)


def test_a_statement_about_a_job_that_failed_is_refused(job: SyntheticJob, tmp_path: Path) -> None:
    envelope = sign(state(job))
    del job.records[job.find("adapter.published")]
    job.records[-1].body.update(state="failed", error="training_failed")
    assert_only(
        check(job, tmp_path, {PROVENANCE: envelope}),
        "provenance",
        "not one of a job that ended with an adapter",
    )


def test_another_policy_than_the_one_on_record_is_found(job: SyntheticJob, tmp_path: Path) -> None:
    documents = {PROVENANCE: sign(state(job)), POLICY: POLICY_TEXT + b"#"}
    assert_only(check(job, tmp_path, documents), "provenance", "not the policy that the record names")


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (pack(base=BASE | {"revision": "v9"}), "another 'base'"),
        (pack(canary=CANARY | {"tuned": [-0.5, -1.0]}), "another 'canary'"),
        (pack(files={"adapter_config.json": "0" * 64}), "another 'files'"),
    ],
)
def test_an_adapter_that_says_something_else_of_itself_is_found(
    job: SyntheticJob, tmp_path: Path, adapter: tuple[bytes, dict[str, str]], says: str
) -> None:
    publish(job, adapter)
    report = check(job, tmp_path, {PROVENANCE: sign(state(job))}, adapter=adapter[0])
    assert_only(report, "provenance", says)


def test_a_canary_without_a_number_for_each_token_is_found(job: SyntheticJob, tmp_path: Path) -> None:
    job.records[job.find("adapter.published")].body["canary"] = CANARY | {"base": [-3.0]}
    assert_only(check(job, tmp_path, {}), "provenance", "1 numbers for 2 tokens")


def test_the_zip_of_a_checkpoint_has_a_canary_of_its_own(job: SyntheticJob, tmp_path: Path) -> None:
    early = pack(canary=CANARY | {"tuned": [-2.0, -2.0]})[0]
    checkpoint = job.records[job.find("ckpt")]
    checkpoint.version = 2
    checkpoint.body["adapter_sha256"] = hashlib.sha256(early).hexdigest()
    report = check(job, tmp_path, {PROVENANCE: sign(state(job))}, adapter=early)
    assert report.ok, report.lines()
    assert outcomes(report)["provenance"] == "ok"


class TestDocuments:
    def write(self, job: SyntheticJob, path: Path, documents: dict[str, bytes]) -> None:
        with path.open("wb") as file:
            write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table, documents=documents)

    def rewrite(self, path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        change(members)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)

    def test_the_manifest_lists_their_digests(self, job: SyntheticJob, tmp_path: Path) -> None:
        self.write(job, tmp_path / "b.zip", {"compute.json": b"{}"})
        with read_bundle(tmp_path / "b.zip") as bundle:
            assert bundle.documents() == {"compute.json": hashlib.sha256(b"{}").hexdigest()}
            assert bundle.manifest["documents"] == bundle.documents()
            assert bundle.provenance() is None

    def test_a_name_of_no_document_is_refused(self, job: SyntheticJob, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no document of a bundle is called"):
            self.write(job, tmp_path / "b.zip", {"../evil": b""})

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda members: members.update({"compute.json": b"[]"}), "the manifest says"),
            (lambda members: members.pop("compute.json"), "differ in 'compute.json'"),
            (lambda members: members.update({"lineage.json": b"[]"}), "differ in 'lineage.json'"),
            (lambda members: members.update({"other.json": b"[]"}), "unknown member"),
        ],
    )
    def test_nothing_is_passed_over(
        self, job: SyntheticJob, tmp_path: Path, change: Callable[[dict[str, bytes]], None], says: str
    ) -> None:
        path = tmp_path / "b.zip"
        self.write(job, path, {"compute.json": b"{}"})
        self.rewrite(path, change)
        report = verify_bundle(path)
        assert_only(report, "records", says)

    @pytest.mark.parametrize("documents", [{}, [], {"compute.json": 1}, {"leaves.jsonl": "a"}, None])
    def test_a_list_of_documents_that_is_none(
        self, job: SyntheticJob, tmp_path: Path, documents: object
    ) -> None:
        path = tmp_path / "b.zip"
        self.write(job, path, {})

        def change(members: dict[str, bytes]) -> None:
            manifest = json.loads(members["manifest.json"]) | {"documents": documents}
            members["manifest.json"] = canonical_bytes(manifest)

        self.rewrite(path, change)
        with pytest.raises(BundleError, match="documents is no map"), read_bundle(path):
            pass


def test_a_clock_beyond_all_calendars_does_not_stop_the_verifier(job: SyntheticJob) -> None:
    for record in job.records:
        record.header["ts_db"] = 2**53 - 1
    assert state(job)["predicate"]["runDetails"]["metadata"]["finishedOn"] == "9999-12-31T23:59:59Z"
    assert format_statement(state(job))
