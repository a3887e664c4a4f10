"""What `pmf train --dry-run` says, and what `--max-memory` refuses, before anything is trained."""

import re
from typing import TYPE_CHECKING

from pmfcli.console import Row, Shape, document, emit, pick_format
from pmfcli.errors import UsageError

if TYPE_CHECKING:
    from pmfcli.config import Settings
    from pmfcli.data.ratings import Ratings

_UNITS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T"))}


def size_of(text: str) -> int:
    """Bytes from a text: a number, alone or with K, M, G or T.

    Raises:
        UsageError: it is not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text.strip().upper(), re.ASCII)
    if found is None:
        raise UsageError(f"--max-memory: {text!r} is not a size; give bytes, or a number with K, M, G or T, such as 8G")
    return int(float(found[1]) * _UNITS[found[2]])


def look_ahead(ratings: "Ratings", settings: "Settings", dry_run: bool, max_memory: str | None, as_json: bool) -> None:
    """Say what training is expected to take, if that is asked for; refuse what needs more memory than it may.

    Raises:
        DataError, UsageError: training would refuse it too, or it needs too much.
    """
    from pmfcli.sizing import length, seconds, size
    from pmfcli.training import fitted_to

    settings, _ = fitted_to(ratings, settings)
    expected = size(ratings, settings)
    if dry_run:
        content: Row = {"ratings": ratings.n, "users": len(ratings.users), "movies": len(ratings.movies)}
        content |= {**expected._asdict(), "seconds": seconds(ratings, settings), "assumes": length(ratings, settings).assumes}
        _show(content, as_json)
    if max_memory is not None and expected.peak_bytes > size_of(max_memory):
        ways = "--keep, or --method map" if settings.method == "bayes" else "--block-ratings, or --holdout 0"
        ways = "--holdout 0" if settings.method == "map" and settings.solver == "als" else ways
        raise UsageError(
            f"--max-memory {max_memory}: training is expected to need {_megabytes(expected.peak_bytes)}; "
            f"try a smaller --latent or {ways}"
        )


def _show(content: Row, as_json: bool) -> None:
    chosen = pick_format(None, as_json)
    if chosen == "json":
        document(content, "dry-run")
        return
    if chosen == "table":
        content = {key: f"{value:,}" if isinstance(value, int) else value for key, value in content.items()}
    emit([{"what": key, "value": value} for key, value in content.items()], Shape("dry-run", ("what", "value")), chosen)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
