"""A live judge in the loop: what is sampled, what its scores do, and what a resumed run still knows. The server is real."""

import json
import threading
import zlib
from concurrent.futures import wait

import pytest
import torch

from app.domain.safety_spec import AdaptiveKL, ConstantCritic
from app.domain.safety_spec import JudgeCritic as JudgeFields
from tests.judge_server import serving
from tests.unit.worker.conftest import chat
from worker.judge_client import JudgeClient
from worker.training.checkpoint import load_checkpoint
from worker.training.critics.judge import LiveJudge, choose_live_rows
from worker.training.data import render_prompt, tokenize_row, tokenize_rows
from worker.training.live import LiveCritic, opening
from worker.training.loop import fit
from worker.training.models import reference, trainable_parameters
from worker.training.reference import ReferenceCache, RowRisk
from worker.training.replies import first_prompt
from worker.training.step import Controls, RunData

S = 0.25
SAFETY = AdaptiveKL(
    critic=ConstantCritic(s=S), beta_min=0.1, beta_max=0.9, threshold=0.5, anchors=None, monitor=None
)
FIELDS = JudgeFields(mode="live", every=2, samples=3)


class PatientJudge(LiveJudge):
    """Waits for its round, so that a test knows at which step the scores arrive."""

    def collect(self):
        wait(self._round)
        return super().collect()


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def rows(tokenizer, training_rows):
    return tokenize_rows(tokenizer, training_rows, max_seq_length=256, overlength="error").rows


@pytest.fixture
def data(rows):
    risks = {row.index: RowRisk(row.index, {}, S, "constant") for row in rows}
    return RunData(rows, risks, ReferenceCache({}))


@pytest.fixture
def go_live(tokenizer, training_rows, rows):
    """Make a live critic on a server, which is closed at the end."""
    made = []

    def make(server, heard, kind=PatientJudge):
        prompts = {index: opening(row["messages"]) for index, row in enumerate(training_rows)}
        client = JudgeClient(server.url, "m", timeout_s=10, concurrency=4)
        judge = kind(client, FIELDS, prompts, fallback={})
        made.append(
            LiveCritic(judge, FIELDS, tokenizer, rows, seed=7, on_scores=lambda *found: heard.append(found))
        )
        return made[-1]

    yield make
    for live in made:
        live.close()


def weights(model):
    return [parameter.detach().clone() for parameter in trainable_parameters(model).values()]


def expected_s(heard, step, row):
    """Return the s of a row in a step: the last score before it, where that is above the s it had."""
    said = [score.s for at, scores in heard if at <= step for score in scores if score.row == row]
    return max(S, said[-1]) if said else S


def test_a_condemned_answer_holds_its_row_harder_from_then_on(make_model, make_spec, data, go_live):
    heard, records = [], []

    def by_prompt(request, _):
        # A row gets the same score in whatever order the questions arrive, and whatever the model says on this machine.
        prompt = [line for line in request.asked.splitlines() if line.startswith('{"role"')][:-1]
        request.score(1 + zlib.crc32("".join(prompt).encode()) % 5)

    with serving(by_prompt) as server:
        fit(make_model(), data, make_spec(safety=SAFETY), live=go_live(server, heard), on_step=records.append)
    # After the last step nobody asks.
    assert [(step, [score.asked_at for score in scores]) for step, scores in heard] == [
        (3, [2] * 3),
        (5, [4] * 3),
    ]
    for step, scores in heard:
        assert [score.row for score in scores] == choose_live_rows(range(10), count=3, step=step - 1, seed=7)
    assert len(server.requests) == 12, "the model's answer and the reference's, for three rows in two rounds"
    raised = 0
    for record in records:
        s = [expected_s(heard, record.step, row) for row in record.rows]
        # Beyond the threshold too: what becomes of a row was decided before training.
        assert record.beta_max == 0.1 + (0.9 - 0.1) * max(s)
        assert record.risk_mean == pytest.approx(sum(s) / len(s), rel=1e-15)
        raised += max(s) > SAFETY.threshold
    assert raised


def test_sampling_leaves_the_training_as_it_is(make_model, make_spec, data, go_live):
    spec = make_spec(safety=SAFETY)
    alone, watched, heard = make_model(), make_model(), []
    fit(alone, data, spec)
    with serving(lambda request, _: request.score(1)) as server:
        fit(watched, data, spec, live=go_live(server, heard))
    assert len(heard) == 2
    assert all(one.equal(other) for one, other in zip(weights(alone), weights(watched), strict=True))


def test_a_resumed_run_knows_the_scores_of_its_checkpoint(make_model, make_spec, data, go_live, tmp_path):
    spec, heard, records, written = make_spec(safety=SAFETY), [], [], []
    with serving(lambda request, _: request.score(5)) as server:
        fit(
            make_model(), data, spec, live=go_live(server, heard), checkpoint_folder=tmp_path,
            on_step=records.append, on_checkpoint=written.append,
            should_stop=lambda: "preempt" if len(records) == 4 else None,
        )  # fmt: skip
    resume = load_checkpoint(written[-1].info.path)
    rows = [score.row for score in heard[0][1]]
    # The round that was asked for after step 4 is lost.
    assert (len(heard), resume.trainer.step) == (1, 4)
    assert resume.trainer.live == dict.fromkeys(rows, 1.0)
    fit(make_model(), data, spec, resume=resume, on_step=records.append)
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6]
    for record in records:
        s = [expected_s(heard, record.step, row) for row in record.rows]
        assert record.risk_max == max(s)
    assert any(record.risk_max == 1 for record in records[4:])


def test_it_is_the_two_models_answers_that_are_graded(make_model, rows, tokenizer, training_rows, go_live):
    model = make_model(drift=0.5)
    with serving(lambda request, _: request.score(1)) as server:
        live = go_live(server, [])
        live.sample(model, 1)
        assert not server.requests
        live.sample(model, 2)
        live.collect(3, Controls())
    chosen = choose_live_rows(range(10), count=3, step=2, seed=7)
    expected = []
    for row in chosen:
        prompt = opening(training_rows[row]["messages"])
        for answer in (greedy(model, tokenizer, rows[row]), greedy_of_reference(model, tokenizer, rows[row])):
            expected.append([*prompt, {"role": "assistant", "content": answer}])
    asked = [body["messages"][1]["content"].split("\n") for _, _, body in server.requests]
    found = [[json.loads(line) for line in lines if line.startswith('{"role"')] for lines in asked]
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    assert len({repr(each) for each in expected}) > 3, "the models answer alike, so this test sees nothing"


def greedy(model, tokenizer, row):
    """Answer the prompt of a row token by token, without a cache."""
    ids = list(first_prompt(row).input_ids)
    start = len(ids)
    model.eval()
    with torch.no_grad():
        while len(ids) - start < 128 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def greedy_of_reference(model, tokenizer, row):
    with reference(model):
        return greedy(model, tokenizer, row)


def test_a_slow_judge_holds_nothing_up_and_gets_no_second_round(make_model, data, make_spec, go_live):
    go, heard, records = threading.Event(), [], []

    def answer(request, _):
        go.wait(10)
        request.score(5)

    with serving(answer) as server:
        live = go_live(server, heard, kind=LiveJudge)
        fit(make_model(), data, make_spec(safety=SAFETY), live=live, on_step=records.append)
        assert (len(records), heard) == (6, [])
        assert len(server.requests) <= 6
        go.set()


@pytest.mark.parametrize(
    "messages",
    [
        chat("Hello", "Good day."),
        chat("Hello", "Good day.", "And now?", "Farewell."),
        [*chat("Hello", "Good day.", system="Be kind."), {"role": "user", "content": "Bye"}],
        # An assistant message that is not trained on belongs to the prompt.
        [*chat("Hi"), {"role": "assistant", "content": "Ho", "weight": 0}, *chat("Again", "Good day.")],
    ],
)
def test_what_the_judge_is_shown_is_what_the_model_answers(tokenizer, messages):
    row = tokenize_row(tokenizer, messages, index=0)
    assert render_prompt(tokenizer, opening(messages), index=0) == first_prompt(row).input_ids
