"""Long tables written to a file as they come, never held as a whole: Parquet, CSV, TSV or JSON lines, by the file's suffix."""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from pmfcli.console import write_lines
from pmfcli.errors import UsageError
from pmfcli.files import writing

if TYPE_CHECKING:
    from pmfcli.answers import Recommended

_KINDS: dict[str, Literal["parquet", "csv", "tsv", "jsonl"]]
_KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}
_GROUP = 1 << 17  # rows that Parquet keeps together, at least


def check(path: Path) -> None:
    """Refuse, before anything is computed, a file of another kind.

    Raises:
        UsageError: its suffix is none of those above.
    """
    if path.suffix.lower() not in _KINDS:
        raise UsageError(f"--output {path}: its extension sets the format; give .parquet, .csv, .tsv or .jsonl")


def write(path: Path, parts: Iterable["Recommended"], columns: Sequence[str]) -> None:
    """Write parts of a table, one after the other; what is at ``path`` stays until all are there.

    Raises:
        OutputError: it cannot be written; nothing is left behind.
    """
    kind = _KINDS[path.suffix.lower()]
    with writing(path) as file:
        if kind == "parquet":
            _write_parquet(file, ({name: part.columns[name] for name in columns} for part in parts))
        else:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            write_lines((row for part in parts for row in part.rows()), columns, kind, text)
            text.detach()


def _write_parquet(file: IO[bytes], parts: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    first = next(parts)
    kinds = {
        name: pa.string() if isinstance(column, list) else pa.from_numpy_dtype(column.dtype) for name, column in first.items()
    }
    schema, held, rows = pa.schema(list(kinds.items())), [], 0
    with pa.parquet.ParquetWriter(file, schema) as writer:
        for part in itertools.chain([first], parts):
            table = pa.table(part, schema)
            held.append(table.take(pa.array(range(len(table)))))  # a copy: a part that stays breaks up the memory of the next
            rows += len(held[-1])
            if rows >= _GROUP:
                writer.write_table(pa.concat_tables(held))
                held, rows = [], 0
        if rows:
            writer.write_table(pa.concat_tables(held))
