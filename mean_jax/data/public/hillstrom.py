"""Hillstrom's e-mail challenge: a randomised trial of two campaigns on 64,000 customers of a shop."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mean_jax.data.prepare import PrepareOptions
from mean_jax.data.public import files
from mean_jax.data.public.base import DataCard, PublicDataset, Recipe

LABEL = "cltv_14"
TREATMENT = "segment"
OUTCOMES = ("visit", "conversion")
_COLUMNS = {
    "recency": pa.int64(),
    "history_segment": pa.string(),
    "history": pa.float64(),
    "mens": pa.int64(),
    "womens": pa.int64(),
    "zip_code": pa.string(),
    "newbie": pa.int64(),
    "channel": pa.string(),
    TREATMENT: pa.string(),
    **dict.fromkeys(OUTCOMES, pa.int64()),
    "spend": pa.float64(),
}


def read(source: Path) -> pa.RecordBatchReader:
    """Returns the customer table: customer_id (the number of the line), features, arm, outcomes and cltv_14 (dollars).

    Args:
      source: the official CSV file, or Parquet with the same columns.

    Raises:
      UserError: a file of another layout.
    """
    file = files.find_source(
        source, "hillstrom", "kevin_hillstrom_minethatdata_e-mailanalytics_dataminingchallenge_2008"
    )
    table = files.read_parquet(file, _COLUMNS) if files.is_parquet(file) else files.read_text(file, _COLUMNS)
    table = table.rename_columns([LABEL if name == "spend" else name for name in _COLUMNS])
    return table.add_column(0, "customer_id", pa.array(np.arange(1, len(table) + 1))).to_reader()


DATASET = PublicDataset(
    card=DataCard(
        title="Hillstrom's MineThatData e-mail analytics and data mining challenge, March 2008",
        source="Kevin Hillstrom (blog.minethatdata.com); from the user's copy",
        licence="published for the challenge, no formal licence; for research",
        rows=64_000,
        customers=64_000,
        label="spend in the two weeks after the e-mail, whatever came before: 0.991 of the labels are 0",
        traps=(
            "578 customers spend anything, median 81 dollars, at most 499: a test split holds some 115 of them",
            "segment is the randomised arm, a third each: mean spend 1.42 (men's e-mail), 1.08 (women's), 0.65 (none)",
            "visit and conversion are outcomes of the same two weeks; as features they would give the label away",
            "the label mixes the arms: predicted spend is not the effect of an e-mail",
            "the file has no id: customer_id is the number of the line",
        ),
    ),
    recipe=Recipe(
        prepare=PrepareOptions(label_columns=(LABEL,), excluded=(TREATMENT, *OUTCOMES)),
        treatment_column=TREATMENT,
        control_value="No E-Mail",
        outcome_columns=OUTCOMES,
    ),
    read=read,
    official_files="the challenge's CSV file (Kevin Hillstrom, MineThatData, 2008.03.20)",
)
