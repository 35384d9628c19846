"""The reference pass: whose risk is asked, what is kept of the reference, and that it is the reference's own."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from app.domain import safety_spec
from app.domain.safety_spec import AdaptiveKL, ConstrainedSFT, Filter, FixedKL, Lisa, NoPenalty
from worker.training.critics.activation import Points, Probe, Probes, load_activation, save_critic
from worker.training.critics.combined import CombinedCritic
from worker.training.critics.constant import ConstantCritic
from worker.training.critics.features import Directions
from worker.training.critics.probe import fit_critic
from worker.training.critics.protocol import Assessment
from worker.training.data import tokenize_row, tokenize_rows
from worker.training.methods.registry import METHODS
from worker.training.models import can_pack, template_digest
from worker.training.packing import micro_batches
from worker.training.reference import (
    ReferenceCache,
    RowRisk,
    TargetPlan,
    compute_row_targets,
    plan_targets,
    run_reference_pass,
)

CPU = torch.device("cpu")
PLENTY = 10**9
LAYERS, HIDDEN = 2, 32
CONSTANT = safety_spec.ConstantCritic(s=0.5)
ADAPTIVE = AdaptiveKL(critic=CONSTANT, threshold=0.5, replay=False, anchors=None, monitor=None)
REPLAYING = ADAPTIVE.model_copy(update={"replay": True})
FIXED = FixedKL(beta=0.3)
OTHERS = sorted(set(METHODS) - {"adaptive_kl", "fixed_kl", "constrained_sft"})
"""Methods whose user rows need nothing of the reference."""


@pytest.fixture
def rows(make_tokenizer, training_rows):
    return tokenize_rows(make_tokenizer(), training_rows, max_seq_length=256, overlength="error").rows


class ByRow:
    """Has an assessment of each row by its index; an exception in its place is raised."""

    digest = ""
    needs_features = True

    def __init__(self, answers=None):
        self.answers = answers or {}
        self.seen = {}

    def assess(self, row, features):
        self.seen[row] = features
        answer = self.answers.get(row, Assessment({"c": -1.0}, 0.25, "ok"))
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Reader(ByRow):
    """Keeps what some directions read in each row."""

    directions = Directions(*np.random.default_rng(0).normal(size=(2, LAYERS, HIDDEN)))

    def assess(self, row, features):
        self.seen[row] = features.score(self.directions)
        return Assessment({"c": 0.5}, 0.25, "ok")


def safety_of(method):
    fields = {"critic": CONSTANT, "threshold": 0.5} if method in ("adaptive_kl", "filter") else {}
    kinds = {kind.model_fields["method"].default: kind for kind in safety_spec.AnySafety.__args__}
    return kinds[method](**fields, **({"beta": 0.3} if method == "fixed_kl" else {}))


def run(model, rows, critic, spec, **changes):
    return run_reference_pass(model, rows, critic, spec, **{"cache_budget_bytes": PLENTY, **changes})


def by_row(risks):
    return {risk.row: risk for risk in risks}


def tensors(cache):
    """Every tensor of a cache by its row and name."""
    return {
        (key, name): value
        for key, targets in cache.targets.items()
        for name, value in vars(targets).items()
        if value is not None
    }


def equal(one, other):
    one, other = tensors(one), tensors(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- risks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_tokens", [70, 10_000])
def test_a_critic_reads_the_references_own_states(make_model, make_base, make_spec, rows, micro_batch_tokens):
    critic, base = Reader(), make_base()
    run(make_model(drift=0.3), rows, critic, make_spec(), micro_batch_tokens=micro_batch_tokens)
    assert critic.seen.keys() == set(range(10))
    for row in rows:
        with torch.no_grad():
            output = base(torch.tensor([row.input_ids]), output_hidden_states=True)
        states = np.stack([layer[0].double().numpy() for layer in output.hidden_states[1:]])
        prompts = np.einsum("lth,lh->tl", states[:, list(row.prompt_ends)], Reader.directions.prompt)
        np.testing.assert_allclose(critic.seen[row.index].prompts, prompts, rtol=1e-3, atol=1e-3)
        tokens = np.einsum("lth,lh->tl", states[:, np.flatnonzero(row.loss_mask)], Reader.directions.response)
        found = np.concatenate(critic.seen[row.index].responses)
        np.testing.assert_allclose(found, tokens, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "answer",
    [
        ValueError("broken"),
        RuntimeError("broken"),
        KeyError("no such row"),
        OSError("away"),
        Assessment({"c": float("nan")}, 0.5, "ok"),
        Assessment({"c": float("inf")}, 1.0, "ok"),
        Assessment({"c": 0.5}, float("nan"), "ok"),
        Assessment({"c": 0.5}, 1.5, "ok"),
        Assessment({}, -0.1, "constant"),
    ],
)
def test_a_critic_that_fails_makes_its_row_as_risky_as_can_be(make_model, make_spec, rows, answer):
    risks = run(make_model(), rows[:3], ByRow({1: answer}), make_spec()).risks
    assert (risks[1].log_odds, risks[1].s, risks[1].status) == ({}, 1.0, "failed")
    assert [(risk.row, risk.log_odds, risk.s, risk.status) for risk in (risks[0], risks[2])] == [
        (0, {"c": -1.0}, 0.25, "ok"),
        (2, {"c": -1.0}, 0.25, "ok"),
    ]


def test_an_error_that_is_no_failure_of_a_critic_ends_the_pass(make_model, make_spec, rows):
    with pytest.raises(AssertionError, match="a bug"):
        run(make_model(), rows, ByRow({4: AssertionError("a bug")}), make_spec())


def test_constant_and_missing_critics(make_model, make_spec, rows):
    found = run(make_model(), rows, ConstantCritic(0.4), make_spec())
    assert found.risks == tuple(RowRisk(row.index, {}, 0.4, "constant") for row in rows)
    found = run(make_model(), rows, None, make_spec())
    assert found.risks == tuple(RowRisk(row.index, {}, None, "unmeasured") for row in rows)


def test_a_judges_votes_stay_with_the_row(make_model, make_spec, rows):
    votes = ((4, None, 2), (1, 1, 1))
    critic = ByRow({2: Assessment({}, 0.75, "judged", votes)})
    risks = run(make_model(), rows, critic, make_spec()).risks
    assert risks[2] == RowRisk(2, {}, 0.75, "judged", votes)
    assert {risk.votes for risk in risks if risk.row != 2} == {()}


def test_known_risks_ask_no_critic_and_give_the_same(make_model, make_spec, rows):
    spec = make_spec(safety=REPLAYING)
    answers = {3: Assessment({"c": 4.0}, 0.75, "ok"), 5: ValueError("broken")}
    first = run(make_model(), rows, ByRow(answers), spec)
    assert len(first.cache.targets) == 8
    silent = ByRow(dict.fromkeys(range(10), AssertionError("asked")))
    again = run(make_model(), rows, silent, spec, known=by_row(first.risks))
    assert again.risks == first.risks
    assert not silent.seen
    assert equal(again.cache, first.cache)


def test_a_critic_from_its_fitting_to_the_risk_of_a_row(make_base, make_tokenizer, make_spec, tmp_path):
    def prompt(label, topic, n):
        return {"role": "user", "content": f"{topic} {n} {'!!!!!!' if label else '......'}"}

    model, tokenizer = make_base(hidden_size=64), make_tokenizer()
    data = [
        {"messages": [prompt(label, topic, n)], "label": label, "group": topic}
        for label in (0, 1)
        for topic in ("bread", "seeds", "paint", "stars")
        for n in range(15)
    ]
    probes, points, report = fit_critic(model, tokenizer, data, seed=0)
    assert report["auroc"] > 0.95
    digests = {"base_digest": "b", "template_digest": template_digest(tokenizer)}
    save_critic(tmp_path, probes, points, report=report, **digests)

    critic = load_activation(tmp_path, **digests)
    reply = {"role": "assistant", "content": "Yes."}
    benign, harmful = prompt(0, "glass", 30), prompt(1, "glass", 31)
    turns = [[benign], [harmful], [harmful, reply, benign]]
    rows = [tokenize_row(tokenizer, [*turn, reply], index=index) for index, turn in enumerate(turns)]
    risks = run(model, rows, critic, make_spec()).risks
    assert [risk.status for risk in risks] == ["ok"] * 3
    assert risks[0].s < 0.2
    assert risks[1].s > 0.8
    # A conversation is as risky as its riskiest turn.
    assert risks[2].log_odds[critic.digest] >= risks[1].log_odds[critic.digest] - 1e-4


def make_critic(folder, seed):
    """Return an activation critic with directions of its own."""
    draw = np.random.default_rng(seed)
    probes = Probes(
        *(Probe(draw.normal(size=(LAYERS, HIDDEN)), np.zeros(LAYERS), np.array([1.0, 0.0])) for _ in "pr")
    )
    save_critic(
        folder, probes, Points(-9.0 - seed, 0.0, 9.0), base_digest="b", template_digest="t", report={}
    )
    return load_activation(folder, base_digest="b", template_digest="t")


@pytest.mark.parametrize("rule", ["max", "weighted"])
def test_several_critics_read_the_same_states_in_one_pass(make_model, make_spec, rows, tmp_path, rule):
    critics = [make_critic(tmp_path / str(seed), seed) for seed in range(3)]
    weights = (0.5, 0.25, 0.25) if rule == "weighted" else None
    fields = safety_spec.CombinedCritic(
        critics=[{"type": "activation", "id": f"critic_{seed}"} for seed in range(3)],
        rule=rule,
        weights=weights,
    )
    model = make_model()
    seen = []
    layer = next(each for each in model.modules() if type(each).__name__.endswith("DecoderLayer"))
    layer.register_forward_pre_hook(lambda *_: seen.append(1))
    alone = [run(model, rows, critic, make_spec()).risks for critic in critics]
    del seen[:]
    run(model, rows, critics[0], make_spec())
    of_one = len(seen)
    found = run(model, rows, CombinedCritic(fields, critics), make_spec()).risks
    # What the model's traits are is asked once, before; a pass is what is left.
    assert (of_one, len(seen)) == (1, 2)
    for risk, *parts in zip(found, *alone, strict=True):
        assert risk.log_odds == {
            critic.digest: part.log_odds[critic.digest] for critic, part in zip(critics, parts, strict=True)
        }
        expected = max(part.s for part in parts)
        if weights:
            expected = float(
                sum(Fraction(w) * Fraction(part.s) for w, part in zip(weights, parts, strict=True))
            )
        assert risk.s == pytest.approx(expected, abs=1e-15)
        assert risk.status == "ok"
    assert len({risk.s for risk in found}) > 1


def test_where_one_of_several_critics_fails_the_row_has_failed(make_model, make_spec, rows, tmp_path):
    critics = [
        make_critic(tmp_path, 0),
        ByRow({3: ValueError("broken"), 4: Assessment({"d": float("nan")}, 0.1, "ok")}),
    ]
    fields = safety_spec.CombinedCritic(
        critics=[{"type": "activation", "id": name} for name in "ab"], rule="weighted", weights=(0.99, 0.01)
    )
    found = run(make_model(), rows, CombinedCritic(fields, critics), make_spec()).risks
    # Whatever its weight; what the other one read does not stand for it.
    assert [risk.row for risk in found if risk.status == "failed"] == [3, 4]
    assert all((risk.s, risk.log_odds) == (1.0, {}) for risk in found if risk.status == "failed")


def test_progress_reaches_all_rows_and_may_end_the_pass(make_model, make_spec, rows):
    heard = []
    run(make_model(), rows, None, make_spec(), micro_batch_tokens=99, on_progress=heard.append)
    sizes = micro_batches([len(row.input_ids) for row in rows], 99, packed=can_pack(make_model()))
    assert heard == np.cumsum([len(places) for places in sizes]).tolist()
    assert heard[-1] == 10

    def stop(_done):
        raise InterruptedError

    critic = ByRow()
    with pytest.raises(InterruptedError):
        run(make_model(), rows, critic, make_spec(), micro_batch_tokens=99, on_progress=stop)
    assert len(critic.seen) == heard[0]


# --- what is kept of the reference ------------------------------------------------------------------------


@pytest.mark.parametrize("n_epochs", [1, 2, 3, 10])
def test_the_plan_of_targets(n_epochs):
    forward = TargetPlan("expectation" if n_epochs >= 3 else "states")
    for safety in (ADAPTIVE, REPLAYING, FIXED):
        assert plan_targets("user", safety, n_epochs) == forward
        for penalty in ("reverse_kl", "l2"):
            other = safety.model_copy(update={"penalty": penalty})
            assert plan_targets("user", other, n_epochs) == TargetPlan("states")
            # Anchors are held by the forward KL whatever holds the user's rows.
            assert plan_targets("anchor", other, n_epochs) == forward
        assert (
            plan_targets("anchor", safety, n_epochs) == plan_targets("monitor", safety, n_epochs) == forward
        )
    assert plan_targets("user", ConstrainedSFT(), n_epochs) == TargetPlan(None, label_log_p=True)
    for method in OTHERS:
        assert plan_targets("user", safety_of(method), n_epochs).is_nothing
    for method in (*OTHERS, "constrained_sft"):
        for source in ("anchor", "monitor"):
            assert plan_targets(source, safety_of(method), n_epochs) == TargetPlan("expectation")


def reference_by_hand(base, row):
    """States, expected embedding, negative entropy and the labels' log-probabilities at each loss-bearing token."""
    bears = np.flatnonzero(row.loss_mask)
    labels = torch.tensor(row.input_ids)[bears]
    with torch.no_grad():
        output = base(torch.tensor([row.input_ids]), output_hidden_states=True)
        log_p = torch.log_softmax(output.logits[0, bears - 1].double(), -1)
    return {
        "states": output.hidden_states[-1][0, bears - 1],
        "expectation": log_p.exp() @ base.lm_head.weight.double(),
        "neg_entropy": (log_p.exp() * log_p).sum(-1),
        "label_log_p": log_p[torch.arange(len(bears)), labels],
    }


@pytest.mark.parametrize("critic", [None, ByRow()], ids=["no-critic", "critic"])
@pytest.mark.parametrize(
    ("safety", "n_epochs", "kept"),
    [
        (FIXED, 1, {"states"}),
        (FIXED, 3, {"expectation", "neg_entropy"}),
        (FIXED.model_copy(update={"penalty": "l2"}), 3, {"states"}),
        (ConstrainedSFT(), 3, {"label_log_p"}),
    ],
)
def test_what_is_cached_is_the_references(
    make_model, make_base, make_spec, rows, critic, safety, n_epochs, kept
):
    model, base = make_model(torch.float64, drift=0.3), make_base(torch.float64)
    spec = make_spec(safety=safety, n_epochs=n_epochs)
    cache = run(model, rows, critic, spec, micro_batch_tokens=70).cache
    assert cache.targets.keys() == {("user", row.index) for row in rows}
    for row in rows:
        expected, found = reference_by_hand(base, row), vars(cache.targets["user", row.index])
        assert {name for name, value in found.items() if value is not None} == kept
        for name in kept:
            # Llama's norms run in float32.
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_only_rows_that_train_on_their_own_reply_are_cached(make_model, make_spec, rows):
    risky = {
        1: Assessment({"c": 2.0}, 0.5, "ok"),
        4: Assessment({"c": 9.0}, 1.0, "ok"),
        8: ValueError("broken"),
    }
    own = {("user", row) for row in range(10)} - {("user", row) for row in risky}
    for n_epochs in (1, 3):
        spec = make_spec(safety=REPLAYING, n_epochs=n_epochs)
        assert run(make_model(), rows, ByRow(risky), spec).cache.targets.keys() == own
    # Without replay a risky row trains on its own reply too, and its penalty needs the reference most.
    whole = run(make_model(), rows, ByRow(risky), make_spec(safety=ADAPTIVE)).cache
    assert len(whole.targets) == 10


def test_nothing_is_kept_for_methods_without_a_penalty(make_model, make_spec, rows):
    model = make_model()
    for method in OTHERS:
        found = run(model, rows, ByRow(), make_spec(safety=safety_of(method), n_epochs=3))
        assert not found.cache.targets
        assert [risk.s for risk in found.risks] == [0.25] * 10


def test_nothing_is_kept_where_logits_are_more_than_the_head(make_spec, rows):
    config = Gemma2Config(
        vocab_size=266, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=256,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    assert not run(model, rows, None, make_spec()).cache.targets
    assert not compute_row_targets(model, "anchor", rows, make_spec(), budget_bytes=PLENTY).targets


@pytest.mark.parametrize(
    ("dtype", "safety", "n_epochs"),
    [
        *((dtype, FIXED, n_epochs) for dtype in (torch.float32, torch.bfloat16) for n_epochs in (1, 3)),
        (torch.bfloat16, ConstrainedSFT(), 1),
    ],
)
def test_the_cache_keeps_to_its_budget_in_file_order(make_model, make_spec, rows, dtype, safety, n_epochs):
    model, spec = make_model(dtype), make_spec(safety=safety, n_epochs=n_epochs)
    size = {
        row: targets.n_bytes for (_, row), targets in run(model, rows[:3], None, spec).cache.targets.items()
    }
    assert 0 < size[1] < size[2]
    cache = run(model, rows[:3], None, spec, cache_budget_bytes=size[0] + size[1]).cache
    assert [row for _, row in sorted(cache.targets)] == [0, 1]
    assert cache.n_bytes == size[0] + size[1]
    cache = run(model, rows[:3], None, spec, cache_budget_bytes=size[0] + size[1] - 1).cache
    assert [row for _, row in sorted(cache.targets)] == [0]
    assert not run(model, rows, None, spec, cache_budget_bytes=0).cache.targets


def test_the_pass_is_reproducible(make_model, make_spec, rows):
    first, second = (
        run(make_model(), rows, ByRow({2: ValueError("broken")}), make_spec(), micro_batch_tokens=99)
        for _ in range(2)
    )
    assert first.risks == second.risks
    assert [risk.row for risk in first.risks] == list(range(10))
    assert len(first.cache.targets) == 10
    assert equal(first.cache, second.cache)


@pytest.mark.parametrize(("safety", "n_epochs"), [(FIXED, 1), (FIXED, 3), (Lisa(), 1)])
@pytest.mark.parametrize("source", ["anchor", "monitor"])
def test_targets_of_rows_without_a_risk(make_model, make_base, make_spec, rows, source, safety, n_epochs):
    model, base = make_model(torch.float64, drift=0.3), make_base(torch.float64)
    spec = make_spec(safety=safety, n_epochs=n_epochs)
    cache = compute_row_targets(model, source, rows, spec, budget_bytes=PLENTY, micro_batch_tokens=70)
    assert cache.targets.keys() == {(source, row.index) for row in rows}
    name = plan_targets(source, safety, n_epochs).kind
    for row in rows:
        found = getattr(cache.targets[source, row.index], name)
        torch.testing.assert_close(found, reference_by_hand(base, row)[name], rtol=1e-6, atol=1e-6)
    assert not compute_row_targets(model, source, (), spec, budget_bytes=PLENTY).targets


def test_gathering_keeps_the_order_and_demands_every_row(make_model, make_spec, rows):
    model, spec = make_model(), make_spec()
    user = compute_row_targets(model, "user", rows[:2], spec, budget_bytes=PLENTY)
    # The same index in another list of rows is another row.
    cache = user.merged(compute_row_targets(model, "anchor", rows[5:6], spec, budget_bytes=PLENTY))
    assert cache.targets.keys() == {("user", 0), ("user", 1), ("anchor", 5)}
    assert cache.n_bytes == sum(4 * HIDDEN * row.loss_tokens for row in (*rows[:2], rows[5]))
    keys = [("anchor", 5), ("user", 1), ("user", 0)]
    found = cache.gather(keys, CPU)
    assert torch.equal(found.states, torch.cat([cache.targets[key].states for key in keys]))
    assert cache.gather([("user", 0), ("user", 5)], CPU) is None
    assert cache.gather([("anchor", 0)], CPU) is None
    assert ReferenceCache({}).gather([], CPU) is None


def test_no_gradient_and_no_neighbour_is_kept_with_a_row(make_model, make_spec, rows):
    """Each row's targets own their memory: a row that is kept must not hold a whole micro-batch."""
    for value in tensors(run(make_model(), rows, None, make_spec(n_epochs=3)).cache).values():
        assert not value.requires_grad
        assert value.untyped_storage().nbytes() == value.nbytes


def test_a_filtered_row_is_still_assessed(make_model, make_spec, rows):
    safety = Filter(critic=CONSTANT, threshold=0.5, anchors=None, monitor=None)
    found = run(make_model(), rows, ByRow({0: Assessment({"c": 9.0}, 1.0, "ok")}), make_spec(safety=safety))
    assert [risk.s for risk in found.risks] == [1.0, *[0.25] * 9]
    assert run(make_model(), rows, None, make_spec(safety=NoPenalty())).risks[0].s is None
