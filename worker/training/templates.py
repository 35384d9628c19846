"""Rendering chat templates, which are programs of whoever made the model.

The library renders them in Jinja's immutable sandbox, which keeps them from everything but their messages. What the
sandbox does not bound is time: a template may loop over loops, or compute a power that no machine ends. Both end here.
"""

import operator
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDERING_CPU_S = 10.0
"""For one conversation. The longest row takes a small part of a second."""
MAX_PRODUCT_CHARS = 1024 * 1024
MAX_PRODUCT_BITS = 256


class TemplateTooSlow(TemplateError):
    """A chat template did not end within its time."""


@contextmanager
def bounded_rendering(conversations: int = 1) -> Iterator[None]:
    """Raise TemplateTooSlow where rendering needs more processor time than it may. Of the main thread alone.

    The time is that of this process's own instructions: neither a busy machine nor a stopped process counts.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python gives signals to the main thread only. The processes that work render there and nowhere else.
        yield
        return
    limit_s = RENDERING_CPU_S * max(1, conversations)

    def stop(*_: object) -> None:
        raise TemplateTooSlow(f"it did not end within {limit_s:g} s of processor time")

    former = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, former)


def _multiply(left: Any, right: Any) -> Any:
    for text, times in ((left, right), (right, left)):
        if isinstance(text, str | list | tuple) and isinstance(times, int):
            if len(text) * times > MAX_PRODUCT_CHARS:
                raise SecurityError("a template may not repeat a text into more than a million characters")
            break
    else:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    return operator.mul(left, right)


def _raise_to_power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))
    return operator.pow(left, right)


def _check_bits(bits: int) -> None:
    if bits > MAX_PRODUCT_BITS:
        raise SecurityError(f"a template may not compute numbers of more than {MAX_PRODUCT_BITS} bits")


BOUNDED: dict[str, Callable[[Any, Any], Any]] = {"*": _multiply, "**": _raise_to_power}
# One machine instruction of Python may take for ever, and no signal ends it. The library makes its sandbox itself, so
# that the only place to say so is the class.
ImmutableSandboxedEnvironment.intercepted_binops = frozenset(BOUNDED)
ImmutableSandboxedEnvironment.default_binop_table = {
    **ImmutableSandboxedEnvironment.default_binop_table,
    **BOUNDED,
}
