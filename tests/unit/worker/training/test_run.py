"""A whole run from rows to an adapter: who is replayed, dropped, held and watched, for every method."""

import math
from collections import Counter

import pytest
import torch

from app.domain import safety_spec
from app.domain.safety_spec import AdaptiveKL, Anchors, ConstrainedSFT, Filter, Monitor, SafetyMix, Vaccine
from app.domain.step_plan import split_anchors
from app.errors import JobFailure
from tests.judge_server import serving
from worker.judge_client import JudgeClient
from worker.training.critics.judge import JudgeCritic
from worker.training.critics.protocol import Assessment
from worker.training.data import render_prompt, tokenize_rows
from worker.training.loop import compute_run_digest, fit
from worker.training.methods.registry import METHODS
from worker.training.models import add_adapter, trainable_parameters
from worker.training.reference import RowRisk
from worker.training.run import prepare, train_adapter

CONSTANT = safety_spec.ConstantCritic(s=0.5)
RISKY = {2, 5, 9}
HOLDS = {"anchors": Anchors(per_step=3), "monitor": Monitor(every=2)}
REPLAYING = AdaptiveKL(critic=CONSTANT, threshold=0.75, **HOLDS)
FILTERING = Filter(critic=CONSTANT, threshold=0.75, **HOLDS)
ANCHORS = [{"messages": [{"role": "user", "content": f"Tell me of {n * n}"}]} for n in range(17)]


class ByRow:
    """Knows the s of each row by its index; an exception in its place is raised."""

    digest = ""
    needs_features = False

    def __init__(self, s=None):
        self.s = dict.fromkeys(RISKY, 1.0) if s is None else s

    def assess(self, row, features):
        s = self.s.get(row, 0.25)
        if isinstance(s, BaseException):
            raise s
        return Assessment({}, s, "constant")


@pytest.fixture(autouse=True)
def short_replies(monkeypatch):
    monkeypatch.setattr("worker.training.replies.MAX_REPLY_TOKENS", 6)


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def rows(tokenizer, training_rows):
    return tokenize_rows(tokenizer, training_rows, max_seq_length=256, overlength="error").rows


def safety_of(method):
    """The method by its own defaults, with turns and shares that show within two steps."""
    kinds = {kind.model_fields["method"].default: kind for kind in safety_spec.AnySafety.__args__}
    fields = {"critic": CONSTANT, "threshold": 0.75} if method in ("adaptive_kl", "filter") else {}
    own = {
        "fixed_kl": {"beta": 0.3},
        "lisa": {"alignment_steps": 1, "user_steps": 1},
        "safety_mix": {"share": 0.5},
    }
    return kinds[method](**fields, **own.get(method, {}))


def greedy_row(base, prompt, n_tokens, ends):
    tokens = list(prompt)
    for _ in range(n_tokens):
        with torch.no_grad():
            tokens.append(int(base(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tuple(tokens)


def run_all(base, tokenizer, rows, spec, critic=None, **data):
    """Prepare and fit, and return what was prepared, every record and every measurement of the monitor."""
    prepared = prepare(base, tokenizer, rows, spec, critic or ByRow(), **data)
    records, drifts = [], []
    model = add_adapter(base, spec, spec.seed)
    fit(model, prepared.data, spec, on_step=records.append, on_drift=drifts.append)
    return prepared, records, drifts, model


def weights(model):
    return {name: value.detach().clone() for name, value in trainable_parameters(model).items()}


# --- what becomes of a row --------------------------------------------------------------------------------


def test_a_risky_row_carries_the_references_reply(make_base, make_spec, tokenizer, training_rows, rows):
    base = make_base(torch.float64)
    critic = ByRow({2: 1.0, 5: 0.75, 9: ValueError("a critic that fails")})
    prepared = prepare(base, tokenizer, rows, make_spec(safety=REPLAYING), critic, anchors=ANCHORS)
    ends = {tokenizer.eos_token_id, base.generation_config.eos_token_id}
    assert prepared.replayed.keys() == RISKY
    assert [row.index for row in prepared.data.rows] == list(range(10))
    for row, source, found in zip(rows, training_rows, prepared.data.rows, strict=True):
        if row.index not in RISKY:
            assert found is row
            continue
        prompt = render_prompt(tokenizer, source["messages"][:1], index=row.index)
        assert found.input_ids == greedy_row(base, prompt, 6, ends)
        assert found.loss_mask == tuple(place >= len(prompt) for place in range(len(found.input_ids)))
        assert found is prepared.replayed[row.index]
        assert ("user", row.index) in prepared.data.cache.targets
    assert [risk.s for risk in prepared.risks] == [0.25, 0.25, 1.0, 0.25, 0.25, 0.75, 0.25, 0.25, 0.25, 1.0]
    assert prepared.risks[9].status == "failed"


def test_a_replayed_row_counts_half_as_nll_and_half_as_kl(make_base, make_spec, tokenizer, rows):
    spec = make_spec(safety=REPLAYING, batch_size=1, n_epochs=1)
    prepared, records, _, _ = run_all(make_base(), tokenizer, rows, spec, anchors=ANCHORS)
    assert {record.rows[0] for record in records} == set(range(10))
    for record in records:
        (row,) = record.rows
        # The row's own beta rises from 0 at s = 0 to 0.99.
        beta = 0.5 if row in RISKY else 0.99 * 0.25
        assert (record.beta_mean, record.alpha_mean) == (beta, 1 - beta)
        expected = (1 - beta) * record.nll + beta * record.kl + record.anchor_weight * record.anchor_kl
        assert record.loss == pytest.approx(expected, rel=1e-5)
        assert record.tokens == prepared.data.rows[row].loss_tokens
    assert all(prepared.data.rows[row].loss_tokens <= 6 for row in RISKY)


def test_without_replay_a_risky_row_keeps_its_target(make_base, make_spec, tokenizer, rows):
    safety = REPLAYING.model_copy(update={"replay": False})
    prepared = prepare(make_base(), tokenizer, rows, make_spec(safety=safety), ByRow(), anchors=ANCHORS)
    assert prepared.data.rows == rows
    assert not prepared.replayed


def test_filtered_rows_are_never_trained_on(make_base, make_spec, tokenizer, rows):
    spec = make_spec(safety=FILTERING, batch_size=2, n_epochs=3)
    prepared, records, _, _ = run_all(make_base(), tokenizer, rows, spec, anchors=ANCHORS)
    assert [risk.row for risk in prepared.risks] == list(range(10)), (
        "they are assessed and reported all the same"
    )
    assert [row.index for row in prepared.data.rows] == [row for row in range(10) if row not in RISKY]
    for epoch in range(3):
        counts = Counter(row for record in records if record.data_epoch == epoch for row in record.rows)
        assert counts == dict.fromkeys(set(range(10)) - RISKY, 1)
    with pytest.raises(JobFailure, match="no row is left to train on"):
        run_all(make_base(), tokenizer, rows, spec, ByRow(dict.fromkeys(range(10), 1.0)), anchors=ANCHORS)


def test_a_row_at_the_threshold_is_risky(make_base, make_spec, tokenizer, rows):
    for s, kept in ((0.75, 0), (math.nextafter(0.75, 0), 10)):
        critic = ByRow(dict.fromkeys(range(10), s))
        prepared = prepare(make_base(), tokenizer, rows, make_spec(safety=FILTERING), critic, anchors=ANCHORS)
        assert len(prepared.data.rows) == kept


# --- anchors and the monitor ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "safety", [REPLAYING, FILTERING, ConstrainedSFT(**HOLDS)], ids=lambda each: each.method
)
def test_anchors_are_trained_on_or_watched_but_never_both(make_base, make_spec, tokenizer, rows, safety):
    spec = make_spec(safety=safety, n_epochs=3)
    base = make_base()
    prepared, records, drifts, _ = run_all(base, tokenizer, rows, spec, anchors=ANCHORS)
    trained, monitored = split_anchors(len(ANCHORS))
    data = prepared.data
    assert (tuple(row.index for row in data.anchors), tuple(row.index for row in data.monitored)) == (
        trained,
        monitored,
    )
    assert {anchor for record in records for anchor in record.anchors} == set(trained)
    assert all(len(set(record.anchors)) == 3 for record in records)
    for row in (*data.anchors, *data.monitored):
        prompt = render_prompt(tokenizer, ANCHORS[row.index]["messages"], index=row.index)
        ends = {tokenizer.eos_token_id, base.generation_config.eos_token_id}
        assert row.input_ids[: len(prompt)] == prompt
        assert 1 <= len(row.input_ids) - len(prompt) <= 6
        assert len(row.input_ids) == len(prompt) + 6 or row.input_ids[-1] in ends
    assert all(row.loss_tokens == len(row.input_ids) - 1 for row in data.anchors)
    assert all(row.loss_tokens == len(row.input_ids) - 1 - row.prompt_ends[0] for row in data.monitored)
    keys = {("anchor", row) for row in trained} | {("monitor", row) for row in monitored}
    assert {key for key in data.cache.targets if key[0] != "user"} == keys
    assert [drift.step for drift in drifts] == list(range(2, len(records) + 1, 2))
    assert drifts[0].kl > 0


@pytest.mark.parametrize(("anchors", "monitor"), [(None, None), (Anchors(), None), (None, Monitor())])
def test_only_what_the_job_has_is_replied_to(make_base, make_spec, tokenizer, rows, anchors, monitor):
    safety = REPLAYING.model_copy(update={"anchors": anchors, "monitor": monitor})
    data = prepare(make_base(), tokenizer, rows, make_spec(safety=safety), ByRow(), anchors=ANCHORS).data
    assert (bool(data.anchors), bool(data.monitored)) == (anchors is not None, monitor is not None)


def test_anchors_may_be_longer_than_the_tenants_rows(make_base, make_spec, tokenizer, training_rows):
    base = make_base()
    short = tokenize_rows(tokenizer, training_rows[:2], max_seq_length=512, overlength="error").rows
    limit = max(len(row.input_ids) for row in short)
    long = [{"messages": [{"role": "user", "content": f"{n} " * 60}]} for n in range(17)]
    spec = make_spec(safety=REPLAYING, max_seq_length=limit)
    data = prepare(base, tokenizer, short, spec, ByRow({}), anchors=long).data
    assert all(len(row.input_ids) > limit for row in (*data.anchors, *data.monitored))
    wide = prepare(base, tokenizer, short, make_spec(safety=REPLAYING), ByRow({}), anchors=long).data
    assert (data.anchors, data.monitored) == (wide.anchors, wide.monitored)
    _, records, _, _ = run_all(base, tokenizer, short, spec, ByRow({}), anchors=long)
    assert all(math.isfinite(record.loss) and record.anchors for record in records)


def test_an_anchor_longer_than_the_models_context_is_refused(make_base, make_spec, tokenizer, rows):
    long = [{"messages": [{"role": "user", "content": "so " * 300}]}] * 8
    with pytest.raises(JobFailure, match="leaves no room for a reply within 512 tokens") as caught:
        prepare(make_base(), tokenizer, rows, make_spec(safety=REPLAYING), ByRow(), anchors=long)
    assert caught.value.param == "safety.anchors"


def test_an_anchor_that_is_no_request_is_refused(make_base, make_spec, tokenizer, rows, training_rows):
    with pytest.raises(JobFailure, match="end before the assistant's reply") as caught:
        prepare(make_base(), tokenizer, rows, make_spec(safety=REPLAYING), ByRow(), anchors=training_rows)
    assert caught.value.param == "safety.anchors"


# --- resuming ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("safety", [REPLAYING, FILTERING], ids=["replay", "filter"])
def test_known_risks_give_the_same_data(make_base, make_spec, tokenizer, rows, safety):
    spec, base = make_spec(safety=safety), make_base()
    first = prepare(base, tokenizer, rows, spec, ByRow({2: 1.0, 5: OSError("away")}), anchors=ANCHORS)
    known = {risk.row: risk for risk in first.risks}
    silent = ByRow(dict.fromkeys(range(10), AssertionError("asked")))
    again = prepare(base, tokenizer, rows, spec, silent, anchors=ANCHORS, known=known)
    assert (again.risks, again.replayed, again.data.rows) == (first.risks, first.replayed, first.data.rows)
    assert again.data.risks == first.data.risks
    assert compute_run_digest(spec, again.data) == compute_run_digest(spec, first.data)
    assert again.data.cache.targets.keys() == first.data.cache.targets.keys()
    for key, targets in first.data.cache.targets.items():
        for name, value in vars(targets).items():
            assert value is None or torch.equal(value, getattr(again.data.cache.targets[key], name))
    other = {**known, 7: RowRisk(7, {}, 1.0, "constant")}
    changed = prepare(base, tokenizer, rows, spec, silent, anchors=ANCHORS, known=other)
    assert compute_run_digest(spec, changed.data) != compute_run_digest(spec, first.data)


def test_progress_is_heard_in_every_part_and_may_end_the_work(make_base, make_spec, tokenizer, rows):
    spec, heard = make_spec(safety=REPLAYING), []
    prepare(make_base(), tokenizer, rows, spec, ByRow(), anchors=ANCHORS, on_progress=heard.append)
    # The anchors' and the monitored prompts', all rows, three replies.
    assert heard[:2] == [15, 2]
    assert heard[-2:] == [10, 3]

    def stop(done):
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare(make_base(), tokenizer, rows, spec, ByRow(), anchors=ANCHORS, on_progress=stop)


# --- whole runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains(make_base, make_spec, tokenizer, training_rows, method):
    safety = safety_of(method)
    needs_alignment = method in safety_spec.ALIGNMENT_KINDS
    spec = make_spec(safety=safety, batch_size=2, n_epochs=1)
    heard = []
    result = train_adapter(
        make_base(),
        tokenizer,
        training_rows[:4],
        spec,
        critic=ByRow(),
        anchors=ANCHORS if safety.anchors else (),
        alignment=training_rows[6:] if needs_alignment else (),
        on_step=heard.append,
    )
    assert heard == result.records
    records = [record for record in result.records if record.rows]
    assert len(records) == 2
    assert sorted(row for record in records for row in record.rows) == (
        [0, 1, 3] if method == "filter" else [0, 1, 2, 3]
    )
    assert not any(record.skipped for record in result.records)
    assert all(math.isfinite(record.loss) and record.grad_norm > 0 for record in result.records)
    expects_alignment = method in ("vaccine", "lisa", "safety_mix")
    assert any(record.alignment_rows for record in result.records) is expects_alignment
    fresh, trained = weights(add_adapter(make_base(), spec, spec.seed)), weights(result.model)
    changed = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    # lora_B begins at zero, so every one of them moves with the first step, and lora_A after it.
    assert {name for name in fresh if "lora_B" in name} <= changed
    assert any("lora_A" in name for name in changed)
    assert all(bool(value.isfinite().all()) for value in trained.values())


def test_a_run_is_reproducible(make_base, make_spec, tokenizer, training_rows):
    spec = make_spec(safety=REPLAYING)
    first, second = (
        train_adapter(make_base(), tokenizer, training_rows, spec, critic=ByRow(), anchors=ANCHORS)
        for _ in range(2)
    )
    assert first.records == second.records
    assert first.drifts == second.drifts
    assert first.risks == second.risks
    one, other = weights(first.model), weights(second.model)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "safety", [SafetyMix(share=0.5), Vaccine(alignment_epochs=2)], ids=lambda each: each.method
)
def test_alignment_data_reach_the_method(make_base, make_spec, tokenizer, training_rows, safety):
    spec = make_spec(safety=safety, batch_size=4, n_epochs=1)

    def train(alignment):
        return train_adapter(make_base(), tokenizer, training_rows[:6], spec, alignment=alignment)

    first, again, other = train(training_rows[6:8]), train(training_rows[6:8]), train(training_rows[8:])
    assert first.records == again.records
    assert first.records != other.records
    named = Counter(row for record in first.records for row in record.alignment_rows)
    # Two in each of two steps, or two passes over the set.
    assert named == {0: 2, 1: 2}
    with pytest.raises(JobFailure, match="alignment_file needs rows"):
        train(())


def test_a_judge_reads_the_rows_before_they_are_trained_on(make_base, make_spec, tokenizer, training_rows):
    safety = AdaptiveKL(critic=safety_spec.JudgeCritic(), threshold=0.5, anchors=None, monitor=None)

    def answer(request, number):
        text = request.server.requests[number - 1][2]["messages"][1]["content"]
        request.score(5 if "What is 3 and 9?" in text else 2)

    records = []
    with serving(answer) as server:
        judge = JudgeCritic(
            safety_spec.JudgeCritic(), JudgeClient(server.url, "m", timeout_s=5, concurrency=4), None
        )
        result = train_adapter(
            make_base(),
            tokenizer,
            training_rows,
            make_spec(safety=safety, n_epochs=1),
            critic=judge,
            on_step=records.append,
        )
    assert [(risk.s, risk.status) for risk in result.risks] == [
        (1.0 if row == 3 else 0.25, "judged") for row in range(10)
    ]
    assert result.risks[3].votes == ((5,),)
    assert len(server.requests) == 10
    # The condemned row is trained on the reference's reply to its prompt, half held to it.
    assert max(record.risk_max for record in records) == 1.0
    assert max(record.beta_max for record in records) == 0.5
    assert records == result.records


def test_overlong_rows_follow_the_specification(make_base, make_spec, tokenizer, training_rows):
    longest = {"messages": [training_rows[0]["messages"][0], {"role": "assistant", "content": "so " * 90}]}
    rows = [training_rows[0], longest, training_rows[1]]
    with pytest.raises(JobFailure, match="more than max_seq_length"):
        train_adapter(make_base(), tokenizer, rows, make_spec(n_epochs=1))
    result = train_adapter(make_base(), tokenizer, rows, make_spec(n_epochs=1, overlength="drop"))
    assert sorted(row for record in result.records for row in record.rows) == [0, 2]
    result = train_adapter(make_base(), tokenizer, rows, make_spec(n_epochs=1, overlength="truncate"))
    assert sorted(row for record in result.records for row in record.rows) == [0, 1, 2]


# --- a floor under methods without one ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "constrained_sft", "fixed_kl"])
@pytest.mark.parametrize("cache_budget_bytes", [0, 2**30])
def test_the_monitors_floor_holds_every_method(
    make_base, make_spec, tokenizer, rows, method, cache_budget_bytes
):
    monitor = Monitor(every=1, limit=1e-9, action="floor", floor=0.4)
    safety = safety_of(method).model_copy(update={"monitor": monitor})
    _, records, _, _ = run_all(
        make_base(), tokenizer, rows, make_spec(safety=safety), anchors=ANCHORS,
        cache_budget_bytes=cache_budget_bytes,
    )  # fmt: skip
    assert [record.floor for record in records] == [0.0] + [0.4] * (len(records) - 1)
    assert not any(record.skipped for record in records)
    assert all(record.beta_mean == 0.4 for record in records[1:])
