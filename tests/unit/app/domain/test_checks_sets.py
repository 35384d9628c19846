"""The newest records: jobs of every method verify, and what is untrue of sets, monitor and treatments is found."""

from collections.abc import Callable
from typing import Any

import pytest

from app.domain import ledger, risk_table
from app.domain.canonical import canonical_bytes
from app.domain.control_law import compute_row_betas, summarise_step
from app.domain.merkle import leaf_hash, root
from app.domain.report import CHECKS
from tests.unit.app.domain.synthetic_job import NOT_GIVEN, Record, SyntheticJob, assert_fails, outcomes, run
from tests.unit.app.domain.synthetic_run import BEYOND, MONITOR, WITHIN, make_run, to_first_sets, to_older

BATCH_SCOPE: dict[str, Any] = {"scope": "batch", "replay": False, "ema_decay": 0.75}
FLOOR = {"monitor": MONITOR | {"action": "floor", "floor": 0.3}}
COMBINED: dict[str, Any] = {"type": "combined", "critics": [{"type": "activation"}, {"type": "judge"}]}
MORE_ANCHORS = {"monitor": MONITOR | {"action": "anchors"}}


# --- what must pass ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("adaptive_kl", {}),
        ("adaptive_kl", {"version": 3}),
        ("adaptive_kl", {"version": 2}),
        ("filter", {"version": 3}),
        ("none", {"anchors": {}, "version": 3}),
        ("adaptive_kl", {"critic": {"type": "judge", "votes": 3}, "version": 3}),
        ("adaptive_kl", {"critic": COMBINED, "version": 2}),
        ("adaptive_kl", {"critic": COMBINED | {"rule": "weighted", "weights": [0.25, 0.75]}, "version": 3}),
        ("adaptive_kl", FLOOR),
        ("adaptive_kl", MORE_ANCHORS),
        ("adaptive_kl", {"s_scale": "points", "schedule": "threshold", "anchors": None}),
        ("adaptive_kl", BATCH_SCOPE),
        ("adaptive_kl", BATCH_SCOPE | FLOOR),
        ("adaptive_kl", {"monitor": None}),
        ("filter", {}),
        ("filter", FLOOR | {"threshold": 0.9}),
        ("fixed_kl", {"beta": 0.3, "anchors": {}, **MORE_ANCHORS}),
        ("none", {"anchors": {"per_step": 64}}),
        ("constrained_sft", {}),
        ("vaccine", {}),
        ("vaccine", {"anchors": {}, **FLOOR}),
        ("lisa", {}),
        ("antidote", {}),
        ("safety_mix", {"anchors": {}}),
        ("adaptive_kl", {"critic": {"type": "judge", "votes": 3}}),
        ("adaptive_kl", {"critic": COMBINED}),
        ("fixed_kl", {"beta": 0.5, "critic": COMBINED | {"rule": "weighted", "weights": [0.25, 0.75]}}),
    ],
)
def test_jobs_of_every_method_verify(method: str, fields: dict[str, Any]) -> None:
    report = run(make_run(method, **fields))
    assert report.ok, report.lines()
    not_given = dict.fromkeys(("adapter", "training file", *NOT_GIVEN), "not checked")
    assert outcomes(report) == dict.fromkeys(CHECKS, "ok") | not_given
    assert report.protection.startswith(method)


@pytest.mark.parametrize(
    ("method", "fields", "plan"),
    [
        ("adaptive_kl", {}, "ok"),
        ("adaptive_kl", {"monitor": None}, "ok"),
        ("lisa", {"critic": {"type": "activation"}}, "not checked"),
    ],
    ids=["anchors", "no monitor", "alignment"],
)
def test_sets_as_they_were_first_recorded_verify(method: str, fields: dict[str, Any], plan: str) -> None:
    report = run(to_first_sets(make_run(method, version=2, **fields)))
    assert report.ok, report.lines()
    assert outcomes(report)["plan"] == plan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body["trained"].reverse(), "trained has rows out of order"),
        (lambda body: body.update(monitored=[]), "monitored has 0 rows, but safety.monitor is given"),
        (lambda body: body.update(monitored=body["trained"][:1]), "trained on and watched"),
    ],
    ids=["order", "monitor", "both"],
)
def test_anchors_as_they_were_first_recorded_are_held_to_what_they_say(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    job = to_first_sets(make_run(version=2))
    seq = job.find("anchors")
    change(job.records[seq].body)
    assert_fails(run(job), "sets", seq, words)


def test_a_newer_job_does_not_fall_back_to_the_first_form_of_the_sets() -> None:
    job = to_first_sets(make_run(version=3))
    assert_fails(run(job), "grammar", job.find("anchors"), "job.created has version 3")


def test_every_beginning_of_a_run_verifies() -> None:
    job = make_run(**FLOOR)
    for size in range(1, len(job.records)):
        table = job.table if size > job.find("risk.table") else None
        report = run(SyntheticJob(job.records[:size], table))
        assert report.ok, report.lines()


def test_a_skipped_step_is_on_record_and_trains_no_token() -> None:
    job = make_run(skipped=[3])
    assert run(job).ok, run(job).lines()
    job.records[-1].body["trained_tokens"] += 13
    assert_fails(run(job), "end", len(job.records) - 1, "trained_tokens")


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        ("none", {}, "UNPROTECTED: method none"),
        ("none", {"anchors": {}}, "none, anchors 4 a step"),
        ("adaptive_kl", {}, "replay, anchors 4 a step, monitor every 2 steps: warn"),
        ("adaptive_kl", {"beta_max": 0.0, "anchors": None, "replay": False}, "UNPROTECTED"),
        ("adaptive_kl", {"beta_max": 0.0, "anchors": None}, "adaptive_kl, beta_min 0, beta_max 0, threshold"),
        ("antidote", {}, "antidote, density 0.1"),
        ("filter", {}, "filter, "),
        ("filter", {"anchors": None, "monitor": None}, "UNPROTECTED: method filter without anchors"),
    ],
)
def test_the_report_says_what_held_the_model(method: str, fields: dict[str, Any], words: str) -> None:
    assert words in run(make_run(method, **fields)).protection


# --- what must not ----------------------------------------------------------------------------------------


def change_steps(job: SyntheticJob, number: int, change: dict[str, Any]) -> int:
    """Change the body of a step and return its seq."""
    seq = job.find("step", number)
    job.records[seq].body |= change
    return seq


def forge_entry(job: SyntheticJob, number: int, change: dict[str, Any]) -> None:
    """Change an entry of the risk table and commit to it."""
    assert job.table is not None
    entry = ledger.parse_canonical(job.table[number]) | change
    job.table[number] = canonical_bytes(entry)
    body = job.records[job.find("risk.table")].body
    body["root"] = root(map(leaf_hash, job.table)).hex()
    treatments = [risk_table.parse_risk_row(each).treatment for each in job.table]
    body["treatments"] = {name: treatments.count(name) for name in ("own", "replay", "drop")}


@pytest.mark.parametrize(
    ("method", "number", "change"),
    [
        # The risky row 1 under its own target, and the harmless row 0 under a reply.
        ("adaptive_kl", 1, {"treatment": "own", "replay": None}),
        ("adaptive_kl", 0, {"treatment": "replay", "replay": "0" * 64}),
        ("filter", 1, {"treatment": "own"}),
        ("filter", 0, {"treatment": "drop"}),
        ("none", 1, {"treatment": "drop"}),
    ],
)
def test_a_treatment_that_the_control_law_does_not_give_is_named(
    method: str, number: int, change: dict[str, Any]
) -> None:
    job = make_run(method)
    forge_entry(job, number, change)
    assert_fails(run(job), "risk table", number, f"treatment {change['treatment']}; expected")


@pytest.mark.parametrize("critic", [{"type": "judge"}, COMBINED])
@pytest.mark.parametrize(
    ("number", "change"),
    [
        (2, {"votes": [[5]]}),
        (1, {"votes": [[None]]}),
        (0, {"s": 0.125}),
        (4, {"log_odds": [-9.0]}),
        (2, {"status": "fallback", "log_odds": [0.5]}),
    ],
)
def test_a_judges_s_is_re_derived_from_its_votes(
    critic: dict[str, Any], number: int, change: dict[str, Any]
) -> None:
    job = make_run(critic=critic)
    forge_entry(job, number, change)
    assert_fails(run(job), "risk table", number, "its record gives" if "votes" not in change else "")


def test_a_replayed_row_names_what_replaces_it() -> None:
    job = make_run()
    assert job.table is not None
    job.table[1] = job.table[1].replace(b'"treatment":"replay"', b'"treatment":"own"')
    assert_fails(run(job), "risk table", 1, "names its replacement")


def test_wrong_counts_of_treatments_are_noticed() -> None:
    job = make_run()
    seq = job.find("risk.table")
    job.records[seq].body["treatments"] = {"own": 7, "replay": 0, "drop": 0}
    assert_fails(run(job), "risk table", seq, "treatments")


@pytest.mark.parametrize(
    ("skipped", "change", "detail"),
    [
        ([], {"skipped": True}, "skipped is true with the loss"),
        ([4], {"skipped": False}, "skipped is false with the loss NaN"),
        ([], {"grad_norm": float("inf")}, "skipped is false with the loss"),
        ([], {"kl": None}, "kl is None in a step with a penalty"),
    ],
)
def test_a_step_is_skipped_exactly_where_it_is_not_finite(
    skipped: list[int], change: dict[str, Any], detail: str
) -> None:
    job = make_run(skipped=skipped)
    seq = change_steps(job, 3, change)
    assert_fails(run(job), "control law", seq, detail)


def test_a_method_without_a_penalty_has_no_kl() -> None:
    job = make_run("filter")
    seq = change_steps(job, 1, {"kl": 0.0})
    assert_fails(run(job), "control law", seq, "kl is 0 in a step without a penalty")


def test_the_report_says_how_many_steps_were_skipped() -> None:
    report = run(make_run(skipped=[3, 4, 6]))
    assert report.ok, report.lines()
    law = next(check for check in report.checks if check.name == "control law")
    assert "3 skipped" in law.detail


def test_a_job_ends_with_its_third_skipped_step_in_a_row() -> None:
    job = make_run("none", skipped=[4, 5, 6])
    # The one before the crash is the fourth step of the first attempt.
    seq = job.find("step", 7)
    assert [job.records[seq - back].body["step"] for back in (0, 1)] == [6, 5]
    assert_fails(run(job), "control law", seq + 1, "step after 3 skipped steps in a row")
    tokens = sum(10 + step for step in (1, 2, 3))
    end = job.records[-1]
    end.body |= {"state": "failed", "error": "nonfinite_loss", "steps": 6, "trained_tokens": tokens}
    job.records[seq + 1 :] = [end]
    assert run(job).ok, run(job).lines()


def test_a_dropped_row_that_is_trained_on_is_named() -> None:
    job = make_run("filter")
    seq = job.find("step")
    # Row 1 is dropped; unsteered rows all have the same beta, and s enters the risk numbers alone.
    s = risk_table.parse_risk_row((job.table or [])[1]).s
    rows = [1, *job.records[seq].body["rows"][1:]]
    s_of = {row.row: row.s for row in map(risk_table.parse_risk_row, job.table or [])}
    betas, _ = compute_row_betas({"method": "none"}, [s_of[row] for row in rows])
    assert s == s_of[1]
    change_steps(job, 0, {"rows": rows, **summarise_step([s_of[row] for row in rows], betas)._asdict()})
    assert_fails(run(job), "coverage", seq, "row 1 is trained on, though the risk table drops it")


def test_an_automatic_threshold_is_the_critics_own() -> None:
    job = make_run()
    for record in job.records:
        if record.kind in ("job.start", "job.resume"):
            record.body["spec"]["safety"]["threshold"] = 0.99
    assert_fails(run(job), "risk table", job.find("risk.table"), "the threshold was left to the critic")


@pytest.mark.parametrize("method", ["adaptive_kl", "filter"])
@pytest.mark.parametrize("asked", [None, "absent"])
def test_a_threshold_that_was_not_asked_for_is_the_critics_own(method: str, asked: str | None) -> None:
    job = make_run(method)
    created = job.records[0].body
    created["spec"]["safety"]["threshold"] = asked
    if asked == "absent":
        del created["spec"]["safety"]["threshold"]
    created["spec_sha256"] = ledger.digest_of(created["spec"])
    assert run(job).ok, run(job).lines()
    for record in job.records:
        if record.kind in ("job.start", "job.resume"):
            record.body["spec"]["safety"]["threshold"] = 1.0
    assert_fails(run(job), "risk table", job.find("risk.table"), "the threshold was left to the critic")


def test_an_automatic_threshold_needs_a_critic_that_has_one() -> None:
    job = make_run()
    job.records[0].body["critic"]["fitted"][0]["threshold"] = None
    assert_fails(run(job), "risk table", job.find("risk.table"), "has no threshold of its own")


def test_only_a_job_that_drops_overlong_rows_has_lost_some() -> None:
    job = make_run()
    for record in job.records:
        if record.kind in ("job.start", "job.resume"):
            record.body["spec"]["overlength"] = "truncate"
    assert_fails(
        run(job), "risk table", job.find("risk.table"), "1 row dropped, but spec.overlength is not drop"
    )


@pytest.mark.parametrize(
    ("fields", "name"),
    [(BATCH_SCOPE, "s_smoothed"), (FLOOR, "floor"), (MORE_ANCHORS, "anchor_weight"), ({}, "s_smoothed")],
)
@pytest.mark.parametrize("number", [2, 5])
def test_a_changed_state_of_the_run_does_not_replay(fields: dict[str, Any], name: str, number: int) -> None:
    job = make_run(**fields)
    seq = change_steps(job, number, {name: 0.625})
    assert_fails(run(job), "control law", seq)


def test_the_state_before_a_crash_is_what_a_resumed_job_goes_on_with() -> None:
    # The lost step 4 was smoothed too, and the lost measurement doubled the weight once more.
    for fields, name in ((BATCH_SCOPE, "s_smoothed"), (MORE_ANCHORS, "anchor_weight")):
        job = make_run(**fields)
        resumed = job.find("job.resume")
        lost, again = (
            seq
            for seq, record in enumerate(job.records)
            if record.kind == "step" and record.body["step"] == 3
        )
        assert lost < resumed < again
        assert job.records[lost].body[name] == job.records[again].body[name]
        last_lost = resumed - 2  # The measurement of the monitor comes after it.
        assert job.records[last_lost].body["step"] == 4
        # A trainer that went on from the lost state would have written this.
        if name == "anchor_weight":
            job.records[again].body[name] *= 2
        else:
            smoothed = job.records[last_lost].body[name]
            s_of = {row.row: row.s for row in map(risk_table.parse_risk_row, job.table or [])}
            s_values = [s_of[row] for row in job.records[again].body["rows"]]
            safety = job.records[job.find("job.start")].body["spec"]["safety"]
            betas, after = compute_row_betas(safety, s_values, 0.0, smoothed)
            job.records[again].body |= summarise_step(s_values, betas)._asdict() | {name: after}
        assert_fails(run(job), "control law", again, "the replay gives")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"floor": 0.0}, "floor is 0; the replay gives 0.3"),
        ({"anchor_factor": 2.0}, "anchor_factor is 2; the replay gives 1"),
        ({"kl": 0.05}, "floor is 0.3; the replay gives 0.0"),
        ({"step": 1}, "where none was due"),
    ],
)
def test_a_forged_measurement_is_named(change: dict[str, Any], detail: str) -> None:
    job = make_run(**FLOOR)
    seq = job.find("monitor")
    job.records[seq].body |= change
    assert_fails(run(job), "control law", seq, detail)


def test_a_drift_that_is_no_number_is_too_much() -> None:
    job = make_run(**FLOOR)
    job.records[job.find("monitor")].body["kl"] = float("nan")
    assert run(job).ok


def test_a_measurement_left_out_or_repeated_is_named() -> None:
    job = make_run()
    seq = job.find("monitor")
    record = job.records.pop(seq)
    assert job.records[seq].kind == "ckpt"
    assert_fails(run(job), "control law", seq, "before the measurement of the monitor that was due at step 2")
    job.records[seq:seq] = [record, record]
    assert_fails(run(job), "control law", seq + 1, "none was due")
    job = make_run("none")
    at = job.find("step", 1) + 1
    job.records.insert(at, record)
    assert_fails(run(job), "control law", at, "the spec has none")


def make_paused(*commands: str) -> SyntheticJob:
    """Make a run whose monitor finds too much after step 2, with these commands before it is resumed."""
    job = make_run(monitor=MONITOR | {"action": "pause"})
    start, end = job.find("ckpt") + 1, job.find("job.resume")
    job.records[start:end] = [
        Record("cmd", {"command": command, "actor": "monitor"}, 1, 1 + number)
        for number, command in enumerate(commands)
    ]
    return job


def test_a_job_that_its_monitor_paused_verifies() -> None:
    report = run(make_paused("pause", "resume"))
    assert report.ok, report.lines()


def test_a_job_goes_on_within_the_limit_without_a_pause() -> None:
    job = make_paused()
    job.records[job.find("monitor")].body["kl"] = WITHIN
    report = run(job)
    assert report.ok, report.lines()


@pytest.mark.parametrize("kl", [BEYOND, float("nan")])
def test_a_job_must_pause_where_its_monitor_says_so(kl: float) -> None:
    job = make_paused()
    job.records[job.find("monitor")].body["kl"] = kl
    seq = job.find("step", 2)
    assert_fails(run(job), "control law", seq, "without a pause after step 2")


def test_a_job_must_pause_before_it_releases_what_is_too_much() -> None:
    job = make_paused("pause", "resume")
    job.records[job.find("monitor", 3)].body["kl"] = BEYOND
    assert_fails(run(job), "control law", job.find("adapter.published"), "without a pause after step 8")


def test_a_measurement_that_a_resume_supersedes_asks_for_no_pause() -> None:
    job = make_run(monitor=MONITOR | {"action": "pause"})
    job.records[job.find("monitor")].body["kl"] = WITHIN
    # The second measurement, after step 4, is too much, and lost in the crash.
    assert job.records[job.find("monitor", 1)].body["kl"] == BEYOND
    report = run(job)
    assert report.ok, report.lines()


def test_nobody_works_on_a_paused_job() -> None:
    job = make_paused("pause")
    assert_fails(run(job), "grammar", job.find("job.resume"), "was paused and not resumed since")


def forge(job: SyntheticJob, kind: str, change: Callable[[dict[str, Any]], object]) -> int:
    seq = job.find(kind)
    change(job.records[seq].body)
    return seq


@pytest.mark.parametrize(
    ("method", "kind", "change", "detail"),
    [
        ("adaptive_kl", "anchors", lambda body: body.update(sha256="0" * 64), "the job was created with"),
        ("adaptive_kl", "anchors", lambda body: body.update(id="set_9"), "the job was created with"),
        ("adaptive_kl", "anchors", lambda body: body.update(trained=[]), "trained has 0 rows; of a set of 9"),
        ("adaptive_kl", "anchors", lambda body: body.update(monitored=[]), "monitored has 0 rows"),
        ("adaptive_kl", "anchors", lambda body: body["trained"].reverse(), "the 8 that the plan gives"),
        # Cut to a harmless one, in a set of as many or of fewer rows, and one that is trained on as well as watched.
        (
            "adaptive_kl",
            "anchors",
            lambda body: body.update(trained=body["trained"][:1]),
            "trained has 1 row",
        ),
        ("adaptive_kl", "anchors", lambda body: body.update(rows=8), "trained has 8 rows; of a set of 8"),
        (
            "adaptive_kl",
            "anchors",
            lambda body: body.update(monitored=body["trained"][:1]),
            "monitored has 1 row",
        ),
        ("vaccine", "alignment", lambda body: body.update(dropped=[3, 1]), "out of order"),
        ("vaccine", "alignment", lambda body: body.update(dropped=[1, 1]), "one twice"),
        ("vaccine", "alignment", lambda body: body.update(dropped=[5]), "beyond the 5"),
        ("vaccine", "alignment", lambda body: body.update(dropped=[0, 1, 2, 3, 4]), "every row of the set"),
        ("vaccine", "alignment", lambda body: body.update(sha256="0" * 64), "the job was created with"),
        ("safety_mix", "alignment", lambda body: body.update(id="set_9"), "the job was created with"),
    ],
)
def test_a_forged_set_is_named(
    method: str, kind: str, change: Callable[[dict[str, Any]], object], detail: str
) -> None:
    job = make_run(method)
    seq = forge(job, kind, change)
    assert_fails(run(job), "sets", seq, detail)


@pytest.mark.parametrize(("method", "anchor_kl"), [("adaptive_kl", None), ("none", 0.5)])
def test_the_anchors_kl_is_there_where_anchors_are(method: str, anchor_kl: float | None) -> None:
    job = make_run(method)
    seq = change_steps(job, 3, {"anchor_kl": anchor_kl})
    assert_fails(
        run(job), "sets", seq, f"anchor_kl is {anchor_kl} with {4 if anchor_kl is None else 0} anchors"
    )


@pytest.mark.parametrize(("method", "kind"), [("adaptive_kl", "anchors"), ("lisa", "alignment")])
def test_a_set_left_out_is_missed(method: str, kind: str) -> None:
    job = make_run(method)
    seq = job.find(kind)
    record = job.records.pop(seq)
    assert_fails(run(job), "sets", seq, f"a step before the {kind}")
    job.records[seq:seq] = [record, record]
    assert_fails(run(job), "grammar", seq + 1, f"a second {kind}")
    job.records.pop(seq)
    job.records.append(job.records.pop(seq))
    job.records[-1], job.records[-2] = job.records[-2], job.records[-1]
    assert_fails(run(job), "grammar", len(job.records) - 2, "between the risk.table and the first step")


def test_a_set_without_use_is_named() -> None:
    donor, job = make_run("vaccine", anchors={}), make_run("none")
    at = job.find("risk.table") + 1
    for kind in ("anchors", "alignment"):
        forged = SyntheticJob([*job.records], job.table)
        forged.records.insert(at, donor.records[donor.find(kind)])
        assert_fails(run(forged), "sets", at, "no use")


# --- grammar of the new versions --------------------------------------------------------------------------


def test_what_was_switched_off_by_null_stays_off() -> None:
    job = make_run(anchors=None)
    created = job.records[0].body
    created["spec"]["safety"]["monitor"] = None
    created["spec_sha256"] = ledger.digest_of(created["spec"])
    assert_fails(run(job), "grammar", 1, "safety.monitor was null")


def test_versions_neither_fall_nor_begin_low() -> None:
    job = make_run("none")
    new = {"anchors", "anchor_kl", "anchor_weight", "s_smoothed", "skipped", "alignment_rows"}
    seq = job.find("step", 1)
    record = job.records[seq]
    record.version = 1
    record.body = {name: value for name, value in record.body.items() if name not in new} | {"kl": 0.0}
    assert_fails(run(job), "grammar", seq, "tether.step/1 in a job whose job.created has version 4")
    job = make_run("none", version=2)
    created = job.records[0]
    created.version = 1
    created.body = {
        name: value for name, value in created.body.items() if name not in ("anchors", "alignment")
    }
    del created.body["critic"]["threshold"]
    seq = job.find("risk.table")
    assert_fails(run(job), "grammar", seq, "tether.risk.table/2 in a job whose job.created has version 1")
    job, older = make_run("none"), to_older(make_run("none"), 3)
    job.records[seq], job.table = older.records[seq], older.table
    assert_fails(run(job), "grammar", seq, "tether.risk.table/2 in a job whose job.created has version 4")


def test_a_step_without_any_row_is_named() -> None:
    job = make_run("lisa")
    seq = change_steps(job, 0, {"alignment_rows": []})
    assert_fails(run(job), "grammar", seq, "a step without a row")
