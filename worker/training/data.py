"""Rows of a data file to token ids and a loss mask, through the base model's own chat template.

Control tokens in a row's text are encoded as plain text, never as control tokens: a row must not be able to open
a turn of its own, in training, in scanning or in judging.
"""

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from app.errors import JobFailure
from worker.training.models import template_digest
from worker.training.templates import bounded_rendering

Message = Mapping[str, Any]
Span = tuple[int, int]

# The template may join a role into a control token ("<|" + role + "|>"), where no sanitising can see it.
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row as the model sees it."""

    index: int
    """Its place in the data file, from 0."""
    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    """True on the tokens that carry loss: the trained assistant turns, each with its end-of-turn token."""
    prompt_ends: tuple[int, ...]
    """For each trained assistant turn, the position of the last token before it: the generation prompt's last."""

    @property
    def loss_tokens(self) -> int:
        """Count the tokens that carry loss."""
        return sum(self.loss_mask)


@dataclass(frozen=True, slots=True)
class TokenizedData:
    """The rows of a data file that can be trained on."""

    rows: tuple[TokenizedRow, ...]
    dropped: tuple[int, ...]
    """Indices of the rows that were too long, where the policy is to drop them."""
    truncated: tuple[int, ...]
    """Indices of the rows that were cut to max_seq_length, where the policy is to cut."""


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_seq_length: int,
    overlength: Literal["error", "truncate", "drop"],
    param: str = "training_file",
    on_progress: Callable[[], None] = lambda: None,
) -> TokenizedData:
    """Tokenize every row `{"messages": […], "tools"?: […]}` of a file and apply the policy on overlong rows.

    `on_progress` is called before each row; what it raises ends the work. Raises JobFailure with code `invalid_training_file` and `param` on the first row that cannot be used.
    """
    kept: list[TokenizedRow] = []
    dropped: list[int] = []
    truncated: list[int] = []
    for index, source in enumerate(rows):
        on_progress()
        row = tokenize_row(tokenizer, source["messages"], index=index, tools=source.get("tools"), param=param)
        left = apply_overlength(row, max_seq_length=max_seq_length, overlength=overlength, param=param)
        if left is None:
            dropped.append(index)
            continue
        if left is not row:
            truncated.append(index)
        kept.append(left)
    if not kept:
        raise JobFailure(
            f"no row is left to train on: {len(dropped)} of {len(rows)} are longer than max_seq_length"
            f" ({max_seq_length}); shorten them or raise max_seq_length",
            code="invalid_training_file",
            param=param,
        )
    return TokenizedData(tuple(kept), tuple(dropped), tuple(truncated))


def apply_overlength(
    row: TokenizedRow,
    *,
    max_seq_length: int,
    overlength: Literal["error", "truncate", "drop"],
    param: str = "training_file",
) -> TokenizedRow | None:
    """Return what the policy leaves of a row: itself where it fits, its beginning, or None where it is dropped.

    Raises JobFailure where the policy refuses the row, or nothing to train on is left of it.
    """
    length = len(row.input_ids)
    if length <= max_seq_length:
        return row
    if overlength == "error":
        raise _invalid(
            row.index,
            f"the row has {length} tokens, more than max_seq_length ({max_seq_length}); shorten it, raise"
            ' max_seq_length, or set overlength to "truncate" or "drop"',
            param,
        )
    if overlength == "drop":
        return None
    cut = truncate(row, max_seq_length)
    if cut.loss_tokens == 0:
        raise _invalid(
            row.index,
            f"of its {length} tokens the first {max_seq_length} hold no assistant reply, so truncation leaves"
            ' nothing to train on; shorten the prompt, or set overlength to "drop"',
            param,
        )
    return cut


def tokenize_row(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    index: int,
    tools: Sequence[Mapping[str, Any]] | None = None,
    param: str = "training_file",
) -> TokenizedRow:
    """Render one conversation and find the tokens that carry loss.

    Where the template marks what the assistant writes (`{% generation %}`), the marks decide; where it does not,
    an assistant turn is what its rendering adds to the rendering of the messages before it, which must be a true
    prefix of it. An assistant message with `"weight": 0` carries no loss.

    Raises JobFailure with code `invalid_training_file` where neither way finds the turns, the template refuses the
    conversation, or no turn is trained.
    """
    clean = [_clean_message(message, index, param) for message in messages]
    _check_tools_are_rendered(tokenizer, clean, tools, index, param)
    turns = [place for place, message in enumerate(clean) if message["role"] == "assistant"]
    trained = [_is_trained(messages[turn], index, param) for turn in turns]
    if not any(trained):
        raise _invalid(index, "no assistant message is left to train on; add one or drop the row", param)
    input_ids = _render(tokenizer, clean, tools, index, param)
    spans = _marked_spans(tokenizer, clean, tools, input_ids, len(turns))
    if spans is None:
        spans = _prefix_spans(tokenizer, clean, tools, input_ids, turns, index, param)
    if spans is None:
        raise _invalid(
            index,
            f"{_template_name(tokenizer)} neither marks what the assistant writes ({{% generation %}}) nor renders"
            " the conversation so that each beginning of it is a prefix of the whole, so the assistant's tokens cannot"
            " be told apart; train on single-turn rows or add generation marks to the template",
            param,
        )
    loss_mask = [False] * len(input_ids)
    prompt_ends = []
    for (start, end), is_trained in zip(spans, trained, strict=True):
        if not is_trained:
            continue
        if start == 0:
            raise _invalid(
                index,
                f"{_template_name(tokenizer)} puts nothing before the assistant's first token; begin with a user message",
                param,
            )
        loss_mask[start:end] = [True] * (end - start)
        prompt_ends.append(start - 1)
    return TokenizedRow(index, input_ids, tuple(loss_mask), tuple(prompt_ends))


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    index: int,
    tools: Sequence[Mapping[str, Any]] | None = None,
    param: str = "training_file",
) -> tuple[int, ...]:
    """Return the token ids of a conversation that awaits its reply, generation prompt included.

    Raises JobFailure where the conversation already ends with the assistant, or cannot be rendered.
    """
    clean = [_clean_message(message, index, param) for message in messages]
    if not clean or clean[-1]["role"] == "assistant":
        raise _invalid(
            index, "the messages must end before the assistant's reply; drop the last message", param
        )
    return _render(tokenizer, clean, tools, index, param, add_generation_prompt=True)


def truncate(row: TokenizedRow, length: int) -> TokenizedRow:
    """Cut a row to its first `length` tokens; a turn that lost its first token is no longer trained."""
    return replace(
        row,
        input_ids=row.input_ids[:length],
        loss_mask=row.loss_mask[:length],
        prompt_ends=tuple(end for end in row.prompt_ends if end + 1 < length),
    )


def _marked_spans(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    input_ids: tuple[int, ...],
    n_turns: int,
) -> list[Span] | None:
    """Return the marked spans, or None where there are no marks or they do not fit this row.

    The library cannot sanitise and report marks in one call. The marks of the plain rendering hold where both
    renderings have the same tokens, which is every row without a control token in its text.
    """
    template = tokenizer.get_chat_template(tools=cast(Any, tools))
    if not _GENERATION_MARKER.search(template):
        return None
    with bounded_rendering():
        encoded = cast(
            Mapping[str, list[int]],
            tokenizer.apply_chat_template(
                cast(Any, messages),
                tools=cast(Any, tools),
                return_dict=True,
                return_assistant_tokens_mask=True,
            ),
        )
    if tuple(encoded["input_ids"]) != input_ids:
        return None
    spans: list[Span] = []
    before = 0
    for position, marked in enumerate(encoded["assistant_masks"]):
        if marked and not before:
            spans.append((position, position + 1))
        elif marked:
            spans[-1] = (spans[-1][0], position + 1)
        before = marked
    return spans if len(spans) == n_turns else None


def _prefix_spans(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    input_ids: tuple[int, ...],
    turns: Sequence[int],
    index: int,
    param: str,
) -> list[Span] | None:
    """Return what each assistant turn adds to the messages before it, or None where a part is no true prefix."""
    controls = control_ids(tokenizer)
    spans: list[Span] = []
    for turn in turns:
        prompt: tuple[int, ...] = ()
        if turn > 0:
            prompt = _render(tokenizer, messages[:turn], tools, index, param, add_generation_prompt=True)
        whole = input_ids
        if turn + 1 < len(messages):
            whole = _render(tokenizer, messages[: turn + 1], tools, index, param)
        is_prefix = input_ids[: len(whole)] == whole and whole[: len(prompt)] == prompt
        if not is_prefix or len(whole) == len(prompt):
            return None
        spans.append((len(prompt), _end_of_turn(tokenizer, whole, len(prompt), controls)))
    return spans


def _end_of_turn(
    tokenizer: PreTrainedTokenizerBase, input_ids: tuple[int, ...], start: int, controls: frozenset[int]
) -> int:
    """Return the end of the turn without the white space that many templates write after its last control token.

    Generation stops at that token, so the model never writes what follows it.
    """
    end = len(input_ids)
    last = next((place for place in range(end - 1, start - 1, -1) if input_ids[place] in controls), None)
    if last is None or str(tokenizer.decode(list(input_ids[last + 1 : end]))).strip():
        return end
    return last + 1


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    index: int,
    param: str,
    *,
    add_generation_prompt: bool = False,
) -> tuple[int, ...]:
    try:
        with bounded_rendering():
            input_ids = tokenizer.apply_chat_template(
                cast(Any, list(messages)),
                tools=cast(Any, tools),
                add_generation_prompt=add_generation_prompt,
                sanitize_control_tokens=True,
                return_dict=False,
            )
    # Templates are programs: they raise their own errors, and Python's where a field has not the type they expect.
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise _invalid(
            index, f"{_template_name(tokenizer)} does not accept the messages: {error}", param
        ) from error
    return tuple(cast(list[int], input_ids))


def _clean_message(message: Message, index: int, param: str) -> dict[str, Any]:
    """Return a message as templates expect it: text content, tool arguments as objects, nothing of ours."""
    role = message.get("role")
    if role not in _ROLES:
        raise _invalid(index, f"the role {role!r} is none of {', '.join(sorted(_ROLES))}; correct it", param)
    clean = {key: value for key, value in message.items() if key != "weight" and value is not None}
    clean["role"] = "system" if role == "developer" else role
    content = clean.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise _invalid(
                index, "a message has content that is not text; only text can be trained on", param
            )
        clean["content"] = "".join(part["text"] for part in content)
    elif not isinstance(content, str) and not (content is None and clean.get("tool_calls")):
        raise _invalid(index, "a message has neither text content nor tool calls; add one", param)
    if clean.get("tool_calls"):
        clean["tool_calls"] = [_clean_tool_call(call) for call in clean["tool_calls"]]
    return clean


def _check_tools_are_rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    index: int,
    param: str,
) -> None:
    """Refuse what the template would leave out without a word: then something else is trained than the row says."""
    template = tokenizer.get_chat_template(tools=cast(Any, tools))
    used = {"tools": bool(tools), "tool_calls": any(message.get("tool_calls") for message in messages)}
    for name, is_used in used.items():
        if is_used and not re.search(rf"\b{name}\b", template):
            raise _invalid(
                index,
                f"the row has `{name}`, which {_template_name(tokenizer)} does not render; use a base model whose"
                " template knows tools, or write what the assistant is to learn as text",
                param,
            )


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the tokenizer's control tokens."""
    # Gemma's added tokens include plain white space, which is text.
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(token_id for token_id, token in added if not token.content.isspace())


def _clean_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the call with its arguments as an object; the wire carries them as JSON text."""
    function = dict(call.get("function") or {})
    # What is not JSON text reaches the template as it is.
    with contextlib.suppress(TypeError, ValueError):
        function["arguments"] = json.loads(function.get("arguments") or "{}")
    return {**call, "function": function}


def _is_trained(message: Message, index: int, param: str) -> bool:
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise _invalid(index, f"the weight of an assistant message is {weight!r}; it must be 0 or 1", param)
    return weight != 0


def _template_name(tokenizer: PreTrainedTokenizerBase) -> str:
    # Only the folder's own name: the path before it is nobody's business.
    name = PurePath(str(tokenizer.name_or_path)).name or type(tokenizer).__name__
    return f"the chat template of {name} (sha256 {template_digest(tokenizer)[:12]})"


def _invalid(index: int, found: str, param: str) -> JobFailure:
    return JobFailure(f"row {index} (line {index + 1}): {found}", code="invalid_training_file", param=param)
