"""What of a critic's row is labelled, and what the row as a whole is."""

import pytest

from app.errors import JobFailure
from worker.training.critics.examples import columns_of, read_states, tokenize_examples
from worker.training.critics.features import Directions, find_places

USER = {"role": "user", "content": "How do I open it?"}
REFUSAL = {"role": "assistant", "content": "I will not say."}
ANSWER = {"role": "assistant", "content": "With a key."}


def row(*messages, label, **more):
    return {"messages": list(messages), "label": label, "group": "locks", **more}


def test_only_the_last_reply_is_labelled(make_tokenizer):
    tokenizer = make_tokenizer()
    (example,) = tokenize_examples(tokenizer, [row(USER, REFUSAL, USER, ANSWER, label=1)])
    (response,) = find_places(example.tokens).responses
    text = tokenizer.decode(list(example.tokens.input_ids[slice(*response)]))
    assert text.startswith("With a key.")
    assert example.has_reply


def test_a_request_alone_is_read_where_the_reply_would_begin(make_tokenizer):
    tokenizer = make_tokenizer()
    alone, answered = tokenize_examples(tokenizer, [row(USER, label=0), row(USER, ANSWER, label=0)])
    assert find_places(alone.tokens).prompts == find_places(answered.tokens).prompts
    assert find_places(alone.tokens).responses == ()
    assert not alone.has_reply


def test_a_refusal_is_a_harmless_reply_in_a_risky_row(make_tokenizer):
    refused = row(USER, REFUSAL, label=0)
    other = row({**USER, "content": "What is it?"}, ANSWER, label=0)
    examples = tokenize_examples(
        make_tokenizer(), [row(USER, label=1), refused, other, row(USER, ANSWER, label=1)]
    )
    assert [(example.label, example.risky) for example in examples] == [(1, 1), (0, 1), (0, 0), (1, 1)]
    # Where nobody says what the request is, the reply's label is all that is known.
    (unknown,) = tokenize_examples(make_tokenizer(), [refused])
    assert unknown.risky == 0


def test_columns(make_tokenizer):
    rows = [row(USER, label=1), row(USER, ANSWER, label=0, borderline=True)]
    columns = columns_of(tokenize_examples(make_tokenizer(), rows))
    assert columns.label.tolist() == [1, 0]
    assert columns.has_reply.tolist() == columns.borderline.tolist() == [False, True]
    assert columns.only(columns.has_reply).risky.tolist() == [1]


def test_the_states_of_a_row_do_not_depend_on_its_micro_batch(make_model, make_tokenizer):
    import numpy as np

    rows = [row({**USER, "content": "why " * n}, ANSWER, label=0) for n in (1, 9, 4, 2)]
    examples = tokenize_examples(make_tokenizer(), rows)
    model = make_model(drift=0.4)
    directions = Directions(np.ones((2, 32)), np.ones((2, 32)))
    found = {}
    for tokens in (40, 4096):
        found[tokens] = [None] * 4
        for places, states in read_states(model, examples, tokens):
            for place, scores in zip(places, states.score(directions), strict=True):
                found[tokens][place] = scores
    for one, other in zip(found[40], found[4096], strict=True):
        np.testing.assert_allclose(one.prompts, other.prompts, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(one.responses[0], other.responses[0], rtol=1e-3, atol=1e-3)


def test_a_row_that_cannot_be_rendered_names_its_line(make_tokenizer):
    wrong = row({"role": "system", "content": "x"}, USER, label=0)
    with pytest.raises(JobFailure, match=r"row 1 \(line 2\)"):
        tokenize_examples(make_tokenizer("gemma"), [row(USER, label=1), wrong])
