"""pmf tune: search for settings that do better on held-out ratings, and write them to a file."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pmfcli.cli.inputs import read_data
from pmfcli.cli.options import AsJson, Config, OutputFormat, Source, with_data_and_settings
from pmfcli.cli.outputs import check_apart, check_folder, check_is_not_data, check_is_settings, read_beside
from pmfcli.config import gather, settle
from pmfcli.console import Row, Shape, emit, note, pick_format, progress
from pmfcli.errors import UsageError
from pmfcli.files import write_atomically
from pmfcli.steps import Steps

if TYPE_CHECKING:
    from pmfcli.config import Settings
    from pmfcli.tuning import Found

EXAMPLE = "pmf tune --trials 20 -o tuned.toml"


@with_data_and_settings
def tune(
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many combinations of settings to try, in all.")] = 20,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of settings to write, for --config.")] = Path(
        "tuned.toml"
    ),
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal", help="Record of the trials, from which a stopped search continues.", show_default="OUTPUT.journal"
        ),
    ] = None,
    config: Config = None,
    output_format: OutputFormat = None,
    as_json: AsJson = False,
    *,
    source: Source,
    given: dict[str, Any],
) -> None:
    """Search for settings that do better on held-out ratings. Those that you give stay fixed."""
    chosen = pick_format(output_format, as_json)
    fixed = gather(given, config, os.environ)
    start = settle(fixed)
    if str(output) == "-":
        raise UsageError("--output -: the trials go to standard output; give a file")
    check_is_not_data("--output", output, source.data, source.data_dir)
    check_apart("--output", output, read_beside(source, config))
    check_folder("--output", output)
    check_is_settings(output)
    journal = journal or output.with_name(f"{output.name}.journal")
    if os.path.realpath(journal) == os.path.realpath(output):
        raise UsageError(f"--journal {journal}: is also the file of --output; give another")
    check_is_not_data("--journal", journal, source.data, source.data_dir)
    check_apart("--journal", journal, read_beside(source, config))
    ratings = read_data(source)
    from pmfcli.tuning import tune as search

    searching = Steps(search(ratings, start, fixed, trials, journal))

    def rows() -> Iterator[Row]:
        with progress("trial") as bar:
            best = float("inf")
            for tried in searching:
                best = min(best, tried.rmse or best)
                bar.show(tried.number + 1, trials, f"best RMSE {best:.4f}")
                yield {
                    "trial": tried.number,
                    "rmse": tried.rmse,
                    "settings": " ".join(f"{name}={value:.4g}" for name, value in tried.settings.items()),
                }

    emit(rows(), Shape("tune", ("trial", "rmse", "settings"), decimals=4), chosen)
    found = searching.result
    write_atomically(output, _toml(found, start, fixed).encode())
    _say(found, output)


def _toml(found: "Found", start: "Settings", fixed: Iterable[str]) -> str:
    kept = {name: getattr(start, name) for name in fixed} | found.changed
    lines = [f"# pmf tune: held-out RMSE {found.rmse:.4f}, before {found.start:.4f}"]
    lines += [
        f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {_literal(value)}" for name, value in kept.items()
    ]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _say(found: "Found", output: Path) -> None:
    if not found.check:
        note(f"nothing did better than the starting settings (held-out RMSE {found.start:.4f}), which are kept")
    else:
        row = next(row for row in found.check if row["score"] == "rmse")
        low, high = row["lo"], row["hi"]
        if low is None or high is None:
            verdict = "too few users to tell them apart"
        else:
            verdict = "better" if high < 0 else "worse" if low > 0 else "not clearly different"
            verdict += f" ({low:+.4f} to {high:+.4f})"
        note(
            f"held-out RMSE {found.rmse:.4f}, before {found.start:.4f}; on other held-out ratings {row['value']:.4f}, "
            f"before {row['first']:.4f}: {verdict}"
        )
    note(f"wrote {output}; use it with: pmf train --config {output}")
