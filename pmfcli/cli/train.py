"""pmf train: fit a model and write it to a file."""

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pmfcli.cli.dry_run import look_ahead, size_of
from pmfcli.cli.inputs import in_parts, read_data
from pmfcli.cli.keeper import Keeper
from pmfcli.cli.log import Log
from pmfcli.cli.options import AsJson, Config, Source, with_data_and_settings
from pmfcli.cli.outputs import check_folder, check_is_model, check_is_not_data, check_output, read_beside, write_model
from pmfcli.cli.trained import describe, summary
from pmfcli.config import resolve
from pmfcli.console import Progress, document, hush, progress
from pmfcli.errors import ModelError, UsageError
from pmfcli.memory import ran_out
from pmfcli.steps import Steps

if TYPE_CHECKING:
    from pmfcli.artifact import Model
    from pmfcli.core.team import Team
    from pmfcli.data.ratings import Ratings
    from pmfcli.fitting import Report
    from pmfcli.sharing import Part

EXAMPLE = "pmf train --epochs 1000 --latent 30"


@with_data_and_settings
def train(
    config: Config = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file to write; '-' for standard output.")] = Path(
        "pmf.pt"
    ),
    log: Annotated[
        Path | None, typer.Option("--log", help="Append a JSON line to this file at steps 0, 50, 100, … and the last.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Save progress to this file until the model is written.")
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option("--checkpoint-every", metavar="SECONDS", min=0, help="How often to write the checkpoint.")
    ] = 60.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from --checkpoint, if it exists, to the same model as without the stop.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate what training would take on this machine, without training.")
    ] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="Refuse to train if that is expected to need more memory than this, such as 8G.",
        ),
    ] = None,
    as_json: AsJson = False,
    *,
    source: Source,
    given: dict[str, Any],
) -> None:
    """Fit a model and write it to one file, which is all that the other commands need."""
    team = _team()
    if team is not None:
        _check_all_read({"--data": source.data, "--config": config})
    settings = resolve(given, config, os.environ)
    first = team is None or team.rank == 0  # it alone logs, writes the model and speaks
    log = log if first else None
    _check_outputs({"--output": output, "--log": log, "--checkpoint": checkpoint}, config, source, as_json)
    if max_memory is not None:
        size_of(max_memory)
    if team is not None and (dry_run or max_memory is not None):
        raise UsageError("--dry-run and --max-memory work in one process only; leave them out, or run without torchrun")
    _check_checkpoint(checkpoint, resume)
    if settings.device not in ("auto", "cpu"):
        from pmfcli.training import choose_device

        choose_device(settings.device)
    ratings, part = _read(source, team, leave_cache=not dry_run)
    if dry_run or max_memory is not None:
        look_ahead(ratings, settings, dry_run, max_memory, as_json)
    if dry_run:
        return
    from pmfcli.training import identity
    from pmfcli.training import train as steps

    began = time.perf_counter()
    keeper = Keeper(checkpoint, checkpoint_every, identity(ratings, settings) if checkpoint is not None else "", team)
    old = keeper.before() if resume else None
    with Log(log, began) as lines, progress("fit") as bar, keeper:
        training = steps(ratings, settings, old, part)
        model = _follow(training if old is None else _gone_on(training, checkpoint), lines, bar, keeper)
    seconds = time.perf_counter() - began
    content = b""
    if first:
        from pmfcli.artifact import dumps

        content = dumps(model)
        write_model(output, content)
    keeper.forget()
    if team is not None:
        from pmfcli.sharing import leave

        leave()
    if first:
        describe(model, output, len(content), seconds)
        if as_json:
            document(summary(model, output, seconds), "train")


def _team() -> "Team | None":
    """The processes of a run by torchrun; only the first of them speaks."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    from pmfcli.sharing import join

    team = join()
    if team.rank:
        hush()
    return team


def _check_all_read(files: "dict[str, str | Path | None]") -> None:
    """Refuse, of several processes, what each of them would get a part of."""
    for flag, path in files.items():
        if path is not None and (str(path) == "-" or Path(path).is_fifo()):
            raise UsageError(f"{flag} {path}: several processes cannot read one pipe; write it to a file and give that")


def _read(source: Source, team: "Team | None", leave_cache: bool) -> "tuple[Ratings, Part | None]":
    """The ratings; of several processes this one's, with what it knows of the others'."""
    if team is None:
        return read_data(source, leave_cache=leave_cache), None
    from pmfcli.sharing import exchange, share_out

    ratings = read_data(source, (team.rank, team.size))
    return (exchange if in_parts(source) else share_out)(ratings, team)


def _gone_on(training: "Generator[Report, None, Model]", checkpoint: Path | None) -> "Generator[Report, None, Model]":
    """Training from a checkpoint, which shows only now whether it holds what such a run left.

    Raises:
        ModelError: it does not.
    """
    try:
        first = next(training)
    except StopIteration as end:
        model: Model = end.value
        return model
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if ran_out(error):
            raise
        why = f"damaged checkpoint ({type(error).__name__} on resuming)"
        raise ModelError(f"--checkpoint {checkpoint}: {why}; remove it to start over") from error
    yield first
    return (yield from training)


def _follow(training: "Generator[Report, None, Model]", lines: Log, bar: Progress, keeper: Keeper) -> "Model":
    """Train to the end, and show each step to those who follow it."""
    steps = Steps(training)
    for report in steps:
        lines.look(report)
        bar.show(report.step + 1, report.epochs, f"loss {report.loss:,.1f}", report.phase)
        keeper.look(report)
    return steps.result


def _check_outputs(outputs: dict[str, Path | None], config: Path | None, source: Source, as_json: bool) -> None:
    """Refuse before training what could not be written after it, or would write over what is read, or over each other."""
    read = read_beside(source, config)
    named: dict[str, str] = {}
    for flag, path in (read | outputs).items():
        if path is not None and str(path) != "-" and (other := named.setdefault(os.path.realpath(path), flag)) != flag:
            raise UsageError(f"{flag} {path}: is also the file of {other}; give another")
    for flag, path in outputs.items():
        check_is_not_data(flag, path, source.data, source.data_dir)
    output, log = outputs["--output"], outputs["--log"]
    assert output is not None
    if str(output) == "-" and str(log) == "-":
        raise UsageError("--output -: the model goes to standard output; give --log a file")
    check_output(output, as_json)
    check_is_model(output)


def _check_checkpoint(checkpoint: Path | None, resume: bool) -> None:
    if checkpoint is None:
        if resume:
            raise UsageError("--resume needs a file to continue from; give it with --checkpoint")
        return
    if str(checkpoint) == "-":
        raise UsageError("--checkpoint -: a run can only continue from a file; give one")
    check_folder("--checkpoint", checkpoint)
    if checkpoint.exists() and not resume:
        raise UsageError(f"--checkpoint {checkpoint}: already exists; continue from it with --resume, or remove it")
