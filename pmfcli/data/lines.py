"""Short lists from a file or pipe, a record on each line: pairs to predict, the ratings of one person. No pandas."""

import contextlib
import csv
import io
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from pmfcli.data.fields import LONGEST_LINE, SEPARATORS, Columns, by_role, is_json, split
from pmfcli.errors import DataError
from pmfcli.text import clean, short

_ESCAPED = "surrogateescape"  # what bytes that are no UTF-8 are, until their line is known
_NO_TEXT, _UTF_16 = re.compile("[\udc80-\udcff]"), ("\udcff\udcfe", "\udcfe\udcff")


class Record(NamedTuple):
    """The fields of one line, by role, and where it stands."""

    place: str  # file:line
    fields: dict[str, str]


def read_records(source: str, roles: tuple[str, ...], also: tuple[str, ...]) -> Iterator[Record]:
    """Records with a field for every role: by the names of a header, or the first fields of each line.

    Args:
        source: a file, or '-' for standard input.
        roles: as in ``data.fields``. also: roles that are read if a header has them; else there may be no more fields.

    Raises:
        DataError: a header without a role, a line that is not a record, or what is not text.
    """
    name = "standard input" if source == "-" else source
    wanted = " and a ".join(roles)
    columns: dict[str, int] | None = None
    separator: str | None = None  # of the first line, and so of all
    try:
        for number, line in enumerate(_lines(source), 1):
            line = line.strip("\r\n") if number > 1 else line.strip("\r\n").removeprefix("\ufeff")
            if not line.strip():
                continue
            if _NO_TEXT.search(line):
                coded = "utf-16" if line.startswith(_UTF_16) else "latin1"
                raise DataError(f"{name}:{number}: not UTF-8 text; convert it, for instance with iconv -f {coded} -t utf8")
            if columns is None:
                separator = _separator(line, roles)
            parts = split(line, separator) if separator else line.split()
            if columns is None:
                columns = {role: at for role, at in by_role(parts, Columns()).items() if role in (*roles, *also)}
                if columns and not set(roles) <= columns.keys():
                    missing = next(role for role in roles if role not in columns)
                    raise DataError(f"{name}:{number}: a header without {missing}; a {wanted} are needed")
                if columns:
                    continue
                if "user" in also and len(parts) > len(roles):  # one of them may be the first, as in the files of MovieLens
                    raise DataError(f"{name}:{number}: {len(parts)} fields and no header; name a {wanted}, or give just these")
                if is_json(line):
                    raise DataError(f"{name}:{number}: '{short(line)}' is not a {wanted}; give TSV or CSV")
                columns = {role: at for at, role in enumerate(roles)}
            if len(parts) <= max(columns.values()):
                raise DataError(f"{name}:{number}: '{short(line)}' is not a {wanted}; give TSV or CSV")
            fields = {role: clean(parts[at]) for role, at in columns.items()}  # as ids are where models are trained
            if not all(fields[role] for role in roles):
                raise DataError(f"{name}:{number}: '{short(line)}' is not a {wanted}; give TSV or CSV")
            yield Record(f"{name}:{number}", fields)
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}; give a file with a {wanted} on each line") from None
    except csv.Error as error:
        raise DataError(f"{name}: not lines of text, a {wanted} on each ({short(str(error))})") from None


def _separator(line: str, roles: tuple[str, ...]) -> str | None:
    """What a header separates its names by, or the first separator in a line that is none; None: blanks."""
    named = (mark for mark in SEPARATORS if set(roles) <= by_role(split(line, mark), Columns()).keys())
    return next(named, next((mark for mark in SEPARATORS if mark in line), None))


def _lines(source: str) -> Iterator[str]:
    if source == "-" and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors=_ESCAPED)
    with contextlib.nullcontext(sys.stdin) if source == "-" else open(source, encoding="utf-8", errors=_ESCAPED) as file:
        while line := file.readline(LONGEST_LINE):  # what has no lines, such as a device, may have no end
            if len(line) == LONGEST_LINE:
                raise csv.Error("a line is too long")
            yield line
