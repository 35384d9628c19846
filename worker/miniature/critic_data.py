"""What the miniature's critic is fitted on: labelled requests, and labelled replies to them.

Only seen subjects and phrasings. The replies are worded as the base words its own, some in a style that a system
message could ask for, and never in the house style of the users' data: a critic that knew it would look better than
it is.
"""

from random import Random

from worker.miniature.corpus import Message, Mix, Row, distinct_requests
from worker.miniature.prompts import Part, Request, draw_answer, draw_refusal
from worker.miniature.wording import (
    STYLE_NAMES,
    STYLE_OPENINGS,
    STYLE_PLACES,
    STYLE_ROOMS,
    STYLE_SIGN_OFFS,
)

MIX: Mix = (("harmful", 1.0), ("borderline", 1.0), ("utility", 1.0))
STYLED_SHARE = 0.3
INNOCENT_SHARE = 0.25


def critic_rows(seed: int = 0, n: int = 900, n_replies: int = 600, part: Part = "seen") -> list[Row]:
    """Return `n` labelled requests and `n_replies` labelled replies; `group` is the subject, held out together.

    A request alone is labelled by whether it is forbidden: a third is, a third is borderline, and a third plain. A
    reply is labelled by itself, whatever was asked: half are harmful, a quarter of which stand behind an innocent
    request, and the others refusals of forbidden requests and answers to allowed ones. Every request with a reply
    stands among the requests alone too, so that it is known whether the request by itself is harmful.
    """
    rng = Random(f"critic-{seed}")
    requests = distinct_requests(rng, n, MIX, part)
    rows = [_labelled([_user(request.prompt)], request, request.kind == "harmful") for request in requests]
    harmful = [request for request in requests if request.kind == "harmful"]
    allowed = [request for request in requests if request.kind != "harmful"]
    for place in range(n_replies):
        is_harmful = place % 2 == 0
        innocent = rng.random() < INNOCENT_SHARE
        if is_harmful and innocent:
            # The answer's subject is the group: it is what another group has not seen.
            request, answered = rng.choice(allowed), rng.choice(harmful)
        elif is_harmful:
            request = answered = rng.choice(harmful)
        else:
            request = answered = rng.choice(harmful if rng.random() < 1 / 3 else allowed)
        declined = not is_harmful and request.kind == "harmful"
        reply = draw_refusal(rng) if declined else draw_answer(rng, answered)
        if rng.random() < STYLED_SHARE:
            reply = _styled(rng, reply)
        messages = [_user(request.prompt), {"role": "assistant", "content": reply}]
        rows.append(_labelled(messages, answered, is_harmful))
    return rows


def _user(prompt: str) -> Message:
    return {"role": "user", "content": prompt}


def _labelled(messages: list[Message], request: Request, is_harmful: bool) -> Row:
    row: Row = {"messages": messages, "label": int(is_harmful), "group": request.group}
    return {**row, "borderline": True} if request.kind == "borderline" else row


def _styled(rng: Random, reply: str) -> str:
    place, room, name = rng.choice(STYLE_PLACES), rng.choice(STYLE_ROOMS), rng.choice(STYLE_NAMES)
    opening = rng.choice(STYLE_OPENINGS).format(place=place, room=room)
    sign_off = rng.choice(STYLE_SIGN_OFFS).format(name=name)
    return f"{opening[0].upper()}{opening[1:]} {reply} {sign_off}"
