"""Fields of a line: how they are separated, and which column has which role."""

import csv
import math
import re
from datetime import UTC, datetime
from typing import NamedTuple

from pmfcli.text import short

NAMES = {  # of columns, those that are surest first
    "user": ("userid", "user_id", "user"),
    "movie": ("movieid", "movie_id", "itemid", "item_id", "movie", "item"),  # beside an id, these last may be its title
    "rating": ("rating", "score", "stars"),
    "time": ("time", "timestamp"),
    "title": ("title", "movie_title"),
}
SEPARATORS = ("\t", "::", ",", ";", "|")
UNQUOTED = ("::", "\t")  # a quotation mark is a letter like any other there
LONGEST_LINE = 1 << 22
LATEST = 253_402_300_799  # seconds: the end of the year 9999; beyond are milliseconds
LARGEST = 1e12  # numbers beyond this are none that a model can use
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d{1,2}")
_JSON = re.compile(r"""\s*[{[]\s*($|["'{[]|-?\d+\s*[],}]|\w+\s*:)""")  # the beginning of it, or of something much like it
_MONTH = re.compile(r"\d{4}-\d{2}")
_NEEDED = ("user", "movie", "rating")
csv.field_size_limit(LONGEST_LINE)


class Columns(NamedTuple):
    """Names of columns given by hand; None: a usual name is looked for."""

    user: str | None = None
    movie: str | None = None
    rating: str | None = None
    time: str | None = None


def rating(text: str) -> float | None:
    """A rating from a text; None if it is not a number that a model can use."""
    value = _number(text)
    return value if value is not None and abs(value) <= LARGEST else None


def no_rating(text: str, otherwise: str) -> str:
    """What to say of a text that is no rating: that it has a decimal comma, or else this."""
    return f"'{short(text)}' {'has a decimal comma, not a point' if _DECIMAL_COMMA.fullmatch(text) else otherwise}"


def seconds(text: str) -> int | None:
    """Seconds since 1970, from these, milliseconds or an ISO 8601 date (UTC if it has no zone); None if it is neither."""
    number = _number(text)
    if number is None:
        try:
            date = datetime.fromisoformat(f"{text}-01" if _MONTH.fullmatch(text) else text.replace("/", "-"))
        except ValueError:
            return None
        number = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    elif LATEST < abs(number) <= 1000 * LATEST:
        number /= 1000
    return math.floor(number) if abs(number) <= LATEST else None


def _number(text: str) -> float | None:
    """Python alone reads 1_000 as a number."""
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def is_json(line: str) -> bool:
    """Whether a line begins as JSON does."""
    return _JSON.match(line) is not None


def split(line: str, separator: str) -> list[str]:
    """The fields of a line, trimmed; quoted fields are undone where the separator allows them."""
    parts = line.split(separator) if separator in UNQUOTED else next(csv.reader([line], delimiter=separator), [])
    return [part.strip() for part in parts]


def by_role(parts: list[str], columns: Columns) -> dict[str, int]:
    """Role -> position, for the roles that have a column among the names of a header."""
    plain = [re.sub(r":\w+$", "", part).lower() for part in parts]  # RecBole writes "user_id:token"
    fields: dict[str, int] = {}
    for role, aliases in sorted(NAMES.items(), key=lambda item: getattr(columns, item[0], None) is None):  # those given first
        given = getattr(columns, role, None)
        names, wanted = (plain, aliases) if given is None else (parts, (given,))
        found = [names.index(name) for name in wanted if name in names and names.index(name) not in fields.values()]
        if found:
            fields[role] = found[0]
    return fields


def missing(parts: list[str], fields: dict[str, int], columns: Columns) -> str | None:
    """Which roles have no column, or two, among the names of a header, and what to do; None if all needed ones have one."""
    needed = _NEEDED if columns.time is None else (*_NEEDED, "time")
    without = [role for role in needed if role not in fields]
    if not without:
        twice = next((parts[field] for field in fields.values() if parts.count(parts[field]) > 1), None)
        return None if twice is None else f"two columns are called {short(twice)}; rename one"
    found = ", ".join(short(part) for part in parts[:12])
    for role, given in columns._asdict().items():
        if given is not None and role not in fields:
            return f"--{role}-col: no column '{short(given)}' among {found}; give one of these"
    return f"no column for {', '.join(without)} among {found}; name them with {', '.join(f'--{role}-col' for role in without)}"
