"""Where a training run stands, in a file: to go on from when it was stopped, by whatever."""

import io
import pickle
from pathlib import Path

import torch

from pmfcli.artifact import check_archive
from pmfcli.core.tree import Tree
from pmfcli.errors import ModelError, OutputError
from pmfcli.files import replacing

FORMAT = "pmf-checkpoint"
VERSION = 1


def save(path: Path, identity: str, snapshot: Tree) -> None:
    """Write a snapshot of the run of that identity; a kill leaves the file before it, or this one.

    Raises:
        OutputError: it cannot be written; the one before it stays.
    """
    try:
        with replacing(path) as file:
            torch.save({"format": FORMAT, "version": VERSION, "identity": identity, "snapshot": snapshot}, file)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where a disk is full
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise OutputError(f"--checkpoint {path}: {why}; the one before it stays") from None


def load(path: Path, identity: str) -> Tree:
    """The snapshot of a run of that identity; None if there is no file yet.

    Raises:
        ModelError: damaged, not a checkpoint, of a newer version, or of another run.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"--checkpoint {path}: {error.strerror or error}") from None
    remedy = "remove it to start anew"
    try:
        check_archive(content, str(path))
        raw = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(f"--checkpoint {path}: holds something other than tensors and numbers; none of it was run") from None
    except Exception:
        raise ModelError(f"--checkpoint {path}: damaged, or no checkpoint; {remedy}") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ModelError(f"--checkpoint {path}: no checkpoint of pmf; give another file")
    if raw.get("version") != VERSION:
        raise ModelError(f"--checkpoint {path}: of another version of pmf; {remedy}")
    if raw.get("identity") != identity:
        raise ModelError(f"--checkpoint {path}: of a run with other settings or ratings; {remedy}, or give another file")
    return raw["snapshot"]
