"""mean-jax-prepare: customer table -> training store."""

from pathlib import Path

from absl import flags

from mean_jax.cli import common
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.errors import UserError

_FLAGS = flags.FlagValues()  # of this command alone
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "Customer table: a Parquet or CSV file, a folder of them, or a glob.",
    required=True,
    flag_values=_FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the training store to write; must not exist.", required=True, flag_values=_FLAGS
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


def _main() -> None:
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
    )
    prepare(_INPUT.value, Path(_OUTPUT.value), options)


def main() -> None:
    common.run(_main, flag_values=_FLAGS)


if __name__ == "__main__":
    main()
