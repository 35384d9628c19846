"""The model card: it lets nothing in and nothing out, answers every question, and says what it does not know."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from app.evidence.card import HEADERS, NOT_PROVEN, POLICY, STYLE, render_card
from app.evidence.curves import PANELS, draw_panels
from app.evidence.questions import NOT_RECORDED, QUESTIONS, answer_questions
from tests.unit.app.domain.test_bom import bare
from tests.unit.app.evidence.facts import make_curve, make_facts

HOSTILE = (
    "</td></table></svg><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\"'`<style>"
    "@import 'https://evil.example'</style>&lt;b&gt;\x00\u202e"
)
ELEMENTS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "h3",
    "p",
    "strong",
    "table",
    "tr",
    "th",
    "td",
    "br",
    "span",
    "ul",
    "li",
    "pre",
    "figure",
    "figcaption",
    "svg",
    "path",
    "polyline",
    "circle",
    "text",
}
ATTRIBUTES = {
    "lang",
    "charset",
    "http-equiv",
    "content",
    "class",
    "viewbox",
    "width",
    "height",
    "role",
    "aria-label",
    "d",
    "fill",
    "stroke",
    "stroke-width",
    "points",
    "x",
    "y",
    "font-size",
    "text-anchor",
    "cx",
    "cy",
    "r",
}


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.values: list[str] = []
        self.said: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    @property
    def text(self) -> str:
        return "".join(self.said)


def replace_texts(value: Any, text: str) -> Any:
    """Return the facts with every text in them replaced, but for those that code tells apart."""
    if isinstance(value, dict):
        return {name: each if name in KEPT else replace_texts(each, text) for name, each in value.items()}
    if isinstance(value, list):
        return [replace_texts(each, text) for each in value]
    return text if isinstance(value, str) else value


KEPT = ("one_third_rule", "columns", "stage")


def test_hostile_text_in_every_place_is_shown_as_text() -> None:
    facts = replace_texts(make_facts(), HOSTILE)
    facts["job"]["error"] = {"message": HOSTILE}
    facts["records"]["start"]["environment"] = {HOSTILE: HOSTILE}
    facts["compute"]["seconds"] = {HOSTILE: 1.0}
    html = render_card(facts)
    page = Page(html)
    assert page.elements <= ELEMENTS
    assert page.attributes <= ATTRIBUTES
    assert not any("evil" in value for value in page.values)
    assert page.text.count("<script>alert(1)</script>") > 30
    for name in ("<script", "<img", "onerror=alert(2)>", "@import '"):
        assert name not in html.replace(STYLE, ""), "nothing of it is markup"


def test_the_page_asks_for_nothing() -> None:
    html = render_card(make_facts())
    assert not re.search(r"(?:src|href|url|action)\s*[=(]", html, re.IGNORECASE)
    assert "https://" not in html
    assert f'content="{POLICY}"' in html
    assert "style=" not in html, "the policy allows the one style sheet and no other style"
    assert html.count("<style>") == 1
    assert "default-src 'none'" in HEADERS["content-security-policy"]
    assert "unsafe" not in POLICY


def test_every_question_is_answered_by_its_datum() -> None:
    answers = {each.text: each.answer for each in answer_questions(make_facts())}
    assert len(answers) == len(QUESTIONS) == 16
    page = Page(render_card(make_facts())).text
    assert all(text in page and answer in page for text, answer in answers.items())
    expected = {
        "Which data trained this model, unchanged since?": ("320 rows", "1" * 64, "b" * 64),
        "Which base model, exactly?": ("org/base-7b", "0f1e2d", "a" * 64),
        "How much compute; did we become a GPAI provider?": ("3.2e+15", "812 s", "below one third"),
        "What risks were seen while training?": ("0.170", "2 failed", "one critic's estimate"),
        "What did the system do about each?": ("base model's own reply 20", "0.250"),
        "Was the monitor itself working?": ("2 of 320", "0.9712", "held-out"),
        "Was safety worse after than before?": ("attack_success.greedy", "0.020", "0.030"),
        "Who started, paused, overrode, approved?": ("key_1", "pause by key_2", "approved by key_3"),
        "Was it interrupted; is the result still one run?": ("resumes: 1 (from step 40)",),
        "Is the delivered file the one trained?": ("7" * 64, "signed by the key 0a1b2c3d"),
        "How do you know nobody edited the log?": ("140 of 140 records", "tether.example/log"),
        "How long is it kept, who can read it?": ("730 days", "audit:read"),
        "Can you erase a person?": ("that was not done",),
        "Which software ran, any known flaw?": ("torch 2.10.0+cu128", NOT_RECORDED),
    }
    for text, words in expected.items():
        assert all(word in answers[text] for word in words), answers[text]


def test_what_is_not_known_is_said_to_be_not_recorded() -> None:
    facts = bare() | {
        "curve": None,
        "attestation": None,
        "log": None,
        "canary": None,
        "checkpoints": [],
        "policy": {"sha256": "d" * 64, "text": None},
        "compute": {
            "flops": None,
            "seconds": {},
            "original_training_flops": None,
            "one_third_rule": "unknown",
        },
        "gate": None,
    }
    answers = {each.text: each.answer for each in answer_questions(facts)}
    for text in (
        "How much compute; did we become a GPAI provider?",
        "What risks were seen while training?",
        "What did the system do about each?",
        "Was the monitor itself working?",
        "Was safety worse after than before?",
        "Was it interrupted; is the result still one run?",
        "Is the delivered file the one trained?",
        "How do you know nobody edited the log?",
        "Which software ran, any known flaw?",
    ):
        assert answers[text] == NOT_RECORDED, text
    assert "its text is kept nowhere" in answers["What method and choices, and why?"]
    page = Page(render_card(facts))
    assert "polyline" not in page.elements
    assert page.text.count(NOT_RECORDED) > 12


@pytest.mark.parametrize(
    ("rule", "says"),
    [("unknown", "unknown"), ("above", "above one third of"), ("below", "even at twice the estimate")],
)
def test_the_third_is_never_said_to_be_kept_where_nobody_knows(rule: str, says: str) -> None:
    facts = make_facts()
    facts["compute"] |= {"one_third_rule": rule}
    found = next(each.answer for each in answer_questions(facts) if "GPAI" in each.text)
    assert says in found
    assert ("below" in found) is (rule == "below")


def test_nothing_is_said_to_be_on_record_that_was_pruned() -> None:
    said = "\n".join(each.answer for each in answer_questions(make_facts()))
    assert "KL of every step are on record" in said
    assert "exactly once" in said
    facts = make_facts(curve=None)
    facts["job"]["steps_pruned"] = True
    said = "\n".join(each.answer for each in answer_questions(facts))
    assert "KL of each step are not on record any more" in said
    assert "exactly once" not in said


def test_it_claims_evidence_and_never_compliance() -> None:
    page = Page(render_card(make_facts())).text
    assert "claims no compliance" in page
    assert all(each in page for each in NOT_PROVEN)
    rest = page
    for each in NOT_PROVEN:
        rest = rest.replace(each, "")
    assert not re.search(r"compl(?:y|ies|iant|iance)|certif|guarantee|\bis safe\b", rest, re.IGNORECASE)


def test_the_canary_says_whether_it_can_tell_a_server() -> None:
    text = Page(render_card(make_facts())).text
    assert "1.750 nats a token apart, over 2 tokens" in text
    assert "too near" not in text
    near = make_facts()
    near["canary"] = near["canary"] | {"base": [-0.55, -1.0]}
    assert "too near for a server" in Page(render_card(near)).text


def test_an_unprotected_job_and_a_held_one_say_so() -> None:
    facts = make_facts()
    facts["job"] |= {"spec": {"safety": {"method": "none", "anchors": None, "critic": None}}, "state": "held"}
    text = Page(render_card(facts)).text
    assert "unprotected" in text
    assert "Held by the gate" in text
    assert "unprotected" not in Page(render_card(make_facts())).text


class TestCurves:
    def test_every_panel_is_drawn_with_both_its_lines(self) -> None:
        pictures = [picture for _, picture in draw_panels(make_curve())]
        assert len(pictures) == len(PANELS) == 4
        assert [str(picture).count("<polyline") for picture in pictures] == [2, 2, 2, 2]

    def test_points_stay_inside_of_the_picture(self) -> None:
        curve = make_curve()
        curve["rows"][5][2] = 7.0
        for _, picture in draw_panels(curve):
            for points in re.findall(r'points="([^"]+)"', str(picture)):
                for point in points.split():
                    x, y = map(float, point.split(","))
                    assert 0 <= x <= 640
                    assert 0 <= y <= 150

    def test_numbers_that_are_none_leave_no_point(self) -> None:
        curve = make_curve(steps=4)
        for row in curve["rows"]:
            row[8] = row[11] = None
        curve["rows"][1][9] = float("nan")
        curve["rows"][2][9] = float("inf")
        pictures = {panel.title: picture for panel, picture in draw_panels(curve)}
        assert pictures["Distance from the reference, nats a token"] is None
        loss = str(pictures["Loss, nats a token"])
        assert "nan" not in loss
        assert "inf" not in loss
        assert len(re.findall(r'points="([^"]+)"', loss)[1].split()) == 2

    def test_a_single_step_is_a_dot(self) -> None:
        assert "<circle" in str(draw_panels(make_curve(steps=1))[0][1])
