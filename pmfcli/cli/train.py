"""pmf train: fit a model and write it to a file."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from pmfcli.cli.common import check_is_not_data, check_output, in_parts, read_data, write_model
from pmfcli.cli.dry_run import look_ahead, size_of
from pmfcli.cli.keeper import Keeper
from pmfcli.cli.options import AsJson, Config, Source, with_data_and_settings
from pmfcli.config import resolve
from pmfcli.console import document, hush, note, progress
from pmfcli.errors import UsageError

if TYPE_CHECKING:
    from pmfcli.artifact import Model
    from pmfcli.core.team import Team
    from pmfcli.fitting import Report

EXAMPLE = "pmf train --epochs 1000 --latent 30"
_LOG_EVERY = 50


@with_data_and_settings
def train(
    config: Config = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file to write; '-' for standard output.")] = Path(
        "pmf.pt"
    ),
    log: Annotated[Path | None, typer.Option("--log", help="Append a JSON line for steps 0, 50, 100, … and the last.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Keep where it stands in this file, until the model is written.")
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option("--checkpoint-every", metavar="SECONDS", min=0, help="How often to write it.")
    ] = 60.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from --checkpoint, if it is there: to the model of a run never stopped.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read, say what training would take on this machine, and do not train.")
    ] = False,
    max_memory: Annotated[
        str | None,
        typer.Option("--max-memory", metavar="SIZE", help="Refuse to train with more memory than this, such as 8G."),
    ] = None,
    as_json: AsJson = False,
    *,
    source: Source,
    given: dict[str, Any],
) -> None:
    """Fit a model and write it to a file that answers alone."""
    settings = resolve(given, config, os.environ)
    team = _team()
    if team is not None and team.rank:
        log = None
    _check_outputs(output, log, source.data, as_json)
    if max_memory is not None:
        size_of(max_memory)
    if team is not None and (dry_run or max_memory is not None):
        raise UsageError("--dry-run and --max-memory are of one process; leave them, or torchrun, out")
    _check_checkpoint(checkpoint, resume)
    if settings.device not in ("auto", "cpu"):
        from pmfcli.training import choose_device

        choose_device(settings.device)
    if team is None:
        ratings, part = read_data(source, leave_cache=not dry_run), None
    else:
        from pmfcli.sharing import exchange, share_out

        ratings = read_data(source, (team.rank, team.size))
        ratings, part = (exchange if in_parts(source) else share_out)(ratings, team)
    if dry_run or max_memory is not None:
        look_ahead(ratings, settings, dry_run, max_memory, as_json)
    if dry_run:
        return
    from pmfcli.training import identity
    from pmfcli.training import train as steps

    began = time.perf_counter()
    run = identity(ratings, settings) if checkpoint is not None else ""
    keeper = Keeper(checkpoint, checkpoint_every, run, team)
    old = keeper.before() if resume else None
    with _open_log(log) as lines, progress("fit") as bar, keeper:
        training = steps(ratings, settings, old, part)
        last: Report | None = None
        while True:
            try:
                report = next(training)
            except StopIteration as end:
                model = end.value
                break
            if last is not None and report.phase != last.phase:
                _log(lines, last, began, last=True)
            _log(lines, report, began)
            bar.show(report.step + 1, report.epochs, f"loss {report.loss:,.1f}", report.phase)
            last = report
            keeper.look(report)
        if last is not None:
            _log(lines, last, began, last=True)
    seconds = time.perf_counter() - began
    size = 0 if team is not None and team.rank else write_model(output, model)
    keeper.forget()
    if team is not None:
        from pmfcli.sharing import leave

        leave()
        if team.rank:
            return
    _say(model, output, size, seconds)
    if as_json:
        m, d = model.metrics, model.data
        document(
            {
                "model": str(output),
                "method": model.method,
                **{key: m.get(key) for key in ("epochs", "loss", "sigma", "holdout_rmse", "train_rmse")},
                **{key: m[key] for key in ("r_hat", "ess", "burn_in", "draws") if key in m},
                "seconds": seconds,
                **{key: d[key] for key in ("ratings", "users", "movies")},
            },
            "train",
        )


def _team() -> "Team | None":
    """The processes of a run by torchrun; only the first of them speaks."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    from pmfcli.sharing import join

    team = join()
    if team.rank:
        hush()
    return team


def _say(model: "Model", output: Path, size: int, seconds: float) -> None:
    m, d = model.metrics, model.data
    what = "sweeps" if model.method == "bayes" else "epochs"
    note(
        f"{d['ratings']:,} ratings, {d['users']:,} users, {d['movies']:,} movies ({d['name']}): "
        f"{m['epochs']} {what}, loss {m['loss']:,.1f}, training RMSE {m['train_rmse']:.3f}, {seconds:.1f} s"
    )
    spread = float(model.seen.stars.double().std(correction=0))
    if "r_hat" in m:
        mixed = "n/a" if m["r_hat"] is None else f"{m['r_hat']:.2f}, effective sample size {m['ess']:.0f}"
        note(f"{m['draws']} draws kept after {m['burn_in']} sweeps of burn-in; of the predictions: R-hat {mixed}")
        from pmfcli.core.chains import AGREE

        if m["r_hat"] is None:
            note("warning: so few sweeps do not show whether its predictions agree; give more --epochs, or leave it out")
        elif m["r_hat"] > AGREE:
            note("warning: after so many sweeps its predictions still change; give more --epochs, or leave it out")
    if "holdout_rmse" in m:
        told = f", their dates told (--time {model.settings['time']})" if model.settings["time"] != "none" else ""
        beside = {name: found["rmse"] for name, found in m["holdout_baselines"].items()}
        note(
            f"held-out RMSE {m['holdout_rmse']:.3f} (always the mean {beside['mean']:.3f}, biases only {beside['bias']:.3f})"
            + told
        )
        if m["holdout_rmse"] > beside["mean"] and m["train_rmse"] < 0.8 * spread:
            note(
                "warning: on held-out ratings this model is worse than always answering the mean; it memorises. "
                + ("Try a smaller --latent" if model.method == "bayes" else "Try --noise fixed, or a larger --sigma")
            )
    elif model.settings["holdout"] > 0:
        note(f"{d['ratings']:,} ratings are too few to hold out a part of them: trained on all")
    s = model.settings
    by_em = model.method == "map" and "em" in (s["priors"], s["noise"])
    if by_em and s["early_stop"] and m["epochs"] == s["epochs"]:
        note(f"warning: it was still moving after {m['epochs']} epochs; give more --epochs, or a smaller --latent")
    if m["train_rmse"] > 0.97 * spread:
        note(
            f"warning: it learned little: always answering the mean has a training RMSE of {spread:.3f}. "
            + (
                "Try more --epochs, or --hierarchical none"
                if by_em or model.method == "bayes"
                else "Try a smaller --sigma, or larger --sigma-u and --sigma-v"
            )
        )
    note(f"wrote {output} ({size / 1e6:.1f} MB)")
    if model.method == "map" and model.settings["solver"] == "adam":
        note("for the best predictions: --method bayes draws from all models that fit; about four times as long, a larger file")


def _check_outputs(output: Path, log: Path | None, data: str | None, as_json: bool) -> None:
    """Refuse before training what could not be written after it, or would write over the ratings."""
    check_is_not_data("--output", output, data)
    check_is_not_data("--log", log, data)
    if str(output) == "-" and str(log) == "-":
        raise UsageError("--output -: the model takes standard output; give --log a file")
    check_output(output, as_json)


def _check_checkpoint(checkpoint: Path | None, resume: bool) -> None:
    if checkpoint is None:
        if resume:
            raise UsageError("--resume: from where? Give the file by --checkpoint")
        return
    if checkpoint.is_dir() or not checkpoint.resolve().parent.is_dir():
        raise UsageError(f"--checkpoint {checkpoint}: give a file in a folder that is there")
    if checkpoint.exists() and not resume:
        raise UsageError(f"--checkpoint {checkpoint}: it is there; --resume goes on from it, or remove it")


def _open_log(log: Path | None) -> TextIO:
    try:
        if log is None:
            return open(os.devnull, "w")
        return os.fdopen(os.dup(sys.stdout.fileno()), "w") if str(log) == "-" else log.open("a", buffering=1)
    except OSError as error:
        raise UsageError(f"--log {log}: {error.strerror or error}; give a file that you may write") from None


def _log(lines: TextIO, report: "Report", began: float, last: bool = False) -> None:
    if lines.closed or (report.step % _LOG_EVERY == 0) == last:
        return
    said = {name: value for name, value in report._asdict().items() if name != "snapshot"}
    entry = {**said, "seconds": round(time.perf_counter() - began, 3)}
    try:
        lines.write(json.dumps(entry, allow_nan=False) + "\n")
        lines.flush()
    except OSError as error:
        note(f"warning: --log: {error.strerror or error}; no more is logged")
        with contextlib.suppress(OSError):
            lines.close()
