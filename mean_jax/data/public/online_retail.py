"""Online Retail II: two years of a British online gift shop with many wholesale customers, returns included."""

import collections
import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data.public import files
from mean_jax.data.public.base import DataCard, FeatureOptions, PublicDataset, Recipe

# Our names, the types, and the names in the official CSV file; its description is left out, stock_code says it.
_COLUMNS = {
    "customer_id": ("Customer ID", pa.float64()),  # written 13085.0
    "timestamp": ("InvoiceDate", pa.timestamp("us")),
    "quantity": ("Quantity", pa.int64()),
    "price": ("Price", pa.float64()),
    "invoice": ("Invoice", pa.string()),
    "stock_code": ("StockCode", pa.string()),
    "country": ("Country", pa.string()),
}
# From here to the end of the first sheet, the second one holds the same lines.
_SHARED_DAYS = (datetime.datetime(2010, 12, 1), datetime.datetime(2010, 12, 9, 20, 1))


def read(source: Path) -> pa.RecordBatchReader:
    """Returns the log: customer_id, timestamp, amount (pounds), quantity, price, invoice, stock_code, country.

    Lines without a customer are left out, and those of 1 to 9 December 2010 are taken once, not from both sheets.

    Args:
      source: the official workbook as CSV, both sheets in one file; or as Parquet with the columns
        invoice, stock_code, quantity, invoice_date, price, customer_id, country and overlap.

    Raises:
      UserError: a file of another layout.
    """
    file = files.find_source(source, "online_retail_ii")
    if files.is_parquet(file):
        lines, is_repeated = _read_parquet(file)
    else:
        lines = files.read_text(file, dict(_COLUMNS.values())).rename_columns(list(_COLUMNS))
        is_repeated = _repeated_lines(lines)
    lines = lines.filter(pc.and_(lines["customer_id"].is_valid(), pc.invert(is_repeated)))
    ids = files.cast(lines["customer_id"], pa.int64(), _COLUMNS["customer_id"][0], file)
    amount = pc.multiply(lines["quantity"].cast(pa.float64()), lines["price"])
    return lines.set_column(0, "customer_id", ids).add_column(2, "amount", amount).to_reader()


def _read_parquet(file: Path) -> tuple[pa.Table, pa.ChunkedArray]:
    names = {name: "invoice_date" if name == "timestamp" else name for name in _COLUMNS}
    kinds = {names[name]: kind for name, (_, kind) in _COLUMNS.items()}
    table = files.read_parquet(file, kinds | {"overlap": pa.bool_()})
    return table.select(list(kinds)).rename_columns(list(names)), table["overlap"]


def _repeated_lines(lines: pa.Table) -> pa.Array:
    """Returns which lines are the second sheet's copy of a line of the first, in whatever order the lines stand.

    In the days that both sheets hold, every line then stands an even number of times; half of them are copies. With
    one sheet alone, or cleaned already, some line stands there once.
    """
    times = lines["timestamp"]
    is_shared = pc.and_(pc.greater_equal(times, _SHARED_DAYS[0]), pc.less_equal(times, _SHARED_DAYS[1]))
    shared = lines.filter(is_shared)
    keys = list(zip(*(column.to_pylist() for column in shared.columns), strict=True))
    counts = collections.Counter(keys)
    is_repeated_B = np.zeros(len(lines), bool)
    if all(count % 2 == 0 for count in counts.values()):
        seen: collections.Counter = collections.Counter()
        for row, key in zip(np.flatnonzero(is_shared.to_numpy()), keys, strict=True):
            seen[key] += 1
            is_repeated_B[row] = seen[key] > counts[key] // 2
    return pa.array(is_repeated_B)


DATASET = PublicDataset(
    card=DataCard(
        title="Online Retail II: a British online gift shop, December 2009 to December 2011",
        source="Chen, UCI Machine Learning Repository, data set 502; from the user's copy",
        licence="CC BY 4.0",
        rows=809_560,
        customers=5_942,
        label="90 days observed, then 180 or 365: 0.429, 0.257 of 4,681 and 3,449 labels are 0",
        traps=(
            "both sheets of the workbook hold 1 to 9 December 2010: 22,523 lines are taken once",
            "customer_id is null in 235,287 lines, 0.23 of them, which are left out",
            "negative quantities are returns (18,446 lines), booked on their own day: two orders of 168,470 and 77,184 "
            "pounds were returned within the hour, and amount_max may hold them",
            "postage, discounts and manual corrections stay in, as the customer's money: 3,672 lines whose code is "
            "no article number, together -68,266 pounds of 16,343,651",
            "the log begins with customers of long standing: 1,045 are first seen in its first 31 days; without them "
            "0.481 and 0.307 of the labels are 0",
            "wholesale customers: the largest ones decide every mean",
        ),
    ),
    recipe=Recipe(FeatureOptions(observation_days=90, horizons=(180, 365), excluded=("invoice",))),
    read=read,
    official_files="online_retail_II, both sheets of the workbook as one CSV file (or Parquet) (Online Retail II, UCI)",
)
