"""mean-jax-features: transaction log -> customer table."""

import datetime
import itertools
from pathlib import Path
import time

from absl import flags

from mean_jax.cli import common
from mean_jax.errors import UserError
from mean_jax.features.spec import FeatureSpec
from mean_jax.features.summary import FeatureSummary
from mean_jax.log import LOGGER

_FLAGS = flags.FlagValues()  # of this command alone
_TRANSACTIONS = flags.DEFINE_string(
    "transactions",
    None,
    "Transaction log, one row per transaction or per line of it: a Parquet or CSV file, a folder of them, or a glob. "
    "Columns are matched by name across files, integers and floats mix; values in names of folders are not read.",
    required=True,
    flag_values=_FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Customer table to write, sorted by id; must not exist. A name that ends in .parquet is one file, any other a "
    "folder of part files.",
    required=True,
    flag_values=_FLAGS,
)
_BACKEND = flags.DEFINE_enum(
    "backend",
    "duckdb",
    ["duckdb", "pyspark"],
    "Engine; both give the same table. duckdb is embedded, nothing to set up. pyspark needs Java and "
    "pip install 'mean-jax[spark]'; log and output must lie where all machines of a cluster reach them by one path.",
    flag_values=_FLAGS,
)
_SPARK_MASTER = flags.DEFINE_string(
    "spark_master",
    None,
    "With --backend=pyspark: where Spark runs, such as local[4], yarn or spark://host:7077. Default: what Spark's own "
    "settings name (spark-submit, conf/spark-defaults.conf, PYSPARK_SUBMIT_ARGS), else local[*], all cores of this "
    "machine. Any other Spark setting goes the same ways.",
    flag_values=_FLAGS,
)
_ID_COLUMN = flags.DEFINE_string(
    "id_column", "customer_id", "Column of the customer ids: integers or text.", flag_values=_FLAGS
)
_TIME_COLUMN = flags.DEFINE_string(
    "time_column",
    "timestamp",
    "Column of the transaction times: timestamps, dates or ISO 8601 text. Times with an offset or zone are converted "
    "to UTC, times without one are UTC; both may stand in one column.",
    flag_values=_FLAGS,
)
_AMOUNT_COLUMN = flags.DEFINE_string(
    "amount_column", "amount", "Column of the amounts in currency; negative amounts are returns.", flag_values=_FLAGS
)
_EXCLUDE = flags.DEFINE_list(
    "exclude",
    [],
    "Columns to leave out. Any other numeric, text or boolean column gives further features.",
    flag_values=_FLAGS,
)
_OBSERVATION_DAYS = flags.DEFINE_integer(
    "observation_days",
    90,
    "Length in days (of 24 hours) of the observation window that features look at. It begins with a customer's first "
    "transaction, and customers whose window ends after the log are dropped; see --as_of for the other way.",
    flag_values=_FLAGS,
)
_HORIZONS = flags.DEFINE_list(
    "horizons",
    ["30", "90", "180", "365"],
    "Horizons in days after the window's end; label cltv_H is the sum of amounts in the first H of them, at least 0, "
    "null where they are not over when the log ends. Empty (--horizons=) for a table without labels, to be scored.",
    flag_values=_FLAGS,
)
_AS_OF = flags.DEFINE_string(
    "as_of",
    None,
    "Date YYYY-MM-DD: one window for all customers, the --observation_days before this day's first instant (UTC), for "
    "those with a transaction in it. Default: a window for each customer from the first transaction on.",
    flag_values=_FLAGS,
)
_NET = flags.DEFINE_boolean(
    "net",
    True,
    "Whether negative amounts (returns) are netted in sums of amounts; with --nonet they count as 0 in every amount. "
    "Windows, counts and dates are the same either way.",
    flag_values=_FLAGS,
)
_SUB_WINDOWS = flags.DEFINE_integer(
    "sub_windows",
    3,
    "Number of equal parts of the observation window that get a sum and a count of their own.",
    flag_values=_FLAGS,
)
_MEMORY_LIMIT = flags.DEFINE_string(
    "memory_limit",
    None,
    "Memory to use, such as 4GB. DuckDB: in all; more goes to disk beside the output; default 80 % of the machine's. "
    "pyspark: heap of the driver, in local mode of all; default Spark's spark.driver.memory, 1 GB.",
    flag_values=_FLAGS,
)


def _parse_horizons(texts: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(text) for text in texts)
    except ValueError:
        raise UserError(f"--horizons={','.join(texts)}: expected whole numbers of days such as 30,90") from None


def _parse_date(text: str | None) -> datetime.date | None:
    if text is None:
        return None
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise UserError(f"--as_of={text}: expected a date such as 2020-12-31") from None


def _report(summary: FeatureSummary) -> None:
    span = summary.span
    LOGGER.info(
        "log: %d rows of %d customers from %s to %s%s",
        span.rows,
        span.customers,
        span.first,
        span.last,
        " (a daily log: its last day counts as complete)" if span.is_daily else "",
    )
    for name in summary.ignored:
        LOGGER.info("column %s is not used: a date or time other than --time_column", name)
    if summary.begins_before_log:
        LOGGER.info("the window begins before the log does: nothing is known of purchases there")
    LOGGER.info(
        "%d of %d customers dropped: %s",
        span.customers - summary.customers,
        span.customers,
        "no transaction in the observation window" if _AS_OF.value else "their observation window ends after the log",
    )
    uncovered = [name for name, label in summary.labels.items() if not label.labelled]
    for name, label in summary.labels.items():
        if name in uncovered:
            LOGGER.warning("%s: no customer labelled, as the log ends before the horizon is over", name)
            continue
        LOGGER.info(
            "%s: %d customers labelled, %.1f %% zero, total %.2f%s",
            name,
            label.labelled,
            100 * label.zero_share,
            label.total,
            f"; {label.clipped} below 0 were set to 0" if label.clipped else "",
        )
    kinds = (("constant columns", summary.constant), ("labels without a value", uncovered))
    useless = {what: names for what, names in kinds if names}
    if useless:
        names = ",".join(itertools.chain(*useless.values()))
        LOGGER.info("%s, to leave out of training: mean-jax-prepare --exclude=%s", " and ".join(useless), names)


def _main() -> None:
    from mean_jax.features.build import build_customer_table  # imported late so that --help answers at once

    spec = FeatureSpec(
        id_column=_ID_COLUMN.value,
        time_column=_TIME_COLUMN.value,
        amount_column=_AMOUNT_COLUMN.value,
        excluded=tuple(_EXCLUDE.value),
        observation_days=_OBSERVATION_DAYS.value,
        horizons=_parse_horizons(_HORIZONS.value),
        as_of=_parse_date(_AS_OF.value),
        net=_NET.value,
        sub_windows=_SUB_WINDOWS.value,
    )
    start = time.monotonic()
    summary = build_customer_table(
        _TRANSACTIONS.value, Path(_OUTPUT.value), spec, _MEMORY_LIMIT.value, _BACKEND.value, _SPARK_MASTER.value
    )
    _report(summary)
    LOGGER.info(
        "customer table of %d rows and %d columns in %.1f s: %s",
        summary.customers,
        len(summary.columns),
        time.monotonic() - start,
        _OUTPUT.value,
    )


def main() -> None:
    common.run(_main, flag_values=_FLAGS)


if __name__ == "__main__":
    main()
