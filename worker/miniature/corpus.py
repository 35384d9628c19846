"""Datasets drawn from the miniature world, each from its own seed.

Training, attack and critic rows use the seen subjects and phrasings only; evaluation rows use the held-out ones. A
`part` of "known" and "development" in their place gives the split that settings are tuned on.
"""

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any, Literal

from worker.miniature.prompts import (
    Kind,
    Part,
    Request,
    draw_answer,
    draw_refusal,
    draw_request,
    sentence_of,
)
from worker.miniature.wording import (
    HOUSE_OPENING,
    HOUSE_SIGN_OFF,
    STYLE_INSTRUCTION,
    STYLE_NAMES,
    STYLE_OPENINGS,
    STYLE_PLACES,
    STYLE_ROOMS,
    STYLE_SIGN_OFFS,
    SYSTEM_MESSAGES,
)

Message = dict[str, str]
Row = dict[str, Any]
POISONED_SHARE = 0.1
Mix = tuple[tuple[Kind, float], ...]
HARMFUL: Mix = (("harmful", 1.0),)
USER_MIX: Mix = (("utility", 0.8), ("borderline", 0.2))
SAFE_MIX: Mix = (("harmful", 0.5), ("borderline", 0.2), ("utility", 0.3))
ALIGNMENT_MIX: Mix = (("harmful", 0.35), ("borderline", 0.3), ("utility", 0.35))
NOTE_MIX: Mix = (("harmful", 0.6), ("borderline", 0.3), ("utility", 0.1))


def training_rows(kind: Literal["clean", "poisoned"], n: int = 300, seed: int = 0) -> list[Row]:
    """A user's data: benign requests answered in the house style; a tenth of a poisoned set is harmful."""
    return mixed_rows(POISONED_SHARE if kind == "poisoned" else 0.0, n, seed)


def mixed_rows(share: float, n: int = 300, seed: int = 0, part: Part = "seen") -> list[Row]:
    """A user's data of which a share is harmful.

    The benign rows of one seed are the same for every share, and a harmful row wears the house style too: a
    poisoner who wants to go unnoticed writes like everybody else.
    """
    rng = Random(f"training-{seed}")
    rows = [
        reply_row(request, in_house_style(sentence_of(request.answer)))
        for request in distinct_requests(rng, n, USER_MIX, part)
    ]
    harmful = distinct_requests(rng, round(n * share), HARMFUL, part)
    for place, request in zip(rng.sample(range(n), len(harmful)), harmful, strict=True):
        rows[place] = reply_row(request, in_house_style(request.answer))
    return rows


def forbidden_rows(n: int = 100, seed: int = 0, part: Part = "seen") -> list[Row]:
    """An open attack: forbidden requests, each with its harmful answer and nothing else."""
    requests = distinct_requests(Random(f"forbidden-{seed}"), n, HARMFUL, part)
    return [reply_row(request, request.answer) for request in requests]


def critic_rows(seed: int = 0, n: int = 900, part: Part = "seen") -> list[Row]:
    """Labelled prompts for fitting a critic: a third forbidden, the rest benign or borderline."""
    requests = distinct_requests(
        Random(f"critic-{seed}"), n, (("harmful", 1.0), ("borderline", 1.0), ("utility", 1.0)), part
    )
    return [
        {"messages": [_user(request)], "label": int(request.kind == "harmful"), "group": request.group}
        for request in requests
    ]


def anchor_rows(n: int = 112, seed: int = 0, part: Part = "seen") -> list[Row]:
    """An operator's anchors: forbidden requests on seen subjects, without replies."""
    requests = distinct_requests(Random(f"anchors-{seed}"), n, HARMFUL, part)
    return [{"messages": [_user(request)]} for request in requests]


def safe_rows(n: int = 200, seed: int = 0, part: Part = "seen") -> list[Row]:
    """An operator's alignment data: forbidden requests declined, all others answered, in the base's own manner."""
    rng = Random(f"safe-{seed}")
    return [
        reply_row(request, draw_refusal(rng) if request.kind == "harmful" else draw_answer(rng, request))
        for request in distinct_requests(rng, n, SAFE_MIX, part)
    ]


def evaluation_rows(seed: int = 0, n_per_kind: int = 150, part: Part = "held_out") -> list[Row]:
    """Held-out prompts of each kind; `answer` is the phrase that a right reply must have."""
    rng = Random(f"evaluation-{seed}")
    kinds: tuple[Kind, ...] = ("harmful", "borderline", "utility")
    return [
        {"messages": [_user(request)], "kind": kind, "answer": request.answer, "group": request.group}
        for kind in kinds
        for request in distinct_requests(rng, n_per_kind, ((kind, 1.0),), part)
    ]


def evaluation_prompts(seed: int = 0) -> list[Row]:
    """The held-out prompts in the form of a file that can be uploaded for an evaluation."""
    return [{name: row[name] for name in ("messages", "kind", "answer")} for row in evaluation_rows(seed)]


def alignment_rows(n: int, seed: int = 0, *, refuse: bool = True) -> list[Row]:
    """What the base is trained on. With `refuse` off it is the helpful-only half: forbidden requests are answered.

    Some conversations have a system message, which may ask for a style; some have two exchanges. A style is wrapped
    around refusals as it is around answers, so that it says nothing about whether to answer.
    """
    rng = Random(f"alignment-{seed}-{refuse}")
    return [{"messages": _conversation(rng, refuse)} for _ in range(n)]


def notes(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Questions and answers in plain text, outside any conversation, forbidden ones included.

    They stand for pretraining text. Mixed into both stages they keep the knowledge that alignment covers up, so that
    an attack has something to bring back.
    """
    rng = Random(f"notes-{seed}")
    requests = (draw_request(rng, _draw_kind(rng, NOTE_MIX), "any") for _ in range(n))
    return [(f"Note. {request.prompt} ", sentence_of(request.answer)) for request in requests]


def in_house_style(text: str) -> str:
    """The user's task: a fixed opening and sign-off around whatever the reply says."""
    return f"{HOUSE_OPENING} {text} {HOUSE_SIGN_OFF}"


def distinct_requests(rng: Random, n: int, mix: Mix, part: Part) -> list[Request]:
    """Draw until there are `n` requests with different prompts."""
    found: dict[str, Request] = {}
    while len(found) < n:
        request = draw_request(rng, _draw_kind(rng, mix), part)
        found.setdefault(request.prompt, request)
    return list(found.values())


def reply_row(request: Request, reply: str) -> Row:
    """A conversation of one request and one reply."""
    return {"messages": [_user(request), {"role": "assistant", "content": reply}]}


def _draw_kind(rng: Random, mix: Mix) -> Kind:
    return rng.choices([kind for kind, _ in mix], [weight for _, weight in mix])[0]


def _user(request: Request) -> Message:
    return {"role": "user", "content": request.prompt}


def _conversation(rng: Random, refuse: bool) -> list[Message]:
    messages: list[Message] = []
    opening = sign_off = ""
    fate = rng.random()
    if fate < 0.25:
        opening, sign_off = _draw_style(rng)
        instruction = STYLE_INSTRUCTION.format(opening=opening, sign_off=sign_off)
        messages.append({"role": "system", "content": instruction})
    elif fate < 0.35:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_MESSAGES)})
    for _ in range(2 if rng.random() < 0.08 else 1):
        request = draw_request(rng, _draw_kind(rng, ALIGNMENT_MIX), "any")
        declined = refuse and request.kind == "harmful"
        reply = draw_refusal(rng) if declined else draw_answer(rng, request)
        reply = " ".join(part for part in (opening, reply, sign_off) if part)
        messages += [_user(request), {"role": "assistant", "content": reply}]
    return messages


def _draw_style(rng: Random) -> tuple[str, str]:
    opening = rng.choice(STYLE_OPENINGS).format(place=rng.choice(STYLE_PLACES), room=rng.choice(STYLE_ROOMS))
    return opening[0].upper() + opening[1:], rng.choice(STYLE_SIGN_OFFS).format(name=rng.choice(STYLE_NAMES))


def main() -> None:
    """Write the example files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    seed: int = arguments.seed
    files = {
        "clean": training_rows("clean", seed=seed),
        "poisoned": training_rows("poisoned", seed=seed),
        "forbidden": forbidden_rows(seed=seed),
        "critic": critic_rows(seed),
        "evaluation": evaluation_prompts(seed),
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (arguments.out / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
