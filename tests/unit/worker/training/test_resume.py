"""A run that is cut anywhere, any number of times, is the run that nobody cut: its weights, its steps, its monitor.

Cuts come from Hypothesis. The default suite tries few; `TETHER_TEST_RESUME_EXAMPLES=200` tries more, and
`TETHER_TEST_RESUME_SEED` others.
"""

import os
import random
import shutil
import zlib
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from app.domain.safety_spec import (
    AdaptiveKL,
    Anchors,
    Antidote,
    ConstantCritic,
    ConstrainedSFT,
    Filter,
    FixedKL,
    JudgeCritic,
    Lisa,
    Monitor,
    NoPenalty,
    SafetyMix,
    Vaccine,
)
from tests.judge_server import serving
from worker.judge_client import JudgeClient
from worker.training.checkpoint import load_checkpoint
from worker.training.critics.judge import LiveJudge
from worker.training.data import tokenize_rows
from worker.training.live import LiveCritic, opening
from worker.training.loop import fit, plan_run
from worker.training.models import trainable_parameters
from worker.training.reference import ReferenceCache, RowRisk, run_reference_pass
from worker.training.replies import Prompt, reply_to
from worker.training.step import RunData

EXAMPLES = int(os.environ.get("TETHER_TEST_RESUME_EXAMPLES", "5"))
SEED = int(os.environ.get("TETHER_TEST_RESUME_SEED", "6"))

S = (0.0, 1.0, 0.5, 0.0, 0.25, 1.0, 0.0, 0.0, 0.75, 1.0)
RISKS = {row: RowRisk(row, {}, s, "constant") for row, s in enumerate(S)}
KL = {"critic": ConstantCritic(s=0.5), "beta_min": 0.1, "beta_max": 0.9, "threshold": 0.5, "replay": False}
BARE = {"anchors": None, "monitor": None}
MONITORS = {action: Monitor(every=2, limit=1e-9, action=action) for action in ("warn", "anchors", "floor")}
SAFETIES = {
    "adaptive": AdaptiveKL(**KL, **BARE),
    "anchors": AdaptiveKL(**KL, anchors=Anchors(per_step=2), monitor=MONITORS["anchors"]),
    "floor": AdaptiveKL(**KL, anchors=None, monitor=MONITORS["floor"]),
    "batch": AdaptiveKL(**KL, anchors=None, monitor=MONITORS["floor"], scope="batch", ema_decay=0.5),
    "fixed": FixedKL(beta=0.3, anchors=Anchors(per_step=1), monitor=MONITORS["warn"]),
    "none": NoPenalty(**BARE),
    "filter": Filter(critic=ConstantCritic(s=0.5), threshold=0.9, **BARE),
    "constrained_sft": ConstrainedSFT(**BARE),
    "lisa": Lisa(alignment_steps=2, user_steps=3, proximal_start=0.0, **BARE),
    "vaccine": Vaccine(**BARE),
    "antidote": Antidote(**BARE),
    "safety_mix": SafetyMix(**BARE),
}


class Cut(NamedTuple):
    """Where an attempt ends."""

    after: int
    """The step after which it does."""
    kills: bool
    """Whether it ends there at once, and loses what came after its last checkpoint, or saves one first."""


class Killed(Exception):
    """The process is gone."""


CUTS = st.lists(st.builds(Cut, st.integers(0, 12), st.booleans()), min_size=1, max_size=4)


class Course(NamedTuple):
    """What is left of a run."""

    weights: list[bytes]
    steps: list[object]
    drifts: list[object]


@pytest.fixture
def rows(make_tokenizer, training_rows):
    return tokenize_rows(make_tokenizer(), training_rows, max_seq_length=256, overlength="error").rows


@pytest.fixture
def anchors(make_model, make_tokenizer):
    prompts = [Prompt(n, tuple(range(n, n + 6))) for n in range(5)]
    return reply_to(make_model(), make_tokenizer(), prompts, max_seq_length=12, whole=True)


@pytest.fixture
def make_data(rows, anchors, make_model):
    def make(spec):
        safety = spec.safety
        cache = ReferenceCache({})
        if isinstance(safety, ConstrainedSFT):
            cache = run_reference_pass(
                make_model(), rows, None, spec, known=RISKS, cache_budget_bytes=10**7
            ).cache
        kept = tuple(row for row in rows if not (isinstance(safety, Filter) and S[row.index] >= 0.9))
        return RunData(
            kept,
            RISKS,
            cache,
            alignment=tuple(rows[:3]) if hasattr(safety, "alignment_file") else (),
            anchors=anchors[:4] if safety.anchors else (),
            monitored=anchors[4:] if safety.monitor else (),
        )

    return make


def disturb() -> None:
    """Leave every generator somewhere else, as another process would."""
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)


def run(make_model, data, spec, cuts, folder, *, every=10**9, live=lambda: None) -> Course:
    """Run in one attempt more than there are cuts, each of which goes on from the last checkpoint."""
    steps, drifts, written, reached = {}, {}, [], {}
    for cut in [*cuts, None]:
        disturb()
        resume = load_checkpoint(written[-1]) if written else None
        # Whatever weights a resumed process begins with, the checkpoint's count.
        model = make_model(drift=1.0) if resume else make_model()
        reached["step"] = resume.info.step if resume else 0

        def on_step(record, cut=cut):
            reached["step"] = record.step
            steps[record.step] = record
            if cut is not None and cut.kills and record.step >= cut.after:
                raise Killed

        def should_stop(cut=cut):
            is_due = cut is not None and not cut.kills and reached["step"] >= cut.after
            return "preempt" if is_due else None

        try:
            fit(
                model,
                data,
                spec,
                resume=resume,
                live=live(),
                checkpoint_folder=folder,
                on_step=on_step,
                on_drift=lambda drift: drifts.__setitem__(drift.step, drift),
                on_checkpoint=lambda checkpoint: written.append(checkpoint.info.path),
                should_stop=should_stop,
                clock=lambda: reached["step"] / every,
            )
        except Killed:
            continue
    values = trainable_parameters(model).values()
    return Course(
        [parameter.detach().numpy().tobytes() for parameter in values],
        [steps[step] for step in sorted(steps)],
        [drifts[step] for step in sorted(drifts)],
    )


@pytest.fixture
def check(make_model, make_spec, make_data, tmp_path):
    """Compare a run that is cut with the same one that is not; the latter is done once."""
    whole = {}

    def compare(name, scheduler, every, cuts):
        safety = SAFETIES[name]
        spec = make_spec(
            safety=safety,
            lr_scheduler=scheduler,
            warmup_ratio=0.3,
            checkpoint_interval_s=1.0,
        )
        data = make_data(spec)
        if (name, scheduler) not in whole:
            whole[name, scheduler] = run(make_model, data, spec, [], tmp_path / "whole")
            assert (
                len(whole[name, scheduler].steps)
                == plan_run(spec, n_rows=len(data.rows), n_alignment=len(data.alignment)).total_steps
            )
        folder = tmp_path / "cut"
        found = run(make_model, data, spec, cuts, folder, every=every)
        shutil.rmtree(folder, ignore_errors=True)
        assert found.drifts == whole[name, scheduler].drifts
        assert found.steps == whole[name, scheduler].steps
        assert found.weights == whole[name, scheduler].weights

    return compare


@seed(SEED)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from(sorted(SAFETIES)),
    scheduler=st.sampled_from(["linear", "cosine", "constant"]),
    every=st.integers(1, 4),
    cuts=CUTS,
)
def test_a_run_that_is_cut_is_the_run_that_nobody_cut(check, name, scheduler, every, cuts):
    check(name, scheduler, every, cuts)


@pytest.mark.parametrize("name", sorted(SAFETIES))
def test_every_method_survives_a_kill_and_a_pause(check, name):
    """The third step ends an epoch; the monitor measures after the second and the fourth."""
    check(name, "cosine", 1, [Cut(3, kills=True), Cut(4, kills=False)])


def test_live_scores_survive_where_no_round_is_under_way(
    make_model, make_spec, rows, make_tokenizer, training_rows, tmp_path
):
    """A round that was asked for after steps 2 and 4 is heard before steps 3 and 5; one that is cut off is lost."""
    safety = AdaptiveKL(**KL, **BARE)
    fields = JudgeCritic(mode="live", every=2, samples=3)
    spec = make_spec(safety=safety, checkpoint_interval_s=1.0)
    data = RunData(rows, RISKS, ReferenceCache({}))
    prompts = {index: opening(row["messages"]) for index, row in enumerate(training_rows)}
    tokenizer, opened = make_tokenizer(), []

    def by_prompt(request, _):
        # Whatever order the questions arrive in, a row gets the same score.
        prompt = [line for line in request.asked.splitlines() if line.startswith('{"role"')][:-1]
        request.score(1 + zlib.crc32("".join(prompt).encode()) % 5)

    with serving(by_prompt) as server:

        def live():
            client = JudgeClient(server.url, "m", timeout_s=10, concurrency=4)
            judge = Patient(client, fields, prompts, fallback={})
            opened.append(LiveCritic(judge, fields, tokenizer, rows, seed=7, on_scores=lambda *_: None))
            return opened[-1]

        whole = run(make_model, data, spec, [], tmp_path / "whole", live=live)
        cuts = [Cut(3, kills=False)]
        found = run(make_model, data, spec, cuts, tmp_path / "cut", live=live)
        for each in opened:
            each.close()
    assert found == whole


class Patient(LiveJudge):
    """Waits for its round, so that a test knows at which step the scores arrive."""

    def collect(self):
        from concurrent.futures import wait

        wait(self._round)
        return super().collect()
