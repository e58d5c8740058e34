"""The data of an experiment: made or fetched, turned into a store once, and opened with what lies beside the store."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
from pathlib import Path
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.config import parse_section
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.public import DATASETS, Recipe, write_dataset
from mean_jax.data.store import Store
from mean_jax.data.synthetic import LABELS, SyntheticSpec, write_synthetic
from mean_jax.data.tables import open_tables
from mean_jax.errors import UserError
from mean_jax.experiments.spec import SYNTHETIC, DataSpec
from mean_jax.features.build import build_customer_table
from mean_jax.features.spec import FeatureSpec
from mean_jax.fileio import file_sha256, read_json, write_json

KIND, VERSION = "mean-jax experiment data", 1
SPEC_NAME = "data.json"
_BLOCK_ROWS = 1 << 16  # read at a time where only the labels are kept


@dataclasses.dataclass(frozen=True)
class ExperimentData:
    """A store and what is known of its customers besides."""

    name: str
    store: Store
    observation_days: float | None = None  # of the log that the features come from
    customers: Path | None = None  # the customer table, for columns that are no features
    oracle: Path | None = None  # expected labels of synthetic data
    recipe: Recipe | None = None  # of a public data set

    def horizon_days(self, horizon: int) -> float | None:
        """Returns the days of a horizon, or None where the label's name is no number."""
        name = self.store.schema.horizons[horizon]
        return float(name) if re.fullmatch(r"\d+", name) else None

    def labels(self, split: str) -> np.ndarray:
        """Returns labels_VxT of a split in currency, float64, NaN where unknown."""
        rows = self.store.split(split)
        words = (rows.gather(index_B) for index_B in np.array_split(np.arange(len(rows)), 1 + len(rows) // _BLOCK_ROWS))
        blocks = [rows.layout.labels_of(words_BxW).astype(np.float64) for words_BxW in words]
        return np.concatenate(blocks)

    def fingerprint(self) -> str:
        """Returns what tells this store from another: the checksum of its manifest."""
        return file_sha256(self.store.folder / "manifest.json")

    def columns_of(self, path: Path | None, names: Sequence[str], split: str) -> Mapping[str, pa.ChunkedArray]:
        """Returns columns of a table with the store's ids, in the order of the rows of a split.

        Raises:
          UserError: a customer of the split is not in the table.
        """
        id_name = self.store.schema.id_name
        source = open_tables(str(path), "--data")
        batches = [rows.batch for rows in source.rows([id_name, *names])]
        table = pa.Table.from_batches(batches)
        ids = self.store.split(split).ids()
        where = pc.index_in(ids.combine_chunks(), table.column(id_name).combine_chunks())
        if where.null_count:
            raise UserError(f"{path}: lacks {where.null_count} customers of the store; make both from the same table")
        taken = table.take(where)
        return {name: taken.column(name) for name in names}


@contextlib.contextmanager
def _claimed(spec: DataSpec, folder: Path) -> Iterator[None]:
    """Has a folder belong to these data; if they are refused before anything was made, it is free for a corrected call.

    Raises:
      UserError: it holds what an earlier call made of others.
    """
    path = folder / SPEC_NAME
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} - {SPEC_NAME}:
        if not path.is_file():
            raise UserError(
                f"--output: {folder} has no {SPEC_NAME} that says of what it was made; choose another --output"
            )
        held = parse_section(DataSpec, read_json(path, KIND, VERSION)["data"], "data")  # later fields by default
        if held != spec:
            raise UserError(f"--output: {folder} holds other data ({held}); choose another --output")
        yield
        return
    new_folders = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, KIND, VERSION, {"data": dataclasses.asdict(spec)})
    try:
        yield
    except UserError:
        if [entry.name for entry in folder.iterdir()] == [SPEC_NAME]:
            path.unlink()
            with contextlib.suppress(OSError):  # somebody else has put something there
                for made in new_folders:
                    made.rmdir()
        raise


def open_data(spec: DataSpec, folder: Path, store: str | None = None) -> ExperimentData:
    """Opens the data of an experiment, making in `folder` what is not there yet.

    Args:
      spec: which data.
      folder: keeps logs, tables and the store.
      store: a training store of the user's, in place of all that.

    Raises:
      UserError: unknown data, a source that is missing or of another layout, a store that cannot be read, or a folder
        of other data.
    """
    if store is not None:
        return ExperimentData(store, Store(Path(store)))
    if spec.name not in (SYNTHETIC, *DATASETS):
        raise UserError(f"--config.data.name={spec.name}: choose {SYNTHETIC} or one of {', '.join(sorted(DATASETS))}")
    with _claimed(spec, folder):
        return _made_data(spec, folder)


def _made_data(spec: DataSpec, folder: Path) -> ExperimentData:
    if spec.name == SYNTHETIC:
        made = folder / "synthetic"
        if not made.exists():
            write_synthetic(SyntheticSpec(spec.rows, spec.seed, spec.num_features), made)
        others = tuple(label for label in LABELS if label not in spec.labels)
        options = PrepareOptions(label_columns=spec.labels, excluded=others, split_seed=spec.split_seed)
        opened = _store(made / "customers", folder / "store", options)
        return ExperimentData(spec.name, opened, customers=made / "customers", oracle=made / "oracle")
    recipe = DATASETS[spec.name].recipe
    raw = folder / f"{spec.name}.parquet"
    if not raw.exists():
        try:
            write_dataset(spec.name, raw, spec.source or None)
        except UserError as error:  # the flag has another name here
            raise UserError(re.sub("^--source", "--config.data.source", str(error))) from error
    customers = raw if recipe.features is None else folder / "customers.parquet"
    if not customers.exists():
        build_customer_table(str(raw), customers, FeatureSpec(**vars(recipe.features)))
    options = dataclasses.replace(recipe.prepare, split_seed=spec.split_seed)
    days = None if recipe.features is None else recipe.features.observation_days
    return ExperimentData(spec.name, _store(customers, folder / "store", options), days, customers, recipe=recipe)


def _store(customers: Path, folder: Path, options: PrepareOptions) -> Store:
    if not folder.exists():
        prepare(str(customers), folder, options)
    return Store(folder)
