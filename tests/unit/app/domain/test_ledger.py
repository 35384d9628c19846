"""The record format: what a leaf may hold, and the bytes that must never change."""

import hashlib
import hmac
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import ledger
from app.domain.canonical import parse_canonical
from app.domain.merkle import leaf_hash, root
from app.domain.step_record import StepRecord

HEADER: dict[str, Any] = {
    "job": "ftjob-1",
    "seq": 0,
    "attempt": 0,
    "epoch": 0,
    "prev": ledger.NO_LEAF,
    "ts_db": 1_790_000_000_000,
}
SPEC = {"n_epochs": 2, "safety": {"method": "adaptive_kl", "beta_min": 0.1}}
ATTEMPT = {
    "from_step": 0,
    "checkpoint_sha256": None,
    "spec": SPEC,
    "environment": {"torch": "2.10.0+cpu"},
    "device": "cpu",
}
STEP = StepRecord(
    step=1,
    data_epoch=0,
    rows=(4, 0),
    tokens=17,
    risk_mean=0.5,
    risk_max=1.0,
    alpha_mean=0.455,
    alpha_min=0.01,
    beta_mean=0.545,
    beta_max=0.99,
    floor=0.0,
    nll=2.25,
    kl=1e-7,
    loss=1.125,
    token_accuracy=0.5,
    grad_norm=3.0,
    lr=1e-4,
)
DIGESTS = {"critic_sha256": "c" * 64, "policy_sha256": "d" * 64}
BODIES: dict[str, dict[str, Any]] = {
    "job.created": {
        "spec": SPEC,
        "spec_sha256": "0" * 64,
        "training_sha256": "1" * 64,
        "training_rows": None,
        "validation_sha256": None,
        "base_model": "org/model-1",
        "base_model_sha256": "2" * 64,
        "critic": {"id": "critic-1", "sha256": "c" * 64, "low": -2.5, "high": None},
        "policy_sha256": "d" * 64,
        "actor": "key-7",
    },
    "job.start": ATTEMPT,
    "job.resume": ATTEMPT | {"from_step": 3, "checkpoint_sha256": "3" * 64},
    "risk.table": {
        "rows": 2,
        "dropped": 0,
        "root": "4" * 64,
        "critic_sha256": None,
        "low": None,
        "high": None,
        "counts": {"ok": 0, "failed": 0, "constant": 0, "unmeasured": 2},
    },
    "step": {**STEP.to_dict(), **DIGESTS},
    "ckpt": {"step": 3, "kind": "resume", "sha256": "5" * 64, "files": {"trainer.json": "6" * 64}},
    "cmd": {"command": "cancel", "actor": "key-7"},
    "adapter.published": {
        "step": 6,
        "zip_sha256": "7" * 64,
        "bytes": 9,
        "files": {"adapter_model.safetensors": "8" * 64},
    },
    "job.end": {"state": "failed", "error": "training_failed", "steps": 6, "trained_tokens": 100},
}


def build(kind: str, change: dict[str, Any] | None = None, **header: Any) -> bytes:
    return ledger.build_leaf(kind, BODIES[kind] | (change or {}), **HEADER | header)


def test_every_type_has_an_example_here() -> None:
    assert {f"tether.{kind}/1" for kind in BODIES} == set(ledger.BODIES)


@pytest.mark.parametrize("kind", BODIES)
def test_a_leaf_reads_back(kind: str) -> None:
    record = ledger.parse_leaf(build(kind, ts_worker=3))
    assert record == {**HEADER, "t": f"tether.{kind}/1", "ts_worker": 3, "body": json_of(BODIES[kind])}


def json_of(value: object) -> object:
    return json.loads(json.dumps(value))


def test_the_bytes_of_a_step_are_these_for_ever() -> None:
    # A second verifier and every bundle ever handed out depend on them. Never edit: make tether.step/2.
    assert build("step", seq=3, attempt=1, epoch=1, prev="ab" * 32) == (
        b'{"attempt":1,"body":{"alpha_mean":0.455,"alpha_min":0.01,"beta_max":0.99,"beta_mean":0.545,'
        b'"critic_sha256":"' + b"c" * 64 + b'","data_epoch":0,"floor":0,"grad_norm":3,"kl":1e-7,"loss":1.125,'
        b'"lr":0.0001,"nll":2.25,"policy_sha256":"' + b"d" * 64 + b'","risk_max":1,"risk_mean":0.5,'
        b'"rows":[4,0],"step":1,"token_accuracy":0.5,"tokens":17},"epoch":1,"job":"ftjob-1","prev":"'
        + b"ab" * 32
        + b'","seq":3,"t":"tether.step/1","ts_db":1790000000000,"ts_worker":null}'
    )


def test_the_fields_of_every_type_are_these_for_ever() -> None:
    names = {kind: sorted(fields) for kind, fields in ledger.BODIES.items()}
    digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()
    assert digest == "12a3c5f45417a30ee528cc6cb363b7f70b117e0ffc9ba81188ed9cbb80e26f9e", (
        "a type changed its fields: give it a new version instead"
    )


def test_the_chain_names_the_rfc_6962_leaf_hash() -> None:
    leaf = build("cmd")
    assert ledger.chain_hash(leaf) == hashlib.sha256(b"\x00" + leaf).hexdigest()


def test_a_diverged_loss_is_recorded_in_words() -> None:
    record = ledger.parse_leaf(build("step", {"loss": math.nan, "kl": math.inf, "grad_norm": -math.inf}))
    assert [record["body"][name] for name in ("loss", "kl", "grad_norm")] == ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize("kind", BODIES)
def test_every_field_is_demanded_and_no_other_is_allowed(kind: str) -> None:
    for name in BODIES[kind]:
        body = {key: value for key, value in BODIES[kind].items() if key != name}
        with pytest.raises(ValueError, match=f"has no '{name}'"):
            ledger.build_leaf(kind, body, **HEADER)
    with pytest.raises(ValueError, match="unknown field 'extra'"):
        build(kind, {"extra": 1})


@pytest.mark.parametrize("kind", BODIES)
def test_text_never_enters(kind: str) -> None:
    text = "Tell me how to"
    for name in BODIES[kind]:
        for value in (text, {"a": text}, {text: 1}, [text], {"safety": {"method": text}}, "", "é", "a" * 300):
            with pytest.raises(ValueError, match=rf"body\.{name}"):
                build(kind, {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("job", "a job"),
        ("job", None),
        ("seq", -1),
        ("seq", 1.5),
        ("seq", True),
        ("seq", "1"),
        ("attempt", None),
        ("epoch", -1),
        ("prev", "AB" * 32),
        ("prev", "ab" * 31),
        ("ts_db", None),
        ("ts_db", 1.5),
        ("ts_worker", "now"),
    ],
)
def test_a_wrong_header_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"leaf.{name}"):
        build("cmd", **{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("step", "step", 0),
        ("step", "rows", []),
        ("step", "rows", [-1]),
        ("step", "rows", [1.5]),
        ("step", "risk_mean", 1.01),
        ("step", "beta_max", math.nan),
        ("step", "beta_max", None),
        ("step", "beta_max", True),
        ("step", "loss", None),
        ("step", "loss", "nan"),
        ("step", "critic_sha256", "c"),
        ("job.created", "spec", {"n_epochs": 1}),
        ("job.created", "spec", {"safety": "default"}),
        ("job.created", "critic", {"id": "x"}),
        ("risk.table", "low", math.nan),
        ("risk.table", "counts", {"ok": 1}),
        ("job.end", "state", "running"),
        ("ckpt", "files", {"a": "b"}),
        ("ckpt", "files", []),
        ("job.start", "environment", {"torch": 2}),
    ],
)
def test_a_wrong_value_is_refused_by_name(kind: str, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"body\.{name} is .*expected"):
        build(kind, {name: value})


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


# --- the risk table ---------------------------------------------------------------------------------------


def test_a_row_commitment_is_an_hmac_over_canonical_bytes() -> None:
    message = b'{"input_ids":[5,6,7],"loss_mask":[0,1,1]}'
    expected = hmac.new(b"key", message, hashlib.sha256).hexdigest()
    assert ledger.row_commitment(b"key", [5, 6, 7], [False, True, 1]) == expected
    assert ledger.row_commitment(b"other", [5, 6, 7], [0, 1, 1]) != expected
    assert ledger.row_commitment(b"key", [5, 6, 7], [1, 1, 1]) != expected


@pytest.mark.parametrize(("key", "ids", "mask"), [(b"key", [1], [0, 1]), (b"", [1], [1]), (b"key", [1], [2])])
def test_a_senseless_commitment_is_refused(key: bytes, ids: list[int], mask: list[int]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ledger.row_commitment(key, ids, mask)


@pytest.mark.parametrize("log_odds", [None, math.nan, math.inf, -math.inf])
def test_a_critic_that_fails_makes_its_row_maximally_risky(log_odds: float | None) -> None:
    row = ledger.measured_row(3, "a" * 64, log_odds, low=-1, high=1)
    assert (row.status, row.s, row.log_odds) == ("failed", 1.0, None)


def test_a_risk_table_commits_to_its_entries() -> None:
    rows = [
        ledger.measured_row(0, "a" * 64, 0.5, low=-1, high=1),
        ledger.measured_row(1, "a" * 64, -0.0, low=-1, high=1),
        ledger.measured_row(4, "b" * 64, None, low=-1, high=1),
    ]
    entries, body = ledger.build_risk_table(rows, dropped=2, critic_sha256="c" * 64, low=-1.0, high=1.0)
    assert body == {
        "rows": 3,
        "dropped": 2,
        "root": root(map(leaf_hash, entries)).hex(),
        "critic_sha256": "c" * 64,
        "low": -1.0,
        "high": 1.0,
        "counts": {"ok": 2, "failed": 1, "constant": 0, "unmeasured": 0},
    }
    assert [ledger.parse_risk_row(entry) for entry in entries] == rows
    assert parse_canonical(entries[0]) == {
        "row": 0,
        "commitment": "a" * 64,
        "log_odds": 0.5,
        "s": 0.75,
        "status": "ok",
    }
    assert ledger.parse_leaf(build("risk.table", body))["body"]["root"] == body["root"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [ledger.unmeasured_row(1, "a" * 64), ledger.unmeasured_row(1, "a" * 64)],
        [ledger.unmeasured_row(1, "a" * 64), ledger.unmeasured_row(0, "a" * 64)],
        [ledger.RiskRow(0, "a" * 64, None, 0.0, "failed")],
        [ledger.RiskRow(0, "a" * 64, None, None, "failed")],
        [ledger.RiskRow(0, "a" * 64, None, 0.5, "ok")],
        [ledger.RiskRow(0, "a" * 64, 0.5, None, "ok")],
        [ledger.RiskRow(0, "a" * 64, 0.5, 0.5, "constant")],
        [ledger.RiskRow(0, "a" * 64, None, 0.0, "unmeasured")],
        [ledger.RiskRow(0, "a" * 64, None, 1.5, "constant")],
        [ledger.RiskRow(0, "a" * 64, None, None, "skipped")],
        [ledger.RiskRow(0, "text", None, None, "unmeasured")],
    ],
)
def test_a_senseless_risk_table_is_refused(rows: list[ledger.RiskRow]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ledger.build_risk_table(rows, dropped=0, critic_sha256=None, low=None, high=None)
