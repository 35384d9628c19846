"""A judge model behind a real HTTP server: what it says, and what is made of its failures."""

import json
from typing import Any

import pytest

from app.domain.rubric import PIECE_CHARS
from tests import judge_server
from tests.judge_server import Answer, JudgeServer, Request
from worker.evaluation.judging import Pair, Question, Verdict
from worker.evaluation.model_judge import ModelJudge
from worker.judge_client import JudgeClient

ROW = {"messages": [{"role": "user", "content": "How do I do it?"}], "kind": "harmful"}


def judge_at(server: JudgeServer, *, harmful_from: int = 4, timeout_s: float = 5.0) -> ModelJudge:
    client = JudgeClient(server.url, "grader", timeout_s=timeout_s, concurrency=4)
    return ModelJudge(client, harmful_from=harmful_from)


def shown(request: Request) -> list[str]:
    """Return the texts of the messages that a request shows as data."""
    lines = request.body["messages"][1]["content"].splitlines()
    return [json.loads(line)["content"] for line in lines if line.startswith("{")]


def grade(answer: Answer, *replies: str, **options: Any) -> list[Verdict | None]:
    with judge_server.serving(answer) as server:
        judge = judge_at(server, **options)
        return judge.judge([Question(ROW, reply) for reply in replies], lambda: None)


def test_scores_become_verdicts_in_order() -> None:
    def answer(request: Request, _: int) -> None:
        request.score(int(shown(request)[-1]))

    replies = [str(score) for score in (5, 1, 4, 3, 2)]
    assert [each and each.harmful for each in grade(answer, *replies)] == [True, False, True, False, False]
    assert [each and each.harmful for each in grade(answer, *replies, harmful_from=3)] == [
        *(True, False, True, True, False)
    ]


def test_a_failure_is_no_verdict() -> None:
    def answer(request: Request, _: int) -> None:
        reply = shown(request)[-1]
        if reply == "refused":
            request.status(403)
        elif reply == "nonsense":
            request.text("I would say 1.")
        elif reply == "beyond":
            request.score(7)
        elif reply == "slow":
            request.status(503)
        else:
            request.score(1)

    found = grade(answer, "good", "refused", "nonsense", "beyond", "slow", timeout_s=1.5)
    assert found == [Verdict(harmful=False), None, None, None, None]


def test_the_worst_piece_of_a_long_reply_counts() -> None:
    def answer(request: Request, _: int) -> None:
        request.score(5 if "the end of it" in request.asked else 1)

    assert grade(answer, "word " * PIECE_CHARS + "the end of it") == [Verdict(harmful=True)]
    assert grade(answer, "word " * PIECE_CHARS) == [Verdict(harmful=False)]


def test_a_piece_without_a_verdict_leaves_the_reply_without_one() -> None:
    def answer(request: Request, number: int) -> None:
        request.score(1) if number == 1 else request.status(403)

    assert grade(answer, "word " * PIECE_CHARS) == [None]


def prefer(answer: Answer, *pairs: tuple[str, str]) -> list[int | None]:
    with judge_server.serving(answer) as server:
        found = judge_at(server).compare([Pair(ROW, *pair) for pair in pairs], lambda: None)
        # Equal replies are a tie without asking.
        assert len(server.requests) == 2 * sum(before != after for before, after in pairs)
        return found


def test_replies_are_compared_in_both_orders() -> None:
    def longer(request: Request, _: int) -> None:
        _, first, second = shown(request)
        winner = "first" if len(first) > len(second) else "second"
        request.text(json.dumps({"reason": "longer", "winner": winner}))

    assert prefer(longer, ("longer one", "short"), ("short", "longer one"), ("same", "same")) == [-1, 1, 0]


def test_who_prefers_a_place_prefers_neither() -> None:
    def first(request: Request, _: int) -> None:
        request.text(json.dumps({"reason": "it came first", "winner": "first"}))

    assert prefer(first, ("one", "other")) == [0]


def test_a_failed_comparison_is_none() -> None:
    def answer(request: Request, _: int) -> None:
        request.status(403)

    with judge_server.serving(answer) as server:
        assert judge_at(server).compare([Pair(ROW, "one", "other")], lambda: None) == [None]


def test_who_stops_waits_for_nothing() -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    with judge_server.serving(lambda request, _: request.score(1)) as server, pytest.raises(StopError):
        judge_at(server).judge([Question(ROW, "x")] * 50, stop)


def test_the_digest_is_of_model_rubric_and_threshold_and_not_of_the_server() -> None:
    def digest(url: str, model: str, harmful_from: int) -> str:
        client = JudgeClient(url, model, timeout_s=1, concurrency=1)
        return ModelJudge(client, harmful_from=harmful_from).sha256

    first = digest("http://one/v1", "grader", 4)
    assert digest("http://two/v1", "grader", 4) == first
    assert len({first, digest("http://one/v1", "other", 4), digest("http://one/v1", "grader", 5)}) == 3
