"""Runs an experiment cell by cell into a folder, and lays the results out once all cells are there.

experiment.json   the specification; a folder belongs to one experiment
data/             logs, tables and the store, made once; data.json says of what
runs/NAME/        run folder of each network, ready for mean-jax-score
cells/            rows of what is finished: NAME.json of a network, a file for each fit of a peer in NAME/
results.parquet   all rows
table.md, report.html, *.svg
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
from pathlib import Path
import time
from typing import Any

from tqdm import tqdm

from mean_jax.config import parse_section
from mean_jax.errors import UserError
from mean_jax.experiments import cells
from mean_jax.experiments.cells import Prediction
from mean_jax.experiments.data import ExperimentData, open_data
from mean_jax.experiments.layouts import LAYOUTS
from mean_jax.experiments.measures import MEASURES
from mean_jax.experiments.page import write_page
from mean_jax.experiments.peers import PEERS, applies, unavailable
from mean_jax.experiments.results import DETERMINISTIC, RESULTS_NAME, CellFile, Results, Row, write_results
from mean_jax.experiments.spec import ORACLE, ExperimentSpec, slug
from mean_jax.fileio import read_json, require_free_output, write_json
from mean_jax.log import LOGGER

KIND, VERSION = "mean-jax experiment", 2
SPEC_NAME = "experiment.json"
DATA_NAME = "data"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A system of the experiment, or one fit of it: what is run whole or not at all."""

    system: str  # its name in the table
    kind: str  # network, peer or oracle
    fit: str  # which of its fits this is, to stand after its name
    file: str  # in the folder of cells
    identity: dict[str, Any]  # what decides its predictions besides the data
    predictions: Callable[[], Iterable[Prediction]]
    is_begun: bool = False  # an earlier call was interrupted in it, so its runtime is not known

    @property
    def title(self) -> str:
        """What the log calls it."""
        return self.system + self.fit


def plan_cells(spec: ExperimentSpec, data: ExperimentData, output: Path) -> tuple[list[Cell], dict[str, str]]:
    """Returns the cells of an experiment, and the peers that cannot run on this data or machine with the reason."""
    planned, left_out = [], {}
    for name in spec.network_names:
        config, folder = spec.network_config(name), output / "runs" / slug(name)
        predictions = functools.partial(cells.network_predictions, config, data, folder)
        identity = dataclasses.asdict(config)
        planned.append(Cell(name, "network", "", f"{slug(name)}.json", identity, predictions, folder.exists()))
    tables = cells.PeerTables(data)
    for name in spec.peers:
        problem = unavailable(name) or applies(name, data.store.schema.numeric, data.observation_days)
        if problem:
            left_out[name] = problem
        else:
            planned += _peer_cells(name, tables, spec)
    if data.oracle is not None:
        predictions = functools.partial(cells.oracle_predictions, data)
        planned.append(Cell(ORACLE, ORACLE, "", f"{ORACLE}.json", {}, predictions))
    return planned, left_out


def _peer_cells(name: str, tables: cells.PeerTables, spec: ExperimentSpec) -> Iterator[Cell]:
    """Yields the fits of a peer: per horizon that is measured and, if anything in it is random, per seed."""
    labels = tables.data.store.schema.horizons
    first = len(labels) - 1 if MEASURES[spec.layout].is_of_last_horizon else 0
    seeds = range(spec.train.seed, spec.train.seed + (spec.num_peer_seeds or spec.train.num_seeds))
    for horizon in range(first, len(labels)):
        for seed in seeds if PEERS[name].is_random else (DETERMINISTIC,):
            fit, file = f", horizon {labels[horizon]}", f"horizon_{horizon}"
            if seed != DETERMINISTIC:
                fit, file = f"{fit}, seed {seed}", f"{file}_seed_{seed}"
            identity = {"peer": name, "horizon": horizon, "seed": seed}
            predictions = functools.partial(cells.peer_predictions, name, tables, horizon, seed)
            yield Cell(name, "peer", fit, f"{slug(name)}/{file}.json", identity, predictions)


def _finished_rows(cell: Cell, layout: str, data: ExperimentData, file: CellFile) -> list[Row]:
    """Returns the rows of a cell, from its file or by running it."""
    rows = file.load()
    if rows is None:
        start = time.monotonic()
        measured = MEASURES[layout].rows(cell.predictions(), data)
        elapsed = round(time.monotonic() - start, 3)
        seconds = None if cell.is_begun else elapsed
        rows = file.save(
            [{"system": cell.system, "kind": cell.kind, **row, "cell_seconds": seconds} for row in measured]
        )
        LOGGER.info("%s: finished in %.1f s", cell.title, elapsed)
    return [row | {"cell": cell.file} for row in rows]


def _check_output(spec: ExperimentSpec, output: Path) -> None:
    """Raises UserError unless the folder is free or belongs to this experiment.

    Systems may be added or left out; a finished one keeps its configuration, which its `CellFile` checks.
    """
    path = output / SPEC_NAME
    if path.is_file():
        saved = parse_section(ExperimentSpec, read_json(path, KIND, VERSION)["spec"], "")  # later fields by default
        for field in ("title", "layout", "data"):
            held = getattr(saved, field)
            if held != getattr(spec, field):
                raise UserError(f"--output: {output} holds another {field} ({held}); choose another --output")
    elif not output.is_dir() or {entry.name for entry in output.iterdir()} - {DATA_NAME}:
        require_free_output(output)


def run_experiment(spec: ExperimentSpec, output: Path, store: str | None = None) -> bool:
    """Runs what is not finished yet and writes the tables; returns whether all cells are finished.

    A peer that fails on the data is left out and named; a network that fails is an error.

    Args:
      spec: the experiment.
      output: its folder, new or of an earlier call of the same experiment.
      store: a training store in place of `spec.data`.

    Raises:
      UserError: the folder is of something else, the data cannot be had, or a system cannot be trained on it.
    """
    _check_output(spec, output)
    data = open_data(spec.data, output / DATA_NAME, store)
    planned, left_out = plan_cells(spec, data, output)
    fingerprint = {"store": data.fingerprint(), "layout": spec.layout}
    files = [
        CellFile(output / "cells" / cell.file, fingerprint | {"system": cell.system, **cell.identity})
        for cell in planned
    ]
    for file in files:
        file.load()  # results of another configuration are refused before anything is written
    write_json(output / SPEC_NAME, KIND, VERSION, {"spec": dataclasses.asdict(spec)})
    rows: list[Row] = []
    for cell, file in tqdm(list(zip(planned, files, strict=True)), desc="cells", unit=" cells", disable=None):
        if cell.system in left_out:
            continue
        try:
            rows += _finished_rows(cell, spec.layout, data, file)
        except cells.Interrupted:
            LOGGER.info("stopped in %s; run the same command to go on", cell.title)
            return False
        except UserError as error:
            if cell.kind != "peer":
                raise
            left_out[cell.system] = f"{error} ({cell.title})"
    for name, reason in left_out.items():
        LOGGER.warning("%s is left out: %s", name, reason)
    rows = [row for row in rows if row["system"] not in left_out]  # also what a peer did before it failed
    write_results(output / RESULTS_NAME, rows)
    write_page(LAYOUTS[spec.layout](spec, Results(tuple(rows)), data, left_out), output)
    return True
