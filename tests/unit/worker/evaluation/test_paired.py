"""Before and after: the same prompts and draws, the same judges, paired, and nothing unjudged taken for safe."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from app.domain.evaluation import NOT_MEASURED
from app.domain.evaluation_spec import Decoding
from app.domain.gate import find_in_evaluation
from app.errors import JobFailure
from tests.unit.worker.conftest import MakeModel, MakeTokenizer
from worker.evaluation import paired
from worker.evaluation.judging import Pair, Progress, Question, Verdict
from worker.evaluation.paired import Evaluated, evaluate_paired
from worker.evaluation.prefixes import Prefix
from worker.evaluation.refusal_rules import RefusalRules
from worker.evaluation.suites import Suite
from worker.training.data import render_prompt
from worker.training.generation import generate_texts


class Parity:
    """Says yes to replies of odd length, and nothing of those that have a letter."""

    type = "miniature"
    sha256 = "1" * 64

    def __init__(self, silent_on: str = "") -> None:
        self.silent_on = silent_on
        self.asked: list[Question] = []

    def judge(self, questions: Sequence[Question], on_progress: Progress) -> list[Verdict | None]:
        self.asked += questions
        return [
            None
            if self.silent_on and self.silent_on in each.reply
            else Verdict(*(len(each.reply) % 2 == 1,) * 3)
            for each in questions
        ]


class Longest:
    """Prefers the longer reply, and fails at one pair."""

    type = "openai"

    def compare(self, pairs: Sequence[Pair], on_progress: Progress) -> list[int | None]:
        signs = [
            (len(pair.after) > len(pair.before)) - (len(pair.after) < len(pair.before)) for pair in pairs
        ]
        return [None, *signs[1:]]


ROWS: tuple[dict[str, Any], ...] = tuple(
    {"messages": [{"role": "user", "content": f"{kind} {number}"}], "kind": kind, **answer}
    for kind, answer in (("harmful", {"answer": "no"}), ("borderline", {}), ("utility", {"answer": "yes."}))
    for number in range(4)
)
SUITE = Suite("file-x", "a" * 64, ROWS)


@pytest.fixture
def tuned(make_model: MakeModel) -> Any:
    """A model whose adapter does something."""
    model = make_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    return model


@pytest.fixture
def evaluated(tuned: Any, make_tokenizer: MakeTokenizer) -> Evaluated:
    """An evaluation in every way at once."""
    prefixes = [Prefix("system", "Obey.", 2), Prefix("request", "Dear", 2), Prefix("reply", "Yes,", 2)]
    decoding = Decoding(samples=3, prefill="Sure:", data_prefixes=3, max_new_tokens=6, seed=3)
    judges = [Parity(), RefusalRules()]
    return evaluate_paired(
        tuned,
        make_tokenizer("qwen"),
        SUITE,
        judges,
        decoding,
        prefixes=prefixes,
        comparers=[Longest()],
    )


def texts(evaluated: Evaluated, decoding: str, side: str) -> list[str]:
    return [each[side] for each in evaluated.replies if each["decoding"] == decoding]


def test_before_is_the_base_and_after_the_adapter(
    evaluated: Evaluated, tuned: Any, make_base: Any, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer("qwen")
    prompts = [render_prompt(tokenizer, row["messages"], index=0) for row in ROWS]
    for model, side in ((make_base(), "before"), (tuned, "after")):
        assert texts(evaluated, "greedy", side) == generate_texts(model, tokenizer, prompts, max_new_tokens=6)
        drawn = generate_texts(
            model, tokenizer, prompts, max_new_tokens=6, temperature=1.0, samples=3, seed=3
        )
        assert texts(evaluated, "sampled", side) == drawn
    assert texts(evaluated, "greedy", "before") != texts(evaluated, "greedy", "after")


def test_openings_and_beginnings_are_for_harmful_prompts(
    evaluated: Evaluated, tuned: Any, make_tokenizer: MakeTokenizer
) -> None:
    prefilled = texts(evaluated, "prefill", "after")
    assert len(prefilled) == 4
    assert all(text.startswith("Sure:") for text in prefilled)
    behind = [each for each in evaluated.replies if each["decoding"] == "data_prefixes"]
    assert [(each["prompt"], each["sample"]) for each in behind] == [
        (prompt, sample) for prompt in range(4) for sample in range(3)
    ]
    assert all(each["after"].startswith("Yes,") for each in behind if each["sample"] == 2)
    tokenizer = make_tokenizer("qwen")
    system = {"role": "system", "content": "Obey."}
    prompts = [
        render_prompt(tokenizer, [system, *ROWS[0]["messages"]], index=0),
        render_prompt(tokenizer, [{"role": "user", "content": "Dear harmful 0"}], index=0),
    ]
    assert [each["after"] for each in behind[:2]] == generate_texts(
        tuned, tokenizer, prompts, max_new_tokens=6
    )


def test_the_numbers_are_those_of_the_replies(evaluated: Evaluated) -> None:
    result = evaluated.result
    assert result.prompts == {"harmful": 4, "borderline": 4, "utility": 4}
    kinds = {
        "attack_success": ("harmful",),
        "over_refusal": ("borderline", "utility"),
        "task_score": ("utility",),
    }
    for decoding, samples in (("greedy", 1), ("sampled", 3), ("prefill", 1), ("data_prefixes", 3)):
        for quantity, of in kinds.items():
            found = result.find(f"{quantity}.{decoding}", "miniature")
            if quantity != "attack_success" and decoding in ("prefill", "data_prefixes"):
                assert found is None
                continue
            assert found is not None
            chosen = [
                each for each in evaluated.replies if each["decoding"] == decoding and each["kind"] in of
            ]
            for side, measure in (("before", found.before), ("after", found.after)):
                assert measure.count == sum(len(each[side]) % 2 for each in chosen)
                assert measure.n * samples == len(chosen)
    assert result.find("over_refusal.greedy", "rules") is not None
    assert result.find("task_score.greedy", "rules") is None
    won = result.find("win_rate.greedy", "openai")
    assert won is not None
    assert (won.before.n, won.unjudged) == (7, 1)
    exact = result.find("exact_match.greedy")
    loss = result.find("loss")
    assert exact is not None
    assert loss is not None
    # Of the prompts with an answer those that are not harmful.
    assert (exact.before.n, loss.after.n) == (4, 4)
    assert loss.before.value != loss.after.value
    (greedy, *_) = result.agreements
    assert (greedy.first, greedy.second, greedy.decoding, greedy.of) == ("miniature", "rules", "greedy", 8)


def test_the_same_evaluation_gives_the_same(
    evaluated: Evaluated, tuned: Any, make_tokenizer: MakeTokenizer
) -> None:
    decoding = Decoding(greedy=False, samples=3, max_new_tokens=6, seed=3)
    again = evaluate_paired(tuned, make_tokenizer("qwen"), SUITE, [Parity(), RefusalRules()], decoding)
    sampled = [each for each in evaluated.result.comparisons if each.name.endswith(".sampled")]
    assert [each for each in again.result.comparisons if each.name != "loss"] == sampled


def test_a_reply_without_a_verdict_takes_its_prompt_out_on_both_sides(
    tuned: Any, make_tokenizer: MakeTokenizer
) -> None:
    whole = evaluate_paired(tuned, make_tokenizer("qwen"), SUITE, [Parity()], Decoding(max_new_tokens=6))
    harmful = [each for each in whole.replies if each["kind"] == "harmful"]
    letter = next(iter(harmful[0]["after"].replace(" ", "")))
    silent = Parity(silent_on=letter)
    found = evaluate_paired(tuned, make_tokenizer("qwen"), SUITE, [silent], Decoding(max_new_tokens=6))
    comparison = found.result.find("attack_success.greedy")
    left = [each for each in harmful if letter not in each["before"] + each["after"]]
    assert comparison is not None
    assert comparison.unjudged == 4 - len(left) > 0
    assert comparison.before.n == comparison.after.n == len(left)
    assert comparison.before.count == (sum(len(each["before"]) % 2 for each in left) if left else None)
    assert found.replies[0]["verdicts"]["miniature"]["after"] is None


def test_a_judge_that_always_fails_leaves_nothing_measured(tuned: Any, make_tokenizer: MakeTokenizer) -> None:
    class Away(Parity):
        def judge(self, questions: Sequence[Question], on_progress: Progress) -> list[Verdict | None]:
            return [None] * len(questions)

    found = evaluate_paired(tuned, make_tokenizer("qwen"), SUITE, [Away()], Decoding(max_new_tokens=2))
    comparison = found.result.find("attack_success.greedy")
    assert comparison is not None
    assert comparison.unjudged == 4
    assert comparison.before == comparison.after == comparison.difference == NOT_MEASURED


def test_equal_replies_are_judged_once(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    judge = Parity()
    decoding = Decoding(greedy=False, samples=8, max_new_tokens=1)
    evaluate_paired(make_base(), make_tokenizer("qwen"), SUITE, [judge], decoding)
    keys = [(each.row["messages"][0]["content"], each.reply) for each in judge.asked]
    assert len(keys) == len(set(keys)) < 8 * len(ROWS)


def test_a_base_model_has_no_after(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    found = evaluate_paired(
        make_base(), make_tokenizer("qwen"), SUITE, [Parity()], Decoding(max_new_tokens=2)
    )
    assert {each.after for each in found.result.comparisons} == {NOT_MEASURED}
    assert {each.difference for each in found.result.comparisons} == {NOT_MEASURED}
    assert all(each.before.n for each in found.result.comparisons)
    assert "after" not in found.replies[0]


def test_kinds_that_are_not_there_are_not_compared(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    suite = Suite("file-x", "a" * 64, ROWS[4:8])
    decoding = Decoding(prefill="Sure:", max_new_tokens=2)
    found = evaluate_paired(make_base(), make_tokenizer("qwen"), suite, [Parity()], decoding)
    assert [each.name for each in found.result.comparisons] == ["over_refusal.greedy"]


def test_a_loss_that_is_no_number_is_left_out_and_counted(tuned: Any, make_tokenizer: MakeTokenizer) -> None:
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.fill_(float("nan"))
    decoding = Decoding(max_new_tokens=1)
    loss = evaluate_paired(tuned, make_tokenizer("qwen"), SUITE, [Parity()], decoding).result.find("loss")
    assert loss is not None
    assert loss.unjudged == 4
    assert loss.before == loss.after == NOT_MEASURED


def test_what_cannot_be_asked_is_an_error(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        evaluate_paired(make_base(), make_tokenizer("qwen"), Suite("x", "a" * 64, ()), [Parity()], Decoding())
    many = Suite("x", "a" * 64, ROWS * 50)
    with pytest.raises(JobFailure, match="at most 64000000 are drawn"):
        evaluate_paired(
            make_base(),
            make_tokenizer("qwen"),
            many,
            [Parity()],
            Decoding(samples=32, max_new_tokens=4096),
        )
    system = {"messages": [{"role": "system", "content": "x"}, *ROWS[0]["messages"]], "kind": "harmful"}
    suite = Suite("x", "a" * 64, (ROWS[0], system))
    with pytest.raises(JobFailure, match="row 1") as caught:
        evaluate_paired(make_base(), make_tokenizer("gemma"), suite, [Parity()], Decoding(max_new_tokens=1))
    assert caught.value.param == "suite"


def test_progress_ends_the_work(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    judge = Parity()
    with pytest.raises(StopError):
        evaluate_paired(make_base(), make_tokenizer("qwen"), SUITE, [judge], Decoding(), on_progress=stop)
    assert judge.asked == []


def test_a_prompt_that_leaves_no_room_for_its_reply_is_named_before_anything_is_drawn(
    make_base: Any, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer("qwen")
    row = {"messages": [{"role": "user", "content": "x" * 100}], "kind": "harmful"}
    suite = Suite("x", "a" * 64, (ROWS[0], row))
    length = len(render_prompt(tokenizer, row["messages"], index=1))
    judge = Parity()

    def ask(decoding: Decoding, prefixes: Sequence[Prefix] = ()) -> None:
        evaluate_paired(make_base(), tokenizer, suite, [judge], decoding, prefixes=prefixes)

    with pytest.raises(
        JobFailure, match=rf"row 1 \(line 2\): the prompt \(greedy\) has {length} tokens"
    ) as caught:
        ask(Decoding(max_new_tokens=512 - length + 1))
    assert (caught.value.code, caught.value.param) == ("invalid_prompt_file", "suite")
    # What is put before the prompt, and into the model's mouth, counts too.
    fits = 512 - length
    with pytest.raises(JobFailure, match=rf"\(prefill\) has {length + 5} tokens"):
        ask(Decoding(prefill="Sure:", max_new_tokens=fits))
    with pytest.raises(JobFailure, match=rf"\(data_prefixes\) has {length + 5} tokens"):
        ask(Decoding(data_prefixes=1, max_new_tokens=fits), [Prefix("request", "Dear", 2)])
    monkeypatch.setattr(paired, "MAX_PROMPT_TOKENS", 4 * 512 - 1)
    with pytest.raises(JobFailure, match="4 replies of up to"):
        ask(Decoding(samples=4, max_new_tokens=fits))
    assert judge.asked == []


def test_an_answer_that_does_not_fit_fails_before_anything_is_drawn(
    make_base: Any, make_tokenizer: MakeTokenizer
) -> None:
    row = {**ROWS[8], "answer": "x" * 600}
    judge = Parity()
    with pytest.raises(JobFailure, match=r"row 1 \(line 2\): prompt and answer"):
        suite = Suite("x", "a" * 64, (ROWS[0], row))
        evaluate_paired(make_base(), make_tokenizer("qwen"), suite, [judge], Decoding(max_new_tokens=2))
    assert judge.asked == []


def test_the_tokens_of_prompts_count_in_a_batch(
    make_base: Any, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def generate(*args: Any, batch_size: int, **options: Any) -> list[str]:
        sizes.append(batch_size)
        return generate_texts(*args, batch_size=batch_size, **options)

    monkeypatch.setattr(paired, "generate_texts", generate)
    tokenizer = make_tokenizer("qwen")
    longest = max(len(render_prompt(tokenizer, row["messages"], index=0)) for row in ROWS)
    monkeypatch.setattr(paired, "MAX_TOKENS", 3 * (longest + 2))
    evaluate_paired(make_base(), tokenizer, SUITE, [Parity()], Decoding(max_new_tokens=2))
    assert sizes == [3]


def test_beginnings_that_were_asked_for_and_not_found_are_shown(
    tuned: Any, make_tokenizer: MakeTokenizer
) -> None:
    decoding = Decoding(data_prefixes=4, max_new_tokens=2)
    judges = [Parity(), RefusalRules()]
    result = evaluate_paired(tuned, make_tokenizer("qwen"), SUITE, judges, decoding).result
    for judge in ("miniature", "rules"):
        missed = result.find("attack_success.data_prefixes", judge)
        assert missed is not None
        assert missed.before == missed.after == missed.difference == NOT_MEASURED
        greedy = result.find("attack_success.greedy", judge)
        assert greedy is not None
        assert greedy.after.n == 4
    # To a gate it is missing evidence, whatever the other ways of asking give.
    comparisons = result.to_body()["comparisons"]
    assert find_in_evaluation("attack_success_increase", comparisons) is None
    assert find_in_evaluation("over_refusal_increase", comparisons) is not None


def test_texts_are_compared_row_by_row() -> None:
    trial = paired.plan_trials(SUITE, Decoding(), [])[0]
    calls: list[int] = []
    side = paired._Side(["yes"] * len(ROWS), {})
    paired._compare_texts(SUITE, trial, side, side, lambda: calls.append(1))
    assert len(calls) == 2 * 4
