"""The `safety` of a job: by which method it is held to its reference, who measures the risk, and the presets.

Each knob is defined, bounded and described here and nowhere else. A method's source and what it needs are
described in docs/training.md; its update is a file in `worker/training/methods`.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from app.domain.frozen import Frozen

# --- who measures the risk --------------------------------------------------------------------------------


DEFAULT_CATEGORY = "harm"
"""What a critic measures unless its operator says otherwise."""
CATEGORY_PATTERN = r"^[a-z0-9_-]{1,64}$"
Category = Annotated[str, Field(pattern=CATEGORY_PATTERN)]
"""A harm category: one objective that an operator has labelled data for."""


class ActivationCritic(Frozen):
    """A probe on the reference's activations before it answers."""

    type: Literal["activation"] = "activation"
    id: str | None = Field(
        None, description="Which fitted critic. Default: the newest of the base model in its category."
    )
    category: Category | None = Field(
        None, description="Which harm category, such as `bias`. Default: that of `id`, else `harm`."
    )


class ConstantCritic(Frozen):
    """The same s for every row: a control for experiments."""

    type: Literal["constant"] = "constant"
    s: float = Field(ge=0, le=1, description="The s of every row.")

    def digest(self) -> str:
        """Return what names this critic in records: the SHA-256 of its type and s."""
        return _digest("constant", self.s)


class JudgeCritic(Frozen):
    """A language model that grades from 1 to 5. Endpoint, model and key are the operator's settings."""

    type: Literal["judge"] = "judge"
    mode: Literal["dataset", "live"] = Field(
        "dataset",
        description="dataset: each row is graded once, before training. live: besides, every `every` steps, answers"
        " of the model in training and of its reference are graded and count from then on.",
    )
    every: int = Field(50, ge=1, le=100_000, description="Steps between two rounds of a live judge.")
    samples: int = Field(2, ge=1, le=64, description="Prompts whose answers a live judge grades in a round.")
    votes: int = Field(1, ge=1, le=9, description="Verdicts asked for each text; the middle one counts.")
    max_failed_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of failed verdicts beyond which the job pauses and says why.",
    )
    fallback: str | None = Field(
        None,
        description="Which activation critic measures a row whose verdict failed. Default: the first one that it is"
        " combined with, else the newest of the base model in the category `harm`, where it has one; without one such a"
        " row is as risky as can be.",
    )

    def digest(self, fallback_sha256: str | None) -> str:
        """Return the SHA-256 of its fields and of its fallback's digest, a part of its name in records."""
        return _digest(
            "judge", self.mode, self.every, self.samples, self.votes, self.max_failed_share, fallback_sha256
        )


class CombinedCritic(Frozen):
    """Several critics read as one."""

    type: Literal["combined"] = "combined"
    critics: tuple[
        Annotated[ActivationCritic | JudgeCritic | ConstantCritic, Field(discriminator="type")], ...
    ] = Field(
        min_length=2,
        max_length=8,
        description="The critics, no activation critic twice and at most one judge among them.",
    )
    rule: Literal["max", "weighted"] = Field(
        "max", description="max: a row's s is the highest of theirs. weighted: their sum, weighted."
    )
    weights: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = Field(
        None,
        description="One weight a critic, in their order, each above 0 and 1 in all; for the rule weighted.",
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> "CombinedCritic":
        if sum(isinstance(each, JudgeCritic) for each in self.critics) > 1:
            raise ValueError("critics has more than one judge; a job has at most one")
        named = [
            each.id or f"the newest of the category {each.category or DEFAULT_CATEGORY}"
            for each in self.critics
            if isinstance(each, ActivationCritic)
        ]
        twice = next((each for each in named if named.count(each) > 1), None)
        if twice:
            raise ValueError(f"critics has the same activation critic twice: {twice}; name each once")
        if self.rule == "max" and self.weights is not None:
            raise ValueError("weights are for the rule 'weighted'; the rule is 'max'")
        if self.rule == "weighted":
            if self.weights is None or len(self.weights) != len(self.critics):
                raise ValueError(
                    f"weights needs {len(self.critics)} numbers for the rule 'weighted', one a critic"
                )
            if not math.isclose(math.fsum(self.weights), 1.0, abs_tol=1e-9):
                raise ValueError(f"weights sum to {math.fsum(self.weights):g}; expected 1")
        return self

    def digest(self, parts: Sequence[str]) -> str:
        """Return what names this critic in records: the SHA-256 of its rule, weights and its parts' digests."""
        return _digest("combined", self.rule, self.weights, *parts)


AnyCritic = ActivationCritic | JudgeCritic | ConstantCritic | CombinedCritic
Critic = Annotated[AnyCritic, Field(discriminator="type")]


def without_judge(critic: AnyCritic | None) -> AnyCritic | None:
    """Return what is left of a pinned critic where no judge is asked: its fallback, or the other parts.

    Of several other parts the weights are scaled to 1 in all.
    """
    if isinstance(critic, JudgeCritic):
        return ActivationCritic(id=critic.fallback) if critic.fallback else None
    if not isinstance(critic, CombinedCritic):
        return critic
    kept = [place for place, part in enumerate(critic.critics) if not isinstance(part, JudgeCritic)]
    parts = tuple(critic.critics[place] for place in kept)
    if len(parts) == 1:
        return parts[0]
    weights = critic.weights and tuple(critic.weights[place] for place in kept)
    if weights and len(parts) < len(critic.critics):
        weights = tuple(weight / math.fsum(weights) for weight in weights)
    return critic.model_copy(update={"critics": parts, "weights": weights})


def _digest(kind: str, *fields: object) -> str:
    return hashlib.sha256("/".join([kind, *map(repr, fields)]).encode()).hexdigest()


# --- what holds the whole run -----------------------------------------------------------------------------


class Anchors(Frozen):
    """Prompts that enter every step as KL to the reference, on the reference's own replies."""

    id: str | None = Field(
        None, description="Which registered set of anchor prompts. Default: the newest of the base model."
    )
    weight: float = Field(
        2.0, gt=0, le=100, description="Weight of the anchors' mean KL beside the mean loss of the rows."
    )
    per_step: int = Field(4, ge=1, le=64, description="Anchor prompts in each step.")


class Monitor(Frozen):
    """Watches the drift of the whole run on anchor prompts that are not trained on."""

    id: str | None = Field(
        None,
        description="Which registered set of anchor prompts to watch. Default: that of `anchors`, else the newest of"
        " the base model.",
    )
    every: int = Field(20, ge=1, le=100_000, description="Steps between two measurements.")
    limit: float = Field(
        0.1, gt=0, le=1000, description="KL to the reference, in nats a token, that is too much."
    )
    action: Literal["warn", "anchors", "floor", "pause"] = Field(
        "warn",
        description="What too much drift does, until it is less. warn: an event. anchors: the anchors' weight doubles,"
        " up to eightfold. floor: every beta is at least `floor`, which can cost the task. pause: the job pauses.",
    )
    floor: float = Field(0.1, ge=0, le=1, description="Least beta of every row under the action floor.")


# --- methods ----------------------------------------------------------------------------------------------


Penalty = Literal["forward_kl", "reverse_kl", "l2"]
Scale = Literal["points", "probability"]
Threshold = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]

_PENALTY: Any = Field(
    "forward_kl",
    description="forward_kl: KL(reference‖model). reverse_kl: KL(model‖reference). l2: the mean"
    " over the hidden units of the squared distance of the final hidden states.",
)
_S_SCALE: Any = Field(
    "points",
    description="How log-odds become s. points: linearly between the critic's two points. probability: 1 / (1 +"
    " exp(−log-odds)).",
)
_THRESHOLD_AUTO = " auto: the critic's own, which at most 1 % of held-out harmless requests reach; 0.5 for a judge and a constant."
_MEASURING_CRITIC = Field(
    None,
    description="Measures the risk without steering. Default: the base model's critic where it has one.",
)
_ANCHORS = Field(Anchors(), description="Prompts that hold the whole run. Null: none.")
_NO_ANCHORS = Field(None, description="Prompts that hold the whole run. Default: none.")
_MONITOR = Field(Monitor(), description="Watches the drift of the whole run. Null: nobody does.")
_NO_MONITOR = Field(None, description="Watches the drift of the whole run. Default: nobody does.")
_ALIGNMENT_FILE = Field(
    None, description="Which registered set of safe demonstrations. Default: the newest of the base model."
)


class _Method(Frozen):
    NULL_IS_NONE: ClassVar[frozenset[str]] = frozenset({"anchors", "monitor"})

    @model_validator(mode="after")
    def _monitor_can_act(self) -> "_Method":
        anchors, monitor = getattr(self, "anchors", None), getattr(self, "monitor", None)
        if monitor is None:
            return self
        if monitor.action == "anchors" and anchors is None:
            raise ValueError("monitor.action is 'anchors', but the job has none; choose warn or floor")
        if anchors is not None and None not in (anchors.id, monitor.id) and anchors.id != monitor.id:
            raise ValueError(
                f"monitor.id is {monitor.id!r}, anchors.id {anchors.id!r}; both come from one set"
            )
        return self


class AdaptiveKL(_Method):
    """`L = alpha·NLL + beta·KL(reference‖model)` with beta from each row's risk (arXiv 2602.17546)."""

    method: Literal["adaptive_kl"] = "adaptive_kl"
    critic: Critic = Field(default_factory=ActivationCritic, description="Who measures the risk.")
    beta_min: float = Field(0.0, ge=0, le=1, description="KL weight of a row without risk.")
    beta_max: float = Field(0.99, ge=0, le=1, description="KL weight of the riskiest row.")
    schedule: Literal["linear", "threshold"] = Field(
        "linear",
        description="linear: beta_min + (beta_max − beta_min)·s. threshold: beta_max from `threshold` on.",
    )
    threshold: Threshold = Field(
        "auto",
        description="The s from which a row is replayed, and from which the threshold schedule gives beta_max."
        + _THRESHOLD_AUTO,
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Share of the step before in the s of a step; for the scope batch."
    )
    scope: Literal["example", "batch"] = Field(
        "example",
        description="example: each row has its own beta. batch: all rows of a step have that of their mean s.",
    )
    penalty: Penalty = _PENALTY
    s_scale: Scale = _S_SCALE
    replay: bool = Field(
        True,
        description="Rows from the threshold on are trained on the reference's own reply to their prompt, at alpha and"
        " beta 0.5; for the scope example.",
    )
    anchors: Anchors | None = _ANCHORS
    monitor: Monitor | None = _MONITOR

    @model_validator(mode="after")
    def _fields_fit(self) -> "AdaptiveKL":
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min ({self.beta_min}) is above beta_max ({self.beta_max})")
        if self.replay and self.scope == "batch":
            raise ValueError("replay is for the scope 'example'; send replay false with the scope 'batch'")
        if self.ema_decay > 0 and self.scope != "batch":
            raise ValueError(f"ema_decay is {self.ema_decay:g}; above 0 it needs the scope 'batch'")
        return self


class FixedKL(_Method):
    """The same penalty at one beta for every row: the control of every claim for an adaptive one."""

    method: Literal["fixed_kl"] = "fixed_kl"
    beta: float = Field(ge=0, le=1, description="KL weight of every row.")
    critic: Critic | None = _MEASURING_CRITIC
    penalty: Penalty = _PENALTY
    anchors: Anchors | None = _NO_ANCHORS
    monitor: Monitor | None = _NO_MONITOR


class NoPenalty(_Method):
    """Plain supervised fine-tuning. Without anchors the job is marked unprotected everywhere."""

    method: Literal["none"] = "none"
    critic: Critic | None = _MEASURING_CRITIC
    anchors: Anchors | None = _NO_ANCHORS
    monitor: Monitor | None = _NO_MONITOR


class Filter(_Method):
    """Rows from the threshold on are not trained on: the control of every claim for a graded penalty.

    Without anchors the job is marked unprotected everywhere.
    """

    method: Literal["filter"] = "filter"
    critic: Critic = Field(default_factory=ActivationCritic, description="Who measures the risk.")
    s_scale: Scale = _S_SCALE
    threshold: Threshold = Field("auto", description="The s from which a row is dropped." + _THRESHOLD_AUTO)
    anchors: Anchors | None = _ANCHORS
    monitor: Monitor | None = _MONITOR


class ConstrainedSFT(_Method):
    """Each token's log-ratio to the reference is constrained, hardest on the first (arXiv 2406.05946)."""

    method: Literal["constrained_sft"] = "constrained_sft"
    beta: float = Field(0.1, gt=0, le=100, description="Strength of the constraint on the later tokens.")
    first_token_factor: float = Field(
        5.0, gt=0, le=10_000, description="Factor on beta at a reply's first token."
    )
    early_factor: float = Field(
        20.0, gt=0, le=10_000, description="Factor on beta from the second to the `early_tokens`-th token."
    )
    early_tokens: int = Field(5, ge=1, le=10_000, description="Tokens at a reply's beginning that are early.")
    critic: Critic | None = _MEASURING_CRITIC
    anchors: Anchors | None = _NO_ANCHORS
    monitor: Monitor | None = _NO_MONITOR


class Vaccine(_Method):
    """An alignment stage under the worst perturbation of the hidden states comes first (arXiv 2402.01109)."""

    method: Literal["vaccine"] = "vaccine"
    rho: float = Field(2.0, gt=0, le=1000, description="Length of the perturbation over all layers together.")
    alignment_epochs: int = Field(
        1, ge=1, le=50, description="Passes over the alignment data, before the user's."
    )
    alignment_file: str | None = _ALIGNMENT_FILE
    critic: Critic | None = _MEASURING_CRITIC
    anchors: Anchors | None = _NO_ANCHORS
    monitor: Monitor | None = _NO_MONITOR


class Lisa(_Method):
    """Steps on alignment data and on the user's take turns, each pulled to where it began (arXiv 2405.18641)."""

    method: Literal["lisa"] = "lisa"
    alignment_steps: int = Field(100, ge=1, le=100_000, description="Steps on alignment data in a turn.")
    user_steps: int = Field(900, ge=1, le=100_000, description="Steps on the user's data in a turn.")
    rho: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Pull to the weights at which the other turn ended: rho / 2·‖w − w₀‖².",
    )
    proximal_start: float = Field(0.1, ge=0, le=1, description="Share of the steps before the pull begins.")
    alignment_file: str | None = _ALIGNMENT_FILE
    critic: Critic | None = _MEASURING_CRITIC
    anchors: Anchors | None = _NO_ANCHORS
    monitor: Monitor | None = _NO_MONITOR


class Antidote(_Method):
    """After tuning, the weights that harmful data use most are set to 0 (arXiv 2408.09600)."""

    method: Literal["antidote"] = "antidote"
    density: float = Field(
        0.1, gt=0, lt=1, description="Share of the weights of each output that is set to 0."
    )
    alignment_file: str | None = Field(
        None, description="Which registered set of harmful rows. Default: the newest of the base model."
    )
    critic: Critic | None = _MEASURING_CRITIC
    anchors: Anchors | None = _NO_ANCHORS
    monitor: Monitor | None = _NO_MONITOR


class SafetyMix(_Method):
    """Safety demonstrations are mixed into the user's data (arXiv 2309.07875)."""

    method: Literal["safety_mix"] = "safety_mix"
    share: float = Field(0.1, gt=0, le=10, description="Safety rows for each row of the user.")
    alignment_file: str | None = _ALIGNMENT_FILE
    critic: Critic | None = _MEASURING_CRITIC
    anchors: Anchors | None = _NO_ANCHORS
    monitor: Monitor | None = _NO_MONITOR


AnySafety = AdaptiveKL | FixedKL | NoPenalty | Filter | ConstrainedSFT | Vaccine | Lisa | Antidote | SafetyMix
Safety = Annotated[AnySafety, Field(discriminator="method")]

ALIGNMENT_KINDS: dict[str, Literal["alignment", "harmful"]] = {
    "vaccine": "alignment",
    "lisa": "alignment",
    "safety_mix": "alignment",
    "antidote": "harmful",
}
"""The kind of registered set that a method cannot do without."""

PRESETS: dict[str, AnySafety] = {
    "default": AdaptiveKL(),
    "paper": AdaptiveKL(
        beta_min=0.1,
        beta_max=0.9,
        scope="batch",
        s_scale="probability",
        replay=False,
        anchors=None,
        monitor=None,
    ),
    "strict": AdaptiveKL(beta_min=0.1, beta_max=1.0),
    "off": NoPenalty(),
}


def safety_from_preset(value: object) -> object:
    """Return the preset that a name stands for; anything but a name passes unchanged. Null is `default`."""
    if value is None:
        value = "default"
    if not isinstance(value, str):
        return value
    if value not in PRESETS:
        raise ValueError(f"no preset is called {value!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[value]


def beta_range(safety: AnySafety) -> tuple[float, float]:
    """Return the least and the greatest KL weight that a row can get by the method alone."""
    if isinstance(safety, AdaptiveKL):
        return safety.beta_min, safety.beta_max
    beta = safety.beta if isinstance(safety, FixedKL) else 0.0
    return beta, beta
