"""The training loop: feed -> dispatches -> validation -> checkpoints, and the end of the run.

The order within an epoch is load-bearing: the metrics of a dispatch are read after the next one is under way; at an
epoch's end they are read before validation, so no checkpoint ever holds a state whose loss was not finite. Every
process of a job goes through the same steps; what is written besides checkpoints the lead process writes alone.
"""

from collections.abc import Callable
import contextlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mean_jax import distributed
from mean_jax import run as run_lib
from mean_jax.data.pipeline import plan_epoch, stream_layout
from mean_jax.data.store import Store
from mean_jax.errors import UserError
from mean_jax.log import LOGGER
from mean_jax.progress import Progress
from mean_jax.run import Program
from mean_jax.sharding import make_mesh, of_lead, state_shardings, to_host
from mean_jax.training import checkpoints, lock
from mean_jax.training import step as step_lib
from mean_jax.training.clock import LapClock
from mean_jax.training.feed import MAX_RESIDENT_STEPS, Order, make_feed
from mean_jax.training.interruption import Interruption
from mean_jax.training.meter import EpochMeter, horizon_means, not_finite
from mean_jax.training.predictions import fit_calibrations
from mean_jax.training.profile import Profile
from mean_jax.training.state import TrainState
from mean_jax.training.validation import Validation
from mean_jax.training.workdir import (
    open_run_folder,
    refuse_another_folder,
    refuse_another_run,
    refuse_divided_job,
    refuse_other_rows,
)
from mean_jax.training.writers import MetricsWriter

# Sign that makes higher better.
_METRIC_SIGNS = {"gini": 1.0, "percentile_mape": -1.0, "loss": -1.0}


def first_state(program: Program, shardings: Any) -> TrainState:
    """Returns the state before the first step, laid out as `shardings` say."""
    # A model whose parameters Flax draws one by one would compile for minutes at the usual level of a CPU.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(program.init_state, out_shardings=shardings, compiler_options=options)()


class Trainer:
    """One run from its store to its sealed folder."""

    def __init__(
        self,
        program: Program,
        store: Store,
        workdir: Path,
        strict_restore: bool,
        profile: Profile,
        held: lock.Held | None = None,
    ) -> None:
        self._clock = LapClock()
        self._program = program
        self._workdir = workdir
        self._strict_restore = strict_restore
        self._profile = profile
        self._held = held  # the lock of the run folder, in the lead process
        self._config = program.config.train
        self._rows, self._validation_rows = store.split("train"), store.split("validation")
        self._mesh = make_mesh(program.config.mesh, len(program.specs), self._config.batch_size)
        plan = plan_epoch(len(self._rows), self._config.batch_size, self._config.steps_per_dispatch)
        # A multiple of S, so that a run may go on with its rows on the host.
        resident_steps = plan.num_steps * max(
            1, (self._config.checkpoint_every_steps or MAX_RESIDENT_STEPS) // plan.num_steps
        )
        self._order = Order(plan, self._config.max_epochs, self._config.seed, resident_steps)
        self._shardings = state_shardings(self._mesh, program.abstract_state, program.config.mesh)
        self._validation = Validation(program, self._validation_rows, self._mesh)
        self._is_active_R = np.ones(len(program.specs), bool)
        self._step = 0
        self._writer: MetricsWriter | None = None  # of the lead process alone

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
        return self._step >= self._order.plan.epoch_steps * self._order.num_epochs or not self._is_active_R.any()

    def run(self, interruption: Interruption) -> bool:
        """Trains to the end or to a signal; returns whether the run is finished.

        Raises:
          UserError: a loss term is not finite; the last good checkpoint stays.
        """
        with interruption.watch():
            return self._run(interruption)

    def _restore_or_init(self) -> TrainState:
        """Returns the state to go on with, laid out on the mesh."""
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self._program.abstract_state,
            self._shardings,
        )
        restored = checkpoints.load_newest(self._workdir / run_lib.LATEST, abstract, self._strict_restore)
        if restored is None:
            return first_state(self._program, self._shardings)
        self._step, state = restored
        self._is_active_R = to_host(state.replicas.is_active)
        LOGGER.info("going on from the checkpoint at step %d", self._step)
        return state

    def _run(self, interruption: Interruption) -> bool:
        state = self._restore_or_init()
        batch_size = self._config.batch_size
        total = self._order.plan.epoch_steps * self._order.num_epochs
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(Progress("train", total * batch_size, self._step * batch_size))
            if distributed.is_lead():
                writer = MetricsWriter(self._workdir, self._step)
                self._writer = stack.enter_context(contextlib.closing(writer))
            saver = checkpoints.CheckpointWriter(self._workdir / run_lib.LATEST, self._step)
            stack.enter_context(contextlib.closing(saver))
            state = self._train(state, saver, progress, interruption)
            if interruption.signal_name and not self._is_done():
                what = f"saved step {self._step} and stopped" if self._step else "stopped before the first step"
                LOGGER.info("%s: %s; run the same command to go on", interruption.signal_name, what)
                return False
            self._finish(state)
            return True

    def _train(
        self, state: TrainState, saver: checkpoints.CheckpointWriter, progress: Progress, interruption: Interruption
    ) -> TrainState:
        plan, every = self._order.plan, self._config.checkpoint_every_steps
        data = self._program.config.data
        rule = self._program.step_rule(stream_layout(self._rows.layout, data))
        feed = make_feed(rule, self._mesh, self._shardings, self._rows, self._order, data)
        meter = EpochMeter(self._names())
        if self._step:
            notes = checkpoints.read_notes(self._workdir / run_lib.LATEST, self._step)
            meter.restore(notes.get("epoch", {}))  # the means of an epoch that was cut in two are those of the whole
        last_saved = self._step
        for dispatch in feed(self._step):
            if interruption.agreed() or not self._is_active_R.any():
                break
            with self._profile.dispatch():
                state, metrics = dispatch.run(state)
                self._clock.lap_once("start")  # compiled, and under way
                # The device is busy with this dispatch now; reading the one before costs no waiting.
                meter.read(self._is_active_R)
            self._step += dispatch.num_steps
            meter.push(self._step - dispatch.num_steps + 1, self._step, metrics)
            epoch = (self._step - 1) // plan.epoch_steps + 1
            loss = f", loss {meter.loss:.4f}" if math.isfinite(meter.loss) else ""  # not read yet after a start
            progress.update(dispatch.num_steps * plan.batch_size, f"epoch {epoch}{loss}")
            is_epoch_end = self._step % plan.epoch_steps == 0
            if is_epoch_end:
                meter.read(self._is_active_R)
                self._clock.lap("steps")
                state = self._end_epoch(state, epoch, meter)
                self._clock.lap("validation")
            if is_epoch_end or (every and self._step - last_saved >= every):
                meter.read(self._is_active_R)
                self._clock.lap("steps")
                self._save(state, saver, meter)
                self._clock.lap("checkpoints")
                last_saved = self._step
        meter.read(self._is_active_R)
        self._profile.stop()
        if self._step != last_saved:
            self._save(state, saver, meter)
        return state

    def _save(self, state: TrainState, saver: checkpoints.CheckpointWriter, meter: EpochMeter) -> None:
        self._check_lock()
        notes = {"num_rows": len(self._rows), "epoch": meter.state()}
        # The next dispatch overwrites the donated state while the checkpoint is still being written: save a copy.
        saver.save(self._step, jax.tree.map(jnp.copy, state), notes)

    def _end_epoch(self, state: TrainState, epoch: int, meter: EpochMeter) -> TrainState:
        """Validates, and stops the replicas that no longer improve.

        Raises:
          UserError: a prediction of a replica that still trains is not finite.
        """
        values, is_finite_R = self._validation(state, self._is_active_R)
        if (broken := np.flatnonzero(self._is_active_R & ~is_finite_R)).size:
            raise not_finite("validation prediction", *self._names()[int(broken[0])], self._step, self._step)
        name = self._config.early_stopping_metric
        sign = _METRIC_SIGNS[name]
        key = "validation/total" if name == "loss" else f"validation/{name}"
        metric_R = of_lead(np.array([sign * replica.get(key, np.nan) for replica in values], np.float32))
        state = step_lib.end_epoch(state, metric_R, np.int32(epoch), patience=self._config.patience)
        names, means, is_active_R = self._names(), meter.means(), self._is_active_R
        if self._writer is not None:
            for (horizon, seed), active, train, validation in zip(names, is_active_R, means, values, strict=True):
                if active:
                    self._writer.write(self._step, epoch, horizon, seed, train | validation)
            self._writer.flush()
        loss = np.mean([train["train/total"] for train in means], where=is_active_R)
        shown = horizon_means([horizon for horizon, _ in names], sign * metric_R, is_active_R)
        LOGGER.info("epoch %d: loss %.4f, validation %s %s", epoch, loss, name, shown)
        self._is_active_R = to_host(state.replicas.is_active)
        meter.reset()
        return state

    def _check_lock(self) -> None:
        if self._held is not None:
            self._held.check()

    def _finish(self, state: TrainState) -> None:
        assert (to_host(state.replicas.best_epoch) > 0).all(), "a replica was never validated"
        self._check_lock()
        best = state.replicas.best
        with contextlib.closing(checkpoints.CheckpointWriter(self._workdir / run_lib.BEST, -1)) as saver:
            saver.save(self._step, best)
        best = to_host(best)
        self._clock.lap("checkpoints")
        calibrations = fit_calibrations(self._program, best, self._validation_rows, self._rows)
        if distributed.is_lead():
            run_lib.seal(self._workdir, self._step, best, calibrations)
        distributed.barrier("the run is sealed")
        self._clock.lap("calibration")
        LOGGER.info("parts: %s", self._clock)
        for (horizon, seed), epoch in zip(self._names(), to_host(state.replicas.best_epoch), strict=True):
            LOGGER.info("horizon %s, seed %d: best epoch %d", horizon, seed, epoch)


def _refuse_devices(program: Program, workdir: Path) -> None:
    """Raises UserError if the devices do not fit the config of a run that has steps to train."""
    distributed.barrier("the store is open")  # which may take longer than the devices' own meeting waits
    if not of_lead(np.array(run_lib.is_finished(workdir))):
        make_mesh(program.config.mesh, len(program.specs), program.config.train.batch_size)


def train(
    program_of: Callable[[Store], Program],
    data: Path,
    workdir: Path,
    flag: str = "--workdir",
    strict_restore: bool = False,
    profile: bool = False,
    interruption: Interruption | None = None,
) -> bool:
    """Trains a run, or goes on with it; returns whether it is finished.

    Args:
      program_of: makes the program for the opened store.
      data: the store.
      workdir: the run folder; processes of one job share it.
      flag: where its name came from, for error lines.
      strict_restore: refuse a damaged newest checkpoint, rather than going on from the one before.
      profile: write a JAX trace of some dispatches of the lead process for TensorBoard.
      interruption: tells the caller of a signal, even of one that came too late to stop this run.

    Raises:
      UserError: a damaged store or one with other rows than the run began with, fewer training rows than a batch, a
        run folder of another run or in use, devices that do not fit the config, processes of a job that do not agree,
        or a loss that is not finite.
    """
    store = Store(data)
    program = program_of(store)
    num_rows, batch_size = len(store.split("train")), program.config.train.batch_size
    if num_rows < batch_size:
        raise UserError(
            f"--data: {data} has {num_rows} training rows, fewer than one batch of {batch_size}; "
            f"set --config.train.batch_size={1 << (num_rows.bit_length() - 1)}"
        )
    _refuse_devices(program, workdir)  # before there is a folder, which would belong to the mistaken config
    with lock.hold(workdir, flag) if distributed.is_lead() else contextlib.nullcontext() as held:
        if distributed.is_lead():
            open_run_folder(workdir, program, flag)
            refuse_other_rows(workdir, num_rows, flag)
        distributed.barrier("the run folder is open")
        refuse_another_folder(workdir, held, flag)
        if not distributed.is_lead():
            refuse_another_run(workdir, program, flag)  # all processes train one program
        refuse_divided_job(program, store)
        traces = profile and distributed.is_lead()  # two of a host would write one file
        # As process 0 sees it: on a network file system others may see the last file later.
        if of_lead(np.array(run_lib.is_finished(workdir))):
            LOGGER.info("the run in %s is finished already", workdir)
            return True
        trainer = Trainer(program, store, workdir, strict_restore, Profile(workdir if traces else None), held)
        return trainer.run(interruption or Interruption())
