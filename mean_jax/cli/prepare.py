"""mean-jax-prepare: customer table -> training store."""

from pathlib import Path

from absl import flags

from mean_jax.cli import common
from mean_jax.data.append import append
from mean_jax.data.categories import MAX_CATEGORIES
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import NUMERIC_TYPES
from mean_jax.errors import UserError
from mean_jax.threads import available_processors

_FLAGS = flags.FlagValues()  # of this command alone
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "Customer table: a Parquet or CSV file, a folder of them, or a glob.",
    required=True,
    flag_values=_FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder of the training store to write; must not exist, unless with --append.",
    required=True,
    flag_values=_FLAGS,
)
_ID_COLUMN = flags.DEFINE_string(
    "id_column", "customer_id", "Column of the customer ids: integers or text, unique.", flag_values=_FLAGS
)
_LABEL_COLUMNS = flags.DEFINE_list(
    "label_columns",
    None,
    "Label columns, one per horizon: amounts >= 0 in currency, null where not fully observed; "
    "by default all that are called cltv_<days>, such as cltv_30, cltv_90, cltv_180 and cltv_365.",
    flag_values=_FLAGS,
)
_EXCLUDE = flags.DEFINE_list("exclude", [], "Columns to leave out; all others are features.", flag_values=_FLAGS)
_SPLIT = flags.DEFINE_list(
    "split",
    ["0.7", "0.1", "0.2"],
    "Shares of training, validation and test rows, assigned by a hash of the id.",
    flag_values=_FLAGS,
)
_SPLIT_SEED = flags.DEFINE_integer(
    "split_seed", 0, "Draws another split by the hash of the id.", lower_bound=0, flag_values=_FLAGS
)
_SPLIT_COLUMN = flags.DEFINE_string(
    "split_column",
    None,
    "Column that says train, validation or test for each row, in place of --split.",
    flag_values=_FLAGS,
)
_MIN_CATEGORY_COUNT = flags.DEFINE_integer(
    "min_category_count",
    5,
    "Rows: a category seen less often in training counts as unknown.",
    lower_bound=1,
    flag_values=_FLAGS,
)
_MAX_CATEGORIES = flags.DEFINE_integer(
    "max_categories",
    MAX_CATEGORIES,
    "Values of a categorical column that are told apart, the most frequent ones; all others count as unknown.",
    lower_bound=1,
    flag_values=_FLAGS,
)
_NUMERIC_TYPE = flags.DEFINE_enum(
    "numeric_type",
    "float32",
    NUMERIC_TYPES,
    "Type of the stored numeric features: float16 keeps three digits in half the space, scaled per column so that "
    "16 times the largest training value still fits.",
    flag_values=_FLAGS,
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    None,
    "Processes that share the work, by default one per processor; 1 works in this process. The store is the same for "
    "any number, and each takes about 1 GB at 720 features.",
    lower_bound=1,
    flag_values=_FLAGS,
)
_SCRATCH = flags.DEFINE_string(
    "scratch",
    None,
    "Folder for the rows while they are shuffled, as large as the store would be in float32; by default within the "
    "output. Another disk is faster, as is memory that can hold them (/dev/shm). What a killed run leaves there is "
    "removed by the next one for the same output and folder.",
    flag_values=_FLAGS,
)
_APPEND = flags.DEFINE_boolean(
    "append",
    False,
    "Add the rows to the store --output, under its schema, split and fitted transform, and log how far their "
    "distribution has moved from the training rows'. No id may be in the store already.",
    flag_values=_FLAGS,
)
# What an append takes from the store.
_FIXED = (
    *("id_column", "label_columns", "exclude", "split", "split_seed", "split_column"),
    *("min_category_count", "max_categories", "numeric_type"),
)


def _append(num_workers: int, scratch: Path | None) -> None:
    for name in _FIXED:
        if _FLAGS[name].present:
            raise UserError(f"--{name}: an append takes it from the store; leave it out or make a new store")
    append(_INPUT.value, Path(_OUTPUT.value), num_workers, scratch)


def _main() -> None:
    num_workers = _NUM_WORKERS.value or available_processors()
    if _SCRATCH.value == "":
        raise UserError("--scratch: names no folder; name one or leave it out")
    scratch = None if _SCRATCH.value is None else Path(_SCRATCH.value)
    if _APPEND.value:
        _append(num_workers, scratch)
        return
    try:
        split = tuple(float(share) for share in _SPLIT.value)
    except ValueError:
        raise UserError(f"--split={','.join(_SPLIT.value)}: expected numbers such as 0.7,0.1,0.2") from None
    options = PrepareOptions(
        id_column=_ID_COLUMN.value,
        label_columns=None if _LABEL_COLUMNS.value is None else tuple(_LABEL_COLUMNS.value),
        excluded=tuple(_EXCLUDE.value),
        split=split,
        split_seed=_SPLIT_SEED.value,
        split_column=_SPLIT_COLUMN.value,
        min_category_count=_MIN_CATEGORY_COUNT.value,
        max_categories=_MAX_CATEGORIES.value,
        numeric_type=_NUMERIC_TYPE.value,
        num_workers=num_workers,
        scratch=scratch,
    )
    prepare(_INPUT.value, Path(_OUTPUT.value), options)


def main() -> None:
    common.run(_main, flag_values=_FLAGS)


if __name__ == "__main__":
    main()
