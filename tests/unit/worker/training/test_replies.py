"""The reference's replies against a loop without cache or padding, and how a set of anchors is divided."""

import pytest
import torch

from app.errors import JobFailure
from worker.training import replies
from worker.training.data import render_prompt, tokenize_rows
from worker.training.replies import Prompt, first_prompt, reply_to

PROMPTS = [Prompt(n, tuple(range(n, 2 * n + 3))) for n in (4, 0, 9, 2)]
"""Of unequal lengths, and not in order of them."""


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture(autouse=True)
def short_replies(monkeypatch):
    monkeypatch.setattr(replies, "MAX_REPLY_TOKENS", 12)


def end_with(tokenizer, model, token):
    """Make one token the only one that ends a reply."""
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
    model.generation_config.eos_token_id = token


def greedy(model, prompt, n_tokens, ends=()):
    """Append the likeliest token until one of `ends`, reading everything anew for each."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + n_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in ends:
            break
    return tuple(tokens)


def end_that_occurs(base):
    """Return a token that some of the prompts' greedy replies reach, not at once, and others never."""
    found = [greedy(base, prompt.input_ids, 12)[len(prompt.input_ids) :] for prompt in PROMPTS]
    for reply in found:
        for token in reply[2:8]:
            hits = [token in other for other in found]
            if token not in reply[:2] and not all(hits):
                return token
    raise AssertionError("these prompts have no such token; choose others")


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_replies_are_the_references_greedy_ones(make_model, make_base, tokenizer, batch_size, drift):
    base, model = make_base(torch.float64), make_model(torch.float64, drift=drift)
    end = end_that_occurs(base)
    end_with(tokenizer, model, end)
    heard = []
    rows = reply_to(
        model, tokenizer, PROMPTS, max_seq_length=64, batch_size=batch_size, on_progress=heard.append
    )
    expected = [greedy(base, prompt.input_ids, 12, {end}) for prompt in PROMPTS]
    assert [row.input_ids for row in rows] == expected
    assert [row.index for row in rows] == [4, 0, 9, 2]
    assert any(row.input_ids[-1] == end for row in rows), "the end token belongs to the reply"
    assert any(len(row.input_ids) == row.prompt_ends[0] + 13 for row in rows)
    assert heard == [min(done + batch_size, 4) for done in range(0, 4, batch_size)]
    if drift:
        own = [greedy(model, prompt.input_ids, 12, {end}) for prompt in PROMPTS]
        assert own != expected, "with the adapter on the replies would be others"


def test_a_bare_base_replies_the_same(make_model, make_base, tokenizer):
    of_base, of_model = (
        reply_to(model, tokenizer, PROMPTS, max_seq_length=64)
        for model in (make_base(torch.float64), make_model(torch.float64, drift=0.3))
    )
    assert of_base == of_model


def test_the_adapter_is_on_again_afterwards(make_model, tokenizer):
    model = make_model(torch.float64, drift=0.3)
    tokens = torch.tensor([PROMPTS[0].input_ids])
    with torch.no_grad():
        before = model(tokens).logits
        reply_to(model, tokenizer, PROMPTS, max_seq_length=64)
        assert torch.equal(model(tokens).logits, before)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_the_reply_bears_the_loss_or_all_but_the_first_token(make_base, tokenizer):
    for whole in (False, True):
        rows = reply_to(make_base(), tokenizer, PROMPTS, max_seq_length=64, whole=whole)
        for prompt, row in zip(PROMPTS, rows, strict=True):
            n_prompt, n_reply = len(prompt.input_ids), len(row.input_ids) - len(prompt.input_ids)
            n_bare = 1 if whole else n_prompt
            assert row.loss_mask == (False,) * n_bare + (True,) * (n_prompt + n_reply - n_bare)
            assert row.prompt_ends == (n_prompt - 1,)
            assert row.input_ids[:n_prompt] == prompt.input_ids


def test_a_reply_is_cut_where_the_row_would_be_too_long(make_base, tokenizer):
    model = make_base(torch.float64)
    longest = max(len(prompt.input_ids) for prompt in PROMPTS)
    rows = reply_to(model, tokenizer, PROMPTS, max_seq_length=longest + 1)
    free = reply_to(model, tokenizer, PROMPTS, max_seq_length=64)
    for cut, row in zip(rows, free, strict=True):
        assert cut.input_ids == row.input_ids[: longest + 1]
        assert len(cut.input_ids) == len(cut.loss_mask) <= longest + 1
        assert cut.loss_tokens >= 1
    assert any(len(cut.input_ids) < len(row.input_ids) for cut, row in zip(rows, free, strict=True))


@pytest.mark.parametrize(("room", "n_tokens"), [(1, 1), (7, 7), (40, 12)])
def test_no_more_is_generated_than_fits(make_base, tokenizer, monkeypatch, room, n_tokens):
    model = make_base()
    asked = []
    generate = replies.generate_tokens

    def counted(*arguments, max_new_tokens, **others):
        asked.append(max_new_tokens)
        return generate(*arguments, max_new_tokens=max_new_tokens, **others)

    monkeypatch.setattr(replies, "generate_tokens", counted)
    shortest = min(len(prompt.input_ids) for prompt in PROMPTS)
    alike = [prompt for prompt in PROMPTS if len(prompt.input_ids) == shortest]
    reply_to(model, tokenizer, alike, max_seq_length=shortest + room)
    assert asked == [n_tokens]


def test_a_prompt_that_leaves_no_room_is_refused(make_base, tokenizer):
    with pytest.raises(
        JobFailure, match="the prompt 9 has 12 tokens and leaves no room for a reply"
    ) as caught:
        reply_to(make_base(), tokenizer, PROMPTS, max_seq_length=12)
    assert caught.value.param == "training.max_seq_length"
    assert len(reply_to(make_base(), tokenizer, PROMPTS, max_seq_length=13)) == 4


def test_no_prompt_has_no_reply(make_base, tokenizer):
    assert reply_to(make_base(), tokenizer, (), max_seq_length=8) == ()


def test_what_progress_raises_ends_the_work(make_base, tokenizer):
    def stop(_done):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        reply_to(make_base(), tokenizer, PROMPTS, max_seq_length=64, on_progress=stop)


@pytest.mark.parametrize("template", ["qwen", "marked", "llama"])
def test_the_first_prompt_is_what_comes_before_the_first_trained_turn(
    make_tokenizer, training_rows, template
):
    tokenizer = make_tokenizer(template)
    silent = [dict(message) for message in training_rows[9]["messages"]]
    silent[1]["weight"] = 0
    sources = [*training_rows, {"messages": silent}]
    rows = tokenize_rows(tokenizer, sources, max_seq_length=256, overlength="error").rows
    for row, source in zip(rows, sources, strict=True):
        n_before = 3 if source["messages"] is silent else 1
        expected = render_prompt(tokenizer, source["messages"][:n_before], index=row.index)
        assert first_prompt(row) == Prompt(row.index, expected)
