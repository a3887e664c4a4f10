"""Ratings in Parquet: a file or a folder of them, or an equal part of their rows."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pmfcli.data.assemble import Table
from pmfcli.data.fields import Columns, by_role, missing
from pmfcli.errors import DataError
from pmfcli.memory import most_unpacked, of_this_machine
from pmfcli.text import short

_ROW = 32  # bytes of memory that one row takes at least
_WIDEST = 64  # bytes of an entry that is as long as all others: a digest in hexadecimal
_TEXT = pa.dictionary(pa.int32(), pa.string())


def read_parquet(file: Path, columns: Columns, part: tuple[int, int]) -> Table:
    """The columns by role of a part of the rows of a Parquet file, or of those of a folder, in the order of their names.

    Raises:
        DataError: it cannot be read, lacks a column, has too few rows for so many parts, or too many for the memory.
    """
    try:
        files = sorted(file.glob("*.parquet")) if file.is_dir() else [file]
        counts = [pq.read_metadata(_opened(one)).num_rows for one in files]
        schema = pq.read_schema(_opened(files[0]))
        fields = by_role(schema.names, columns)
        complaint = missing(schema.names, fields, columns)
        if complaint is not None:
            raise DataError(f"{file}: {complaint}")
        rows = sum(counts)
        first, last = (rows * (part[0] + end) // part[1] for end in (0, 1))
        if (last - first) * _ROW > of_this_machine():
            raise DataError(f"{file}: {last - first:,} rows do not fit into the memory of this machine")
        wanted, found, place = [schema.names[field] for field in fields.values()], [], 0
        for one, count in zip(files, counts, strict=True):
            if place < last and place + count > first:
                found += _rows(one, wanted, max(first - place, 0), min(last - place, count))
            place += count
        if not found:
            raise DataError(f"{file}: no rows" if not rows else f"{file}: {rows:,} rows are too few for {part[1]} processes")
        table = pa.concat_tables(found, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({short(str(error))})") from None
    return {role: table.column(schema.names[field]) for role, field in fields.items()}


def _opened(file: Path) -> pa.NativeFile:
    """By the bytes of its name, which need not be UTF-8."""
    return pa.OSFile(os.fsencode(file))


def _rows(file: Path, wanted: list[str], first: int, last: int) -> list[pa.Table]:
    """Some rows of a file. Texts stay as they lie there, each different one once, however often it comes."""
    kinds = pq.read_schema(_opened(file))
    other = next((name for name in wanted if kinds.names.count(name) != 1), None)
    if other is not None:
        raise DataError(f"{file}: {kinds.names.count(other)} columns are called {short(other)}; other parts have one")
    texts = []
    for name in wanted:
        kind = kinds.field(name).type
        if _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
            texts.append(name)
        elif not _is_small(kind):
            raise DataError(f"{file}: column {short(name)} is of type {short(str(kind))}; make it text or numbers")
    found, place = [], 0
    with pq.ParquetFile(_opened(file), read_dictionary=texts) as opened:
        _check_unpacked(file, opened.metadata, wanted)
        for group in range(opened.num_row_groups):
            count = opened.metadata.row_group(group).num_rows
            low, high = max(first - place, 0), min(last - place, count)
            if low < high:
                rows = opened.read_row_group(group, wanted).slice(low, high - low)
                as_text = [field.with_type(_TEXT) if field.name in texts else field for field in rows.schema]
                found.append(rows.cast(pa.schema(as_text)))
            place += count
    return found


def _check_unpacked(file: Path, metadata: pq.FileMetaData, wanted: list[str]) -> None:
    """Refuse a file whose columns, as it says itself, unpack to too much."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = (group.column(leaf) for group in groups for leaf in range(metadata.num_columns))
    unpacked = sum(column.total_uncompressed_size for column in columns if column.path_in_schema in wanted)
    packed = file.stat().st_size
    if unpacked > most_unpacked(packed):
        raise DataError(f"{file}: {packed:,} bytes unpack to {unpacked:,}; refused as a bomb")


def _is_text(kind: pa.DataType) -> bool:
    """Whether an entry may be of any length."""
    string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(string or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_small(kind: pa.DataType) -> bool:
    """Whether an entry takes few bytes, whatever it says: no list, nor what is made of others."""
    if pa.types.is_fixed_size_binary(kind):
        return bool(kind.byte_width <= _WIDEST)
    return bool(pa.types.is_null(kind) or pa.types.is_primitive(kind) or pa.types.is_decimal(kind))
