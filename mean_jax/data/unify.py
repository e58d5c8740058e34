"""One schema for the files of one input: columns in any order, types widened where no value is lost that counts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mean_jax.errors import UserError


def is_text(kind: pa.DataType) -> bool:
    """Tells whether values of a type are text, in a dictionary or not."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def wider_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Returns the type that holds the values of both, or None if there is none.

    Integers and floats widen as in NumPy, so large integers beside floats are rounded to float64; all text is one kind;
    a column without any value takes the type of the other.
    """
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if is_text(a) and is_text(b):
        return pa.large_string()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (a, b)):
        return pa.from_numpy_dtype(np.promote_types(a.to_pandas_dtype(), b.to_pandas_dtype()))
    return None


def unify_schemas(
    files: Sequence[Path], read_schema: Callable[[Path], pa.Schema], flag: str, id_column: str | None
) -> pa.Schema:
    """Returns the schema that all files can be cast to, its columns in the order of the first file.

    Args:
      files: at least one.
      read_schema: gives the schema of a file, each name once.
      flag: the flag that the files came from, for error lines.
      id_column: never becomes a float, which would make two customers one.

    Raises:
      UserError: a column that a file lacks, or types that do not go together; the line names both files.
    """
    schema = read_schema(files[0])
    kinds = {field.name: field.type for field in schema}
    origins = {name: (files[0], kind) for name, kind in kinds.items()}  # the first file that has values
    for file in files[1:]:
        previous, schema = schema, read_schema(file)
        if schema.equals(previous):
            continue
        _require_same_names(files[0], list(kinds), file, schema.names, flag)
        for name, kind in kinds.items():
            own = schema.field(name).type
            wider = wider_type(kind, own)
            if wider is None or (name == id_column and pa.types.is_floating(wider) and wider != kind):
                origin, origin_type = origins[name]
                raise UserError(
                    f"{flag}: column {name} is {origin_type} in {origin} and {own} in {file}; "
                    "write it with one type in all files"
                )
            kinds[name] = wider
            if pa.types.is_null(kind):
                origins[name] = (file, own)
    return pa.schema(list(kinds.items()))


def _require_same_names(first: Path, expected: list[str], file: Path, names: list[str], flag: str) -> None:
    for has, lacks, missing in (
        (first, file, [name for name in expected if name not in names]),
        (file, first, [name for name in names if name not in expected]),
    ):
        if missing:
            raise UserError(
                f"{flag}: column {missing[0]} is in {has} and not in {lacks}; "
                "all files of one input need the same columns, add or remove it"
            )
