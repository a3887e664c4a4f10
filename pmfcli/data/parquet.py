"""Ratings in Parquet: a file or a folder of them, or an equal part of their rows."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pmfcli.data.assemble import Table
from pmfcli.data.fields import Columns, by_role, missing
from pmfcli.errors import DataError
from pmfcli.text import short

_ROW = 32  # bytes of memory that one row takes at least


def read_parquet(file: Path, columns: Columns, part: tuple[int, int]) -> Table:
    """The columns by role of a part of the rows of a Parquet file, or of those of a folder, in the order of their names."""
    try:
        opened = [pq.ParquetFile(one) for one in (sorted(file.glob("*.parquet")) if file.is_dir() else [file])]
        names = opened[0].schema_arrow.names
        fields = by_role(names, columns)
        complaint = missing(names, fields, columns)
        if complaint is not None:
            raise DataError(f"{file}: {complaint}")
        if len(set(names)) < len(names):
            raise DataError(f"{file}: two columns have the same name")
        rows = sum(one.metadata.num_rows for one in opened)
        first, last = (rows * (part[0] + end) // part[1] for end in (0, 1))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if (last - first) * _ROW > memory:
            raise DataError(f"{file}: {last - first:,} rows do not fit into the memory of this machine")
        wanted, found, place = [names[field] for field in fields.values()], [], 0
        for one in opened:
            for group in range(one.num_row_groups):
                count = one.metadata.row_group(group).num_rows
                low, high = max(first - place, 0), min(last - place, count)
                if low < high:
                    found.append(one.read_row_group(group, wanted).slice(low, high - low))
                place += count
        if not found:
            raise DataError(f"{file}: no rows" if not rows else f"{file}: {rows:,} rows are too few for {part[1]} processes")
        table = pa.concat_tables(found)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({short(str(error))})") from None
    return {role: table.column(names[field]) for role, field in fields.items()}
