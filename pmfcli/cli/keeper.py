"""The checkpoints of `pmf train`: when to write one, and what to do when it is told to stop."""

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pmfcli.console import note
from pmfcli.errors import OutputError

if TYPE_CHECKING:
    from pmfcli.core.team import Team
    from pmfcli.core.tree import Tree
    from pmfcli.fitting import Report


class Keeper:
    """Writes checkpoints as training goes, and one more when it is told to stop; told again, it stops at once."""

    def __init__(self, path: Path | None, every: float, identity: str, team: "Team | None") -> None:
        self._path = path.resolve() if path is not None and path.is_symlink() else path  # not the link is written and removed
        self._every, self._identity, self._team = every, identity, team
        self._written = time.perf_counter()
        self._told = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if self._path is not None:
            from pmfcli.checkpoint import remove_unfinished

            remove_unfinished(self._path)
            told = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup makes it
                told.append(signal.SIGHUP)
            self._before = {number: signal.signal(number, self._tell) for number in told}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _tell(self, number: int, _: object) -> None:
        self.__exit__()
        self._told = number
        note("stopping after this step; a second signal stops at once")

    def before(self) -> "Tree":
        """The snapshot of an earlier run; None if there is none."""
        from pmfcli.checkpoint import load, load_part

        assert self._path is not None
        if self._team is None:
            return load(self._path, self._identity)
        return load_part(self._path, self._identity, self._team)

    def look(self, report: "Report") -> None:
        """Called after every step."""
        if self._path is None or report.snapshot is None:
            return
        due = time.perf_counter() - self._written >= self._every
        if self._team is not None:  # they stop and save together: all when one is told to stop, or when the first one is due
            from pmfcli.sharing import agreed

            due, self._told = agreed(self._team, due, self._told)
        if self._told or due:
            try:
                self._save(self._path, report)
            except OutputError as error:
                if self._told or self._team is not None:
                    raise
                note(f"{error}; training continues; next try in {self._every:g} s")
            finally:
                self._written = time.perf_counter()
        if self._told:
            note(f"stopped after step {report.step}; --resume continues from {self._path}")
            raise typer.Exit(128 + self._told)

    def forget(self) -> None:
        """Called when the model is written: remove the checkpoint."""
        if self._path is None:
            return
        if self._team is None:
            self._path.unlink(missing_ok=True)
        else:
            from pmfcli.checkpoint import remove_part

            remove_part(self._path, self._team)

    def _save(self, path: Path, report: "Report") -> None:
        from pmfcli.checkpoint import save, save_part

        assert report.snapshot is not None
        if self._team is None:
            save(path, self._identity, report.snapshot())
        else:
            save_part(path, self._identity, report.snapshot(), f"{report.phase}-{report.step}", self._team)
