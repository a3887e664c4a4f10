"""What `pmf train` says about the model that it made."""

from pathlib import Path
from typing import TYPE_CHECKING

from pmfcli.console import Row, note
from pmfcli.text import file_size

if TYPE_CHECKING:
    from pmfcli.artifact import Model


def summary(model: "Model", output: Path, seconds: float) -> Row:
    """What it is and how well it fits, for ``--json``."""
    m, d = model.metrics, model.data
    return {
        "model": str(output),
        "method": model.method,
        **{key: m.get(key) for key in ("epochs", "loss", "sigma", "holdout_rmse", "train_rmse")},
        **{key: m[key] for key in ("r_hat", "ess", "burn_in", "draws") if key in m},
        "seconds": seconds,
        **{key: d[key] for key in ("ratings", "users", "movies")},
    }


def describe(model: "Model", output: Path, size: int, seconds: float) -> None:
    """Notes on the same for people, and warnings where it is not good."""
    m, d = model.metrics, model.data
    what = "sweeps" if model.method == "bayes" else "epochs"
    note(
        f"{d['ratings']:,} ratings, {d['users']:,} users, {d['movies']:,} movies ({d['name']}): "
        f"{m['epochs']} {what}, loss {m['loss']:,.1f}, training RMSE {m['train_rmse']:.3f}, {seconds:.1f} s"
    )
    spread = float(model.seen.stars.double().std(correction=0))
    if "r_hat" in m:
        mixed = "n/a" if m["r_hat"] is None else f"{m['r_hat']:.2f}, effective sample size {m['ess']:.0f}"
        note(f"{m['draws']} draws kept after {m['burn_in']} sweeps of burn-in; predictions: R-hat {mixed}")
        from pmfcli.core.chains import AGREE

        if m["r_hat"] is None:
            note("warning: too few sweeps to tell whether the predictions have converged; give more --epochs, or leave it out")
        elif m["r_hat"] > AGREE:
            note("warning: after this many sweeps the predictions have not converged; give more --epochs, or leave it out")
    if "holdout_rmse" in m:
        told = f", given their dates (--time {model.settings['time']})" if model.settings["time"] != "none" else ""
        beside = {name: found["rmse"] for name, found in m["holdout_baselines"].items()}
        note(
            f"held-out RMSE {m['holdout_rmse']:.3f} (always the mean {beside['mean']:.3f}, biases only {beside['bias']:.3f})"
            + told
        )
        if m["holdout_rmse"] > beside["mean"] and m["train_rmse"] < 0.8 * spread:
            note(
                "warning: on held-out ratings this model is worse than always predicting the mean; it overfits. "
                + _against_memorising(model)
            )
        elif m["holdout_rmse"] > beside["bias"]:
            note(f"warning: on held-out ratings biases alone do better. {_against_falling_short(model)}")
    elif model.settings["holdout"] > 0:
        note(f"{d['ratings']:,} ratings are too few to hold {model.settings['holdout']:g} of them out: trained on all")
    s = model.settings
    by_em = model.method == "map" and "em" in (s["priors"], s["noise"])
    if by_em and s["early_stop"] and m["epochs"] == s["epochs"]:
        note(f"warning: EM had not converged after {m['epochs']} epochs; give more --epochs, or a smaller --latent")
    if m["train_rmse"] > 0.97 * spread:
        note(
            f"warning: it learned little: always predicting the mean has a training RMSE of {spread:.3f}. "
            + _against_learning_little(model, by_em)
        )
    note(f"wrote {'to standard output' if str(output) == '-' else output} ({file_size(size)})")
    if model.method == "map" and model.settings["solver"] == "adam":
        note("for better predictions: --method bayes averages over posterior draws (takes several times as long, larger file)")


def _against_memorising(model: "Model") -> str:
    if model.method == "bayes":
        return "Try a smaller --latent"
    return "Try a larger --sigma" if model.settings["noise"] == "fixed" else "Try --noise fixed, or a larger --sigma"


def _against_falling_short(model: "Model") -> str:
    s = model.settings
    if model.method == "bayes" or model.metrics["epochs"] == s["epochs"]:
        return "Try more --epochs"
    if "em" in (s["priors"], s["noise"]):
        return "Try --method bayes"
    return "Try --priors em --noise em, which learns the scales, or --method bayes"


def _against_learning_little(model: "Model", by_em: bool) -> str:
    s = model.settings
    if model.method == "bayes":
        return "Try more --epochs, or --hierarchical none"
    if by_em:
        return "Try --method bayes"
    if s["solver"] == "adam" and s["lr"] is not None:
        return "Try without --lr"
    if model.metrics["epochs"] == s["epochs"]:
        return "Try more --epochs"
    return "Try --method bayes" + (", or --noise learned" if s["noise"] == "fixed" else "")
