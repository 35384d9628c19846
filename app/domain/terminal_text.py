"""Foreign text on a terminal, which must not steer it. Standard library only."""


def escape_controls(text: str) -> str:
    """Return a text with its control and format characters written out: a newline as \\n, ESC as \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )
