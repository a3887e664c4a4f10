"""Text from a stranger's file, made safe to print."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def clean(text: str) -> str:
    """One line for a terminal: control characters become spaces, the ends are trimmed."""
    return _CONTROL.sub(" ", text).strip()


def short(text: str) -> str:
    """The same, at most 60 characters long."""
    text = clean(text)
    return text if len(text) <= 60 else text[:57] + "…"
