"""Text from a stranger's file, made safe to print."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")  # and what turns text round


def clean(text: str) -> str:
    """One line for a terminal: control characters become spaces, the ends are trimmed."""
    return _CONTROL.sub(" ", text).strip()


def escaped(document: str) -> str:
    """JSON without line breaks that says the same, with an escape for each of these characters."""
    return _CONTROL.sub(lambda found: "".join(f"\\u{ord(letter):04x}" for letter in found[0]), document)


def file_size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.0f} kB"


def short(text: str) -> str:
    """The same, at most 60 characters long."""
    text = clean(text)
    return text if len(text) <= 60 else text[:57] + "…"
