"""The training loop: grain -> dispatches -> validation -> checkpoints, and the end of the run.

The order within an epoch is load-bearing: the metrics of a dispatch are read after the next one is under way; at an
epoch's end they are read before validation, so no checkpoint ever holds a state whose loss was not finite.
"""

from collections.abc import Callable
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mean_jax import run as run_lib
from mean_jax.data.pipeline import padded_batches, plan_epoch, train_dispatches
from mean_jax.data.store import Store
from mean_jax.errors import UserError
from mean_jax.evaluation.metrics import point_metrics
from mean_jax.log import LOGGER
from mean_jax.run import Program
from mean_jax.training import checkpoints
from mean_jax.training import step as step_lib
from mean_jax.training.interruption import Interruption
from mean_jax.training.meter import EpochMeter, not_finite
from mean_jax.training.predictions import batch_size_for, fit_calibrations, raw_predictions, split_words
from mean_jax.training.state import TrainState
from mean_jax.training.writers import MetricsWriter, Progress

# Sign that makes higher better.
_METRIC_SIGNS = {"gini": 1.0, "percentile_mape": -1.0, "loss": -1.0}


def _differences(saved: Any, asked: Any, prefix: str = "") -> list[str]:
    """Returns 'path: saved x, asked y' for every leaf in which two nested dictionaries differ."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        keys = sorted(saved.keys() | asked.keys())
        return [line for key in keys for line in _differences(saved.get(key), asked.get(key), f"{prefix}.{key}")]
    return [] if saved == asked else [f"{prefix.lstrip('.')}: saved {saved}, asked {asked}"]


def _open_run_folder(workdir: Path, program: Program, flag: str) -> bool:
    """Makes or re-opens the run folder; returns whether its training is finished already."""
    if not (workdir / run_lib.CONFIG_NAME).is_file():
        begun = (run_lib.TRANSFORM_NAME, run_lib.SCHEMA_NAME)  # all that a process killed in save_setup leaves
        if workdir.exists() and not (
            workdir.is_dir() and all(path.name in begun or path.suffix == ".tmp" for path in workdir.iterdir())
        ):
            raise UserError(f"{flag}: {workdir} exists and is not a run folder; choose another")
        run_lib.save_setup(workdir, program)
        return False
    saved = run_lib.load_setup(workdir)
    differences = _differences(dataclasses.asdict(saved.config), dataclasses.asdict(program.config))
    if differences:
        raise UserError(f"{flag}: {workdir} holds a run of another config ({'; '.join(differences)}); choose another")
    if saved.schema != program.schema or saved.transform.to_dict() != program.transform.to_dict():
        raise UserError(f"{flag}: {workdir} holds a run on another store; choose another")
    return run_lib.is_finished(workdir)


class Trainer:
    """One run from its store to its sealed folder."""

    def __init__(self, program: Program, store: Store, workdir: Path) -> None:
        self._program = program
        self._workdir = workdir
        self._config = program.config.train
        self._rows, self._validation = store.split("train"), store.split("validation")
        blocks = split_words(self._validation)
        self._labels_VxT = np.concatenate([program.schema.layout.labels_of(words) for words in blocks])
        self._plan = plan_epoch(len(self._rows), self._config.batch_size, self._config.steps_per_dispatch)
        layout, label_config = program.schema.layout, program.config.labels
        self._dispatch = step_lib.make_dispatch(program.model, program.optimizer, label_config, layout)
        self._validate = step_lib.make_validate(program.model, label_config, layout)
        self._is_active_R = np.ones(len(program.specs), bool)
        self._step = 0

    def _names(self) -> list[tuple[str, int]]:
        """Returns (horizons, and the value of a sweep, as one text; seed) of each replica."""
        horizons = self._program.schema.horizons
        return [
            (
                " ".join(["+".join(horizons[h] for h in spec.horizons), *(f"{k}={v:g}" for k, v in spec.scalars)]),
                spec.seed,
            )
            for spec in self._program.specs
        ]

    def _is_done(self) -> bool:
        num_dispatches, num_steps = self._plan
        return self._step >= num_dispatches * num_steps * self._config.max_epochs or not self._is_active_R.any()

    def run(self) -> bool:
        """Trains to the end or to a signal; returns whether the run is finished.

        Raises:
          UserError: a loss term is not finite; the last good checkpoint stays.
        """
        with Interruption().watch() as interruption:
            return self._run(interruption)

    def _run(self, interruption: Interruption) -> bool:
        state = self._program.init_state()
        restored = checkpoints.load_newest(self._workdir / run_lib.LATEST, jax.eval_shape(lambda: state))
        if restored is not None:
            self._step, state = restored
            self._is_active_R = np.asarray(state.replicas.is_active)
            LOGGER.info("going on from the checkpoint at step %d", self._step)
        num_dispatches, num_steps = self._plan
        batch_size = self._config.batch_size
        progress = Progress(num_dispatches * num_steps * self._config.max_epochs * batch_size, self._step * batch_size)
        writer = MetricsWriter(self._workdir, self._step)
        saver = checkpoints.CheckpointWriter(self._workdir / run_lib.LATEST, self._step)
        try:
            state = self._train(state, writer, saver, progress, interruption)
            if interruption.signal_name and not self._is_done():
                LOGGER.info(
                    "%s: saved step %d and stopped; run the same command to go on", interruption.signal_name, self._step
                )
                return False
            self._finish(state)
            return True
        finally:
            saver.close()
            writer.close()
            progress.close()

    def _train(
        self,
        state: TrainState,
        writer: MetricsWriter,
        saver: checkpoints.CheckpointWriter,
        progress: Progress,
        interruption: Interruption,
    ) -> TrainState:
        num_dispatches, num_steps = self._plan
        batch_size, epochs = self._config.batch_size, self._config.max_epochs
        first = self._step // num_steps
        dispatches = train_dispatches(
            self._rows, batch_size, num_dispatches, num_steps, epochs, self._config.seed, first
        )
        meter = EpochMeter(self._names())
        last_saved = self._step
        for index in range(first, num_dispatches * epochs):
            if interruption.signal_name or not self._is_active_R.any():
                break
            state, metrics = self._dispatch(state, next(dispatches))
            # The device is busy with this dispatch now; reading the one before costs no waiting.
            meter.read(self._is_active_R)
            self._step += num_steps
            meter.push(self._step - num_steps + 1, self._step, metrics)
            epoch = index // num_dispatches + 1
            progress.update(num_steps * batch_size, epoch, meter.loss)
            is_epoch_end = (index + 1) % num_dispatches == 0
            if is_epoch_end:
                meter.read(self._is_active_R)
                state = self._end_epoch(state, epoch, meter, writer)
            every = self._config.checkpoint_every_steps
            if is_epoch_end or (every and self._step - last_saved >= every):
                meter.read(self._is_active_R)
                self._save(state, saver)
                last_saved = self._step
        meter.read(self._is_active_R)
        if self._step != last_saved:
            self._save(state, saver)
        writer.flush()
        return state

    def _save(self, state: TrainState, saver: checkpoints.CheckpointWriter) -> None:
        # The next dispatch overwrites the donated state while the checkpoint is still being written: save a copy.
        saver.save(self._step, jax.tree.map(jnp.copy, state))

    def _end_epoch(self, state: TrainState, epoch: int, meter: EpochMeter, writer: MetricsWriter) -> TrainState:
        values = self._validation_metrics(state)
        name = self._config.early_stopping_metric
        sign = _METRIC_SIGNS[name]
        key = "validation/total" if name == "loss" else f"validation/{name}"
        metric_R = np.array([sign * replica.get(key, np.nan) for replica in values], np.float32)
        state = step_lib.end_epoch(state, metric_R, np.int32(epoch), patience=self._config.patience)
        for (horizon, seed), active, train, validation in zip(
            self._names(), self._is_active_R, meter.means(), values, strict=True
        ):
            if active:
                writer.write(self._step, epoch, horizon, seed, train | validation)
        writer.flush()
        self._is_active_R = np.asarray(state.replicas.is_active)
        LOGGER.info(
            "epoch %d: loss %.4f, validation %s %s",
            epoch,
            meter.loss,
            name,
            [f"{value:.4f}" for value in sign * metric_R],
        )
        meter.reset()
        return state

    def _validation_metrics(self, state: TrainState) -> list[dict[str, float]]:
        """Returns per replica the exact validation loss terms and the mean of each metric over its horizons.

        A replica that was stopped early has no numbers.

        Raises:
          UserError: a prediction of a replica that still trains is not finite.
        """
        size = batch_size_for(len(self._validation))
        results = [self._validate(state, *batch) for batch in padded_batches(self._validation, size)]
        count_R = np.maximum(1, sum(np.asarray(count, np.float64) for _, _, count in results))
        scaled_RxVxK = np.concatenate([np.asarray(scaled) for scaled, _, _ in results], axis=1)
        sums = [terms for _, terms, _ in results]
        terms = {name: sum(np.asarray(item[name], np.float64) for item in sums) / count_R for name in sums[0]}
        values: list[dict[str, float]] = []
        for r, spec in enumerate(self._program.specs):
            if not self._is_active_R[r]:
                values.append({})
                continue
            if not np.isfinite(scaled_RxVxK[r]).all():
                raise not_finite("validation prediction", *self._names()[r], self._step, self._step)
            points = []
            for k, horizon in enumerate(spec.horizons):
                raw_V = raw_predictions(self._program, scaled_RxVxK[r, :, k], horizon)
                label_V = self._labels_VxT[:, horizon].astype(np.float64)
                is_known = ~np.isnan(label_V)
                points.append(point_metrics(label_V[is_known], raw_V[: len(label_V)][is_known]))
            values.append(
                {f"validation/{name}": float(term[r]) for name, term in terms.items()}
                | {f"validation/{name}": float(np.mean([point[name] for point in points])) for name in points[0]}
            )
        return values

    def _finish(self, state: TrainState) -> None:
        best = state.replicas.best
        with contextlib.closing(checkpoints.CheckpointWriter(self._workdir / run_lib.BEST, -1)) as saver:
            saver.save(self._step, best)
        calibrations = fit_calibrations(self._program, best, self._validation, self._rows)
        run_lib.seal(self._workdir, self._step, best, calibrations)
        for (horizon, seed), epoch in zip(self._names(), np.asarray(state.replicas.best_epoch), strict=True):
            LOGGER.info("horizon %s, seed %d: best epoch %d", horizon, seed, epoch)


def train(program_of: Callable[[Store], Program], data: Path, workdir: Path, flag: str = "--workdir") -> bool:
    """Trains a run, or goes on with it; returns whether it is finished.

    Args:
      program_of: makes the program for the opened store.
      data: the store.
      workdir: the run folder.
      flag: where its name came from, for error lines.

    Raises:
      UserError: a damaged store, fewer training rows than a batch, or a run folder of another run.
    """
    store = Store(data)
    program = program_of(store)
    num_rows, batch_size = len(store.split("train")), program.config.train.batch_size
    if num_rows < batch_size:
        raise UserError(
            f"--data: {data} has {num_rows} training rows, fewer than one batch of {batch_size}; "
            f"set --config.train.batch_size={1 << (num_rows.bit_length() - 1)}"
        )
    if _open_run_folder(workdir, program, flag):
        LOGGER.info("the run in %s is finished already", workdir)
        return True
    return Trainer(program, store, workdir).run()
