"""The log of `pmf train`: a JSON line for steps 0, 50, 100, … and for the last one of each phase."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pmfcli.console import note
from pmfcli.errors import UsageError

if TYPE_CHECKING:
    from pmfcli.fitting import Report

_EVERY = 50


class Log:
    """A file of lines, or '-' for standard output; nothing, without one."""

    def __init__(self, path: Path | None, began: float) -> None:
        self._lines, self._began = _opened(path), began
        self._last: Report | None = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._end_of_phase()
        self._lines.close()

    def look(self, report: "Report") -> None:
        """Called after every step."""
        if self._last is not None and report.phase != self._last.phase:
            self._end_of_phase()
        if report.step % _EVERY == 0:
            self._write(report)
        self._last = report

    def _end_of_phase(self) -> None:
        if self._last is not None and self._last.step % _EVERY:
            self._write(self._last)

    def _write(self, report: "Report") -> None:
        if self._lines.closed:
            return
        said = {name: value for name, value in report._asdict().items() if name != "snapshot"}
        entry = {**said, "seconds": round(time.perf_counter() - self._began, 3)}
        try:
            self._lines.write(json.dumps(entry, allow_nan=False) + "\n")
            self._lines.flush()
        except OSError as error:
            note(f"warning: --log: {error.strerror or error}; logging stops")
            with contextlib.suppress(OSError):
                self._lines.close()


def _opened(path: Path | None) -> TextIO:
    try:
        if path is None:
            return open(os.devnull, "w")
        return os.fdopen(os.dup(sys.stdout.fileno()), "w") if str(path) == "-" else path.open("a", buffering=1)
    except OSError as error:
        raise UsageError(f"--log {path}: {error.strerror or error}; give a file that you can write to") from None
