"""The loop against a flat one, its exact resume, and what it tells its caller."""

import math

import pytest
import torch

from app.domain.safety_spec import AdaptiveKL, Anchors, ConstantCritic, FixedKL, Lisa, Monitor
from app.domain.step_plan import row_order
from app.errors import JobFailure
from worker.training.checkpoint import CheckpointDamaged, load_checkpoint
from worker.training.data import tokenize_rows
from worker.training.loop import fit, plan_run, validate
from worker.training.models import trainable_parameters
from worker.training.reference import ReferenceCache, RowRisk, run_reference_pass
from worker.training.replies import Prompt, reply_to
from worker.training.step import RunData

S = (0.0, 1.0, 0.5, 0.0, 0.25, 1.0, 0.0, 0.0, 0.75, 1.0)
RISKS = {row: RowRisk(row, {}, s, "constant") for row, s in enumerate(S)}
BARE = {"replay": False, "anchors": None, "monitor": None, "threshold": 0.5}
ADAPTIVE = AdaptiveKL(critic=ConstantCritic(s=0.5), beta_min=0.1, beta_max=0.9, **BARE)
ANCHORED = ADAPTIVE.model_copy(
    update={
        "anchors": Anchors(per_step=2),
        "monitor": Monitor(every=2, limit=1e-9, action="anchors"),
    }
)


def run_data(rows, risks=None, **parts):
    return RunData(
        tuple(rows), RISKS if risks is None else risks, parts.pop("cache", ReferenceCache({})), **parts
    )


@pytest.fixture
def rows(make_tokenizer, training_rows):
    return tokenize_rows(make_tokenizer(), training_rows, max_seq_length=256, overlength="error").rows


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def flat_loop(model, rows, spec):
    """Train row by row, with nothing shared with the real loop but the order of the rows."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=spec.weight_decay)
    n_steps = spec.n_epochs * math.ceil(len(rows) / spec.batch_size)
    warmup = int(spec.warmup_ratio * n_steps)
    step, losses = 0, []
    for epoch in range(spec.n_epochs):
        order = row_order(len(rows), spec.seed, epoch)
        for start in range(0, len(rows), spec.batch_size):
            step += 1
            batch = [rows[place] for place in order[start : start + spec.batch_size]]
            n_tokens = sum(sum(row.loss_mask) for row in batch)
            optimizer.zero_grad()
            step_loss = 0.0
            for row in batch:
                beta = 0.1 + 0.8 * S[row.index]
                tokens = torch.tensor([row.input_ids])
                with torch.no_grad(), model.disable_adapter():
                    q = torch.softmax(model(tokens, use_cache=False).logits[0], -1)
                log_p = torch.log_softmax(model(tokens, use_cache=False).logits[0], -1)
                loss = torch.zeros((), dtype=log_p.dtype)
                for position, bears in enumerate(row.loss_mask):
                    if bears:
                        at = position - 1
                        loss = loss - (1 - beta) * log_p[at, row.input_ids[position]]
                        loss = loss + beta * (q[at] * (q[at].log() - log_p[at])).sum()
                (loss / n_tokens).backward()
                step_loss += float(loss.detach()) / n_tokens
            norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters))
            if norm > spec.max_grad_norm:
                for parameter in parameters:
                    parameter.grad *= spec.max_grad_norm / norm
            rate = step / (warmup + 1) if step <= warmup else 1 - (step - warmup - 1) / (n_steps - warmup)
            optimizer.param_groups[0]["lr"] = spec.learning_rate * rate
            optimizer.step()
            losses.append(step_loss)
    return losses


def test_the_loop_agrees_with_a_flat_one(make_model, make_spec, rows):
    spec = make_spec(safety=ADAPTIVE, max_grad_norm=0.5)
    model, flat = make_model(torch.float64, drift=0.1), make_model(torch.float64, drift=0.1)
    cache = run_reference_pass(model, rows, None, spec, known=RISKS, cache_budget_bytes=20_000).cache
    assert 0 < len(cache.targets) < len(rows)
    records = []
    fit(model, run_data(rows, cache=cache), spec, on_step=records.append, micro_batch_tokens=150)
    assert [record.loss for record in records] == pytest.approx(flat_loop(flat, rows, spec), rel=1e-6)
    expected = weights(flat)
    for name, found in weights(model).items():
        assert (found - expected[name]).norm() <= 1e-6 * expected[name].norm()


def test_training_learns(make_model, make_spec, rows):
    safety = AdaptiveKL(critic=ConstantCritic(s=0.5), beta_min=0.0, beta_max=1.0, **BARE)
    spec = make_spec(n_epochs=12, learning_rate=2e-2, safety=safety)
    risks = {row: RowRisk(row, {}, float(row == 9), "constant") for row in range(10)}
    records = []
    fit(make_model(), run_data(rows, risks), spec, on_step=records.append)
    assert records[-1].nll < 0.5 * records[0].nll


@pytest.fixture
def anchors(make_model, make_tokenizer):
    prompts = [Prompt(n, tuple(range(n, n + 6))) for n in range(5)]
    return reply_to(make_model(), make_tokenizer(), prompts, max_seq_length=12, whole=True)


def whole_data(rows, anchors, safety):
    """Return data with all that the safety could ask for."""
    alignment = rows[:3] if isinstance(safety, Lisa) else ()
    parts = {"anchors": anchors[:4], "monitored": anchors[4:]} if safety.anchors else {}
    return run_data(rows, alignment=alignment, **parts)


@pytest.mark.parametrize(("safety", "cut"), [(ADAPTIVE, 0), (ADAPTIVE, 3), (ANCHORED, 2)])
def test_resume_is_bit_exact(make_model, make_spec, rows, anchors, tmp_path, safety, cut):
    spec, data = make_spec(safety=safety), whole_data(rows, anchors, safety)
    whole, whole_records = make_model(), []
    fit(whole, data, spec, on_step=whole_records.append)

    written, records = [], []
    first = make_model()
    result = fit(
        first, data, spec, checkpoint_folder=tmp_path, on_step=records.append,
        on_checkpoint=written.append, should_stop=lambda: "preempt" if len(records) == cut else None,
    )  # fmt: skip
    assert (result.steps, result.stopped) == (cut, "preempt")
    # Before the first step there is nothing to save.
    assert [each.info.step for each in written[-1:]] == ([cut] if cut else [])
    resume = load_checkpoint(written[-1].info.path) if written else None

    torch.manual_seed(99)
    second = make_model(drift=1.0) if resume else make_model()
    again = []
    result = fit(
        second, data, spec, resume=resume, checkpoint_folder=tmp_path,
        on_checkpoint=again.append, should_stop=lambda: "preempt",
    )  # fmt: skip
    assert (result.steps, again) == (cut, []), "what was resumed is saved already"
    result = fit(second, data, spec, resume=resume, on_step=records.append)
    assert (result.steps, result.stopped) == (len(whole_records), None)
    assert records == whole_records
    assert equal(weights(second), weights(whole))


def test_the_monitor_measures_and_acts(make_model, make_spec, rows, anchors):
    drifts, records = [], []
    spec = make_spec(safety=ANCHORED)
    fit(
        make_model(), whole_data(rows, anchors, ANCHORED), spec, on_step=records.append,
        on_drift=drifts.append,
    )  # fmt: skip
    assert [drift.step for drift in drifts] == [2, 4, 6]
    assert all(drift.kl > 0 for drift in drifts)
    assert [drift.state.anchor_factor for drift in drifts] == [2, 4, 8]
    assert [record.anchor_weight for record in records] == [2, 2, 4, 4, 8, 8]


def test_the_drift_is_the_mean_kl_on_the_watched_replies(make_model, make_spec, rows, make_tokenizer):
    prompts = [Prompt(n, tuple(range(n, n + 6))) for n in range(3)]
    watched = reply_to(make_model(), make_tokenizer(), prompts, max_seq_length=14)
    safety = FixedKL(beta=0.3, monitor=Monitor(every=6))
    model, drifts = make_model(torch.float64), []
    fit(model, run_data(rows, monitored=watched), make_spec(safety=safety), on_drift=drifts.append)
    total = 0.0
    for row in watched:
        tokens = torch.tensor([row.input_ids])
        with torch.no_grad():
            p = torch.log_softmax(model(tokens, use_cache=False).logits[0], -1)
            with model.disable_adapter():
                q = torch.log_softmax(model(tokens, use_cache=False).logits[0], -1)
        total += float((q.exp() * (q - p)).sum(-1)[row.prompt_ends[0] : -1].sum())
    assert drifts[-1].kl == pytest.approx(total / sum(row.loss_tokens for row in watched), rel=1e-6)


def test_three_skipped_steps_in_a_row_end_the_job(make_model, make_spec, rows):
    model, records = make_model(), []
    with torch.no_grad():
        next(iter(trainable_parameters(model).values()))[0, 0] = float("nan")
    with pytest.raises(JobFailure, match=r"steps 1 to 3 had no finite loss .* on rows \d") as caught:
        fit(model, run_data(rows), make_spec(), on_step=records.append)
    assert caught.value.code == "nonfinite_loss"
    assert [record.skipped for record in records] == [True] * 3


def test_one_bad_step_is_skipped_and_the_run_goes_on(make_model, make_spec, rows):
    model, records = make_model(), []

    def break_then_mend(record):
        records.append(record)
        with torch.no_grad():
            weight = next(iter(trainable_parameters(model).values()))
            weight[0, 0] = float("nan") if record.step == 2 else 0.01

    result = fit(model, run_data(rows), make_spec(), on_step=break_then_mend)
    assert result.steps == 6
    assert [record.step for record in records if record.skipped] == [3]


def test_a_checkpoint_of_another_run_is_refused(make_model, make_spec, rows, tmp_path):
    written = []
    fit(
        make_model(),
        run_data(rows),
        make_spec(n_epochs=1),
        checkpoint_folder=tmp_path,
        on_checkpoint=written.append,
    )
    resume = load_checkpoint(written[-1].info.path)
    for spec, some_rows in ((make_spec(n_epochs=2), rows), (make_spec(n_epochs=1), rows[:9])):
        with pytest.raises(CheckpointDamaged, match="other data or another specification"):
            fit(make_model(), run_data(some_rows), spec, resume=resume)


def test_checkpoints_by_epoch_and_by_the_clock(make_model, make_spec, rows, tmp_path):
    times = iter(range(0, 10_000, 10))
    written = []
    spec = make_spec(batch_size=2, checkpoint_interval_s=20)
    fit(
        make_model(), run_data(rows), spec, checkpoint_folder=tmp_path,
        on_checkpoint=written.append, clock=lambda: next(times),
    )  # fmt: skip
    found = [(checkpoint.info.step, checkpoint.kind, checkpoint.data_epoch) for checkpoint in written]
    assert found == [
        (2, "interval", 0), (4, "interval", 0), (5, "epoch", 0), (7, "interval", 1), (9, "interval", 1), (10, "epoch", 1),
    ]  # fmt: skip


def test_interval_0_is_after_every_step(make_model, make_spec, rows, tmp_path):
    written = []
    fit(
        make_model(), run_data(rows), make_spec(checkpoint_interval_s=0),
        checkpoint_folder=tmp_path, on_checkpoint=written.append,
    )  # fmt: skip
    assert [checkpoint.info.step for checkpoint in written] == [1, 2, 3, 4, 5, 6]


def test_cancel_stops_at_the_next_step_without_a_checkpoint(make_model, make_spec, rows, tmp_path):
    answers = iter([None, None, "cancel"])
    written, records = [], []
    result = fit(
        make_model(), run_data(rows), make_spec(), checkpoint_folder=tmp_path, on_step=records.append,
        on_checkpoint=written.append, should_stop=lambda: next(answers),
    )  # fmt: skip
    assert (result.steps, result.total_steps, result.stopped) == (2, 6, "cancel")
    assert len(records) == 2
    assert written == []


def test_validation_at_the_interval_and_at_the_end(make_model, make_spec, rows):
    heard = []
    model = make_model()
    fit(
        model, run_data(rows[:8]), make_spec(batch_size=3, n_epochs=3, eval_interval=4),
        validation_rows=rows[8:], on_validation=lambda *values: heard.append(values),
    )  # fmt: skip
    assert [step for step, _, _ in heard] == [4, 8, 9]
    assert heard[-1][1:] == validate(model, rows[8:])
    row = rows[8]
    labels = [token if bears else -100 for token, bears in zip(row.input_ids, row.loss_mask, strict=True)]
    with torch.no_grad():
        expected = model(torch.tensor([row.input_ids]), labels=torch.tensor([labels])).loss
    assert validate(model, [row])[0] == pytest.approx(float(expected), rel=1e-5)


def test_data_without_what_the_method_needs_are_refused(make_model, make_spec, rows):
    def refused(data, spec):
        with pytest.raises(JobFailure) as caught:
            fit(make_model(), data, spec)
        return caught.value.message

    few = {row: risk for row, risk in RISKS.items() if row < 9}
    assert "row 9 has no risk" in refused(run_data(rows, few), make_spec())
    unmeasured = {row: RowRisk(row, {}, None, "unmeasured") for row in range(10)}
    assert "not measured by any critic" in refused(run_data(rows, unmeasured), make_spec(safety=ADAPTIVE))
    assert "no anchor prompt" in refused(run_data(rows), make_spec(safety=ANCHORED))
    assert "no prompt to watch" in refused(
        run_data(rows), make_spec(safety=FixedKL(beta=0.1, monitor=Monitor()))
    )
    assert "lisa needs alignment data" in refused(run_data(rows), make_spec(safety=Lisa()))
    assert "no row is left" in refused(run_data([]), make_spec())


def test_total_steps_counts_short_batches(make_spec):
    assert plan_run(make_spec(batch_size=4, n_epochs=2), n_rows=10, n_alignment=0).total_steps == 6
    assert plan_run(make_spec(batch_size=4, n_epochs=1), n_rows=1, n_alignment=0).total_steps == 1


@pytest.mark.parametrize("cut", [1, 4])
def test_a_run_that_goes_on_in_smaller_micro_batches_learns_the_same(
    make_model, make_spec, rows, anchors, tmp_path, cut
):
    spec, data = make_spec(safety=ANCHORED), whole_data(rows, anchors, ANCHORED)
    whole, whole_records = make_model(torch.float64), []
    fit(whole, data, spec, on_step=whole_records.append)

    written, records = [], []
    fit(
        make_model(torch.float64), data, spec, checkpoint_folder=tmp_path, on_step=records.append,
        on_checkpoint=written.append, should_stop=lambda: "preempt" if len(records) == cut else None,
    )  # fmt: skip
    split = make_model(torch.float64)
    # As few tokens as one row may have: every row goes through the model alone.
    fit(
        split, data, spec, resume=load_checkpoint(written[-1].info.path), on_step=records.append,
        micro_batch_tokens=1,
    )  # fmt: skip
    for found, expected in zip(weights(split).values(), weights(whole).values(), strict=True):
        assert (found - expected).norm() <= 1e-9 * expected.norm()
    for record, one in zip(records, whole_records, strict=True):
        assert (record.rows, record.beta_mean, record.floor) == (one.rows, one.beta_mean, one.floor)
        assert record.loss == pytest.approx(one.loss, rel=1e-9)
