"""pmf info: what is in a model file."""

from pathlib import Path

from pmfcli.cli.inputs import load_model
from pmfcli.cli.options import AsJson, ModelFile, OutputFormat
from pmfcli.console import Row, Shape, document, emit, pick_format

EXAMPLE = "pmf info --json"


def info(model: ModelFile = Path("pmf.pt"), output: OutputFormat = None, as_json: AsJson = False) -> None:
    """Show what a model file holds: data, settings, scores, versions."""
    found = load_model(model)
    from pmfcli.packing import pack

    parameters = {name: list(tensor.shape) for name, tensor in pack(found.posterior)[1].items()}
    content: Row = {
        "method": found.method,
        "data": found.data,
        "scale": [found.scale.lo, found.scale.hi],
        "metrics": found.metrics,
        "settings": found.settings,
        "parameters": parameters,
        "versions": found.versions,
    }
    chosen = pick_format(output, as_json)
    if chosen == "json":
        document(content, "info")
        return
    emit(_lines(content, rounded=chosen == "table"), Shape("info", ("what", "value")), chosen)


def _lines(content: Row, rounded: bool, prefix: str = "") -> list[Row]:
    lines: list[Row] = []
    for key, value in content.items():
        if isinstance(value, dict):
            lines += _lines(value, rounded, f"{prefix}{key}.")
        else:
            shown = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
            lines.append({"what": prefix + key, "value": shown if rounded else value})
    return lines
