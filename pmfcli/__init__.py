"""Probabilistic matrix factorization from the shell. Importing this package imports no torch."""

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Model": "pmfcli.artifact",
    "load": "pmfcli.artifact",
    "Ratings": "pmfcli.data.ratings",
    "read_ratings": "pmfcli.data.readers",
    "read_sample": "pmfcli.data.sample",
    "Settings": "pmfcli.config",
    "train": "pmfcli.training",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pmfcli' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
