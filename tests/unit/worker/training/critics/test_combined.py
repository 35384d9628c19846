"""Several critics as one, and what a combination makes of a part that failed."""

import pytest

from app.domain.safety_spec import CombinedCritic as CombinedFields
from app.domain.safety_spec import JudgeCritic as JudgeFields
from tests.judge_server import serving
from worker.judge_client import JudgeClient
from worker.training.critics.combined import CombinedCritic, read_texts
from worker.training.critics.constant import ConstantCritic
from worker.training.critics.judge import GradedRows, JudgeCritic, JudgeFailed
from worker.training.critics.protocol import Assessment, Critic

ROW = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]


class Probe:
    """An activation critic that reads the same everywhere, or fails."""

    needs_features = True

    def __init__(self, log_odds: float, s: float, digest: str = "f" * 64) -> None:
        self.digest = digest
        self.found = Assessment({self.digest: log_odds}, s, "ok")

    def assess(self, row: int, features: object) -> Assessment:
        if self.found.s > 1:
            raise ValueError("the states are not numbers")
        return self.found


F, G = "f" * 64, "9" * 64
PROBE, OTHER = Probe(0.7, 0.6), Probe(2.5, 0.8, G)
BROKEN = Probe(0.0, 2.0)


def graded(*votes: int | None, fallback: Critic | None = None) -> GradedRows:
    return GradedRows({0: (votes,)}, fallback, "e" * 64)


def combine(*parts: Critic, weights: tuple[float, ...] | None = None) -> CombinedCritic:
    kinds = [
        {"type": "activation", "id": f"critic_{place}"}
        if isinstance(part, Probe)
        else {"type": "constant", "s": part.s}
        if isinstance(part, ConstantCritic)
        else {"type": "judge"}
        for place, part in enumerate(parts)
    ]
    rule = "weighted" if weights else "max"
    return CombinedCritic(
        CombinedFields.model_validate({"critics": kinds, "rule": rule, "weights": weights}), parts
    )


@pytest.mark.parametrize(
    ("parts", "weights", "expected"),
    [
        ((PROBE, graded(1, 1, 1)), None, ({F: 0.7}, 0.6, "judged", ((1, 1, 1),))),
        ((PROBE, graded(5, 4, 4)), None, ({F: 0.7}, 0.75, "judged", ((5, 4, 4),))),
        ((graded(3), PROBE), (0.5, 0.5), ({F: 0.7}, 0.55, "judged", ((3,),))),
        ((PROBE, graded(None, fallback=PROBE)), None, ({F: 0.7}, 0.6, "fallback", ((None,),))),
        ((PROBE, ConstantCritic(0.2)), None, ({F: 0.7}, 0.6, "ok", ())),
        ((ConstantCritic(0.2), ConstantCritic(0.4)), (0.25, 0.75), ({}, 0.35, "constant", ())),
        ((PROBE, OTHER), None, ({F: 0.7, G: 2.5}, 0.8, "ok", ())),
        ((OTHER, PROBE), (0.25, 0.75), ({F: 0.7, G: 2.5}, 0.65, "ok", ())),
        ((PROBE, graded(None, fallback=OTHER)), None, ({F: 0.7, G: 2.5}, 0.8, "fallback", ((None,),))),
        (
            (PROBE, OTHER, graded(4, 4, 4)),
            (0.5, 0.25, 0.25),
            ({F: 0.7, G: 2.5}, 0.6875, "judged", ((4, 4, 4),)),
        ),
    ],
)
def test_combinations(parts, weights, expected):
    found = combine(*parts, weights=weights).assess(0, None)
    assert found._replace(s=0) == (expected[0], 0, *expected[2:])
    assert found.s == pytest.approx(expected[1], abs=1e-15)


@pytest.mark.parametrize("weights", [None, (0.99, 0.01)])
def test_a_part_that_fails_fails_the_row(weights):
    # Whatever its weight: the reference pass turns what is raised here into s = 1 and the status `failed`.
    with pytest.raises(JudgeFailed):
        combine(PROBE, graded(None), weights=weights).assess(0, None)
    with pytest.raises(ValueError, match="not numbers"):
        combine(graded(1), BROKEN, weights=weights).assess(0, None)


def test_an_unlucky_injection_is_outvoted_by_the_other_critic():
    # S2 of the threat list: the text has talked the judge into a 1; the states of the reference tell another story.
    assert combine(Probe(4.0, 1.0), graded(1, 1, 1)).assess(0, None).s == 1.0


def test_features_are_computed_where_a_part_needs_them():
    assert combine(PROBE, graded(1)).needs_features
    assert not combine(ConstantCritic(0.1), graded(1)).needs_features
    assert combine(ConstantCritic(0.1), graded(None, fallback=PROBE)).needs_features


def test_the_digest_names_parts_and_rule():
    critics = [
        combine(PROBE, graded(1)),
        combine(PROBE, ConstantCritic(0.1)),
        combine(PROBE, graded(1), weights=(0.5, 0.5)),
        combine(PROBE, graded(1), weights=(0.25, 0.75)),
    ]
    assert len({critic.digest for critic in critics}) == 4


class TestReadTexts:
    def test_the_judges_among_the_parts_read(self):
        with serving(lambda request, _: request.score(4)) as server:
            judge = JudgeCritic(JudgeFields(), JudgeClient(server.url, "m", timeout_s=5, concurrency=2), None)
            critic = combine(PROBE, judge)
            with pytest.raises(TypeError, match="read_texts"):
                critic.assess(0, None)
            done = []
            found = read_texts(critic, {0: ROW, 3: ROW}, on_progress=done.append)
            alone = read_texts(judge, {0: ROW})
        assert found.assess(3, None).s == 0.75
        assert alone.assess(0, None).s == 0.75
        assert done[-1] == 2
        # Reading changes nothing about what the critic is.
        assert found.digest == critic.digest
        assert alone.digest == judge.digest

    def test_a_critic_without_a_judge_is_left_alone(self):
        critic = ConstantCritic(0.3)
        assert read_texts(critic, {0: ROW}) is critic
