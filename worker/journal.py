"""What a running job writes down: records in its ledger, rows for queries, events for the client.

Each write is one transaction, fenced by the lease's epoch.
"""

import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.audit.repository import Owned, append_leaf, iterate_leaves, load_risk_table, save_risk_table
from app.database import read_only, unit_of_work
from app.domain.control_law import is_too_much
from app.domain.gate import GATE, describe, start_floor, start_verdict
from app.domain.job import Desired, State
from app.domain.ledger import digest_of, kind_of, parse_leaf
from app.domain.risk_table import FittedPoints, build_risk_table, parse_risk_row
from app.domain.risk_table import RiskRow as RiskEntry
from app.domain.step_record import StepRecord
from app.domain.training_spec import TrainingSpec
from app.errors import JobFailure, LeaseLost
from app.failpoints import failpoint
from app.jobs import repository
from app.jobs.repository import Advance
from app.models.base import utc_now
from app.models.job import Checkpoint, Job, Step
from app.models.webhook import EventType
from app.models.work import Work
from app.webhooks.events import announce
from app.work import repository as work_repository
from app.work import service as work_service
from worker.context import Context, Paused

if TYPE_CHECKING:
    # What is written down is known without loading torch.
    from worker.gate import Closing
    from worker.publisher import StoredAdapter
    from worker.training.critics.judge import LiveScore
    from worker.training.loop import Drift

REPLY_SPLIT = "reply_split"
EVENT_INTERVAL_S = 1.0
"""Metrics events come at most this often; the lossless curve is in the steps."""
LIVE_SCORES_PER_LEAF = 16
"""With all their votes they stay far below the longest leaf."""


class Journal:
    """Writes what happens to one job, and keeps the running sums that its row shows."""

    def __init__(
        self, context: Context, spec: TrainingSpec, *, critic_sha256: str | None, policy_sha256: str
    ) -> None:
        self._context = context
        self._spec = spec
        self._critic_sha256 = critic_sha256
        self._policy_sha256 = policy_sha256
        self._total_steps = 0
        self._steps = 0
        self._steps_of_rows = 0
        self._tokens = 0
        self._risk_sum = 0.0
        self._risk_max = 0.0
        self._beta_sum = 0.0
        self._first_step_at = 0.0
        self._steps_before = 0
        self._last_event_at = float("-inf")
        self._last: Mapping[str, Any] | None = None
        self._is_too_far = False

    def begin(
        self,
        *,
        from_step: int,
        total_steps: int,
        checkpoint_sha256: str | None,
        environment: Mapping[str, str],
        device: str,
        micro_batch_tokens: int,
    ) -> None:
        """Record the start or the resume, forget what a crash threw away, and move to running."""
        with unit_of_work(self._context.database) as session:
            work = self._context.lease.load(session)
            job = repository.load_job(session, work.id)
            first = not repository.has_started(session, job.id)
            self._append(
                session,
                "job.start" if first else "job.resume",
                {
                    "from_step": from_step,
                    "checkpoint_sha256": checkpoint_sha256,
                    "spec": self._spec.model_dump(mode="json"),
                    "environment": dict(environment),
                    "device": device,
                    "micro_batch_tokens": micro_batch_tokens,
                },
            )
            repository.forget_steps(session, job, after=from_step)
            session.execute(
                delete(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step > from_step)
            )
            for step in repository.list_steps(session, job, after=0, limit=None):
                self._add(step.record)
            self._total_steps = total_steps
            self._steps_before = self._steps
            self._first_step_at = time.monotonic()
            job.total_steps = total_steps
            for name, value in self._progress()._asdict().items():
                setattr(job, name, value)
            message, mark = "Fine-tuning job started", None
            if not first:
                message = f"Fine-tuning job resumed from step {from_step}"
                mark = {"step": from_step, "mark": "pause", "label": f"attempt {work.attempt}"}
            repository.add_event(session, job, message, data=mark)
            work_repository.move(session, work, State.RUNNING)
            failpoint("begin.before_commit")
        failpoint("begin.after_commit")

    def load_risks(self) -> list[RiskEntry]:
        """Return the risk table that an earlier attempt committed to; empty before the first.

        Raises JobFailure where that was an older version of Tether.
        """
        with read_only(self._context.database) as session:
            entries = load_risk_table(session, self._context.lease.work_id)
        try:
            return [parse_risk_row(entry) for entry in entries]
        except ValueError as error:
            raise from_older_version() from error

    def load_reply_split(self) -> int:
        """Return by how much the batches were smaller in which the replies on record were made."""
        with read_only(self._context.database) as session:
            split: int = session.get_one(Work, self._context.lease.work_id).args.get(REPLY_SPLIT, 1)
        return split

    def load_sets(self) -> dict[str, Mapping[str, Any]]:
        """Return what an earlier attempt recorded of the registered sets, by the name of the leaf."""
        found: dict[str, Mapping[str, Any]] = {}
        with read_only(self._context.database) as session:
            for leaf in iterate_leaves(session, self._context.lease.work_id):
                record = parse_leaf(leaf)
                kind = kind_of(record)
                if kind == "step":
                    break
                if kind in ("anchors", "alignment"):
                    found[kind] = record["body"]
        return found

    def plan_steps(self, total_steps: int) -> None:
        """Correct the number of steps, now that it is known which rows are dropped."""
        self._total_steps = total_steps
        with unit_of_work(self._context.database) as session:
            self._context.lease.load(session)
            repository.load_job(session, self._context.lease.work_id).total_steps = total_steps

    def record_reference_pass(
        self,
        rows: Sequence[RiskEntry],
        *,
        dropped: int,
        fitted: Sequence[FittedPoints],
        anchors: Mapping[str, Any] | None,
        alignment: Mapping[str, Any] | None,
    ) -> None:
        """Commit to the risk of every row and to the registered sets, once and before the first step."""
        entries, body = build_risk_table(
            rows, dropped=dropped, critic_sha256=self._critic_sha256, fitted=fitted
        )
        with unit_of_work(self._context.database) as session:
            work = self._context.lease.load(session)
            work.args = {**work.args, REPLY_SPLIT: self._context.split}
            self._append(session, "risk.table", body)
            if anchors is not None:
                self._append(session, "anchors", anchors)
            if alignment is not None:
                self._append(session, "alignment", alignment)
            save_risk_table(session, self._context.lease.work_id, entries)
            failpoint("reference.before_commit")
        failpoint("reference.after_commit")

    def record_step(self, record: StepRecord) -> None:
        """Record an optimiser step. Raises where the work must stop here.

        Its commit does not wait for the disk. A checkpoint's does, and brings every step before it there; what a power
        cut may take is done again from that checkpoint anyway.
        """
        self._context.lease.check()
        body = record.to_dict()
        shown = {name: _finite_or_none(value) for name, value in body.items()}
        before = self._steps
        self._add(body)
        self._last = shown
        with unit_of_work(self._context.database, synchronous=False) as session:
            leaf = {**body, "critic_sha256": self._critic_sha256, "policy_sha256": self._policy_sha256}
            owned = self._append(session, "step", leaf)
            # The row was just read, so that a cancellation is obeyed at the next step, whenever the heartbeat is.
            self._context.lease.desired = Desired(owned.desired)
            repository.save_step(session, owned, record.step, shown)
            if not repository.advance(session, owned.id, before, self._progress()):
                raise LeaseLost(
                    f"the database has lost steps of {owned.id}, perhaps to a power cut; it goes on from its checkpoint"
                )
            now = time.monotonic()
            if now - self._last_event_at >= EVENT_INTERVAL_S or record.step == self._total_steps:
                self._last_event_at = now
                message = f"Step {record.step}/{self._total_steps}: training loss={record.nll:.2f}"
                data = {**step_metrics(shown), "total_steps": self._total_steps}
                repository.add_event(session, owned, message, type="metrics", data=data)
            if record.skipped:
                message = f"Step {record.step} was skipped: its loss was {record.loss}, its gradient norm {record.grad_norm}"
                repository.add_event(session, owned, message, level="warn")
            failpoint("step.before_commit")
        failpoint("step.after_commit")

    def record_drift(self, drift: "Drift") -> None:
        """Record what the run-level monitor measured after a step, and say so where it is too much."""
        body = {"step": drift.step, "kl": drift.kl, **drift.state._asdict()}
        monitor = self._spec.safety.monitor
        if monitor is None:
            raise ValueError("a drift was measured in a job without a monitor")
        law = monitor.model_dump()
        with unit_of_work(self._context.database) as session:
            self._append(session, "monitor", body)
            job = repository.load_job(session, self._context.lease.work_id)
            repository.save_drift(session, job, drift.step, _finite_or_none(drift.kl))
            # Told when the limit is passed, not at every measurement beyond it.
            was_too_far, self._is_too_far = self._is_too_far, is_too_much(law, drift.kl)
            if not self._is_too_far:
                return
            if not was_too_far:
                announce(session, job.project_id, EventType.SAFETY_ALERT, job.id)
            message = (
                f"after step {drift.step} the model has drifted {drift.kl:.3f} nats a token from its reference on"
                f" prompts that nobody trains on; the limit is {monitor.limit:g}"
            )
            if monitor.action == "pause":
                work_service.ask_for_pause(session, job.work, by="monitor", reason=message)
                self._context.pause_due = True
            else:
                mark = {"step": drift.step, "mark": "policy", "label": "drift"}
                repository.add_event(session, job, message[0].upper() + message[1:], level="warn", data=mark)

    def record_live(self, step: int, scores: Sequence["LiveScore"]) -> None:
        """Record what a live judge has said, before the first step that it counts for."""
        with unit_of_work(self._context.database) as session:
            found = [score._asdict() for score in scores]
            for start in range(0, len(found), LIVE_SCORES_PER_LEAF):
                body = {"step": step, "scores": found[start : start + LIVE_SCORES_PER_LEAF]}
                self._append(session, "live", body)
            job = repository.load_job(session, self._context.lease.work_id)
            highest = max(score.s for score in scores)
            message = (
                f"A judge graded {len(scores)} answers of the model after step {scores[0].asked_at}; the highest s is"
                f" {highest:.2f}, which counts from step {step} on"
            )
            repository.add_event(session, job, message)

    def record_validation(self, step: int, loss: float, token_accuracy: float) -> None:
        """Note what the validation file says after a step."""
        values = {"valid_loss": loss, "valid_mean_token_accuracy": token_accuracy}
        with unit_of_work(self._context.database) as session:
            self._context.lease.load(session)
            job = repository.load_job(session, self._context.lease.work_id)
            repository.save_validation(session, job, step, values)
            train = step_metrics(self._last) if self._last and self._last["step"] == step else {}
            message = f"Step {step}/{self._total_steps}: validation loss={loss:.2f}"
            data = {"step": step, **train, **values, "total_steps": self._total_steps}
            repository.add_event(session, job, message, type="metrics", data=data)

    def record_checkpoint(
        self,
        *,
        step: int,
        kind: str,
        folder: str,
        files: dict[str, str],
        name: str | None,
        adapter_sha256: str | None,
        stored: dict[str, str] | None,
        host: str,
        size_bytes: int,
    ) -> None:
        """Commit a checkpoint: from here on the job resumes from it."""
        digest = digest_of(files)
        with unit_of_work(self._context.database) as session:
            work = self._context.lease.load(session)
            job = repository.load_job(session, work.id)
            body = {"step": step, "kind": kind, "sha256": digest, "files": files}
            self._append(session, "ckpt", {**body, "adapter_sha256": adapter_sha256})
            repository.add_checkpoint(
                session,
                job,
                step=step,
                kind=kind,
                digest=digest,
                folder=folder,
                name=name,
                adapter_sha256=adapter_sha256,
                stored=stored,
                host=host,
                size_bytes=size_bytes,
                metrics=self._checkpoint_metrics(session, job, step),
            )
            work_repository.note_progress(session, work.id, work.epoch)
            if name is not None:
                repository.add_event(session, job, f"Checkpoint created at step {step}: {name}")
            failpoint("checkpoint.before_commit")
        failpoint("checkpoint.after_commit")

    def record_invalid(self, checkpoint: Checkpoint, why: str, *, instead: int | None) -> None:
        """Record that a checkpoint cannot be gone on from, before the job goes on from an older one or fails.

        `instead` is the step of the older one; with it, the checkpoint is let go of.
        """
        with unit_of_work(self._context.database) as session:
            work = self._context.lease.load(session)
            body = {"step": checkpoint.step, "sha256": checkpoint.digest, "why": why}
            self._append(session, "ckpt.invalid", body)
            if instead is None:
                then = "there is none before it"
            else:
                then = f"the job goes on from the one after step {instead}"
                row = session.get_one(Checkpoint, checkpoint.id)
                row.folder = row.stored = None
            message = f"The checkpoint after step {checkpoint.step} is {why}; {then}"
            repository.add_event(session, repository.load_job(session, work.id), message, level="warn")

    def begin_pause(self) -> bool:
        """Move to pausing before the last checkpoint is written; say whether the pause still stands."""
        with unit_of_work(self._context.database) as session:
            work = self._context.lease.load(session)
            is_wanted = "pause" in work.args
            if is_wanted:
                job = repository.load_job(session, work.id)
                repository.add_event(
                    session, job, f"The job pauses after step {job.step}; its checkpoint is being written"
                )
                work_repository.move(session, work, State.PAUSING)
                failpoint("pause.before_commit")
            else:
                self._context.lease.desired = Desired(work.desired)
        if is_wanted:
            failpoint("pause.after_commit")
        return is_wanted

    def end_training(self) -> None:
        """Move to finalising after the last step. Raises Paused where the job is to pause before that."""
        with unit_of_work(self._context.database) as session:
            work = self._context.lease.load(session)
            if "pause" in work.args:
                raise Paused("asked to pause before its adapter is published")
            # A pause that was taken back since the last heartbeat would stop what comes now, where nothing pauses any more.
            self._context.lease.desired = Desired(work.desired)
            job = repository.load_job(session, work.id)
            repository.add_event(
                session, job, f"Training is done after step {job.step}; its adapter is being stored"
            )
            work_repository.move(session, work, State.FINALISING)
            failpoint("finalise.before_commit")
        failpoint("finalise.after_commit")

    def record_gate_start(self, limits: Sequence[Mapping[str, Any]]) -> None:
        """Record what the policy's gate found before the first step, and ask for the pause that it wants."""
        verdict, floor = start_verdict(limits), start_floor(limits)
        with unit_of_work(self._context.database) as session:
            found = {"verdict": verdict, "floor": floor, "limits": list(limits)}
            self._append(session, "gate.start", {**found, "policy_sha256": self._policy_sha256})
            job = repository.load_job(session, self._context.lease.work_id)
            job.gate_result = {"start": found}
            broken = "; ".join(f"{describe(each)} ({each['action']})" for each in limits if each["broken"])
            if verdict == "pause":
                message = f"the gate of the operator's policy has the job wait for approval: {broken}"
                work_service.ask_for_pause(session, job.work, by=GATE, reason=message)
                self._context.pause_due = True
            elif verdict != "pass":
                message = f"The gate of the operator's policy, before the first step: {broken}"
                repository.add_event(session, job, message, level="warn")

    def append_gate(self, session: Session, closing: "Closing") -> None:
        """Record what was evaluated and what the gate makes of it, in the transaction that ends the job."""
        if closing.evaluation is not None:
            self._append(session, "eval", closing.evaluation)
        found = {"verdict": closing.verdict, "limits": closing.limits}
        self._append(session, "gate", {**found, "policy_sha256": self._policy_sha256})
        job = repository.load_job(session, self._context.lease.work_id)
        job.gate_result = {**(job.gate_result or {}), **found, "evaluation_error": closing.evaluation_error}
        if closing.verdict != "pass":
            message = f"The gate of the operator's policy says {closing.verdict}: {closing.describe_broken()}"
            repository.add_event(session, job, message, level="warn")

    def append_published(
        self, session: Session, step: int, adapter: "StoredAdapter", compute: dict[str, int]
    ) -> None:
        """Record which adapter is released, in the transaction that releases it."""
        body = {
            "step": step,
            "zip_sha256": adapter.stored.sha256,
            "bytes": adapter.stored.size_bytes,
            "files": adapter.files,
            "base": adapter.base,
            "canary": adapter.canary.to_body(),
            "compute": compute,
        }
        self._append(session, "adapter.published", body)

    def _append(self, session: Session, kind: str, body: Mapping[str, Any]) -> Owned:
        lease = self._context.lease
        now_ms = time.time_ns() // 1_000_000
        return append_leaf(session, lease.work_id, epoch=lease.epoch, kind=kind, body=body, ts_worker=now_ms)

    def _add(self, record: Mapping[str, Any]) -> None:
        self._steps += 1
        self._tokens += 0 if record.get("skipped") else record["tokens"]
        if record["rows"]:
            # A step of alignment data alone says nothing of the user's.
            self._steps_of_rows += 1
            self._risk_sum += record["risk_mean"] or 0.0
            self._risk_max = max(self._risk_max, record["risk_max"] or 0.0)
            self._beta_sum += record["beta_mean"]

    def _progress(self) -> Advance:
        """Return the running numbers, and the estimate of the end."""
        measured = self._critic_sha256 is not None and self._steps_of_rows > 0
        done = self._steps - self._steps_before
        left_s = None
        if done:
            left_s = (time.monotonic() - self._first_step_at) / done * (self._total_steps - self._steps)
        return Advance(
            step=self._steps,
            trained_tokens=self._tokens,
            risk_mean=self._risk_sum / self._steps_of_rows if measured else None,
            beta_mean=self._beta_sum / self._steps_of_rows if self._steps_of_rows else None,
            estimated_finish_at=None if left_s is None else utc_now() + timedelta(seconds=left_s),
        )

    def _checkpoint_metrics(self, session: Session, job: Job, step: int) -> dict[str, Any]:
        row = session.get_one(Step, (job.id, step))
        record, validation = row.record, row.validation or {}
        return {
            "step": step,
            "train_loss": record["nll"],
            "train_mean_token_accuracy": record["token_accuracy"],
            **validation,
            **{f"full_{name}": value for name, value in validation.items()},
            **safety_metrics(record),
            **self._run_metrics(),
        }

    def _run_metrics(self) -> dict[str, Any]:
        """Return what the steps up to now add up to: by these a checkpoint is chosen, not by its last step."""
        now = self._progress()
        highest = None if now.risk_mean is None else self._risk_max
        return {"run_risk_mean": now.risk_mean, "run_risk_max": highest, "run_beta_mean": now.beta_mean}


def from_older_version() -> JobFailure:
    """Return what ends a job whose record began in a form that this version does not write any more."""
    return JobFailure(
        "the job was accepted or begun by an older version of Tether, whose record this one cannot go on with. Submit it"
        " again",
        code="job_from_older_version",
    )


def step_metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step as the data of a metrics event: the wire's names first, then ours."""
    return {
        "step": record["step"],
        "train_loss": record["nll"],
        "train_mean_token_accuracy": record["token_accuracy"],
        **safety_metrics(record),
    }


def safety_metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a step says of safety, under the names that metrics events and checkpoints share."""
    return {
        "safety_risk": record["risk_mean"],
        "safety_risk_max": record["risk_max"],
        "alpha": record["alpha_mean"],
        "beta": record["beta_mean"],
        "beta_max": record["beta_max"],
        "nll": record["nll"],
        "kl": record["kl"],
        "anchor_kl": record["anchor_kl"],
    }


def _finite_or_none(value: Any) -> Any:
    """Return what JSON can carry: a number that is none becomes null, beside a record that says why."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
