"""From a customer table to a training store, in two passes over the input and one over its ids.

The ids are checked first. The next pass checks labels and fits the transform on the training rows. The last encodes
every row and spills it into its shard; each shard is then sorted by a hash of the ids, which shuffles the rows and
makes the result independent of the input's order. Memory holds one shard at a time.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.data import hashing
from mean_jax.data.ids import count_unique_ids
from mean_jax.data.labelled import LabelledReader
from mean_jax.data.schema import Schema, infer_schema
from mean_jax.data.statistics import Statistics, useless_label
from mean_jax.data.store import ID_COLUMN, KIND, MANIFEST_NAME, SPLITS, VERSION, Shard
from mean_jax.data.tables import open_tables
from mean_jax.data.transform import RowEncoder, Transform, category_texts, numeric_block
from mean_jax.errors import UserError
from mean_jax.fileio import atomic_folder, file_sha256, require_new_folder, write_json
from mean_jax.log import LOGGER

SHARD_BYTES = 256 << 20
_ORDER_SALT = 1  # even salts are those of the split seeds


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What the user chose; see the flags of mean-jax-prepare."""

    id_column: str = "customer_id"
    label_columns: Sequence[str] | None = None  # all that are called cltv_<number>
    excluded: Sequence[str] = ()
    split: Sequence[float] = (0.7, 0.1, 0.2)
    split_seed: int = 0
    split_column: str | None = None
    min_category_count: int = 5
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if len(self.split) != 3 or min(self.split) < 0 or not abs(sum(self.split) - 1) < 1e-6:
            raise UserError(
                f"--split={','.join(map(str, self.split))}: expected three shares for training, validation and test "
                "that sum to 1, such as 0.7,0.1,0.2"
            )


@dataclasses.dataclass
class _Fitted:
    transform: Transform
    rows_per_split: np.ndarray
    num_unlabelled: int


def _fit(reader: LabelledReader, schema: Schema, options: PrepareOptions, where: str) -> _Fitted:
    statistics = Statistics(schema)
    rows_per_split = np.zeros(len(SPLITS), np.int64)
    num_unlabelled = 0
    known_in_validation_T, positive_in_validation_T = np.zeros((2, len(schema.labels)), np.int64)
    for rows, hashes_B, split_B, labels_BxT in reader("fit"):
        has_label_B = ~np.isnan(labels_BxT).all(axis=1)
        num_unlabelled += int((~has_label_B).sum())
        rows_per_split += np.bincount(split_B[has_label_B], minlength=len(SPLITS))
        is_validation_B = split_B == SPLITS.index("validation")
        known_in_validation_T += (~np.isnan(labels_BxT[is_validation_B])).sum(axis=0)
        positive_in_validation_T += (labels_BxT[is_validation_B] > 0).sum(axis=0)
        is_train_B = has_label_B & (split_B == SPLITS.index("train"))
        train = rows.batch.filter(pa.array(is_train_B))
        texts = [category_texts(train.column(name), name) for name in schema.categorical]
        positions = np.flatnonzero(is_train_B)
        numeric_BxC = numeric_block(train, schema.numeric, rows.place_of(positions))
        statistics.update(hashes_B[is_train_B], numeric_BxC, texts, labels_BxT[is_train_B])
    for split, count in zip(SPLITS, rows_per_split, strict=True):
        if count == 0:
            mend = f"column {options.split_column}" if options.split_column else "--split or the number of rows"
            raise UserError(f"{where}: the {split} split has no rows with a known label; change {mend}")
    transform = statistics.fit(options.min_category_count)
    counts = zip(schema.labels, known_in_validation_T, positive_in_validation_T, strict=True)
    for label, num_known, num_positive in counts:
        if num_positive == 0:  # the ranking, and so early stopping, would be blind
            raise useless_label(label, "is never above zero" if num_known else "has no value", "validation")
    return _Fitted(transform, rows_per_split, num_unlabelled)


class _Spill:
    """Rows of one future shard, appended to an Arrow stream in the order of the input."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._writer = pa.ipc.new_stream(str(path), schema)

    def append(self, hashes_B: np.ndarray, ids: pa.Array, words_BxW: np.ndarray) -> None:
        size = words_BxW.shape[1] * 4
        packed = pa.Array.from_buffers(pa.binary(size), len(ids), [None, pa.py_buffer(np.ascontiguousarray(words_BxW))])
        self._writer.write_batch(pa.record_batch([pa.array(hashes_B), ids, packed], schema=self._schema))

    def finish(self, folder: Path, name: str) -> Shard:
        """Writes the shard in hash order, removes the spill and returns the shard's entry of the manifest."""
        self._writer.close()
        with pa.memory_map(str(self._path)) as file:
            table = pa.ipc.open_stream(file).read_all()
        hashes = table.column("hash").to_numpy()
        ids = table.column("id").combine_chunks()
        order = np.argsort(hashes, kind="stable")
        width = table.schema.field("row").type.byte_width
        with open(folder / f"{name}.bin", "wb") as file:
            rows = np.empty((len(table), width), np.uint8)
            start = 0
            for chunk in table.column("row").chunks:
                data = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
                rows[start : start + len(chunk)] = data.reshape(-1, width)
                start += len(chunk)
            file.write(rows[order].data)  # ndarray.tofile does not say that the disk is full
        pq.write_table(pa.table({ID_COLUMN: ids.take(pa.array(order))}), folder / f"{name}-ids.parquet")
        del table
        self._path.unlink()
        files = (f"{name}.bin", f"{name}-ids.parquet")
        return Shard(*files, len(order), *(file_sha256(folder / file) for file in files))


def _write_shards(
    reader: LabelledReader, schema: Schema, fitted: _Fitted, id_type: pa.DataType, folder: Path, shard_bytes: int
) -> dict[str, Any]:
    row_bytes = 4 * schema.layout.num_words
    num_shards = np.maximum(1, -(-fitted.rows_per_split * row_bytes // shard_bytes))
    spill_schema = pa.schema([("hash", pa.uint64()), ("id", id_type), ("row", pa.binary(row_bytes))])
    spills: dict[str, _Spill] = {}
    encoder = RowEncoder(schema, fitted.transform)
    for rows, hashes_B, split_B, labels_BxT in reader("write"):
        numeric_BxC, codes_BxD = encoder(rows.batch, rows.place)
        labels32_BxT = labels_BxT.astype(np.float32)
        words_BxW = np.concatenate([numeric_BxC, codes_BxD.view(np.float32), labels32_BxT], axis=1)
        ids = rows.batch.column(schema.id_name).cast(id_type)
        order_B = hashing.remix(hashes_B, _ORDER_SALT)
        shard_B = (hashing.to_unit_interval(order_B) * num_shards[split_B]).astype(np.int64)
        has_label_B = ~np.isnan(labels_BxT).all(axis=1)
        for split, split_name in enumerate(SPLITS):
            is_split_B = has_label_B & (split_B == split)
            for shard in np.unique(shard_B[is_split_B]):
                name = f"{split_name}-{shard:05d}"
                if name not in spills:
                    spills[name] = _Spill(folder / f"{name}.spill", spill_schema)
                at = np.flatnonzero(is_split_B & (shard_B == shard))
                spills[name].append(order_B[at], ids.take(pa.array(at)), words_BxW[at])
    splits: dict[str, Any] = {}
    for split_name in SPLITS:
        shards = [spills[name].finish(folder, name) for name in sorted(spills) if name.startswith(f"{split_name}-")]
        splits[split_name] = {
            "rows": sum(shard.rows for shard in shards),
            "shards": [dataclasses.asdict(shard) for shard in shards],
        }
    return splits


def prepare(input_path: str, output: Path, options: PrepareOptions) -> None:
    """Writes the training store of a customer table.

    Args:
      input_path: Parquet or CSV file, folder or glob.
      output: the store's folder; appears only when whole.
      options: roles of columns and the split.

    Raises:
      UserError: the input, a column, a row or an option is not usable; nothing is written then.
    """
    require_new_folder(output)
    source = open_tables(input_path, "--input", options.id_column, all_types=True)
    schema = infer_schema(
        source.schema,
        input_path,
        options.id_column,
        options.label_columns,
        options.excluded,
        options.split,
        options.split_seed,
        options.split_column,
    )
    reader = LabelledReader(source, schema)
    id_type = source.schema.field(schema.id_name).type
    id_type = id_type.value_type if pa.types.is_dictionary(id_type) else id_type
    with atomic_folder(output) as folder:
        count_unique_ids(source, schema.id_name, "--input")
        fitted = _fit(reader, schema, options, input_path)
        splits = _write_shards(reader, schema, fitted, id_type, folder, options.shard_bytes)
        schema.save(folder)
        content = {
            "rows": int(fitted.rows_per_split.sum()),
            "rows_without_label": fitted.num_unlabelled,
            "splits": splits,
            "transform": fitted.transform.to_dict(),
        }
        write_json(folder / MANIFEST_NAME, KIND, VERSION, content)
    for split in SPLITS:
        LOGGER.info("%s: %d rows", split, splits[split]["rows"])
    if fitted.num_unlabelled:
        LOGGER.info("%d rows have no known label and were left out", fitted.num_unlabelled)
