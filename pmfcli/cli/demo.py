"""pmf demo: the whole tour, offline."""

import sys
import tempfile
from pathlib import Path

import typer

from pmfcli.console import note

EXAMPLE = "pmf demo"
_TOUR = (
    ("Train on the embedded sample", "train --data sample", "-o"),
    ("What would viewer 4 give Toy Story, Alien and Casablanca?", "predict --user 4 --movie 1 --movie Alien --movie 912", "-m"),
    ("What should viewer 4 watch next?", "recommend --user 4 -n 5", "-m"),
    ("Which movies are like Star Wars?", "similar --movie 260 -n 5", "-m"),
    ("Who shares the taste of viewer 4?", "similar --user 4 -n 3", "-m"),
    ("How good is it on ratings that it has not seen?", "evaluate --data sample --split random", None),
)


def demo() -> None:
    """Tour on the embedded sample: train, predict, recommend, similar, evaluate. Leaves nothing behind."""
    from pmfcli.cli import app

    with tempfile.TemporaryDirectory(prefix="pmf-demo-") as folder:
        for title, command, model_flag in _TOUR:
            sys.stdout.flush()
            note(f"\n# {title}\n$ pmf {command}{f' {model_flag} sample.pt' if model_flag else ''}")
            where = [model_flag, str(Path(folder) / "sample.pt")] if model_flag else []
            form = [] if command.startswith("train") else ["--format", "table"]
            code = app([*command.split(), *where, *form], prog_name="pmf", standalone_mode=False)
            if code:
                raise typer.Exit(code)
    note("\nThe same with your own ratings: pmf train --data ratings.csv, or with MovieLens: pmf download")
