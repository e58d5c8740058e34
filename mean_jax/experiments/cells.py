"""The cells of an experiment: a network trained with all its horizons, seeds and sweep points, or one fit of a peer.

Both give predictions in currency, raw and calibrated in the same way, for the validation and the test split.
"""

from collections.abc import Callable, Iterator
import functools
from pathlib import Path
import shutil
from typing import NamedTuple

import numpy as np

from mean_jax import run as run_lib
from mean_jax.config import Config
from mean_jax.data.store import SplitRows
from mean_jax.evaluation.calibration import fit_levelled
from mean_jax.experiments.data import ExperimentData
from mean_jax.experiments.peers import PEERS
from mean_jax.experiments.peers.task import PeerTask, Predict, Table
from mean_jax.experiments.results import DETERMINISTIC
from mean_jax.run import Program, load_run
from mean_jax.training.interruption import Interruption
from mean_jax.training.loop import train
from mean_jax.training.predictions import MAX_LEVEL_ROWS, predict_rows, seed_predictions

SPLITS = ("validation", "test")


class Interrupted(Exception):
    """A signal stopped the training of a cell; its run folder goes on from there."""


class Prediction(NamedTuple):
    """What one model says about one horizon of the V rows of a split, in currency."""

    split: str
    horizon: int
    seed: int
    point: float | None  # of a sweep
    raw_V: np.ndarray
    calibrated_V: np.ndarray


def network_predictions(config: Config, data: ExperimentData, folder: Path) -> Iterator[Prediction]:
    """Trains a network in a run folder, or goes on with it, and yields its predictions.

    Raises:
      Interrupted: a signal stopped the training at a dispatch boundary.
      UserError: the configuration does not fit the store.
    """
    interruption = Interruption()  # keeps a signal that came after the last dispatch, which the other systems heed
    program = Program(config, data.store.schema, data.store.transform)
    is_finished = train(lambda _: program, data.store.folder, folder, "--output", interruption=interruption)
    if not is_finished or interruption.is_asked:
        raise Interrupted
    # All that is left to do with the run is to predict, and its training state is several times the size of its models.
    shutil.rmtree(folder / run_lib.LATEST, ignore_errors=True)
    run = load_run(folder, allow_sweep=True, program=program)
    for split in SPLITS:
        predicted = predict_rows(program, run.variables, data.store.split(split))
        for horizon, calibration in enumerate(run.calibrations):
            raw_SxV = seed_predictions(program, predicted.scaled_RxVxK, horizon)
            for (r, _), raw_V, calibrate in zip(program.replica_of(horizon), raw_SxV, calibration.seeds, strict=True):
                spec = program.specs[r]
                point = spec.scalars[0][1] if spec.scalars else None
                yield Prediction(split, horizon, spec.seed, point, raw_V, calibrate(raw_V))


class PeerTables:
    """The splits of a store as peers read them; read once, when the first peer asks for them."""

    def __init__(self, data: ExperimentData) -> None:
        self.data = data

    @functools.cached_property
    def _splits(self) -> dict[str, tuple[Table, np.ndarray]]:
        return {split: read_table(self.data.store.split(split), self.data) for split in ("train", *SPLITS)}

    def table(self, split: str) -> Table:
        """Returns all rows of a split, without labels."""
        return self._splits[split][0]

    def labelled(self, split: str, horizon: int) -> Table:
        """Returns the rows of a split whose label of the horizon is known."""
        table, labels_VxT = self._splits[split]
        return table._replace(label=labels_VxT[:, horizon]).rows(~np.isnan(labels_VxT[:, horizon]))


def peer_predictions(name: str, tables: PeerTables, horizon: int, seed: int) -> Iterator[Prediction]:
    """Fits a peer to one horizon and yields its predictions.

    Args:
      name: a key of PEERS.
      tables: of the experiment's data.
      horizon: index of the label.
      seed: DETERMINISTIC where nothing in the peer is random.

    Raises:
      UserError: the peer's library is missing or the data lacks what it needs.
    """
    data = tables.data
    task = PeerTask(
        numeric_names=data.store.schema.numeric,
        categorical_names=data.store.schema.categorical,
        train=tables.labelled("train", horizon),
        validation=tables.labelled("validation", horizon),
        horizon_days=data.horizon_days(horizon),
        observation_days=data.observation_days,
        seed=max(seed, 0),
    )
    predict = PEERS[name].fit(task)
    calibrate = _peer_calibration(predict, task)
    for split in SPLITS:
        raw_V = predict(tables.table(split))
        yield Prediction(split, horizon, seed, None, raw_V, calibrate(raw_V))


def _peer_calibration(predict: Predict, task: PeerTask) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the map to calibrated predictions, fitted as that of the networks; constant predictions stay."""
    train = task.train.rows(np.arange(len(task.train.label)) < MAX_LEVEL_ROWS)
    on_validation_V, on_train_V = predict(task.validation), predict(train)
    if np.ptp(on_validation_V) == 0:
        return lambda raw_V: raw_V
    return fit_levelled(on_validation_V, task.validation.label, on_train_V, train.label)


def read_table(rows: SplitRows, data: ExperimentData) -> tuple[Table, np.ndarray]:
    """Returns the raw values of a split as a peer reads them (labels all NaN), and labels_VxT in currency."""
    layout = data.store.schema.layout
    words_VxW = rows.layout.widen(rows.gather(np.arange(len(rows))))
    codes_VxD = words_VxW[:, layout.num_numeric : layout.num_numeric + layout.num_categorical].view(np.int32)
    table = Table(words_VxW[:, : layout.num_numeric], codes_VxD, np.full(len(words_VxW), np.nan))
    return table, layout.labels_of(words_VxW).astype(np.float64)


def oracle_predictions(data: ExperimentData) -> Iterator[Prediction]:
    """Yields the expected labels given the latent variables of synthetic data: the best that any system can do."""
    for split in SPLITS:
        oracle = data.columns_of(data.oracle, [f"oracle_{name}" for name in data.store.schema.horizons], split)
        for horizon, value_V in enumerate(oracle.values()):
            value_V = value_V.to_numpy().astype(np.float64)
            yield Prediction(split, horizon, DETERMINISTIC, None, value_V, value_V)
