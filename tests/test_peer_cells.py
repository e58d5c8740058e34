"""Peers in an experiment: each fit is a cell of its own, with the labels and the seed that belong to it."""

import dataclasses
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from mean_jax.cli import experiment
from mean_jax.errors import UserError
from mean_jax.evaluation.calibration import fit_calibration
from mean_jax.experiments import cells, runner
from mean_jax.experiments.data import ExperimentData
from mean_jax.experiments.peers import PEERS
from mean_jax.experiments.spec import ExperimentSpec
from tests.conftest import SMALL_EXPERIMENT
from tests.peers_data import make_task


class Fits:
    """Records the fits of peers, as (horizon, seed), and interrupts or refuses one of them."""

    def __init__(self):
        self.done, self.interrupted, self.refused = [], None, None
        self._predictions = runner.cells.peer_predictions

    def __call__(self, name, tables, horizon, seed):
        if self.interrupted == (horizon, seed):
            raise KeyboardInterrupt
        if self.refused == (horizon, seed):
            raise UserError("no")
        self.done.append((horizon, seed))
        return self._predictions(name, tables, horizon, seed)


def test_each_fit_of_a_peer_is_kept_and_more_seeds_run_only_their_own(finished_experiment, call, tmp_path, monkeypatch):
    def run(num_seeds, interrupted=None, refused=None):
        fits.done, fits.interrupted, fits.refused = [], interrupted, refused
        code, lines = call(experiment.main, *command, f"--config.num_peer_seeds={num_seeds}")
        assert code == (130 if interrupted else 0)
        return lines

    fits = Fits()
    monkeypatch.setattr(runner.cells, "peer_predictions", fits)
    for part in ("data", "runs", "cells"):
        shutil.copytree(finished_experiment / part, tmp_path / part)
    shutil.copy(finished_experiment / "experiment.json", tmp_path)
    command = ["--config=table1", f"--output={tmp_path}", "--smoke", SMALL_EXPERIMENT[0]]
    command += ['--config.peers=("two_stage_forest",)']

    run(1, interrupted=(1, 0))
    assert fits.done == [(0, 0)]
    run(1)
    assert fits.done == [(1, 0)]
    run(2)
    assert fits.done == [(0, 1), (1, 1)]
    rows = [
        row for row in pq.read_table(tmp_path / "results.parquet").to_pylist() if row["system"] == "two_stage_forest"
    ]
    assert len(rows) == 2 * 2 * 2  # horizons, seeds, splits
    assert len({row["calibrated_gini"] for row in rows}) == len(rows)  # each of its own horizon, seed and split
    taken = {row["cell"]: row["cell_seconds"] for row in rows}
    assert len(taken) == 4
    assert f"| two_stage_forest | {sum(taken.values()):,.1f} |" in (tmp_path / "table.md").read_text()

    assert "two_stage_forest is left out: no (two_stage_forest, horizon 30, seed 2)" in run(3, refused=(0, 2))
    assert fits.done == []  # nor what comes after it
    assert "two_stage_forest" not in {row["system"] for row in pq.read_table(tmp_path / "results.parquet").to_pylist()}


def test_a_fit_is_given_the_labels_of_its_horizon_and_its_seed(store, monkeypatch):
    def fit(task):
        given.append(task)
        return lambda table: np.arange(len(table.numeric), dtype=np.float64)

    given = []
    monkeypatch.setitem(PEERS, "lightgbm_l2", dataclasses.replace(PEERS["lightgbm_l2"], fit=fit))
    data = ExperimentData("x", store)
    predictions = list(runner.cells.peer_predictions("lightgbm_l2", runner.cells.PeerTables(data), 1, 5))
    assert [(found.split, found.horizon, found.seed) for found in predictions] == [("validation", 1, 5), ("test", 1, 5)]
    assert [len(found.raw_V) for found in predictions] == [len(store.split(name)) for name in ("validation", "test")]
    (task,) = given
    assert task.seed == 5
    for table, split in ((task.train, "train"), (task.validation, "validation")):
        label_V = data.labels(split)[:, 1]
        np.testing.assert_array_equal(table.label, label_V[~np.isnan(label_V)])


def test_targeting_fits_peers_to_the_last_horizon_alone(store, tmp_path):
    spec = ExperimentSpec(networks=(("MEAN", "mean"),), peers=("lightgbm_l2", "constant_zero"), layout="targeting")
    planned, left_out = runner.plan_cells(spec, ExperimentData("x", store), tmp_path)
    last = len(store.schema.labels) - 1
    assert last > 0 and not left_out
    fits = [(cell.system, cell.identity["horizon"]) for cell in planned if cell.kind == "peer"]
    assert fits == 3 * [("lightgbm_l2", last)] + [("constant_zero", last)]


def test_a_peers_calibration_has_the_totals_of_validation_and_training():
    task = make_task()

    def predict(table):
        return table.numeric[:, 0] - 3.0

    calibrate = cells._peer_calibration(predict, task)
    total = sum(calibrate(predict(table)).sum() for table in (task.validation, task.train))
    assert total == pytest.approx(task.validation.label.sum() + task.train.label.sum(), rel=1e-9)
    shape = calibrate(predict(task.train)) / fit_calibration(predict(task.validation), task.validation.label)(
        predict(task.train)
    )
    np.testing.assert_allclose(shape, shape[0], rtol=1e-9)
