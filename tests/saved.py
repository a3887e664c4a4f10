"""What is in files that were saved, and files of what should not be in them."""

import io
import json
import os
from dataclasses import fields
from pathlib import Path

import torch

from pmfcli.artifact import Model


def plain(value: object) -> object:
    """The same with tensors as types and numbers, which can be compared."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    return (type(value), [plain(part) for part in value]) if isinstance(value, tuple) else value


def contents(model: Model) -> dict[str, object]:
    return {field.name: plain(getattr(model, field.name)) for field in fields(model)}


class Code:
    """A pickled object that would make a file when loaded."""

    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


OLD = saved({"format": "pmf-model", "version": 1})  # what begins as a model, of an earlier pmf


def beginnings(log: Path) -> int:
    """How many runs began at the first step, of those that a log is of."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [(entry["phase"], entry["step"]) for entry in entries].count(("fit", 0))
