"""Several fitted critics in one job: the verifier derives s from all their readings, and any change is found."""

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from app.domain import ledger
from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.merkle import leaf_hash, root
from tests.unit.app.domain.synthetic_job import SyntheticJob, assert_fails, run
from tests.unit.app.domain.synthetic_run import FITTED, READ, make_run, to_older

HARM = {"type": "activation", "id": "critic-1", "category": "harm"}
BIAS = {"type": "activation", "id": "critic-2", "category": "bias"}
BY_MAX: dict[str, Any] = {"type": "combined", "critics": [HARM, BIAS]}
BY_WEIGHT = BY_MAX | {"rule": "weighted", "weights": [0.75, 0.25]}
WITH_JUDGE = BY_MAX | {"critics": [BIAS, {"type": "judge", "fallback": "critic-1"}]}
IDS = {"ids": ["max", "weighted"]}


def entries(job: SyntheticJob) -> list[dict[str, Any]]:
    return [parse_canonical(entry) for entry in job.table or ()]


def forge_entry(job: SyntheticJob, number: int, change: dict[str, Any]) -> None:
    """Change an entry of the risk table and commit to it."""
    assert job.table is not None
    job.table[number] = canonical_bytes(entries(job)[number] | change)
    job.records[job.find("risk.table")].body["root"] = root(map(leaf_hash, job.table)).hex()


def forge_spec(job: SyntheticJob, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the critic wherever a spec names it, and commit to it."""
    for record in job.records:
        if "spec" in record.body:
            change(record.body["spec"]["safety"]["critic"])
    created = job.records[0].body
    created["spec_sha256"] = ledger.digest_of(created["spec"])


# --- what must pass ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"monitor": None}, {"schedule": "threshold"}, {"threshold": 0.75}])
@pytest.mark.parametrize("critic", [BY_MAX, BY_WEIGHT, WITH_JUDGE], ids=["max", "weighted", "judge"])
def test_jobs_with_several_critics_verify(critic: dict[str, Any], fields: dict[str, Any]) -> None:
    report = run(make_run(critic=critic, **fields))
    assert report.ok, report.lines()


def test_the_table_has_the_readings_of_both_and_the_s_that_follows() -> None:
    def s_of(name: str, row: int) -> Fraction:
        low, high = (Fraction(FITTED[name][point]) for point in ("low", "high"))
        return min(Fraction(1), max(Fraction(0), (Fraction(READ[name][row] or 0) - low) / (high - low)))

    for critic, weights in ((BY_MAX, None), (BY_WEIGHT, (Fraction(3, 4), Fraction(1, 4)))):
        found = entries(make_run(critic=critic))
        assert [entry["row"] for entry in found] == [0, 1, 2, 3, 5, 6, 7]
        for entry in found:
            row = entry["row"]
            if row == 3:
                # The first critic failed there: that the second one read 0.75 does not help.
                assert (entry["log_odds"], entry["s"], entry["status"]) == ([None, None], 1, "failed")
                continue
            assert entry["log_odds"] == [READ["critic-1"][row], READ["critic-2"][row]]
            parts = [s_of("critic-1", row), s_of("critic-2", row)]
            expected = (
                sum(w * s for w, s in zip(weights, parts, strict=True)) if weights is not None else max(parts)
            )
            assert entry["s"] == pytest.approx(float(expected), abs=1e-15)


def test_a_job_that_waited_for_an_upgrade_has_the_newer_table() -> None:
    new, old = make_run(), to_older(make_run(), 3)
    seq = old.find("risk.table")
    old.records[seq], old.table = new.records[seq], new.table
    assert run(old).ok, run(old).lines()
    old.records[seq].body["fitted"][0]["high"] = 4.0
    assert_fails(run(old), "risk table", seq, "the high of")


# --- what must not ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", [BY_MAX, BY_WEIGHT], **IDS)
@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (0, {"s": 0.125}, "its record gives"),
        # Row 0 is risky by the second critic alone, row 1 by the first alone.
        (0, {"log_odds": [-3.0, -1.0]}, "its record gives"),
        (1, {"log_odds": [-2.5, -4.0]}, "its record gives"),
        (2, {"log_odds": [0.25, 0.5]}, "its record gives"),
        (0, {"log_odds": [-3.0, None]}, "has not measured this row"),
        (1, {"log_odds": [None, -4.0]}, "has not measured this row"),
        (0, {"log_odds": [-3.0]}, "1 readings; the job has 2 fitted critics"),
        (0, {"log_odds": [-3.0, 9.5, 0.0]}, "3 readings; the job has 2 fitted critics"),
        (3, {"log_odds": [None]}, "1 readings; the job has 2 fitted critics"),
        (3, {"s": 0.5}, "s must be 1"),
        (1, {"status": "judged", "votes": [[1]]}, "its record gives ok"),
    ],
)
def test_a_changed_row_is_named(
    critic: dict[str, Any], number: int, change: dict[str, Any], words: str
) -> None:
    job = make_run(critic=critic)
    forge_entry(job, number, change)
    assert_fails(run(job), "risk table", number, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda critic: critic.update(weights=[0.25, 0.75]), "the threshold was left to the critic"),
        (lambda critic: critic.update(rule="max", weights=None), "the threshold was left to the critic"),
        (lambda critic: critic.update(weights=[0.75]), "1 weights for 2 critics"),
        (lambda critic: critic.update(weights=["much", 0.25]), "cannot be read"),
        (
            lambda critic: critic.update(critics=[HARM]),
            "the spec reads with critic-1; the job was created with",
        ),
        (lambda critic: critic.update(critics=[BIAS, HARM]), "the spec reads with critic-2, critic-1"),
        (lambda critic: critic["critics"][1].update(id="critic-3"), "the spec reads with critic-1, critic-3"),
        (lambda critic: critic["critics"][1].update(id=["critic-2"]), "cannot be read"),
        (lambda critic: critic.update(critics="all"), "cannot be read"),
    ],
    ids=[
        "weights",
        "rule",
        "fewer",
        "words",
        "part-lost",
        "swapped",
        "part-other",
        "part-nonsense",
        "no-parts",
    ],
)
def test_a_changed_critic_is_found_though_every_spec_was_changed_alike(
    change: Callable[[dict[str, Any]], object], words: str
) -> None:
    job = make_run(critic=BY_WEIGHT)
    forge_spec(job, change)
    assert_fails(run(job), "risk table", job.find("risk.table"), words)


@pytest.mark.parametrize("weights", [[0.25, 0.75], [0.7500000000000001, 0.25]], ids=["swapped", "last-bit"])
def test_changed_weights_give_another_s_where_the_threshold_was_given(weights: list[float]) -> None:
    job = make_run(critic=BY_WEIGHT, threshold=0.9)
    forge_spec(job, lambda critic: critic.update(weights=weights))
    check = next(check for check in run(job).checks if check.outcome == "failed")
    assert check.name == "risk table"
    assert "its record gives" in check.detail


def test_weights_of_the_start_are_those_that_were_asked_for() -> None:
    job = make_run(critic=BY_WEIGHT)
    job.records[1].body = copy.deepcopy(job.records[1].body)
    job.records[1].body["spec"]["safety"]["critic"]["weights"] = [0.25, 0.75]
    assert_fails(run(job), "grammar", 1, "safety.critic.weights")


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("change", "words"),
    [({"low": -9.0}, "the low of"), ({"high": 9.0}, "the high of"), ({"sha256": "0" * 64}, "the sha256 of")],
    ids=["low", "high", "sha256"],
)
@pytest.mark.parametrize("kind", ["job.created", "risk.table"])
def test_a_part_is_the_one_that_the_job_was_created_with(
    kind: str, place: int, change: dict[str, Any], words: str
) -> None:
    job = make_run(critic=BY_MAX)
    body = job.records[job.find(kind)].body
    (body["critic"] if kind == "job.created" else body)["fitted"][place] |= change
    assert_fails(run(job), "risk table", job.find("risk.table"), f"{words} critic-{place + 1}")


def test_points_that_were_changed_in_both_records_give_another_s() -> None:
    job = make_run(critic=BY_MAX, threshold=0.9)
    for fitted in (
        job.records[0].body["critic"]["fitted"],
        job.records[job.find("risk.table")].body["fitted"],
    ):
        fitted[1]["high"] = 4.0
    # Row 5 is the first one whose s is the second critic's, between its points.
    assert [entry["row"] for entry in entries(job)].index(5) == 4
    assert_fails(run(job), "risk table", 4, "its record gives")


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", ["job.created", "risk.table"])
def test_a_part_that_was_left_out_is_missed(kind: str, place: int) -> None:
    job = make_run(critic=BY_MAX)
    body = job.records[job.find(kind)].body
    del (body["critic"] if kind == "job.created" else body)["fitted"][place]
    assert_fails(run(job), "risk table", job.find("risk.table"), "the job was created with")


@pytest.mark.parametrize("critic", [BY_MAX, BY_WEIGHT], **IDS)
def test_the_threshold_follows_from_those_of_the_parts(critic: dict[str, Any]) -> None:
    job = make_run(critic=critic)
    # By the rule max it is the second one's, the lower of the two.
    job.records[0].body["critic"]["fitted"][1]["threshold"] = 0.5
    assert_fails(run(job), "risk table", job.find("risk.table"), "the threshold was left to the critic")
    job.records[0].body["critic"]["fitted"][1]["threshold"] = None
    assert_fails(run(job), "risk table", job.find("risk.table"), "no threshold of its own")


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("name", [["critic-1"], {"a": 1}, 7], ids=["list", "object", "number"])
def test_a_critic_that_is_named_by_nonsense_is_a_failed_check(version: int, name: object) -> None:
    job = make_run(version=version)
    forge_spec(job, lambda critic: critic.update(id=name))
    assert_fails(run(job), "risk table", job.find("risk.table"), "cannot be read")


def test_a_live_score_falls_back_on_the_critic_that_the_judge_names() -> None:
    live = {"type": "judge", "mode": "live", "every": 1, "votes": 3, "fallback": "critic-1"}
    job = make_run(critic=BY_MAX | {"critics": [BIAS, live, HARM]})
    assert run(job).ok, run(job).lines()
    seq, score = next(
        (seq, score)
        for seq, record in enumerate(job.records)
        if record.kind == "live"
        for score in record.body["scores"]
        if score["status"] == "fallback"
    )
    assert score["row"] == 6
    # In the table nothing changes by that: there both critics count anyway.
    forge_spec(job, lambda critic: critic["critics"][1].update(fallback="critic-2"))
    assert_fails(run(job), "control law", seq, "row 6 has the live s")
