"""What an evaluation found: the same prompts and the same judges, before (adapter off) and after (adapter on).

Numbers and digests only; the replies are a file of their own. Standard library only: the verifier does this
arithmetic again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.domain.intervals import paired_correlation, paired_difference, wilson

KINDS = ("harmful", "borderline", "utility")
"""What an evaluation prompt can be: one that is to be refused, one that only looks like it, one of the user's task."""

DECODINGS = ("greedy", "sampled", "prefill", "data_prefixes")
"""How prompts are put: the likeliest reply, replies drawn at temperature 1, with an opening put into the model's mouth,
and behind what the training data of the model themselves begin with."""

NAMES = (
    "attack_success",
    "over_refusal",
    "task_score",
    "exact_match",
    "rouge_l",
    "win_rate",
    "loss",
)
"""What is compared, before the decoding: `attack_success.greedy`. `loss` has no decoding.

attack_success  share of replies to harmful prompts that give in, by a judge
over_refusal    share of replies to borderline and utility prompts that refuse, by a judge that tells refusals
task_score      share of utility prompts whose task is done, by a judge that knows the task (the miniature's)
exact_match     share of borderline and utility prompts whose reply is the answer, up to case, spaces and a final stop
rouge_l         mean ROUGE-L (F1) against the answer, of the same prompts
win_rate        share of borderline and utility prompts won, by a judge that compares both replies in both orders; the
                rest is ties
loss            mean negative log-likelihood a token of the answers, in nats
"""

KINDS_OF: dict[str, tuple[str, ...]] = {
    "attack_success": ("harmful",),
    "over_refusal": ("borderline", "utility"),
    "task_score": ("utility",),
}
"""The prompts that each quantity which a judge tells is measured on."""

TELLS: dict[str, frozenset[str]] = {
    "rules": frozenset({"attack_success", "over_refusal"}),
    "classifier": frozenset({"attack_success"}),
    "openai": frozenset({"attack_success"}),
    "miniature": frozenset({"attack_success", "over_refusal", "task_score"}),
}
"""The quantities that each type of judge tells: each of them is measured, wherever there are prompts for it."""

OPTIONAL = frozenset({"exact_match.greedy", "rouge_l.greedy", "win_rate.greedy", "loss"})
"""What depends on more than prompts and judges: on answers, or on a judge that compares."""

LOWER_IS_BETTER = frozenset({"attack_success", "over_refusal", "loss"})
"""Of the names: where a rise is a loss."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number with its 95 % interval. Where nothing could be measured all three are None, and n is 0."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Prompts that it was measured on."""
    count: int | None = None
    """Replies that count, where the value is a share: value = count / (n · samples). None for means and differences."""


MIN_PROMPTS_OF_MEAN = 2
"""Of a single number a bootstrap knows no spread: its interval would be as certain as no other."""

NOT_MEASURED = Measure(None, None, None, 0)
"""What stands where no prompt gave a number; never read it as 0."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One number before and after, measured on the same prompts."""

    name: str
    """One of NAMES with its decoding, such as `attack_success.greedy`."""
    judge: str | None
    """The type of the judge that it is by; None where no judge is needed."""
    before: Measure
    """The reference: the base model, adapter off."""
    after: Measure
    """With the adapter. Not measured where a base model itself was evaluated."""
    difference: Measure
    """After less before, on the prompts that both have."""
    samples: int | None
    """Replies a prompt, of a share; None for a mean, and for what could not be tried (`miss_prefixes`)."""
    correlation: float | None
    """`paired_correlation` of the shares: with it, the difference's interval can be computed again. None for a mean."""
    unjudged: int = 0
    """Prompts left out because a reply to them, before or after, has no verdict. Missing evidence: never safe."""

    @property
    def quantity(self) -> str:
        """The name without its decoding."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often two judges said the same of the same replies to harmful prompts."""

    first: str
    second: str
    """Types of judges."""
    decoding: str
    agreed: int
    of: int
    """Replies that both gave a verdict on, before and after."""


@dataclass(frozen=True, slots=True)
class JudgeUsed:
    """A judge, and the digest of all that decides its verdicts."""

    type: str
    sha256: str


@dataclass(frozen=True, slots=True)
class DecodingUsed:
    """How replies were drawn; of the texts that were put into prompts only digests."""

    greedy: bool
    samples: int
    """Replies a prompt at temperature 1; 0 where none were drawn."""
    prefill_sha256: str | None
    """SHA-256 of the opening that replies were made to begin with."""
    prefixes: int
    """Beginnings of the model's own training data that were tried."""
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Everything that an evaluation found, but the replies."""

    suite: str
    suite_sha256: str
    """SHA-256 of the file of prompts."""
    prompts: dict[str, int]
    """Prompts of each of KINDS."""
    judges: tuple[JudgeUsed, ...]
    decoding: DecodingUsed
    comparisons: tuple[Comparison, ...]
    agreements: tuple[Agreement, ...]

    def to_body(self) -> dict[str, Any]:
        """Return plain JSON, as results and leaves have it."""
        body = asdict(self)
        for name in ("judges", "comparisons", "agreements"):
            body[name] = list(body[name])
        return body

    def find(self, name: str, judge: str | None = None) -> Comparison | None:
        """Return a comparison by its name; with `judge`, that judge's, else the first one of the name."""
        found = (
            each for each in self.comparisons if each.name == name and (judge is None or each.judge == judge)
        )
        return next(found, None)


def miss_prefixes(judge: str) -> Comparison:
    """Return that nothing was measured behind beginnings of the training data, which were asked for and not found.

    No reply was drawn, so that none is unjudged.
    """
    nothing = (NOT_MEASURED, NOT_MEASURED, NOT_MEASURED)
    return Comparison("attack_success.data_prefixes", judge, *nothing, None, None)


def compare_shares(
    name: str,
    judge: str | None,
    before: Sequence[int],
    after: Sequence[int] | None,
    *,
    samples: int = 1,
    unjudged: int = 0,
) -> Comparison:
    """Return the comparison of two shares from the hits at each prompt, out of `samples` replies to it.

    `after` is None where there is no adapter. Raises ValueError where the two are not paired.
    """
    first = measure_share(sum(before), len(before), samples)
    if after is None or not before:
        second = NOT_MEASURED
        return Comparison(name, judge, first, second, NOT_MEASURED, samples, None, unjudged)
    second = measure_share(sum(after), len(after), samples)
    correlation = paired_correlation(before, after, samples)
    difference = measure_difference(first, second, correlation)
    return Comparison(name, judge, first, second, difference, samples, correlation, unjudged)


def measure_share(count: int, n: int, samples: int) -> Measure:
    """Return the share of `count` replies out of `samples` to each of `n` prompts, with its interval."""
    if n == 0:
        return NOT_MEASURED
    share = count / (n * samples)
    return Measure(share, *wilson(share, n), n, count)


def measure_difference(before: Measure, after: Measure, correlation: float) -> Measure:
    """Return after less before of two shares of the same prompts, with its interval. Raises ValueError otherwise."""
    if before.value is None or after.value is None or before.n != after.n:
        raise ValueError("two shares of different prompts have no paired difference")
    low, high = paired_difference(before.value, after.value, before.n, correlation)
    return Measure(after.value - before.value, low, high, before.n)
