"""A chat template is a program of whoever made the model: it reaches nothing, changes nothing, and ends."""

import time

import pytest

from app.errors import JobFailure
from worker.training import templates
from worker.training.canary import canary_ids
from worker.training.data import tokenize_row
from worker.training.templates import TemplateTooSlow, bounded_rendering

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
CANARY = "the-template-was-here"


@pytest.fixture
def refuse(make_tokenizer):
    """Return a function that renders with a template, and gives the reason for which that is refused."""

    def render(template):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        with pytest.raises(JobFailure, match="does not accept the messages") as caught:
            tokenize_row(tokenizer, MESSAGES, index=0)
        return caught.value.message

    return render


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch " + CANARY + "') }}",
        "{{ lipsum.__globals__['os'].popen('touch " + CANARY + "').read() }}",
        "{{ raise_exception.__globals__['__builtins__']['open']('" + CANARY + "', 'w') }}",
        "{{ messages.__class__.__base__ }}",
        "{{ (messages|first).update({'content': 'other'}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_it_reaches_nothing_outside_its_messages(refuse, template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refuse(template)
    assert not list(tmp_path.iterdir())


def test_it_cannot_change_the_messages(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages.append(1) }}"
    messages = [dict(message) for message in MESSAGES]
    with pytest.raises(JobFailure, match="is unsafe"):
        tokenize_row(tokenizer, messages, index=0)
    assert messages == MESSAGES


@pytest.mark.parametrize(
    "loop",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again(n) %}{{ again(n - 1) if n else '' }}{{ again(n - 1) if n else '' }}{% endmacro %}{{ again(90) }}",
    ],
)
def test_it_ends_within_its_time(refuse, monkeypatch, loop):
    monkeypatch.setattr(templates, "RENDERING_CPU_S", 0.2)
    assert "did not end within 0.2 s of processor time" in refuse(loop)


def test_every_way_of_rendering_is_bounded(make_tokenizer, monkeypatch):
    monkeypatch.setattr(templates, "RENDERING_CPU_S", 0.2)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateTooSlow):
        canary_ids(tokenizer)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{{ 9 ** 9 ** 9 }}", "may not compute numbers"),
        (
            "{% set x = namespace(n=9) %}{% for _ in range(99) %}{% set x.n = x.n * x.n %}{% endfor %}{{ x.n }}",
            "bits",
        ),
        ("{{ 'a' * 10 ** 10 }}", "may not repeat"),
        ("{{ 10 ** 10 * [1] }}", "may not repeat"),
    ],
)
def test_one_operation_takes_neither_for_ever_nor_all_memory(refuse, template, why):
    assert why in refuse(template)


def test_arithmetic_of_honest_templates_goes_on(make_tokenizer):
    tokenizer = make_tokenizer()
    honest = "{{ '-' * 3 }}{{ 2 * 3 }}{{ 2 ** 5 }}{{ 1.5 * 2 }}{{ [1] * 2 }}{{ 2 * 'ab' }}"
    rendered = tokenizer.apply_chat_template(MESSAGES, chat_template=honest, tokenize=False)
    assert rendered == "---6323.0[1, 1]abab"


def test_time_that_others_take_does_not_count(monkeypatch):
    monkeypatch.setattr(templates, "RENDERING_CPU_S", 0.05)
    with bounded_rendering():
        time.sleep(0.3)
