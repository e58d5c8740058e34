"""Acquire Valued Shoppers: the first day at a company and the spend of the year after (BASELINES.md section 8.1)."""

from collections.abc import Iterator
from pathlib import Path
import tempfile

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data.prepare import PrepareOptions
from mean_jax.data.public import files
from mean_jax.data.public.base import DataCard, PublicDataset, Recipe
from mean_jax.errors import UserError

# Of the published results, each on its own.
COMPANIES = (
    10000, 101200010, 101410010, 101600010, 102100020, 102700020, 102840020, 103000030, 103338333, 103400030,
    103600030, 103700030, 103800030, 104300040, 104400040, 104470040, 104900040, 105100050, 105150050, 107800070,
)  # fmt: skip
CATEGORIES = ("chain", "dept", "category", "brand", "productmeasure")
_COLUMNS = {
    "id": pa.int64(),
    "company": pa.int64(),
    "date": pa.date32(),
    "purchaseamount": pa.float64(),
    **dict.fromkeys(CATEGORIES, pa.string()),
}
_SCHEMA = pa.schema(
    [
        ("customer_id", pa.int64()),
        ("first_purchase", pa.date32()),
        ("calibration_value", pa.float64()),
        *((name, pa.string()) for name in CATEGORIES),
        ("cltv_365", pa.float64()),
    ]
)
# Of equally large purchases the alphabet decides, so that the table does not depend on the order of the file.
_LARGEST = """
    coalesce(
      first({0} ORDER BY purchaseamount DESC, {0}) FILTER (date = start AND {0} IS NOT NULL), 'UNKNOWN'
    ) AS {0}"""
_QUERY = f"""
    SELECT id, start AS first_purchase,
      sum(purchaseamount) FILTER (date = start) AS calibration_value,
      {", ".join(_LARGEST.format(name) for name in CATEGORIES)},
      coalesce(sum(purchaseamount) FILTER (date > start AND date <= start + 365), 0) AS cltv_365
    FROM (SELECT *, min(date) OVER (PARTITION BY id) AS start FROM purchases)
    GROUP BY id, start ORDER BY id
"""


def read(source: Path, company: int = COMPANIES[0]) -> pa.RecordBatchReader:
    """Returns the customer table of one company: customer_id, first_purchase, calibration_value, categories, cltv_365.

    As published: purchases with an amount above 0; `calibration_value` is the total of the first day, each category
    that of the day's largest purchase that has one, else UNKNOWN, and `cltv_365` the total of the 365 days after the
    first day. The value itself stands for its logarithm, which the model's input encoder takes.

    Args:
      source: the official transactions.csv.gz, or unpacked, or its folder. Streamed; memory holds the purchases at
        the one company.
      company: the `company` of the file.

    Raises:
      UserError: a file of another layout, or a company without purchases.
    """
    file = files.find_source(source, "transactions")
    lines = files.stream_text(file, _COLUMNS)
    return pa.RecordBatchReader.from_batches(_SCHEMA, _customers(lines, company, file))


def _customers(lines: Iterator[pa.RecordBatch], company: int, file: Path) -> Iterator[pa.RecordBatch]:
    with tempfile.TemporaryDirectory() as spill, duckdb.connect(config={"temp_directory": spill}) as connection:
        schema = pa.schema(_COLUMNS.items())
        connection.from_arrow(schema.empty_table()).create("purchases")
        num_purchases = 0
        for batch in lines:
            is_wanted = pc.and_(pc.equal(batch["company"], company), pc.greater(batch["purchaseamount"], 0.0))
            purchases = pa.Table.from_batches([batch]).filter(is_wanted)
            if purchases.num_rows:
                connection.from_arrow(purchases).insert_into("purchases")
            num_purchases += purchases.num_rows
        if not num_purchases:
            raise UserError(f"--company={company}: no purchase in {file}; choose another, such as {COMPANIES[0]}")
        for batch in pa.RecordBatchReader.from_stream(connection.sql(_QUERY)):
            yield batch.rename_columns(_SCHEMA.names).cast(_SCHEMA)


DATASET = PublicDataset(
    card=DataCard(
        title="Acquire Valued Shoppers: one company's new customers of 2012-13, at several retail chains",
        source="Kaggle, Acquire Valued Shoppers Challenge, transactions.csv.gz; from the user's copy",
        licence="the rules of the Kaggle competition",
        rows=None,
        customers=None,
        label="first day observed, then 365 days; zero shares differ by company and were not measured here",
        traps=(
            "the log ends within a year of many first purchases: cltv_365 then is the total to its end, as published; "
            "first_purchase tells which (the ZILN paper keeps those from 2012-03-01 to 2012-07-01)",
            "the log begins in March 2012 with customers of long standing: a first purchase is the first one in it",
            "one table per company (--company); published results are means over 20 companies",
        ),
    ),
    recipe=Recipe(prepare=PrepareOptions(label_columns=("cltv_365",), excluded=("first_purchase",))),
    read=read,
    official_files="transactions.csv.gz (Acquire Valued Shoppers Challenge, Kaggle)",
    company=COMPANIES[0],
)
