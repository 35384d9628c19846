"""The check of the gate: whatever a record says of it that its own numbers do not, is found."""

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.domain.bundle import write_bundle
from app.domain.evaluation import compare_shares
from app.domain.verify import verify_bundle
from tests.unit.app.domain.synthetic_job import (
    JOB,
    POLICY,
    Record,
    SyntheticJob,
    assert_fails,
    outcomes,
    run,
)
from tests.unit.app.domain.synthetic_run import make_run

FLOOR = 0.25
FALLBACK = 1 / 7
"""Share of the rows of a synthetic run that the critic did not measure: it failed on row 3 of seven."""
COMPARISON = compare_shares("attack_success.greedy", "miniature", [0] * 40, [1] * 4 + [0] * 36)
INCREASE = COMPARISON.difference.high
"""What four harmful replies of forty that were none before may be at worst."""


def limit(name: str, found: float | None, bound: float, action: str, *, broken: bool) -> dict[str, Any]:
    """Return a limit as a record has it."""
    beta_min = FLOOR if action == "tighten" else None
    known = {"limit": name, "found": found, "bound": bound, "action": action}
    return {**known, "beta_min": beta_min, "broken": broken}


GOOD = limit("critic_auroc", 0.95, 0.9, "fail", broken=False)
TIGHTENED = limit("critic_recall", None, 0.5, "tighten", broken=True)
HELD = limit("attack_success_increase", INCREASE, 0.02, "hold", broken=True)


def make_gated(
    start: list[dict[str, Any]], end: list[dict[str, Any]], *, verdicts: tuple[str, str], floor: float = 0.0
) -> SyntheticJob:
    """Return a whole run whose policy had a gate."""
    job = make_run(gate_floor=floor)
    start, end = copy.deepcopy((start, end))
    body = {"policy_sha256": POLICY, "verdict": verdicts[0], "floor": floor, "limits": start}
    job.records.insert(job.find("risk.table") + 1, Record("gate.start", body, 1, 1))
    closing = {"policy_sha256": POLICY, "verdict": verdicts[1], "limits": copy.deepcopy([*start, *end])}
    at = job.find("adapter.published")
    job.records.insert(at, Record("gate", closing, 2, 3))
    if end:
        job.records.insert(at, Record("eval", evaluation(job), 2, 3))
    return job


def evaluation(job: SyntheticJob) -> dict[str, Any]:
    """Return the record of an evaluation after the last step."""
    from app.domain.evaluation import DecodingUsed, EvaluationResult, JudgeUsed

    result = EvaluationResult(
        suite="miniature",
        suite_sha256="4" * 64,
        prompts={"harmful": 40, "borderline": 0, "utility": 0},
        judges=(JudgeUsed("miniature", "5" * 64),),
        decoding=DecodingUsed(True, 0, None, 0, 64, 0),
        comparisons=(COMPARISON,),
        agreements=(),
    )
    steps = [record.body["step"] for record in job.records if record.kind == "step"]
    return {**result.to_body(), "step": max(steps)}


@pytest.fixture
def tightened() -> SyntheticJob:
    """A job that the gate tightened at the start and holds at the end."""
    return make_gated([GOOD, TIGHTENED], [HELD], verdicts=("tighten", "hold"), floor=FLOOR)


def test_a_job_that_was_tightened_and_is_held_verifies(tightened: SyntheticJob) -> None:
    report = run(tightened)
    assert report.ok, report.lines()
    assert outcomes(report)["gate"] == outcomes(report)["control law"] == "ok"
    line = next(line for line in report.lines() if line.startswith("19 gate"))
    assert "at the start tighten, every beta at least 0.25, before the release hold" in line
    assert "critic_recall: nothing was found, the policy asks for at least 0.5 (tighten)" in line
    assert "HELD" in line
    assert "critic_auroc and critic_recall: a claim of the worker's" in line


def test_a_job_without_a_gate_is_not_checked() -> None:
    report = run(make_run())
    assert report.ok
    assert outcomes(report)["gate"] == "not checked"


class TestPolicyInTheBundle:
    GATE = b"[gate.critic_auroc]\nleast = 0.9\naction = 'fail'\n"

    def check(
        self, folder: Path, policy: bytes, *, on_record: bytes | None = None, state: str | None = None
    ) -> tuple[str, str]:
        """Return outcome and detail of the check for a job without a gate, created under the policy `on_record`."""
        job = make_run()
        for record in job.records:
            if "policy_sha256" in record.body:
                record.body["policy_sha256"] = hashlib.sha256(
                    policy if on_record is None else on_record
                ).hexdigest()
        if state is not None:
            del job.records[job.find("adapter.published")]
            job.records[-1].body.update(state=state, error="training_failed")
        path = folder / "evidence.zip"
        with path.open("wb") as file:
            write_bundle(
                file, job=JOB, leaves=job.leaves(), risk_table=job.table, documents={"policy.txt": policy}
            )
        found = next(check for check in verify_bundle(path).checks if check.name == "gate")
        return found.outcome, found.detail

    @pytest.mark.parametrize(
        "policy", [GATE, b'{"gate": {"critic_auroc": {"least": 0.9, "action": "fail"}}}']
    )
    def test_a_success_without_the_gate_that_it_asks_for_is_found(
        self, policy: bytes, tmp_path: Path
    ) -> None:
        outcome, detail = self.check(tmp_path, policy)
        assert outcome == "failed"
        assert detail.startswith("no gate is on record of a job that succeeded")

    @pytest.mark.parametrize(
        ("policy", "says"),
        [
            (b"methods = ['adaptive_kl']\n", "policy.txt asks for none"),
            (b'{"gate": null}', "policy.txt asks for none"),
            (b"[gate", "policy.txt cannot be read: Expected"),
            (b"\xff", "policy.txt cannot be read: 'utf-8' codec"),
            (b"a = " + b"[" * 9000, "policy.txt cannot be read: maximum recursion"),
            (GATE + b"#" * 65_536, "has more than 65536 bytes, so that it was not read"),
        ],
    )
    def test_where_it_asks_for_none_or_cannot_be_read_the_gate_is_not_checked(
        self, policy: bytes, says: str, tmp_path: Path
    ) -> None:
        outcome, detail = self.check(tmp_path, policy)
        assert outcome == "not checked"
        assert detail.startswith("no gate is on record, and ")
        assert says in detail

    def test_a_job_that_failed_need_not_have_come_to_it(self, tmp_path: Path) -> None:
        outcome, detail = self.check(tmp_path, self.GATE, state="failed")
        assert (outcome, "the job did not come to it" in detail) == ("not checked", True)

    def test_another_policy_says_nothing_of_the_job(self, tmp_path: Path) -> None:
        assert self.check(tmp_path, self.GATE, on_record=b"")[0] == "not checked"


def test_a_share_of_the_risk_table_is_found_again() -> None:
    job = make_gated(
        [limit("fallback_share", FALLBACK, 0.2, "hold", broken=False)], [], verdicts=("pass", "pass")
    )
    assert run(job).ok
    job.records[job.find("gate.start")].body["limits"][0]["found"] = 0.0
    assert_fails(run(job), "gate", job.find("gate.start"), "fallback_share is 0; the records give")


def forget_floor(job: SyntheticJob) -> None:
    job.records[job.find("gate.start")].body["floor"] = 0.0


def deny(job: SyntheticJob) -> None:
    job.records[job.find("gate")].body["limits"][2]["broken"] = False


def change_found(job: SyntheticJob) -> None:
    job.records[job.find("gate")].body["limits"][2] |= {"found": 0.01, "broken": False}
    job.records[job.find("gate")].body["verdict"] = "warn"


def drop_evaluation(job: SyntheticJob) -> None:
    del job.records[job.find("eval")]


def soften(job: SyntheticJob) -> None:
    job.records[job.find("gate")].body["verdict"] = "pass"


def forget_start(job: SyntheticJob) -> None:
    for record in job.records:
        if record.kind == "gate":
            del record.body["limits"][1]


def change_policy(job: SyntheticJob) -> None:
    job.records[job.find("gate")].body["policy_sha256"] = "e" * 64


def drop_start(job: SyntheticJob) -> None:
    del job.records[job.find("gate.start")]


def drop_gate(job: SyntheticJob) -> None:
    del job.records[job.find("gate")]


def double_gate(job: SyntheticJob) -> None:
    job.records.insert(job.find("gate"), job.records[job.find("gate")])


def invent_limit(job: SyntheticJob) -> None:
    job.records[job.find("gate")].body["limits"][2]["limit"] = "vibes"


def tighten_too_late(job: SyntheticJob) -> None:
    job.records[job.find("gate")].body["limits"][2] |= {"action": "tighten", "beta_min": 0.5}


def take_beta_min(job: SyntheticJob) -> None:
    job.records[job.find("gate.start")].body["limits"][1]["beta_min"] = None


def start_late(job: SyntheticJob) -> None:
    start = job.records.pop(job.find("gate.start"))
    job.records.insert(job.find("step") + 1, start)


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (forget_floor, "gate.start", "floor is 0; the limits come to 0.25"),
        (deny, "gate", "it says broken: false"),
        (change_found, "gate", "attack_success_increase is 0.01; the records give"),
        (drop_evaluation, "gate", "the records give None"),
        (soften, "gate", "verdict is pass; the limits come to hold"),
        (forget_start, "gate", "are not those of gate.start"),
        (change_policy, "gate", "the job was created under dddd"),
        (drop_start, "gate", "a gate in a job that began without one"),
        (drop_gate, "adapter.published", "did not come to its gate"),
        (double_gate, "gate", "gate after the gate"),
        (invent_limit, "gate", "the limit vibes is not known here"),
        (tighten_too_late, "gate", "which comes too late"),
        (take_beta_min, "gate.start", "has the action tighten and beta_min None"),
        (start_late, "gate.start", "belongs between the risk.table and the first step"),
    ],
)
def test_what_the_records_do_not_say_is_found(
    tightened: SyntheticJob, damage: Callable[[SyntheticJob], None], kind: str, words: str
) -> None:
    damage(tightened)
    report = run(tightened)
    check = next(check for check in report.checks if check.name == "gate")
    assert check.outcome == "failed", report.lines()
    assert words in check.detail
    at = tightened.find(kind, 1 if damage is double_gate else 0)
    assert check.first_bad == at
    assert report.exit_code in (19, 29), "the gate, or the control law without its floor"


def test_a_floor_that_no_gate_asked_for_is_found(tightened: SyntheticJob) -> None:
    body = tightened.records[tightened.find("gate.start")].body
    body |= {"floor": 0.0, "verdict": "pass", "limits": [GOOD]}
    assert_fails(run(tightened), "control law", tightened.find("step"), "is 0.25")


class TestRefusedJob:
    @pytest.fixture
    def refused(self) -> SyntheticJob:
        """A job that its gate refused at the end."""
        job = make_gated([], [HELD | {"action": "fail"}], verdicts=("pass", "fail"))
        del job.records[job.find("adapter.published")]
        job.records[-1].body |= {"state": "failed", "error": "safety_gate"}
        return job

    def test_verifies(self, refused: SyntheticJob) -> None:
        report = run(refused)
        assert report.ok, report.lines()
        assert report.state == "failed"

    def test_has_no_adapter(self, refused: SyntheticJob) -> None:
        whole = make_gated([], [HELD | {"action": "fail"}], verdicts=("pass", "fail"))
        report = run(whole)
        check = next(check for check in report.checks if check.name == "gate")
        assert check.detail == "an adapter was published that its gate refused"

    @pytest.mark.parametrize("end", [("succeeded", None), ("failed", "training_failed")])
    def test_has_failed_for_it(self, refused: SyntheticJob, end: tuple[str, str | None]) -> None:
        refused.records[-1].body |= {"state": end[0], "error": end[1]}
        check = next(check for check in run(refused).checks if check.name == "gate")
        assert check.outcome == "failed"
        assert "the gate refused the job" in check.detail

    def test_is_not_trained_where_it_was_refused_at_the_start(self) -> None:
        bad = GOOD | {"found": 0.5, "broken": True}
        job = make_gated([bad], [], verdicts=("fail", "fail"))
        assert_fails(run(job), "gate", job.find("step"), "refused at the start")
        job.records = [
            *job.records[: job.find("step")],
            Record(
                "job.end", {"state": "failed", "error": "safety_gate", "steps": 0, "trained_tokens": 0}, 1, 1
            ),
        ]
        assert run(job).ok


class TestPause:
    @pytest.fixture
    def waiting(self) -> SyntheticJob:
        """A job that its gate had wait for approval before the first step."""
        bad = GOOD | {"found": 0.5, "broken": True, "action": "pause"}
        job = make_gated([bad], [], verdicts=("pause", "warn"))
        at = job.find("gate.start") + 1
        for command in ("resume", "pause"):
            job.records.insert(at, Record("cmd", {"command": command, "actor": "gate"}, 1, 1))
        return job

    def test_comes_before_the_first_step(self, waiting: SyntheticJob) -> None:
        pause = waiting.find("cmd")
        del waiting.records[pause : pause + 2]
        assert_fails(run(waiting), "gate", waiting.find("step"), "without a pause")
