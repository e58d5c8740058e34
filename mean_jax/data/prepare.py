"""From a customer table to a training store; `passes` says how the rows are read, shuffled and written."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa

from mean_jax.data.categories import MAX_CATEGORIES, CategoryCounts
from mean_jax.data.check import Checked
from mean_jax.data.ownership import lock, remove_abandoned, scratch_folder
from mean_jax.data.passes import Passes, Plan, Wanted
from mean_jax.data.schema import Schema, infer_schema
from mean_jax.data.statistics import check_features, fit_transform, useless_label
from mean_jax.data.store import KIND, MANIFEST_NAME, SPLITS, VERSION, Shard
from mean_jax.data.tables import open_tables
from mean_jax.data.workers import Workers
from mean_jax.errors import UserError
from mean_jax.fileio import atomic_folder, require_new_folder, write_json
from mean_jax.log import LOGGER
from mean_jax.types import RowLayout

SHARD_BYTES = 256 << 20


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
    max_categories: int = MAX_CATEGORIES
    numeric_type: str = "float32"
    num_workers: int = 1  # processes; more than one need a program whose main module can be imported
    shard_bytes: int = SHARD_BYTES
    scratch: Path | None = None  # folder for the rows while they are shuffled; by default within the output

    def __post_init__(self) -> None:
        if len(self.split) != 3 or min(self.split) < 0 or not abs(sum(self.split) - 1) < 1e-6:
            raise UserError(
                f"--split={','.join(map(str, self.split))}: expected three shares for training, validation and test "
                "that sum to 1, such as 0.7,0.1,0.2"
            )


def manifest_splits(shards: dict[str, list[Shard]]) -> dict[str, Any]:
    """Returns the manifest's entry of the shards of every split."""
    return {
        split: {
            "rows": sum(shard.rows for shard in shards[split]),
            "shards": [dataclasses.asdict(shard) for shard in shards[split]],
        }
        for split in SPLITS
    }


def log_rows(rows_per_split: Sequence[int], num_unlabelled: int, seconds: dict[str, float]) -> None:
    """Writes how many rows a split has, how many were left out, and how long the passes took."""
    for split, rows in zip(SPLITS, rows_per_split, strict=True):
        LOGGER.info("%s: %d rows", split, rows)
    if num_unlabelled:
        LOGGER.info("%d rows have no known label and were left out", num_unlabelled)
    LOGGER.info("passes: %s", ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items()))


def _check_splits(checked: Checked, schema: Schema, where: str) -> None:
    """Raises UserError if a split has no row, or a label teaches nothing in training or validation."""
    for split, count in zip(SPLITS, checked.rows_per_split, strict=True):
        if count == 0:
            mend = f"column {schema.split_column}" if schema.split_column else "--split or the number of rows"
            raise UserError(f"{where}: the {split} split has no rows with a known label; change {mend}")
    checked.labels.check(schema.labels)
    counts = zip(schema.labels, checked.known_in_validation, checked.positive_in_validation, strict=True)
    for label, num_known, num_positive in counts:
        if num_positive == 0:  # the ranking, and so early stopping, would be blind
            raise useless_label(label, "is never above zero" if num_known else "has no value", "validation")


def _warn_of_dropped(categories: Sequence[CategoryCounts], schema: Schema, options: PrepareOptions) -> None:
    for name, counts in zip(schema.categorical, categories, strict=True):
        if counts.is_cut(options.min_category_count):
            LOGGER.warning(
                "column %s has more than %d distinct values, the rarest count as unknown (--max_categories)",
                name,
                options.max_categories,
            )


def _write(
    passes: Passes, schema: Schema, options: PrepareOptions, folder: Path, where: str
) -> tuple[dict[str, Any], Checked]:
    """Writes the shards and returns the content of the manifest."""
    checked = passes.check()
    passes.check_ids()
    _check_splits(checked, schema, where)
    layout = RowLayout(*schema.layout[:3], options.numeric_type)
    plan = Plan.of(checked.rows_per_split, 4 * layout.num_words, options.shard_bytes, [0] * len(SPLITS))
    spilled = passes.spill(plan, Wanted(checked.hash_bound, options.max_categories))
    collected = spilled.numeric, spilled.categories
    check_features(schema, *collected, options.min_category_count)
    _warn_of_dropped(spilled.categories, schema, options)
    if options.numeric_type == "float16":
        layout = layout._replace(exponents=spilled.numeric.exponents())
    vocabularies = [counts.vocabulary(options.min_category_count)[0] for counts in spilled.categories]
    with ThreadPoolExecutor(1) as beside:  # shards are sorted without what else is fitted
        fit = beside.submit(fit_transform, *collected, checked.labels, options.min_category_count, options.num_workers)
        shards, _ = passes.sort(spilled, layout, vocabularies, folder)
        transform = fit.result()
    content = {
        "rows": int(checked.rows_per_split.sum()),
        "rows_without_label": checked.num_unlabelled,
        "numeric_type": layout.numeric_type,
        "exponents": layout.exponents,
        "splits": manifest_splits(shards),
        "appends": [],
        "transform": transform.to_dict(),
    }
    return content, checked


def prepare(input_path: str, output: Path, options: PrepareOptions) -> None:
    """Writes the training store of a customer table.

    Args:
      input_path: Parquet or CSV file, folder or glob.
      output: the store's folder; appears only when whole.
      options: roles of columns, the split, how many work.

    Raises:
      UserError: the input, a column, a row or an option is not usable; nothing is written then.
    """
    require_new_folder(output)
    remove_abandoned(output)
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
    id_type = source.schema.field(schema.id_name).type
    id_type = id_type.value_type if pa.types.is_dictionary(id_type) else id_type
    with (
        atomic_folder(output) as folder,
        lock(folder),
        scratch_folder(folder, output, options.scratch) as scratch,
        Workers(options.num_workers) as workers,
    ):
        passes = Passes(source, schema, id_type, scratch, workers)
        content, checked = _write(passes, schema, options, folder, input_path)
        schema.save(folder)
        write_json(folder / MANIFEST_NAME, KIND, VERSION, content)
    log_rows(checked.rows_per_split.tolist(), checked.num_unlabelled, passes.seconds)
