"""Several critics read as one: the highest s of a row, or the weighted sum of what each says.

A part that fails is never left out of the sum: the row then has failed, and is as risky as can be.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.control_law import combine_s
from app.domain.safety_spec import CombinedCritic as CombinedFields
from app.domain.safety_spec import Critic as AnyFields
from app.domain.safety_spec import JudgeCritic as JudgeFields
from worker.training.critics.features import Features
from worker.training.critics.judge import Conversation, JudgeCritic
from worker.training.critics.protocol import Assessment, Critic, Status

BY_EVIDENCE: tuple[Status, ...] = ("fallback", "judged", "ok", "constant")
"""What a combination says of its row: the first of these that one of its parts says."""


@dataclass(frozen=True)
class CombinedCritic:
    """The parts of a combination, in the order of its fields."""

    fields: CombinedFields
    parts: Sequence[Critic]

    @property
    def needs_features(self) -> bool:
        """Look at the states where a part does."""
        return any(part.needs_features for part in self.parts)

    @property
    def digest(self) -> str:
        """SHA-256 of the rule, the weights and the digests of the parts, in hex."""
        return self.fields.digest([part.digest for part in self.parts])

    def assess(self, row: int, features: Features | None) -> Assessment:
        """Assess one row. Raises what a part raises: what one of them could not measure, nobody has measured."""
        found = [part.assess(row, features) for part in self.parts]
        s = combine_s(self.fields.model_dump(), [each.s for each in found])
        said = {each.status for each in found}
        status = next(status for status in BY_EVIDENCE if status in said)
        log_odds = {digest: value for each in found for digest, value in each.log_odds.items()}
        # There is at most one judge in a job.
        votes = next((each.votes for each in found if each.votes), ())
        return Assessment(log_odds, s, status, votes)


def find_judge(critic: AnyFields | None) -> JudgeFields | None:
    """Return the fields of the judge in a critic, alone or as a part, where there is one."""
    parts = critic.critics if isinstance(critic, CombinedFields) else (critic,)
    return next((part for part in parts if isinstance(part, JudgeFields)), None)


def read_texts(
    critic: Critic,
    rows: Mapping[int, Conversation],
    *,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Critic:
    """Let every judge in a critic read the rows, by their index, and return the critic for the reference pass.

    A critic without a judge comes back as it is. `on_progress` and what is raised: as `JudgeCritic.read`.
    """
    if isinstance(critic, JudgeCritic):
        return critic.read(rows, on_progress=on_progress)
    if isinstance(critic, CombinedCritic):
        return replace(
            critic, parts=[read_texts(part, rows, on_progress=on_progress) for part in critic.parts]
        )
    return critic
