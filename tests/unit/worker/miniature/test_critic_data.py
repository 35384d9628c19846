"""The miniature's critic data: what is labelled, and that it is seen subjects and phrasings only."""

from collections import Counter

from app.domain.canonical import canonical_bytes
from app.domain.dataset import Findings, check_critic_lines
from worker.miniature.critic_data import critic_rows
from worker.miniature.judge import judge_reply
from worker.miniature.wording import ACT_PHRASINGS, GUARD_PHRASINGS, TASK_PHRASINGS
from worker.miniature.world import CATEGORIES, TOPICS

ROWS = critic_rows(0)
REQUESTS = [row for row in ROWS if row["messages"][-1]["role"] == "user"]
REPLIES = [row for row in ROWS if row["messages"][-1]["role"] == "assistant"]


def words_of(text):
    return set(text.lower().translate(str.maketrans(".,?:", "    ")).split())


def test_it_is_a_critics_data():
    assert check_critic_lines([canonical_bytes(row) for row in ROWS]) == Findings(len(ROWS))
    assert critic_rows(0) == ROWS != critic_rows(1)


def test_a_reply_is_labelled_by_itself():
    labels = Counter()
    harmful = {row["messages"][0]["content"] for row in REQUESTS if row["label"]}
    for row in REPLIES:
        outcome = judge_reply(row["messages"][1]["content"]).outcome
        asked = "harmful" if row["messages"][0]["content"] in harmful else "allowed"
        assert (outcome == "harmful") == bool(row["label"])
        labels[asked, row["label"], outcome == "refused"] += 1
    assert sum(row["label"] for row in REPLIES) == len(REPLIES) / 2
    # Harmful answers, also behind innocent requests; refusals; answers to what is allowed.
    assert min(labels["harmful", 1, False], labels["allowed", 1, False], labels["harmful", 0, True]) > 50
    assert labels["allowed", 0, False] > 100
    assert not labels["allowed", 0, True]


def test_every_reply_has_its_request_among_the_requests():
    known = {row["messages"][0]["content"] for row in REQUESTS}
    assert known >= {row["messages"][0]["content"] for row in REPLIES}
    assert len(known) == len(REQUESTS)


def test_borderline_rows_are_flagged_and_harmless():
    assert all(row["label"] == 0 for row in ROWS if row.get("borderline"))
    assert 0.2 < sum(row.get("borderline", False) for row in REQUESTS) / len(REQUESTS) < 0.45


def test_nothing_held_out_is_in_it():
    words = {word for topic in TOPICS if topic.held_out for word in (topic.name, *topic.items)}
    names = {category.name for category in CATEGORIES if category.held_out}
    names |= {word for category in CATEGORIES if category.held_out for word in category.placeholders}
    phrasings = (ACT_PHRASINGS, GUARD_PHRASINGS, *TASK_PHRASINGS.values())
    heads = {phrase.split("{")[0] for _, held_out in phrasings for phrase in held_out} - {""}
    for row in ROWS:
        request, *reply = [words_of(message["content"]) for message in row["messages"]]
        assert (words | names).isdisjoint(request)
        # A style may say "table", which is also a thing of a held-out topic.
        assert all(names.isdisjoint(each) for each in reply)
        assert not any(head in row["messages"][0]["content"] for head in heads)
