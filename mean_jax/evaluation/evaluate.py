"""Evaluation of a finished run on a split of a store or on a labelled customer table."""

from collections.abc import Iterator
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax import distributed
from mean_jax.data.ids import count_unique_ids
from mean_jax.data.labelled import LabelledReader
from mean_jax.data.store import SPLITS, SplitRows, Store, is_store
from mean_jax.data.tables import missing_column, open_tables
from mean_jax.data.transform import RowEncoder
from mean_jax.errors import UserError
from mean_jax.evaluation.metrics import point_metrics, summarise_spaces
from mean_jax.evaluation.outcomes import BucketMeans, Outcome, collect_outcomes, metric_spaces
from mean_jax.evaluation.plots import Curve
from mean_jax.evaluation.report import HorizonReport, Report, bins_table, render_report
from mean_jax.fileio import atomic_folder, file_sha256, require_new_folder, write_json
from mean_jax.progress import Progress
from mean_jax.run import Program, Run, load_run
from mean_jax.threads import map_ahead
from mean_jax.training.predictions import counted, split_words
from mean_jax.training.writers import read_metrics

KIND, VERSION = "mean-jax evaluation", 1
ALL = "all"


def _table_words(path: str, split: str, program: Program) -> Iterator[np.ndarray]:
    """Yields words_BxW of the rows of a labelled table that belong to the split."""
    schema = program.schema
    source = open_tables(path, "--data")
    needed = [schema.id_name, *schema.labels, *schema.numeric, *schema.categorical]
    needed += [schema.split_column] if schema.split_column and split != ALL else []
    for name in needed:
        if name not in source.schema.names:
            raise missing_column(name, "--data", source.schema.names, path, "the run")
    count_unique_ids(source, schema.id_name, "--data")
    if split == ALL:
        schema = dataclasses.replace(schema, split_column=None)
    encoder = RowEncoder(schema, program.transform)
    for rows, _, split_B, labels_BxT in LabelledReader(source, schema)("read"):
        numeric_BxC, codes_BxD = encoder(rows.batch, rows.place)
        parts = [numeric_BxC, codes_BxD.view(np.float32), labels_BxT.astype(np.float32)]
        words_BxW = np.concatenate(parts, axis=1)
        chosen_BxW = words_BxW if split == ALL else words_BxW[split_B == SPLITS.index(split)]
        if len(chosen_BxW):
            yield chosen_BxW


def _store_words(path: Path, split: str, program: Program) -> Iterator[np.ndarray]:
    store = Store(path)
    if split == ALL:
        raise UserError("--split=all: a store is evaluated split by split; choose train, validation or test")
    if store.schema != program.schema or store.transform.to_dict() != program.transform.to_dict():
        raise UserError(
            f"--data: {path} was prepared with another transform than the run's; "
            "evaluate on the store of the run or on the customer table itself"
        )
    return _with_progress(store.split(split))


def _with_progress(rows: SplitRows) -> Iterator[np.ndarray]:
    with Progress("predict", len(rows)) as progress:
        yield from counted(split_words(rows), progress)


def _seeds_table(program: Program, outcomes: dict[int, Outcome]) -> pa.Table:
    """Returns every metric of every seed on its own: columns horizon, seed, space, metric, value."""
    pairs = (
        ((program.schema.horizons[horizon], program.specs[r].seed, space), pair)
        for horizon, outcome in outcomes.items()
        for (r, _), raw_V, calibrated_V in zip(
            program.replica_of(horizon), outcome.raw_SxV, outcome.calibrated_SxV, strict=True
        )
        for space, pair in metric_spaces(program, horizon, outcome.label_V, raw_V, calibrated_V).items()
    )
    found = map_ahead(lambda item: (item[0], point_metrics(*item[1])), pairs)
    rows = [(*key, metric, float(value)) for key, values in found for metric, value in values.items()]
    names = ("horizon", "seed", "space", "metric", "value")
    return pa.table({name: [row[index] for row in rows] for index, name in enumerate(names)})


def _curves(run: Run) -> list[Curve]:
    """Returns the training curves of the report: per horizon and term, the mean over seeds at each logged step."""
    points: dict[tuple[str, str], dict[int, list[float]]] = {}
    for line in read_metrics(run.folder):
        for name, value in line.items():
            if "/" in name:
                points.setdefault((line["horizon"], name), {}).setdefault(line["step"], []).append(value)
    return [
        Curve(horizon, name, sorted(steps), [float(np.mean(steps[step])) for step in sorted(steps)])
        for (horizon, name), steps in points.items()
    ]


def _bucket_names(program: Program, horizon: int) -> list[str]:
    edges = np.asarray(program.label_constants.edges[horizon])[:-1]  # the last one is infinite
    if not len(edges):
        return ["0", "above 0"]
    positive = [f"to {edge:,.4g}" for edge in edges]
    return ["0", *positive, f"above {edges[-1]:,.4g}"]


def _horizon_report(run: Run, horizon: int, outcome: Outcome, means: BucketMeans, num_resamples: int) -> HorizonReport:
    program = run.program
    name = program.schema.horizons[horizon]
    spaces = metric_spaces(program, horizon, outcome.label_V, outcome.raw_V, outcome.calibrated_V)
    return HorizonReport(
        name=f"{name} days" if name.isdigit() else name,
        label=outcome.label_V,
        raw=outcome.raw_V,
        calibrated=outcome.calibrated_V,
        bucket_names=_bucket_names(program, horizon),
        metrics=summarise_spaces(spaces, num_resamples=num_resamples, description=f"resample {name}"),
        attention_by_bucket=means.attention(horizon),
        gate_by_bucket=means.gate(horizon),
    )


def evaluate(workdir: str, data: str, split: str, output: Path, num_resamples: int = 200) -> dict[str, Any]:
    """Writes metrics.json, bins.parquet, seeds.parquet and report.html; returns the content of metrics.json.

    A horizon without a known label in the split is left out of all of them, but for the report's training curves, with
    a warning.

    Args:
      workdir: a finished run folder.
      data: a training store, or a labelled customer table of which the rows of the split are taken by id.
      split: train, validation, test, or all (customer tables only).
      output: folder to write; appears only when whole.
      num_resamples: of the bootstrap intervals.

    Raises:
      UserError: the input, a column, a row or an option is not usable; nothing is written then.
    """
    if distributed.is_lead():
        require_new_folder(output)  # before any work
    run = load_run(workdir)
    program = run.program
    words = _store_words(Path(data), split, program) if is_store(Path(data)) else _table_words(data, split, program)
    outcomes, means = collect_outcomes(run, words, data)
    reports = {
        program.schema.horizons[horizon]: _horizon_report(run, horizon, outcome, means, num_resamples)
        for horizon, outcome in outcomes.items()
    }
    horizons = {name: dict(report.metrics) for name, report in reports.items()}
    num_rows = max(len(outcome.label_V) for outcome in outcomes.values())
    metrics = {"model": program.config.model.name, "rows": num_rows, "split": split, "horizons": horizons}
    if distributed.is_lead():
        with atomic_folder(output) as folder:
            _write_files(folder, run, metrics, list(reports.values()), outcomes)
    distributed.barrier("the evaluation is written")
    return metrics


def _write_files(
    folder: Path, run: Run, metrics: dict[str, Any], reports: list[HorizonReport], outcomes: dict[int, Outcome]
) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    pq.write_table(bins_table(reports), folder / "bins.parquet", write_page_checksum=True)
    pq.write_table(_seeds_table(run.program, outcomes), folder / "seeds.parquet", write_page_checksum=True)
    report = Report(
        title="Customer lifetime value: evaluation",
        model=metrics["model"],
        run=f"{run.folder.name} ({run.identity})",
        split=metrics["split"],
        rows=metrics["rows"],
        horizons=reports,
        curves=_curves(run),
    )
    (folder / "report.html").write_text(render_report(report))
    # metrics.json is read by other programs as it stands, so its version and checksum are kept beside it.
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    write_json(folder / "manifest.json", KIND, VERSION, {"run": run.identity, "files": files})
