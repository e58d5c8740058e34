"""A synthetic customer table in the likeness of the paper's, of any size: `python -m mean_jax.data.synthetic`.

Like the paper's data set (section 4.1) it has 720 features: profile, channel, transactions before the activation,
periodic, seasonal and social ones, and four cumulative labels. What it adds is the oracle, the expected label given all
that decides it, in a folder of its own so that it cannot become a feature. The population is fixed and a seed draws
customers from it. A shard depends on the seed, its index and the rows per shard alone, so that shards can be made in
any order and by any number of workers, bit for bit with one version of NumPy on one kind of processor.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from mean_jax.data.synthetic_features import MIN_FEATURES, design_features, make_columns
from mean_jax.data.synthetic_laws import HORIZON_DAYS, draw_customers, draw_spend, expected_spend
from mean_jax.data.workers import Workers
from mean_jax.errors import UserError
from mean_jax.fileio import atomic_folder, write_json
from mean_jax.threads import available_processors

KIND = "mean-jax synthetic data"
VERSION = 1
CARD_NAME = "card.json"
CUSTOMERS_FOLDER, ORACLE_FOLDER = "customers", "oracle"
ID_COLUMN = "customer_id"
LABELS = tuple(f"cltv_{days}" for days in HORIZON_DAYS)
ORACLES = tuple(f"oracle_{days}" for days in HORIZON_DAYS)
ROWS_PER_SHARD = 1 << 15


@dataclasses.dataclass(frozen=True)
class SyntheticSpec:
    """What is made. The same customers have the same labels whatever the number of features."""

    num_rows: int
    seed: int = 0
    num_features: int = 720
    rows_per_shard: int = ROWS_PER_SHARD

    def __post_init__(self) -> None:
        for flag, value, low in (
            ("rows", self.num_rows, 1),
            ("seed", self.seed, 0),
            ("features", self.num_features, MIN_FEATURES),
            ("rows_per_shard", self.rows_per_shard, 1),
        ):
            if value < low:
                raise UserError(f"--{flag}={value}: expected {low} or more")

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.rows_per_shard)


def generate_shard(spec: SyntheticSpec, shard: int) -> tuple[pa.Table, pa.Table]:
    """Returns the customers and the oracle of one shard, row by row the same customers.

    Args:
      spec: what is made.
      shard: index below spec.num_shards; the last shard is the beginning of a full one.

    Returns:
      A table of customer_id, features (float32 or dictionaries of text) and the labels cltv_DAYS in currency, and one
      of customer_id and oracle_DAYS, the expected label given the latent variables.
    """
    if not 0 <= shard < spec.num_shards:
        raise ValueError(f"shard {shard} is not among the {spec.num_shards} of {spec}")
    first = shard * spec.rows_per_shard
    num_rows = min(spec.rows_per_shard, spec.num_rows - first)
    # Features draw from a stream of their own: their number leaves the customers as they are.
    people_rng, feature_rng = (
        np.random.Generator(np.random.SFC64(np.random.SeedSequence(spec.seed, spawn_key=(shard, stream))))
        for stream in range(2)
    )
    customers = draw_customers(people_rng, spec.rows_per_shard)
    labels_BxT = draw_spend(people_rng, customers)
    features = design_features(spec.num_features)
    columns = make_columns(feature_rng, features, customers, num_rows)
    ids = pa.array(np.arange(first, first + num_rows))
    table = pa.table(
        [ids, *columns, *(pa.array(label_B) for label_B in labels_BxT[:num_rows].T)],
        names=[ID_COLUMN, *(feature.name for feature in features), *LABELS],
    )
    expected_BxT = expected_spend(customers)[:num_rows]
    return table, pa.table([ids, *(pa.array(oracle_B) for oracle_B in expected_BxT.T)], names=[ID_COLUMN, *ORACLES])


def _write_shard(spec: SyntheticSpec, folder: Path, shard: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Writes both files of a shard and returns its rows and, per label, the zeros and the sum."""
    customers, oracle = generate_shard(spec, shard)
    texts = [field.name for field in customers.schema if pa.types.is_dictionary(field.type)]
    for table, name in ((customers, CUSTOMERS_FOLDER), (oracle, ORACLE_FOLDER)):
        # Nearly all values differ: dictionaries and statistics would cost time and save nothing. LZ4 takes a tenth
        # more time and saves a third of the disk, mostly zeros and missing values.
        pq.write_table(
            table,
            folder / name / f"part-{shard:05d}.parquet",
            use_dictionary=[text for text in texts if text in table.column_names],
            write_statistics=False,
            compression="lz4",
        )
    labels_BxT = np.stack([customers[label].to_numpy() for label in LABELS], axis=1)
    return customers.num_rows, (labels_BxT == 0).sum(axis=0), labels_BxT.sum(axis=0)


def write_synthetic(spec: SyntheticSpec, output: Path, num_workers: int = 1) -> None:
    """Writes the folder `output` with customers/part-*.parquet, oracle/part-*.parquet and card.json.

    Shards are made and written one per worker, so memory does not grow with the rows.

    Args:
      spec: what is made.
      output: appears only when whole.
      num_workers: processes, each of which holds a shard and its file, some 200 MB at 720 features; more than one need
        a program whose main module can be imported. They do not change what is written.

    Raises:
      UserError: the output exists.
    """
    zeros_T, sums_T = np.zeros((2, len(LABELS)))
    with atomic_folder(output) as folder:
        for name in (CUSTOMERS_FOLDER, ORACLE_FOLDER):
            (folder / name).mkdir()
        bar = tqdm(total=spec.num_rows, desc="synthetic", unit=" rows", unit_scale=True, disable=None)
        with bar as progress, Workers(num_workers) as workers:
            write = functools.partial(_write_shard, spec, folder)
            for num_rows, shard_zeros_T, shard_sums_T in workers.map(write, range(spec.num_shards)):
                zeros_T += shard_zeros_T
                sums_T += shard_sums_T
                progress.update(num_rows)
        features = design_features(spec.num_features)
        content = {
            "spec": dataclasses.asdict(spec),
            "zero_shares": dict(zip(LABELS, zeros_T / spec.num_rows, strict=True)),
            "mean_labels": dict(zip(LABELS, sums_T / spec.num_rows, strict=True)),
            "relevant_features": [feature.name for feature in features if feature.is_relevant],
        }
        write_json(folder / CARD_NAME, KIND, VERSION, content)


def main() -> None:
    """Writes a synthetic data set; flags --rows, --seed, --features, --num_workers and --output."""
    # Only here: as a library this module knows neither flags nor commands.
    from absl import flags

    from mean_jax.cli import common
    from mean_jax.log import LOGGER

    own = flags.FlagValues()
    rows = flags.DEFINE_integer("rows", None, "Customers to make.", required=True, flag_values=own)
    seed = flags.DEFINE_integer("seed", 0, "Draws other customers of the same population.", flag_values=own)
    features = flags.DEFINE_integer("features", 720, f"Feature columns, {MIN_FEATURES} or more.", flag_values=own)
    num_workers = flags.DEFINE_integer(
        "num_workers",
        None,
        "Processes that share the work, by default one per processor; the files are the same for any number, and each "
        "takes some 200 MB at 720 features.",
        lower_bound=1,
        flag_values=own,
    )
    output = flags.DEFINE_string(
        "output",
        None,
        "Folder to write, with customers/ (features and labels), oracle/ and card.json; must not exist.",
        required=True,
        flag_values=own,
    )

    def write() -> None:
        path = Path(output.value)
        spec = SyntheticSpec(rows.value, seed.value, features.value)
        write_synthetic(spec, path, num_workers.value or available_processors())
        LOGGER.info("%d customers with %d features written to %s", rows.value, features.value, path / CUSTOMERS_FOLDER)

    common.run(write, flag_values=own)


if __name__ == "__main__":
    main()
