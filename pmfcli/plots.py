"""What ``pmf evaluate`` found, drawn: calibration, the PIT histogram, errors by predicted sd."""

import io
from pathlib import Path
from typing import Any

from pmfcli.errors import UsageError

FORMATS = (".png", ".svg", ".html")


def check_plot(path: Path) -> None:
    """Refuse what could not be drawn, before anything is trained for it.

    Raises:
        UsageError: no such format or matplotlib is missing.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path}: give a file that ends in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib; pip install matplotlib") from None


def draw(result: dict[str, Any], kind: str) -> bytes:
    """The report of ``reports.report`` as a picture of that kind, one of FORMATS."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    (levels, pit), (errors, risk) = figure.subplots(2, 2)
    diagonal = {"color": "0.7", "linewidth": 1, "zorder": 0}

    levels.plot([0, 1], [0, 1], **diagonal)
    nominal = [float(level) for level in result["coverage"]]
    levels.plot(nominal, list(result["coverage"].values()), "s-", label="intervals: ratings inside")
    if result["reliability"]:
        points = result["reliability"]
        levels.plot([point["p"] for point in points], [point["observed"] for point in points], "o-", label="4 or more")
    levels.set(title="Reliability", xlabel="predicted probability", ylabel="how often it came", xlim=(0, 1), ylim=(0, 1))
    levels.legend(loc="upper left")

    count = len(result["pit"])
    pit.bar([(place + 0.5) / count for place in range(count)], result["pit"], width=0.95 / count)
    pit.axhline(1 / count, **diagonal | {"zorder": 2})
    pit.set(
        title="PIT: flat if calibrated", xlabel="predicted probability of less than the rating", ylabel="part of the ratings"
    )

    sds, rmses = ([part[name] for part in result["rmse_by_sd"]] for name in ("sd", "rmse"))
    largest = 1.05 * max(sds + rmses)
    errors.plot([0, largest], [0, largest], **diagonal)
    errors.plot(sds, rmses, "o-")
    errors.set(title="Errors by predicted sd", xlabel="predicted sd", ylabel="RMSE", xlim=(0, largest), ylim=(0, largest))

    parts = result["risk_coverage"]
    risk.plot([100 * part["part"] for part in parts], [part["rmse"] for part in parts], "o-", label="by predicted sd")
    risk.axhline(result["rmse"], **diagonal)
    risk.set(title="If only the surest are answered", xlabel="part answered, %", ylabel="RMSE", ylim=(0, None))

    figure.suptitle(
        f"{result['n']:,} ratings, RMSE {result['rmse']:.4f}" + (f", NLL {result['nll']:.4f}" if result["nll"] else "")
    )
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="svg" if kind == ".html" else kind[1:], dpi=120, metadata={"Date": None} if kind != ".png" else None
    )
    if kind != ".html":
        return buffer.getvalue()
    picture = buffer.getvalue().decode()
    head = "<!DOCTYPE html>\n<html><head><meta charset='utf-8'><title>pmf evaluate</title></head><body>\n"
    return f"{head}{picture[picture.index('<svg') :]}</body></html>\n".encode()
