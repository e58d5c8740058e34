"""The columns of a customer table and their roles, decided once in prepare and stored with every store and run."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
import re
from typing import Any

import pyarrow as pa

from mean_jax.data.tables import missing_column
from mean_jax.data.unify import is_text
from mean_jax.errors import UserError
from mean_jax.fileio import read_json, write_json
from mean_jax.types import RowLayout

KIND = "mean-jax schema"
VERSION = 1
FILE_NAME = "schema.json"
# As mean-jax-features names its labels: the spend of the days to come.
_LABEL_PATTERN = re.compile(r"cltv_\d+")
# What the names of a label's columns in the scores end in.
SCORE_SUFFIXES = ("", "_raw", "_percentile", "_buckets")


@dataclasses.dataclass(frozen=True)
class Schema:
    """Column names by role; the order of `numeric` and `categorical` is the order in the store's rows."""

    id_name: str
    id_type: str  # as Arrow writes it: int64, string
    labels: tuple[str, ...]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    split: tuple[float, ...]  # shares of training, validation and test rows, by a hash of the id
    split_seed: int  # of that hash
    split_column: str | None  # the column that says the split instead, if there is one

    @property
    def horizons(self) -> tuple[str, ...]:
        """The names of the horizons: "30" for the label cltv_30, else the label's own name."""
        return tuple(label.removeprefix("cltv_") for label in self.labels)

    @property
    def layout(self) -> RowLayout:
        """How one row of the store divides into words."""
        return RowLayout(len(self.numeric), len(self.categorical), len(self.labels))

    def save(self, folder: Path) -> None:
        write_json(folder / FILE_NAME, KIND, VERSION, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Schema":
        """Raises UserError if the file is missing, altered or of another version."""
        content = read_json(folder / FILE_NAME, KIND, VERSION)
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        return cls(**fields)


def is_numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or kind == pa.bool_()


def check_id_type(kind: pa.DataType, name: str) -> None:
    """Raises UserError unless ids are integers or text."""
    if not (pa.types.is_integer(kind) or is_text(kind)):
        raise UserError(f"--id_column={name}: is of type {kind}; ids are integers or text")


def _choose_labels(names: Sequence[str], label_columns: Sequence[str] | None, excluded: Sequence[str]) -> list[str]:
    """Returns the given labels, or else all cltv_<number> columns; such names are in numeric order."""
    if label_columns is not None:
        if not label_columns:
            raise UserError("--label_columns: is empty; name at least one label column")
        # Horizons stand in the order of their days, whatever order they were named in; other names as they are given.
        if all(_LABEL_PATTERN.fullmatch(name) for name in label_columns):
            return sorted(label_columns, key=_days)
        return list(label_columns)
    found = [name for name in names if _LABEL_PATTERN.fullmatch(name) and name not in excluded]
    if not found:
        raise UserError("--label_columns: the table has no column cltv_<days>; name the labels with this flag")
    return sorted(found, key=_days)


def _days(label: str) -> int:
    return int(label.removeprefix("cltv_"))


def _check_no_leak(names: Sequence[str], left_out: Sequence[str]) -> None:
    """Raises UserError if the label of another horizon would be a feature."""
    leaks = ",".join(name for name in names if _LABEL_PATTERN.fullmatch(name) and name not in left_out)
    if leaks:
        raise UserError(
            f"column {leaks} would be a feature that holds the future; "
            f"leave out with --exclude={leaks} or add to --label_columns"
        )


def _check_label_names(id_column: str, labels: Sequence[str]) -> None:
    """Raises UserError if two horizons, or two columns of the scores, would have one name."""
    horizons = [label.removeprefix("cltv_") for label in labels]
    scores = [id_column, *(label + end for label in labels for end in SCORE_SUFFIXES)]
    for names, what in ((horizons, "horizon"), (scores, "column of the scores")):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"--label_columns={','.join(labels)}: two would be the {what} {twice}; rename a column")


def _features(table: pa.Schema, left_out: Sequence[str], where: object) -> tuple[list[str], list[str]]:
    """Returns the numeric and the categorical columns."""
    numeric, categorical = [], []
    for field in table:
        if field.name in left_out:
            continue
        if is_numeric(field.type):
            numeric.append(field.name)
        elif is_text(field.type):
            categorical.append(field.name)
        else:
            problem = "has no value at all" if pa.types.is_null(field.type) else f"is of type {field.type}"
            raise UserError(
                f"{where}: column {field.name} {problem}; features are numbers, booleans or text, "
                f"leave it out with --exclude={field.name}"
            )
    if not numeric and not categorical:
        raise UserError(f"{where}: no feature column is left besides id and labels")
    return numeric, categorical


def infer_schema(
    table: pa.Schema,
    where: object,
    id_column: str,
    label_columns: Sequence[str] | None,
    excluded: Sequence[str],
    split: Sequence[float],
    split_seed: int,
    split_column: str | None,
) -> Schema:
    """Returns the roles of the table's columns: all that is not id, label, split or excluded is a feature.

    Without `label_columns`, every column cltv_<number> that is not excluded is a label, in the order of the numbers.

    Raises:
      UserError: a named column does not exist, a role or name is given twice, a cltv_<number> column has no role,
        a type cannot be used, or no feature is left.
    """
    named = [(id_column, "--id_column"), *((name, "--label_columns") for name in label_columns or ())]
    named += [(split_column, "--split_column")] if split_column else []
    for name, flag in [*named, *((name, "--exclude") for name in excluded)]:
        if name not in table.names:
            raise missing_column(name, flag, table.names, where)
    labels = _choose_labels(table.names, label_columns, [*excluded, id_column, split_column or ""])
    roles = [id_column, *labels, *([split_column] if split_column else [])]
    for name in roles:
        if roles.count(name) > 1 or name in excluded:
            raise UserError(
                f"column {name} has two roles among --id_column, --label_columns, --split_column and --exclude"
            )
    _check_label_names(id_column, labels)
    _check_no_leak(table.names, [*roles, *excluded])
    if all(pa.types.is_null(field.type) for field in table):  # as Arrow types a CSV file that has only a header
        raise UserError(f"{where}: has no rows")
    check_id_type(table.field(id_column).type, id_column)
    for name in labels:
        if not is_numeric(table.field(name).type):
            raise UserError(f"--label_columns: {name} is of type {table.field(name).type}; a label is an amount")
    numeric, categorical = _features(table, [*roles, *excluded], where)
    return Schema(
        id_name=id_column,
        id_type=str(table.field(id_column).type),
        labels=tuple(labels),
        numeric=tuple(numeric),
        categorical=tuple(categorical),
        split=tuple(split),
        split_seed=split_seed,
        split_column=split_column,
    )
