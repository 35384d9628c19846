"""The tables and the diagram of docs/jobs.md, made from the machine of states. `python -m tests.job_states` writes them there."""

import re
from pathlib import Path

from app.domain.job import TERMINAL, TRANSITIONS, WIRE_STATUS, State

PAGE = Path(__file__).parents[1] / "docs/jobs.md"


def list_states() -> str:
    """Return the table of states: the wire's word for each, and where it goes."""
    lines = ["| state | `status` | goes to |", "|---|---|---|"]
    for state in State:
        after = ", ".join(other for other in State if other in TRANSITIONS[state]) or "–"
        lines.append(f"| {state} | `{WIRE_STATUS[state]}` | {after} |")
    return "\n".join(lines)


def draw_diagram() -> str:
    """Return the machine as a Mermaid diagram."""
    arrows = [
        f"    {before} --> {after}" for before in State for after in State if after in TRANSITIONS[before]
    ]
    starts = [f"    [*] --> {state}" for state in (State.VALIDATING, State.QUEUED)]
    ends = [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join(["```mermaid", "stateDiagram-v2", *starts, *arrows, *ends, "```"])


def list_arrows() -> str:
    """Return the table of arrows: who moves work along each, and when."""
    lines = ["| from | to | who, and when |", "|---|---|---|"]
    lines += [
        f"| {before} | {after} | {TRANSITIONS[before][after]} |"
        for before in State
        for after in State
        if after in TRANSITIONS[before]
    ]
    return "\n".join(lines)


PARTS = {"states": list_states, "diagram": draw_diagram, "arrows": list_arrows}


def fill_in(page: str) -> str:
    """Return the page with every part between its marks as the code has it."""
    for name, make in PARTS.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        page, count = marked.subn(rf"\g<1>{make()}\g<2>", page)
        if count != 1:
            raise ValueError(f"the page has the mark {name!r} {count} times; it needs it once")
    return page


if __name__ == "__main__":
    PAGE.write_text(fill_in(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
