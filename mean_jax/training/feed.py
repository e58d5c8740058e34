"""How training rows get to the step: batches sent from the host, or rows that stay on the devices.

A feed gives one call per dispatch. Both feeds go through the same batches in the same order.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from mean_jax.config import DataConfig
from mean_jax.data.pipeline import EpochPlan, epoch_order, stream_layout, train_dispatches
from mean_jax.data.store import SplitRows
from mean_jax.errors import UserError
from mean_jax.sharding import on_mesh, own_rows
from mean_jax.training.state import TrainState
from mean_jax.training.step import Metrics, StepRule, make_dispatch, make_resident_dispatch

MAX_RESIDENT_STEPS = 4096  # so that a signal is seen, and a checkpoint can be made, within a long epoch
_ROWS_PER_COPY = 1 << 16  # sent to a device at once when it is filled


class Dispatch(NamedTuple):
    """Some steps to run."""

    num_steps: int
    run: Callable[[TrainState], tuple[TrainState, Metrics]]  # the state given is used up


class Order(NamedTuple):
    """The rows of all batches, as a function of the step."""

    plan: EpochPlan
    num_epochs: int
    seed: int
    max_resident_steps: int = MAX_RESIDENT_STEPS  # of one dispatch where the rows stay on the devices


Feed = Callable[[int], Iterator[Dispatch]]


def make_feed(rule: StepRule, mesh: Mesh, shardings: Any, rows: SplitRows, order: Order, config: DataConfig) -> Feed:
    """Returns a function of the number of steps done that yields the dispatches left.

    Args:
      rule: of the step; its layout is that of `stream_layout`.
      mesh: the devices.
      shardings: of the state on it.
      rows: the training split.
      order: plan, epochs and seed.
      config: placement, shuffle and numeric type.

    Raises:
      UserError: the rows do not fit into the memory of the devices.
    """
    if config.placement == "host":
        return functools.partial(_from_host, make_dispatch(rule, mesh, shardings), mesh, rows, order, config)
    words_NxW = _load_on_devices(mesh, rows, config)
    return functools.partial(
        _on_devices, make_resident_dispatch(rule, mesh, shardings), mesh, words_NxW, len(rows), order, config
    )


def _from_host(
    dispatch_fn: Callable[..., tuple[TrainState, Metrics]],
    mesh: Mesh,
    rows: SplitRows,
    order: Order,
    config: DataConfig,
    first_step: int,
) -> Iterator[Dispatch]:
    batch_size, _, num_steps = order.plan
    own = own_rows(mesh, batch_size)
    first = first_step // num_steps
    for words_SxBxW in train_dispatches(rows, order.plan, order.num_epochs, order.seed, first, config, own):

        def read(index: tuple[slice, ...], words: np.ndarray = words_SxBxW) -> np.ndarray:
            start, stop, _ = index[1].indices(batch_size)
            return words[:, start - own.start : stop - own.start]

        shape = (num_steps, batch_size, words_SxBxW.shape[-1])
        global_SxBxW = on_mesh(mesh, P(None, "data"), shape, read)
        yield Dispatch(num_steps, functools.partial(_run, dispatch_fn, global_SxBxW))


def _run(
    dispatch_fn: Callable[..., tuple[TrainState, Metrics]], words_SxBxW: jax.Array, state: TrainState
) -> tuple[TrainState, Metrics]:
    return dispatch_fn(state, words_SxBxW)


def _on_devices(
    dispatch_fn: Callable[..., tuple[TrainState, Metrics]],
    mesh: Mesh,
    words_NxW: jax.Array,
    num_rows: int,
    order: Order,
    config: DataConfig,
    first_step: int,
) -> Iterator[Dispatch]:
    """Yields one dispatch per epoch, or several of a long one; the first may begin within an epoch.

    The order of the next epoch is drawn while the devices go through this one.
    """
    batch_size, epoch_steps = order.plan.batch_size, order.plan.epoch_steps

    def draw(epoch: int) -> np.ndarray:
        return epoch_order(num_rows, order.seed, epoch, config)[: epoch_steps * batch_size].astype(np.int32)

    first_epoch = first_step // epoch_steps
    if first_epoch >= order.num_epochs:
        return
    with ThreadPoolExecutor(max_workers=1) as beside:
        drawn = beside.submit(draw, first_epoch)
        for epoch in range(first_epoch, order.num_epochs):
            index_N = drawn.result()
            if epoch + 1 < order.num_epochs:
                drawn = beside.submit(draw, epoch + 1)
            done = max(0, first_step - epoch * epoch_steps)
            for start in range(done, epoch_steps, order.max_resident_steps):
                stop = min(start + order.max_resident_steps, epoch_steps)
                index_SxB = index_N.reshape(epoch_steps, batch_size)[start:stop]
                global_SxB = on_mesh(mesh, P(), index_SxB.shape, index_SxB.__getitem__)

                def run(state: TrainState, index: jax.Array = global_SxB) -> tuple[TrainState, Metrics]:
                    return dispatch_fn(state, words_NxW, index)

                yield Dispatch(stop - start, run)


@functools.partial(jax.jit, donate_argnums=0)
def _write_rows(buffer_NxW: jax.Array, words_BxW: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(buffer_NxW, words_BxW, start, axis=0)


def _load_on_devices(mesh: Mesh, rows: SplitRows, config: DataConfig) -> jax.Array:
    """Returns words_NxW of all rows divided over `data`; rows of padding at the end are never in a batch."""
    layout = stream_layout(rows.layout, config)
    num_parts = mesh.shape["data"]
    part = -(-len(rows) // num_parts)
    sharding = NamedSharding(mesh, P("data"))
    shape = (num_parts * part, layout.num_words)
    buffers = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        start = index[0].indices(shape[0])[0] if index else 0
        try:
            buffer = jax.numpy.zeros((part, shape[1]), device=device)
            for first in range(0, part, _ROWS_PER_COPY):
                index_B = start + np.arange(first, min(first + _ROWS_PER_COPY, part))
                words_BxW = rows.layout.convert(rows.gather(np.minimum(index_B, len(rows) - 1)), layout)
                buffer = _write_rows(buffer, jax.device_put(words_BxW, device), np.int32(first))
            buffers.append(jax.block_until_ready(buffer))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"--config.data.placement=device: {4 * part * shape[1] / 1e9:.1f} GB of training rows do not fit into "
                f"the memory of {device}; use --config.data.numeric_type=bfloat16 if they are stored in four bytes, "
                "more devices or placement=host"
            ) from error
    return jax.make_array_from_single_device_arrays(shape, sharding, buffers)
