"""The record format: a leaf reads back, and its bytes must never change."""

import hashlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import ledger
from tests.unit.app.domain.leaf_examples import BODIES, HEADER, build


@pytest.mark.parametrize("kind", BODIES)
def test_a_leaf_reads_back(kind: str) -> None:
    record = ledger.parse_leaf(build(kind, ts_worker=3))
    assert record == {**HEADER, "t": f"tether.{kind}", "ts_worker": 3, "body": json_of(BODIES[kind])}


@pytest.mark.parametrize("kind", BODIES)
def test_the_type_can_be_seen_without_reading_the_leaf(kind: str) -> None:
    assert ledger.peek_kind(build(kind)) == kind.partition("/")[0]


def test_what_a_body_calls_t_is_no_type() -> None:
    spec = {"safety": {"method": "none"}, "t": "tether.step/2"}
    assert ledger.peek_kind(build("job.start", {"spec": spec})) == "job.start"
    assert ledger.peek_kind(b'{"pruned":"' + b"a" * 64 + b'"}') == ""


def json_of(value: object) -> object:
    return json.loads(json.dumps(value))


def test_the_bytes_of_a_step_are_these_for_ever() -> None:
    # A second verifier and every bundle ever handed out depend on them. Never edit: make tether.step/2.
    assert build("step/1", seq=3, attempt=1, epoch=1, prev="ab" * 32) == (
        b'{"attempt":1,"body":{"alpha_mean":0.455,"alpha_min":0.01,"beta_max":0.99,"beta_mean":0.545,'
        b'"critic_sha256":"' + b"c" * 64 + b'","data_epoch":0,"floor":0,"grad_norm":3,"kl":1e-7,"loss":1.125,'
        b'"lr":0.0001,"nll":2.25,"policy_sha256":"' + b"d" * 64 + b'","risk_max":1,"risk_mean":0.5,'
        b'"rows":[4,0],"step":1,"token_accuracy":0.5,"tokens":17},"epoch":1,"job":"ftjob-1","prev":"'
        + b"ab" * 32
        + b'","seq":3,"t":"tether.step/1","ts_db":1790000000000,"ts_worker":null}'
    )
    assert build("step", seq=3, attempt=1, epoch=1, prev="ab" * 32) == (
        b'{"attempt":1,"body":{"alignment_rows":[2],"alpha_mean":0.455,"alpha_min":0.01,"anchor_kl":0.125,'
        b'"anchor_weight":4,"anchors":[3,1],"beta_max":0.99,"beta_mean":0.545,'
        b'"critic_sha256":"' + b"c" * 64 + b'","data_epoch":0,"floor":0,"grad_norm":3,"kl":1e-7,"loss":1.125,'
        b'"lr":0.0001,"nll":2.25,"policy_sha256":"' + b"d" * 64 + b'","risk_max":1,"risk_mean":0.5,'
        b'"rows":[4,0],"s_smoothed":0.25,"skipped":false,"step":1,"token_accuracy":0.5,"tokens":17},"epoch":1,'
        b'"job":"ftjob-1","prev":"' + b"ab" * 32 + b'","seq":3,"t":"tether.step/2","ts_db":1790000000000,'
        b'"ts_worker":null}'
    )


def test_a_type_is_written_in_its_newest_version_unless_one_is_named() -> None:
    assert [ledger.parse_leaf(build(kind))["t"] for kind in ("step", "step/1", "cmd")] == [
        "tether.step/2",
        "tether.step/1",
        "tether.cmd/1",
    ]


def test_the_chain_names_the_rfc_6962_leaf_hash() -> None:
    leaf = build("cmd")
    assert ledger.chain_hash(leaf) == hashlib.sha256(b"\x00" + leaf).hexdigest()


def test_a_diverged_loss_is_recorded_in_words() -> None:
    record = ledger.parse_leaf(build("step", {"loss": math.nan, "kl": math.inf, "grad_norm": -math.inf}))
    assert [record["body"][name] for name in ("loss", "kl", "grad_norm")] == ["NaN", "Infinity", "-Infinity"]


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="not known"):
        ledger.build_leaf("job.paused", {}, **HEADER)


def test_a_leaf_is_at_most_64_kib() -> None:
    rows = list(range(100_000, 108_000))
    assert len(build("step", {"rows": rows})) <= ledger.MAX_LEAF_BYTES
    with pytest.raises(ValueError, match="65535"):
        build("step", {"rows": rows * 2})


@settings(deadline=None)
@given(st.text())
def test_any_name_can_be_made_an_identifier(text: str) -> None:
    build("cmd", {"command": ledger.identifier(text)})


def test_a_device_keeps_its_name_without_the_spaces() -> None:
    assert ledger.identifier("NVIDIA H100 80GB HBM3") == "NVIDIA-H100-80GB-HBM3"
