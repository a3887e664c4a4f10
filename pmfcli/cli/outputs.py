"""What commands write: checks, before the work, that a file may be written; and model files."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pmfcli.cli.options import Source
from pmfcli.console import document, note
from pmfcli.data.catalog import CATALOG, DEFAULT
from pmfcli.errors import OutputError, UsageError
from pmfcli.files import check_replaceable, write_atomically
from pmfcli.text import file_size

if TYPE_CHECKING:
    from pmfcli.updating import Forgotten, Updated

_HEAD = 512  # bytes of a file that tell what it is


def check_is_not_data(flag: str, path: Path | None, data: str | None, data_dir: Path = Path("data")) -> None:
    """Refuse to write over the ratings, or over the files that MovieLens has beside them.

    Args:
        data, data_dir: as in ``Source``.

    Raises:
        UsageError: the file to write is one of those, or part of the Parquet folder that they are read from.
    """
    from pmfcli.data.sample import NAME

    source = data_dir / (data or DEFAULT) if data is None or data in CATALOG else Path(data)
    if path is None or data in ("-", NAME) or not path.is_file() or not source.exists():
        return
    from pmfcli.data.reading import BESIDE, ratings_file

    file = ratings_file(source)
    folder = file if file.is_dir() else file.parent
    if path.samefile(file) or (file.is_dir() and path.suffix == ".parquet" and path.resolve().parent.samefile(file)):
        raise UsageError(f"{flag} {path}: these are the ratings; give another file")
    if path.resolve().name in BESIDE and path.resolve().parent.samefile(folder):
        raise UsageError(f"{flag} {path}: it belongs to the ratings; give another file")


def read_beside(source: Source, config: Path | None) -> dict[str, Path | None]:
    """The files that a run reads beside its ratings, by the flag that names them."""
    from pmfcli.config import LOCAL_FILE

    tables = {"--movie-features": source.movie_features, "--user-features": source.user_features}
    return {"--config": config or (LOCAL_FILE if LOCAL_FILE.is_file() else None), **tables}


def check_apart(flag: str, path: Path, read: Mapping[str, Path | None]) -> None:
    """Refuse to write over what is read.

    Args:
        read: files, by the flag or argument that names them.

    Raises:
        UsageError: the file to write is one of them.
    """
    for name, other in read.items():
        if other is not None and path.exists() and other.exists() and path.samefile(other):
            raise UsageError(f"{flag} {path}: is also the file of {name}; give another file")


def check_folder(flag: str, path: Path) -> None:
    """Refuse, before the work, a file that could not be written after it.

    Raises:
        UsageError: it is a folder, its folder does not exist, or nothing may be written there.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{flag} {path}: is a folder; give a file")
        check_replaceable(path)
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}; give a file in a folder that you can write to") from None


def check_output(output: Path, as_json: bool) -> None:
    """Refuse, before the work, a model file that could not be written after it.

    Raises:
        UsageError: it is a folder or a terminal, takes the place of ``--json``, or is where nothing may be written.
    """
    if str(output) == "-":
        if as_json:
            raise UsageError("--output -: the model goes to standard output; leave --json out")
        if sys.stdout.isatty():
            raise UsageError("--output -: a model is not text; send it to a file or a pipe")
        return
    check_folder("--output", output)


def check_is_model(output: Path) -> None:
    """Refuse to write a model over a file that is not one. An empty file, or what is no file, is nothing to keep.

    Raises:
        UsageError: it is something else, such as a checkpoint, or cannot be read.
    """
    if not output.is_file() or not output.stat().st_size:
        return
    from pmfcli.artifact import begins_a_model

    begins = b""
    with contextlib.suppress(OSError), output.open("rb") as file:
        begins = file.read(_HEAD)
    if not begins_a_model(begins):
        raise UsageError(f"--output {output}: exists and is not a model; give another file, or remove it")


def check_is_settings(output: Path) -> None:
    """The same for a file of settings.

    Raises:
        UsageError: it is something else, such as a model, or cannot be read.
    """
    from pmfcli.config import gather

    try:
        if output.is_file():
            gather({}, output, {})
    except UsageError:
        raise UsageError(f"--output {output}: exists and is not a settings file; give another file, or remove it") from None


def write_model(output: Path, content: bytes) -> None:
    """Write the bytes of a model file, whole or not at all; ``-`` is standard output.

    Raises:
        OutputError: it cannot be written.
    """
    if str(output) == "-":
        rest = memoryview(content)
        while rest:  # unbuffered, as by PYTHONUNBUFFERED, a write may be of a part
            rest = rest[sys.stdout.buffer.write(rest) :]
        sys.stdout.buffer.flush()
    else:
        write_atomically(output, content)


def state_of(path: Path) -> tuple[int, int, int] | None:
    """What tells whether a file has been written since; None if there is no file, as for standard input."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def write_changed(
    found: "Updated | Forgotten",
    model: Path,
    was: tuple[int, int, int] | None,
    output: Path | None,
    schema: str,
    as_json: bool,
    changed: bool = True,
) -> None:
    """Write a changed model, to ``output`` or in its own place, and say so; as JSON, say what changed.

    Args:
        was: its ``state_of`` when it was read.
        changed: whether it did change; if not, it is not written in its own place.

    Raises:
        OutputError: it would be written in its own place, but another command has changed that file meanwhile.
    """
    from pmfcli.artifact import dumps

    path = output or model
    if changed or output is not None:
        content = dumps(found.model)
        to_stdout = str(path) == "-"
        in_place = not to_stdout and (path == model or (path.exists() and model.exists() and path.samefile(model)))
        if in_place and state_of(path) != was:
            raise OutputError(
                f"{path}: another command has changed it in the meantime; nothing was written, run this one again"
            )
        write_model(path, content)
        note(
            f"wrote {'to standard output' if to_stdout else path} ({file_size(len(content))})"
            + (", in place of the old model" if in_place else "")
        )
    if as_json:
        counts = {name: value for name, value in found._asdict().items() if name != "model"}
        counts |= {name: found.model.data[name] for name in ("ratings", "users", "movies")}
        document({"model": str(path), "method": found.model.method, **counts}, schema)
