"""One table from the files of a log whose columns differ in number, order or type."""

from collections.abc import Sequence
from pathlib import Path

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from mean_jax.errors import UserError
from mean_jax.features.files import FLAG, LogFiles


def union_by_name(log: LogFiles, tables: Sequence[ir.Table]) -> ir.Table:
    """Returns the rows of all parts of a log, columns matched by name whatever its case.

    A column that a part lacks is null in its rows; one without any value in the whole log is text. Integers of
    different width become int64, numbers of different kinds float64, dates and times of different kinds UTC timestamps.

    Args:
      log: names the files and all columns.
      tables: one per part of the log, in its order, in a session in UTC.

    Raises:
      UserError: a column holds values that have no common type in two files.
    """
    first_files = [part.files[0] for part in log.parts]
    found = [
        {name.lower(): table[name] for name in table.columns if name not in part.empty}
        for part, table in zip(log.parts, tables, strict=True)
    ]
    types = {}
    for name in log.columns:
        typed = [
            (file, columns[name.lower()].type())
            for file, columns in zip(first_files, found, strict=True)
            if name.lower() in columns
        ]
        types[name] = _common_type(name, typed)
    united = [
        table.select(
            **{
                name: columns[name.lower()].cast(kind) if name.lower() in columns else ibis.null(kind)
                for name, kind in types.items()
            }
        )
        for table, columns in zip(tables, found, strict=True)
    ]
    return ibis.union(united[0], *united[1:])


def _common_type(name: str, typed: Sequence[tuple[Path, dt.DataType]]) -> dt.DataType:
    if not typed:
        return dt.string
    first_file, first = typed[0]
    common = first.copy(nullable=True)
    for file, kind in typed[1:]:
        if kind.copy(nullable=True) == common:
            continue
        if _is_number(kind) and _is_number(common):
            common = dt.int64 if kind.is_integer() and common.is_integer() else dt.float64
        elif _is_time(kind) and _is_time(common):
            common = dt.timestamp
        else:
            raise UserError(
                f"{FLAG}: column {name} is of type {first} in {first_file} but {kind} in {file}; "
                "write it with one type in all files"
            )
    return common


def _is_number(kind: dt.DataType) -> bool:
    return kind.is_numeric() and not kind.is_boolean()


def _is_time(kind: dt.DataType) -> bool:
    return kind.is_timestamp() or kind.is_date()
