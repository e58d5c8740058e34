"""Criteo sponsored search conversions: what the shop sells within 30 days of a click (BASELINES.md section 8.3)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data.prepare import PrepareOptions
from mean_jax.data.public import files
from mean_jax.data.public.base import DataCard, PublicDataset, Recipe

LABEL = "cltv_30"
# The columns of the official file, which has no header, in its order.
NAMES = (
    *("Sale", "SalesAmountInEuro", "time_delay_for_conversion", "click_timestamp", "nb_clicks_1week", "product_price"),
    *("product_age_group", "device_type", "audience_id", "product_gender", "product_brand"),
    *(f"product_category({level})" for level in range(1, 8)),
    *("product_country", "product_id", "product_title", "partner_id", "user_id"),
)
# Known only afterwards, or only of the clicks that end in a sale.
_LEAKS = ("Sale", "SalesAmountInEuro", "time_delay_for_conversion", "product_price")
_NUMERIC = {"click_timestamp": pa.int64(), "nb_clicks_1week": pa.int64()}
_KINDS = {name: _NUMERIC.get(name, pa.string()) for name in NAMES if name not in _LEAKS}
_SCHEMA = pa.schema(
    [
        ("customer_id", pa.int64()),
        # Brackets would have to be quoted in every flag.
        *((name.replace("(", "_").replace(")", ""), kind) for name, kind in _KINDS.items()),
        (LABEL, pa.float64()),
    ]
)


def read(source: Path) -> pa.RecordBatchReader:
    """Returns the table of clicks: customer_id (the number of the line), 19 columns of the click, cltv_30 (euros).

    The label is the amount of the sale, 0 without one; -1 in a column is null.

    Args:
      source: the official file CriteoSearchData, plain or gzipped, or its folder. Streamed.

    Raises:
      UserError: a file of another layout.
    """
    file = files.find_source(source, "criteosearchdata")
    columns = {"Sale": pa.int64(), "SalesAmountInEuro": pa.float64(), **_KINDS}
    lines = files.stream_text(file, columns, names=NAMES, delimiter="\t", null_values=("-1", ""))
    return pa.RecordBatchReader.from_batches(_SCHEMA, _clicks(lines))


def _clicks(lines: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    num_clicks = 0
    for batch in lines:
        amount = batch["SalesAmountInEuro"]
        is_sale = pc.and_(pc.equal(batch["Sale"], 1), pc.greater(amount, 0.0)).fill_null(False)
        ids = pa.array(np.arange(num_clicks + 1, num_clicks + 1 + batch.num_rows))
        label = pc.if_else(is_sale, amount, 0.0)
        yield pa.record_batch([ids, *(batch[name] for name in _KINDS), label], schema=_SCHEMA)
        num_clicks += batch.num_rows


DATASET = PublicDataset(
    card=DataCard(
        title="Criteo sponsored search conversion log: 90 days of clicks on product advertisements",
        source="Criteo AI Lab, Criteo Sponsored Search Conversion Log Dataset; from the user's copy",
        licence="CC BY-NC-SA 4.0",
        rows=15_995_634,
        customers=15_995_634,
        label="sales within 30 days of the click, as published: about 0.928 are 0 (another count says 0.892)",
        traps=(
            "a row is a click, not a customer; customer_id is its number, and user_id stands in many rows",
            "product_price is left out: it is known almost only of clicks that end in a sale, and alone reaches an AUC "
            "of 0.97; the delay of the sale is left out too",
            "user_id and product_title have millions of values; the recipe leaves them and the time of the click out",
            "a random split puts clicks of one user, even of one day, into training and test",
        ),
    ),
    recipe=Recipe(
        prepare=PrepareOptions(label_columns=(LABEL,), excluded=("click_timestamp", "product_title", "user_id"))
    ),
    read=read,
    official_files="CriteoSearchData (Criteo Sponsored Search Conversion Log Dataset, Criteo AI Lab)",
)
