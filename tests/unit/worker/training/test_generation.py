"""Generation agrees with the library's own, and with itself however prompts are batched and samples drawn."""

from typing import Any

import numpy as np
import pytest
import torch

from worker.training.generation import choose_tokens, generate_replies, generate_tokens

PROMPTS = [[5, 9, 3, 7], [8, 8], [4, 6, 2, 9, 9, 1], [7], [3, 3, 3]]
NEW = 12


class Ends:
    """What generation asks of a tokenizer."""

    def __init__(self, end: int) -> None:
        """End at one token."""
        self.eos_token_id = end
        self.pad_token_id = 0


@pytest.fixture
def model(make_base: Any) -> Any:
    """A model in float64, so that no rounding decides between two tokens."""
    model = make_base(torch.float64, vocab_size=24)
    model.generation_config.eos_token_id = None
    return model


def frequent_token(model: Any) -> int:
    """A token that some replies write and others do not, so that they end at different times."""
    replies = generate_tokens(model, Ends(23), PROMPTS, max_new_tokens=NEW, temperature=1.0, seed=1)
    counts = [sum(token in reply for reply in replies) for token in range(24)]
    return max((token for token in range(1, 24) if counts[token] < len(PROMPTS)), key=lambda t: counts[t])


def test_greedy_replies_are_those_of_the_library(model: Any) -> None:
    found = generate_tokens(model, Ends(23), PROMPTS, max_new_tokens=NEW, batch_size=3)
    for prompt, reply in zip(PROMPTS, found, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=23,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert reply == expected


def test_samples_are_the_replies_to_a_list_that_repeats_each_prompt(model: Any) -> None:
    tokenizer = Ends(frequent_token(model))
    drawn: Any = {"max_new_tokens": NEW, "temperature": 1.0, "seed": 3}
    several = generate_tokens(model, tokenizer, PROMPTS, samples=4, batch_size=2, **drawn)
    repeated = [prompt for prompt in PROMPTS for _ in range(4)]
    assert several == generate_tokens(model, tokenizer, repeated, batch_size=20, **drawn)
    assert len({tuple(reply) for reply in several}) > len(PROMPTS)


def test_a_reply_does_not_depend_on_which_others_have_ended(model: Any) -> None:
    tokenizer = Ends(frequent_token(model))
    together = generate_tokens(model, tokenizer, PROMPTS, max_new_tokens=NEW, samples=3, temperature=1.0)
    alone = generate_tokens(
        model, tokenizer, PROMPTS, max_new_tokens=NEW, samples=3, temperature=1.0, batch_size=1
    )
    assert together == alone
    lengths = {len(reply) for reply in together}
    assert len(lengths) > 1
    for reply in together:
        assert tokenizer.eos_token_id not in reply[:-1]
        assert len(reply) == NEW or reply[-1] == tokenizer.eos_token_id


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(20_000, 1)
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = choose_tokens(logits, draws, 0.5).bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, (logits[0] / 0.5).softmax(0), atol=0.01, rtol=0)


def test_a_negative_temperature_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="0 or above"):
        generate_tokens(model, Ends(23), PROMPTS, max_new_tokens=2, temperature=-1.0)


def softmax(logits: Any, temperature: float) -> Any:
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_a_sampled_reply_is_the_inversion_of_its_draws(model: Any) -> None:
    found = generate_tokens(model, Ends(23), PROMPTS, max_new_tokens=6, temperature=0.6, seed=5)
    draws = torch.rand(len(PROMPTS), 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for prompt, reply, row in zip(PROMPTS, found, draws.tolist(), strict=True):
        tokens = list(prompt)
        for draw in row[: len(reply)]:
            with torch.no_grad():
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            shares, token, total = softmax(logits, 0.6), 0, 0.0
            while (total := total + shares[token]) <= draw:
                token += 1
            tokens.append(token)
        assert tokens[len(prompt) :] == reply


def test_choosing_inverts_the_distribution_at_its_temperature() -> None:
    rng = np.random.default_rng(0)
    logits, draws = rng.normal(0, 3, (300, 40)), rng.random(300)
    for temperature in (0.3, 1.0, 2.5):
        found = choose_tokens(torch.from_numpy(logits), torch.from_numpy(draws), temperature)
        expected = (softmax(logits, temperature).cumsum(axis=1) <= draws[:, None]).sum(axis=1)
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(("draw", "token"), [(0.0, 1), (1 - 2**-53, 27)])
def test_no_draw_chooses_an_impossible_token(draw: float, token: int) -> None:
    logits = np.random.default_rng(1).normal(0, 2, (2000, 30))
    logits[:, [0, 7, 28, 29]] = -np.inf
    found = choose_tokens(torch.from_numpy(logits), torch.full((2000,), draw, dtype=torch.float64), 0.9)
    assert set(found.tolist()) == {token}


@pytest.mark.parametrize("named_by", ["model", "tokenizer", "list"])
def test_a_reply_ends_with_its_first_end_token(model: Any, named_by: str) -> None:
    tokenizer = Ends(23)
    free = generate_tokens(model, tokenizer, PROMPTS, max_new_tokens=NEW)
    end = next(token for token in free[0][1:] if token not in free[0][:1])
    if named_by == "tokenizer":
        tokenizer = Ends(end)
    else:
        model.generation_config.eos_token_id = end if named_by == "model" else [end, 22]
    ends = {end, 22} if named_by == "list" else {end}
    found = generate_tokens(model, tokenizer, PROMPTS, max_new_tokens=NEW)
    for reply, whole in zip(found, free, strict=True):
        stop = next((place for place, token in enumerate(whole) if token in ends), NEW)
        assert reply == whole[: stop + 1]
    assert found[0][-1] == end


def test_without_any_end_token_nothing_is_generated(model: Any) -> None:
    tokenizer: Any = Ends(23)
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="neither the model nor the tokenizer has an end token"):
        generate_tokens(model, tokenizer, PROMPTS, max_new_tokens=2)


def test_replies_are_the_decoded_tokens_of_the_rendered_prompts(make_model: Any, make_tokenizer: Any) -> None:
    model, tokenizer = make_model(torch.float64, drift=0.2), make_tokenizer()
    conversations = [[{"role": "user", "content": text}] for text in ("Hi", "What is 7 and 49?")]
    prompts = [
        tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=True)["input_ids"]
        for each in conversations
    ]
    for temperature in (0.0, 0.9):
        drawn: Any = {"max_new_tokens": 9, "temperature": temperature, "seed": 4}
        tokens = generate_tokens(model, tokenizer, prompts, **drawn)
        expected = [tokenizer.decode(reply, skip_special_tokens=True) for reply in tokens]
        assert generate_replies(model, tokenizer, conversations, **drawn) == expected
    assert generate_replies(model, tokenizer, []) == []


def test_the_model_is_left_as_it_was(model: Any) -> None:
    for training in (True, False):
        model.train(training)
        generate_tokens(model, Ends(23), PROMPTS[:1], max_new_tokens=2)
        assert model.training is training
