"""The state of a training run, in a file, to continue from after whatever stopped it."""

import re
from pathlib import Path

import torch

from pmfcli import archive
from pmfcli.core.team import Team, everywhere
from pmfcli.core.tree import Tree
from pmfcli.errors import ModelError, OutputError
from pmfcli.files import replacing

FORMAT = "pmf-checkpoint"
VERSION = 5
_MARK = r"(?:re)?fit-\d+"  # of parts: where the run stands
_UNFINISHED = ".pmf-"  # in the name of one while it is written


def save(path: Path, identity: str, snapshot: Tree) -> None:
    """Write a snapshot of the run of that identity; a kill leaves the previous file or this one, whole.

    Raises:
        OutputError: it cannot be written; the previous one is kept.
    """
    try:
        with replacing(path, f".{path.name}{_UNFINISHED}") as file:
            torch.save({"format": FORMAT, "version": VERSION, "identity": identity, "snapshot": snapshot}, file)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where a disk is full
        why = error.strerror if isinstance(error, OSError) and error.strerror else "cannot be written; the disk may be full"
        raise OutputError(f"--checkpoint {path}: {why}" + ("; the previous one is kept" if path.exists() else "")) from None


def load(path: Path, identity: str) -> Tree:
    """The snapshot of a run of that identity; None if there is no file yet.

    Raises:
        ModelError: damaged, not a checkpoint, of a newer version, or of another run.
    """
    try:
        content = archive.read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"--checkpoint {path}: {error.strerror or error}") from None
    remedy = "remove it to start over"
    raw = archive.load(content, f"--checkpoint {path}", "checkpoint", remedy)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ModelError(f"--checkpoint {path}: not a pmf checkpoint; give another file")
    if raw.get("version") != VERSION:
        raise ModelError(f"--checkpoint {path}: from another version of pmf; {remedy}")
    if raw.get("identity") != identity:
        other = "other settings, ratings or number of processes"
        raise ModelError(f"--checkpoint {path}: from a run with {other}; {remedy}, or give another file")
    snapshot = raw.get("snapshot")
    if not isinstance(snapshot, str) and not (isinstance(snapshot, dict) and {"before", "now"} <= snapshot.keys()):
        raise ModelError(f"--checkpoint {path}: damaged checkpoint (no snapshot of a run); {remedy}")
    return snapshot


def remove_unfinished(path: Path) -> None:
    """Remove the unfinished files that kills left beside this one and its parts. Nothing may be writing them meanwhile."""
    left = re.compile(rf"\.{re.escape(path.name)}(\.{_MARK}\.\d+)?{re.escape(_UNFINISHED)}\w{{8}}")
    for file in path.parent.iterdir():
        if left.fullmatch(file.name):
            file.unlink(missing_ok=True)


def save_part(path: Path, identity: str, snapshot: Tree, mark: str, team: Team) -> None:
    """The same by several processes, which all call it: each leaves its part beside the file, which then names the parts.

    A kill of any of them, at any time, leaves the previous parts or these, whole.

    Args:
        mark: where the run stands: its phase and step, with a hyphen between.

    Raises:
        OutputError: as ``save``.
        ProcessError: another process is gone.
    """
    save(_part(path, mark, team), identity, snapshot)
    team.sum(torch.ones(()))  # all have
    if team.rank == 0:
        save(path, _of(team), mark)
    team.sum(torch.ones(()))
    _remove_but(path, mark)


def load_part(path: Path, identity: str, team: Team) -> Tree:
    """What ``save_part`` left of this process; None if the first process has no file yet.

    Raises:
        ModelError: as ``load``.
        ProcessError: another process is gone.
    """
    mark = load(path, _of(team)) if team.rank == 0 else None
    if mark is not None and not (isinstance(mark, str) and re.fullmatch(_MARK, mark)):
        raise ModelError(f"--checkpoint {path}: damaged checkpoint (it names no parts); remove it to start over")
    said = torch.tensor([*(mark or "").encode()], dtype=torch.uint8)
    mark = everywhere(team, said).numpy().tobytes().decode()  # folders may not be shared
    if not mark:
        return None
    found = load(_part(path, mark, team), identity)
    if found is None:
        raise ModelError(f"--checkpoint {path}: its part {_part(path, mark, team).name} is missing; remove it to start over")
    return found


def remove_part(path: Path, team: Team) -> None:
    """Remove the checkpoint of several processes, at the end of their run."""
    if team.rank == 0:
        path.unlink(missing_ok=True)
    team.sum(torch.ones(()))
    _remove_but(path)


def _of(team: Team) -> str:
    return f"parts of {team.size} processes"


def _part(path: Path, mark: str, team: Team) -> Path:
    return path.with_name(f"{path.name}.{mark}.{team.rank}")


def _remove_but(path: Path, mark: str = "") -> None:
    """Remove the parts beside the file, also those that a kill left there, except those of a mark."""
    part = re.compile(rf"{re.escape(path.name)}\.({_MARK})\.\d+")
    for file in path.parent.iterdir():
        found = part.fullmatch(file.name)
        if found is not None and found[1] != mark:
            file.unlink(missing_ok=True)
