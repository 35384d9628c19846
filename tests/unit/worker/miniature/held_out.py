"""What no row that anybody trains on may name or be worded like."""

from worker.miniature.corpus import Row
from worker.miniature.wording import ACT_PHRASINGS, GUARD_PHRASINGS, TASK_PHRASINGS
from worker.miniature.world import CATEGORIES, TOPICS

ALL_PHRASINGS = (ACT_PHRASINGS, GUARD_PHRASINGS, *TASK_PHRASINGS.values())


def assert_nothing_held_out(rows: list[Row]) -> None:
    """Fail where a message names a held-out subject, or is worded in a held-out way."""
    words = {word for t in TOPICS if t.held_out for word in (t.name, *t.items)}
    words |= {c.name for c in CATEGORIES if c.held_out}
    heads = {phrase.split("{")[0] for _, held_out in ALL_PHRASINGS for phrase in held_out} - {""}
    for row in rows:
        for message in row["messages"]:
            text = message["content"]
            assert words.isdisjoint(text.lower().translate(str.maketrans(".,?:", "    ")).split())
            assert message["role"] != "user" or not any(head in text for head in heads)
