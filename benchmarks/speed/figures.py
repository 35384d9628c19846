"""What is measured and how the figures are put together.

Contenders take turns: in every round each does its part once, beginning with another contender each time, so that
whatever disturbs the machine meets them all. Each round gives one value of every figure, from that round alone.

A whole run is put together for a job of JOB_ROWS rows: what is done once for each row (the reference pass) or each step
is multiplied, what is done once for each run (setting up, the monitor's replies) is added as it is. A benchmark of so
many rows and twenty epochs, five times, would take hours; `--whole` runs three epochs of it once, as a check.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from typing import NamedTuple, Protocol

from benchmarks.speed.equality import check_all
from benchmarks.speed.head import build_case, head_contenders, time_head
from benchmarks.speed.memory import measure_peak
from benchmarks.speed.ours import DEFAULT, MONITOR_EVERY, PENALTY, PLAIN, WATCHED, OurRun, Timing
from benchmarks.speed.paper_peer import ACCUMULATION, PaperRun
from benchmarks.speed.results import Figure
from benchmarks.speed.shapes import BATCH_SIZE, Shape, fixed_rows, mixed_rows
from benchmarks.speed.trl_peer import CHANGES, LOSSES, SETTINGS, Loss, TRLRun, why_missing
from worker.training.data import TokenizedRow

JOB_ROWS = 320
EPOCHS = (1, 3, 20)
PEER_EPOCHS = 3
"""Passes over the data of the comparisons with TRL."""
PAPER_EPOCHS = 20
REPLY_ROWS = 32
"""Rows that are replayed in JOB_ROWS: a tenth."""
MEMORY_ROWS = 64
LONG = 4
"""Factor on the lengths of rows for the growth of memory."""
EXTRA = 0.20
"""What anchors and replay may add to a ratio."""

SMALL, LARGE = 4096, 32000
STEP_BAR = {SMALL: 1.05, LARGE: 1.15}
RUN_BAR = {SMALL: {1: 1.45, 3: 1.18, 20: 1.06}, LARGE: {1: 1.50, 3: 1.27, 20: 1.16}}
ADAPTIVE_TRL_BAR = {
    ("fixed", SMALL): 1.00,
    ("fixed", LARGE): 0.60,
    ("mixed", SMALL): 0.80,
    ("mixed", LARGE): 0.50,
}
PLAIN_TRL_BAR = {SMALL: 0.85, LARGE: 0.50}
PAPER_BAR = 0.25
MEMORY_BAR = 1.05
GROWTH_BAR = 0.10

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    shapes: tuple[Shape, ...]
    rounds: int
    fixed_batches: int
    """Batches of rows of one length, all trained on once in a round."""
    mixed_batches: int
    prompt: int
    response: int
    mixed_shapes: tuple[Shape, ...]
    """The shapes that are measured on mixed lengths too."""
    replies: bool
    """Whether the replies before training are measured for a job of JOB_ROWS rows."""
    memory: bool
    whole: bool
    """Whether three epochs over JOB_ROWS rows are really run, once, as a check."""
    threads: int


class Trainee(Protocol):
    """A contender that trains."""

    def train(self, max_steps: int | None = None) -> Timing:
        """Train, as far as `max_steps`, and time it."""


class Parts(NamedTuple):
    """What a round says of one contender, in seconds."""

    before: float
    """Of what comes before the loop, over the rows of the scene."""
    timing: Timing

    @property
    def step(self) -> float:
        """A step: the median, where all are alike."""
        return median(self.timing.steps)

    @property
    def mean_step(self) -> float:
        """A step: the mean, where they are not."""
        return mean(self.timing.steps)


class Peer(NamedTuple):
    """TRL, computing its loss in the fastest of several ways."""

    loss: Loss
    tried: tuple[Loss, ...]
    run: TRLRun


Rounds = list[dict[str, Parts]]


def measure(plan: Plan, say: Say) -> Iterator[Figure]:
    """Prove equality, then measure everything in `plan`. Raises Unequal before anything is timed."""
    for shape in plan.shapes:
        fixed = fixed_rows(BATCH_SIZE, shape.vocabulary, prompt=plan.prompt, response=plan.response)
        checks = list(check_all(shape, fixed, mixed_rows(BATCH_SIZE, shape.vocabulary)))
        for check in checks:
            say(f"{shape.vocabulary}: equal within {check.error:.0e}: {check.name}")
        yield Figure(
            f"equality_{shape.vocabulary}",
            "Equality",
            f"greatest relative difference of loss and gradients, {len(checks)} comparisons, V = {shape.vocabulary:,}",
            (max(check.error for check in checks) * 1e6,),
            unit="·10⁻⁶",
            note="Proved before anything is timed: TRL's losses against ours, our cached penalty against the formula over"
            " the whole vocabulary, the fused head against plain torch.",
        )
    for shape in plan.shapes:
        yield from measure_fixed(plan, shape, say)
    for shape in plan.mixed_shapes:
        yield from measure_mixed(plan, shape, say)
    for shape in plan.shapes:
        yield from measure_head(plan, shape)
    if plan.memory:
        yield from measure_memory(plan, say)


def measure_fixed(plan: Plan, shape: Shape, say: Say) -> Iterator[Figure]:
    """Measure everything on rows of one length."""
    v = shape.vocabulary
    make = partial(fixed_rows, vocabulary=v, prompt=plan.prompt, response=plan.response)
    rows = make(plan.fixed_batches * BATCH_SIZE)
    steps = plan.fixed_batches
    peers = choose_trl(shape, rows, say)
    contenders: dict[str, Callable[[], Parts]] = {
        "plain": in_full(OurRun(shape, rows, PLAIN, n_epochs=3), steps),
        "penalty": in_full(OurRun(shape, rows, PENALTY, n_epochs=3), steps),
        "one_epoch": in_full(OurRun(shape, rows, PENALTY, n_epochs=1), steps),
        "watched": in_full(OurRun(shape, rows, WATCHED, n_epochs=3), 1),
        "default": loop_only(OurRun(shape, rows, DEFAULT, n_epochs=3), steps),
        "small_batches": in_full(
            OurRun(shape, rows, PENALTY, n_epochs=PAPER_EPOCHS, batch_size=ACCUMULATION), 2 * steps
        ),
        "paper": loop_only(PaperRun(shape, rows, checkpointing=True), 2),
        "paper_fast": loop_only(PaperRun(shape, rows, checkpointing=False), 1),
    }
    contenders |= {name: loop_only(peer.run, steps) for name, peer in peers.items()}
    rounds = take_turns(contenders, plan.rounds, say, f"V = {v}, fixed lengths")
    scale, job_steps = JOB_ROWS / len(rows), JOB_ROWS / BATCH_SIZE

    yield Figure(
        f"step_seconds_{v}",
        "Time of a step",
        f"our plain SFT, V = {v:,}",
        tuple(each["plain"].step for each in rounds),
        unit="s",
    )
    yield Figure(
        f"step_penalty_over_plain_{v}",
        "Time of a step",
        f"adaptive KL with cached reference over our plain SFT, V = {v:,}",
        tuple(each["penalty"].step / each["plain"].step for each in rounds),
        STEP_BAR.get(v),
    )
    yield Figure(
        f"step_penalty_from_states_over_plain_{v}",
        "Time of a step",
        f"the same from cached states, which runs of one or two epochs use, V = {v:,}",
        tuple(each["one_epoch"].step / each["plain"].step for each in rounds),
    )
    yield Figure(
        f"step_default_over_plain_{v}",
        "Time of a step",
        f"the same with anchors and replay, V = {v:,}",
        tuple(each["default"].step / each["plain"].step for each in rounds),
        _with_extra(STEP_BAR.get(v)),
        note="Four anchors a step, 24 tokens of prompt and 32 of reply each; a tenth of the rows replayed.",
    )

    def plain_run(each: Mapping[str, Parts], epochs: int) -> float:
        plain = each["plain"]
        return plain.before + plain.timing.set_up + epochs * job_steps * plain.step

    def watching(each: Mapping[str, Parts]) -> tuple[float, float]:
        """What the monitor adds before the loop, and to a step."""
        drift = median(each["watched"].timing.drifts)
        return max(0.0, each["watched"].before - each["penalty"].before), drift / MONITOR_EVERY

    def adaptive_run(each: Mapping[str, Parts], epochs: int) -> float:
        parts = each["penalty" if epochs >= PEER_EPOCHS else "one_epoch"]
        replies, drift = watching(each)
        before = passed(parts, each["plain"], scale) + replies
        return before + parts.timing.set_up + epochs * job_steps * (parts.step + drift)

    for epochs in EPOCHS:
        yield Figure(
            f"run_adaptive_over_plain_{epochs}_{v}",
            "Time of a whole run",
            f"adaptive KL with its reference pass and monitor over our plain SFT, {_epochs(epochs)}, V = {v:,}",
            tuple(adaptive_run(each, epochs) / plain_run(each, epochs) for each in rounds),
            RUN_BAR.get(v, {}).get(epochs),
            note=f"For a job of {JOB_ROWS} rows, put together from the measured parts: the reference pass by the row,"
            " steps by the number, set-up and the monitor's replies as they are.",
        )
    if plan.replies:
        yield from _whole_default(plan, shape, rounds, plain_run, watching)

    def trl_run(each: Mapping[str, Parts], name: str) -> float:
        return each[name].timing.set_up + PEER_EPOCHS * job_steps * each[name].step

    yield from against_trl(
        "fixed",
        v,
        peers,
        {
            name: tuple(
                (
                    adaptive_run(each, PEER_EPOCHS) / trl_run(each, name),
                    plain_run(each, PEER_EPOCHS) / trl_run(each, name),
                )
                for each in rounds
            )
            for name in peers
        },
    )

    def small_batch_run(each: Mapping[str, Parts]) -> float:
        parts = each["small_batches"]
        replies, drift = watching(each)
        n_steps = PAPER_EPOCHS * JOB_ROWS / ACCUMULATION
        before = passed(parts, each["plain"], scale) + replies
        return before + parts.timing.set_up + n_steps * (parts.step + drift)

    for name, title, bar in (
        ("paper", "the published loop", PAPER_BAR),
        ("paper_fast", "the same loop without checkpointing", None),
    ):
        yield Figure(
            f"run_adaptive_over_{name}_{v}",
            "Against the published loop",
            f"whole adaptive run over {title}, 20 epochs, batches of 4, V = {v:,}",
            tuple(
                small_batch_run(each) / (PAPER_EPOCHS * JOB_ROWS / ACCUMULATION * each[name].step)
                for each in rounds
            ),
            bar,
            note=f"Steps of the loop are all alike; {2 * ACCUMULATION} rows a round are measured, not 20 epochs of them.",
        )
    if plan.whole:
        yield from _check_whole(shape, make(JOB_ROWS), peers)


def _whole_default(
    plan: Plan,
    shape: Shape,
    rounds: Rounds,
    plain_run: Callable[[Mapping[str, Parts], int], float],
    watching: Callable[[Mapping[str, Parts]], tuple[float, float]],
) -> Iterator[Figure]:
    """Put together whole runs of the default preset; the replies of anchors and risky rows are measured once."""
    v, job_steps = shape.vocabulary, JOB_ROWS / BATCH_SIZE
    some = fixed_rows(REPLY_ROWS, v, prompt=plan.prompt, response=plan.response)
    run = OurRun(shape, some, DEFAULT, n_epochs=3, flagged=1.0)
    before = min(run.prepare() for _ in range(2))
    pass_rows = (JOB_ROWS - REPLY_ROWS) / (plan.fixed_batches * BATCH_SIZE)
    for epochs in (3, 20):

        def default_run(each: Mapping[str, Parts], epochs: int = epochs) -> float:
            replies, drift = watching(each)
            parts = each["default"]
            more_rows = pass_rows * (each["penalty"].before - each["plain"].before)
            once = more_rows + before + replies + parts.timing.set_up
            return once + epochs * job_steps * (parts.step + drift)

        yield Figure(
            f"run_default_over_plain_{epochs}_{v}",
            "Time of a whole run",
            f"the same with anchors and replay, {_epochs(epochs)}, V = {v:,}",
            tuple(default_run(each) / plain_run(each, epochs) for each in rounds),
            _with_extra(RUN_BAR.get(v, {}).get(epochs)),
            note=f"Anchors and replay: the replies of all anchors and of {REPLY_ROWS} risky rows come before the loop.",
        )


def measure_mixed(plan: Plan, shape: Shape, say: Say) -> Iterator[Figure]:
    """Measure the comparison with TRL on rows of mixed lengths, as a peer that groups by length sees them."""
    v = shape.vocabulary
    rows = mixed_rows(plan.mixed_batches * BATCH_SIZE, v)
    peers = choose_trl(shape, rows, say)
    if not peers:
        yield from against_trl("mixed", v, {}, {})
        return
    steps = plan.mixed_batches
    contenders: dict[str, Callable[[], Parts]] = {
        "plain": in_full(OurRun(shape, rows, PLAIN, n_epochs=3), steps),
        "penalty": in_full(OurRun(shape, rows, PENALTY, n_epochs=3), steps),
        "watched": in_full(OurRun(shape, rows, WATCHED, n_epochs=3), 1),
        **{name: loop_only(peer.run, steps) for name, peer in peers.items()},
    }
    rounds = take_turns(contenders, plan.rounds, say, f"V = {v}, mixed lengths")
    scale, n_steps = JOB_ROWS / len(rows), PEER_EPOCHS * JOB_ROWS / BATCH_SIZE

    def loop(parts: Parts) -> float:
        return parts.timing.set_up + n_steps * parts.mean_step

    def adaptive(each: Mapping[str, Parts]) -> float:
        drift = median(each["watched"].timing.drifts) / MONITOR_EVERY
        replies = max(0.0, each["watched"].before - each["penalty"].before)
        before = passed(each["penalty"], each["plain"], scale) + replies
        return before + loop(each["penalty"]) + n_steps * drift

    def plain(each: Mapping[str, Parts]) -> float:
        return each["plain"].before + loop(each["plain"])

    yield from against_trl(
        "mixed",
        v,
        peers,
        {
            name: tuple(
                (adaptive(each) / loop(each[name]), plain(each) / loop(each[name])) for each in rounds
            )
            for name in peers
        },
    )


def against_trl(
    kind: str, v: int, peers: Mapping[str, Peer], ratios: Mapping[str, tuple[tuple[float, float], ...]]
) -> Iterator[Figure]:
    """Return the figures against TRL from each round's ratios (adaptive, plain) to each peer; without peers, why."""
    for name, said in (("trl", "TRL's plain SFT"), ("trl_changed", "TRL's, changed to be faster")):
        of_peer = ratios.get(name, ())
        has_bar = name == "trl"
        note = why_missing() or ""
        if name in peers:
            tried = ", ".join(f"`{loss}`" for loss in peers[name].tried)
            note = f"V = {v:,}, {kind} lengths, {said}: `{peers[name].loss}`, the fastest of {tried} by measurement."
        yield Figure(
            f"run_adaptive_over_{name}_{kind}_{v}",
            "Against TRL",
            f"whole adaptive run, 3 epochs, over {said}, {kind} lengths, V = {v:,}",
            tuple(adaptive for adaptive, _ in of_peer),
            ADAPTIVE_TRL_BAR.get((kind, v)) if has_bar else None,
            note=note,
        )
        yield Figure(
            f"run_plain_over_{name}_{kind}_{v}",
            "Against TRL",
            f"our plain SFT over {said}, 3 epochs, {kind} lengths, V = {v:,}",
            tuple(plain for _, plain in of_peer),
            PLAIN_TRL_BAR.get(v) if has_bar and kind == "fixed" else None,
            note=note,
        )


def measure_head(plan: Plan, shape: Shape) -> Iterator[Figure]:
    """Measure the head alone on the loss-bearing positions of one step."""
    case = build_case(shape, BATCH_SIZE * plan.response)
    contenders = head_contenders(case)
    for loss in contenders.values():
        time_head(case, loss)
    rounds = [
        {name: time_head(case, loss) for name, loss in contenders.items()} for _ in range(max(5, plan.rounds))
    ]
    for name, over, title in (
        ("kl", "torch_nll", "NLL and KL, fused, over torch's cross-entropy"),
        ("kl", "torch_kl", "NLL and KL, fused, over plain torch"),
        ("kl", "nll", "NLL and KL over NLL, both fused"),
        ("kl_states", "nll", "the same from cached states"),
    ):
        yield Figure(
            f"head_{name}_over_{over}_{shape.vocabulary}",
            "The head alone",
            f"{title}, {BATCH_SIZE * plan.response} positions, V = {shape.vocabulary:,}",
            tuple(each[name] / each[over] for each in rounds),
        )


def measure_memory(plan: Plan, say: Say) -> Iterator[Figure]:
    """Measure peak memory in processes of their own, once each: it hardly varies."""
    peaks: dict[tuple[str, int, int], int] = {}
    small, large = plan.shapes[0], plan.shapes[-1]
    for shape, factor in dict.fromkeys(((small, 1), (small, LONG), (large, LONG))):
        v, tokens = shape.vocabulary, factor * (plan.prompt + plan.response)
        for contender in ("plain", "adaptive"):
            found = measure_peak(
                contender,
                shape,
                prompt=plan.prompt * factor,
                response=plan.response * factor,
                rows=MEMORY_ROWS // factor,
                threads=plan.threads,
            )
            peaks[contender, v, factor] = found.peak - found.before
            say(f"memory of {contender}, V = {v}, rows × {factor}: {found.peak - found.before:,} B")
        yield Figure(
            f"memory_adaptive_over_plain_{tokens}_{v}",
            "Peak memory",
            f"adaptive KL over our plain SFT, rows of {tokens} tokens, V = {v:,}",
            (peaks["adaptive", v, factor] / peaks["plain", v, factor],),
            MEMORY_BAR,
            note=f"Resident memory above that of the loaded libraries, in a fresh process, over the reference pass on"
            f" {MEMORY_ROWS} rows ({MEMORY_ROWS // LONG} of the long ones) and two steps, what is kept of the"
            " reference included.",
        )
    more = large.vocabulary - small.vocabulary
    if not more:
        return
    weights = 2 * 4 * more * large.hidden
    for contender in ("plain", "adaptive"):
        growth = peaks[contender, large.vocabulary, LONG] - peaks[contender, small.vocabulary, LONG] - weights
        logits = 4 * more * LONG * plan.response * BATCH_SIZE
        yield Figure(
            f"memory_growth_{contender}",
            "Peak memory",
            f"{contender}: growth with the vocabulary beyond that of the weights, over one tensor of a step's logits",
            (growth / logits,),
            GROWTH_BAR,
            note=f"The growth from V = {small.vocabulary:,} to {large.vocabulary:,}: 1 would be one tensor of float32"
            " logits at the loss-bearing positions of a step; a loss over whole logits holds several.",
        )


def choose_trl(shape: Shape, rows: Sequence[TokenizedRow], say: Say) -> dict[str, Peer]:
    """Return TRL as fast as its settings make it, and as fast as changes make it; nothing where it is missing."""
    if why_missing() is not None:
        return {}
    seconds: dict[Loss, float] = {}
    runs: dict[Loss, TRLRun] = {}
    for loss in LOSSES:
        runs[loss] = TRLRun(shape, rows, loss, n_epochs=PEER_EPOCHS)
        runs[loss].train(1)
        seconds[loss] = sum(runs[loss].train(len(rows) // BATCH_SIZE).steps)
    say(f"TRL, V = {shape.vocabulary}: " + ", ".join(f"{loss} {s:.2f} s" for loss, s in seconds.items()))
    best = {
        name: (min(tried, key=lambda loss: seconds[loss]), tried)
        for name, tried in (("trl", SETTINGS), ("trl_changed", CHANGES))
    }
    return {name: Peer(loss, tried, runs[loss]) for name, (loss, tried) in best.items()}


def passed(parts: Parts, plain: Parts, scale: float) -> float:
    """Return the seconds of a reference pass over `scale` times the rows.

    What comes before a plain run's loop does not grow with the rows: it has no pass.
    """
    return plain.before + scale * (parts.before - plain.before)


def in_full(run: OurRun, max_steps: int) -> Callable[[], Parts]:
    """Return what does a run's reference pass and `max_steps` steps."""
    return lambda: Parts(run.prepare(), run.train(max_steps))


def loop_only(run: Trainee, max_steps: int) -> Callable[[], Parts]:
    """Return what does `max_steps` steps of a run."""
    return lambda: Parts(0.0, run.train(max_steps))


def take_turns(contenders: Mapping[str, Callable[[], Parts]], rounds: int, say: Say, what: str) -> Rounds:
    """Let every contender warm up, then do its part once a round, each round beginning with the next one."""
    for part in contenders.values():
        part()
    names = list(contenders)
    found: Rounds = []
    for number in range(rounds):
        first = number % len(names)
        found.append({})
        for name in (*names[first:], *names[:first]):
            # A collection in the middle of a step would be charged to whoever runs.
            gc.collect()
            found[-1][name] = contenders[name]()
        steps = ", ".join(f"{name} {parts.mean_step:.2f}" for name, parts in sorted(found[-1].items()))
        say(f"{what}, round {number + 1} of {rounds}, seconds a step: {steps}")
    return found


def _check_whole(shape: Shape, rows: Sequence[TokenizedRow], peers: Mapping[str, Peer]) -> Iterator[Figure]:
    """Run three epochs of a whole job once, nothing put together."""
    seconds: dict[str, float] = {}
    for name, safety in (("adaptive", PENALTY), ("plain", PLAIN)):
        run = OurRun(shape, rows, safety, n_epochs=PEER_EPOCHS)
        before, timing = run.prepare(), run.train()
        seconds[name] = before + timing.set_up + sum(timing.steps)
    if "trl" in peers:
        timing = TRLRun(shape, rows, peers["trl"].loss, n_epochs=PEER_EPOCHS).train()
        seconds["trl"] = timing.set_up + sum(timing.steps)
    for over in ("plain", "trl"):
        if over in seconds:
            yield Figure(
                f"whole_adaptive_over_{over}_{shape.vocabulary}",
                "Really run, once",
                f"adaptive KL over {over}, 3 epochs of {JOB_ROWS} rows, V = {shape.vocabulary:,}",
                (seconds["adaptive"] / seconds[over],),
            )


def _with_extra(bar: float | None) -> float | None:
    return None if bar is None else round(bar + EXTRA, 2)


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"
