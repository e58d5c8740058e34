"""The mesh of all devices, and how the training state and the batches lie on it.

The axes: `replica` for stacked replicas, `data` for the rows of a batch, `model` for large embedding tables. One device
is a mesh like any other, on which nothing is divided.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from mean_jax.batch_axis import BatchAxis
from mean_jax.config import MeshConfig
from mean_jax.errors import UserError
from mean_jax.log import LOGGER
from mean_jax.training.state import TrainState

AXES = ("replica", "data", "model")
_TABLE_PREFIX = "embedding_"  # of the encoder's parameters
_ELEMENTS_PER_EXCHANGE = 1 << 20  # of one process, in `sum_over_processes`


def make_mesh(config: MeshConfig, num_replicas: int, batch_size: int) -> Mesh:
    """Returns the mesh over the devices of all processes.

    Args:
      config: sizes of the axes.
      num_replicas: R, to be divided over `replica`.
      batch_size: B, to be divided over `data`.

    Raises:
      UserError: the sizes do not fit the devices, the replicas or the batch; the line names the field.
    """
    num_devices, others = jax.device_count(), config.replica * config.model
    num_data = num_devices // others if config.data == -1 else config.data
    sizes = (config.replica, num_data, config.model)
    if num_data < 1 or np.prod(sizes) != num_devices:
        raise UserError(
            f"--config.mesh: replica {config.replica} x data {config.data} x model {config.model} does not make the "
            f"{num_devices} devices at hand; let data be -1 and the others divide {num_devices}"
        )
    for name, size, total, what in (
        ("replica", config.replica, num_replicas, "replicas (seeds x horizons, or seeds of a multi-task model)"),
        ("data", num_data, batch_size, "rows of a batch; change --config.train.batch_size too or instead"),
    ):
        if total % size:
            raise UserError(f"--config.mesh.{name}={size}: does not divide the {total} {what}")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def data_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Returns a mesh of the given devices, all along `data`."""
    return Mesh(np.array(devices).reshape(1, -1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def local_mesh() -> Mesh:
    """Returns the mesh of this process's devices, on which processes predict each on their own."""
    return data_mesh(jax.local_devices())


def batch_axis(mesh: Mesh) -> BatchAxis:
    """Returns how the mesh divides the rows of a batch."""
    size = mesh.shape["data"]
    return BatchAxis("data", size) if size > 1 else BatchAxis()


def state_shardings(mesh: Mesh, abstract: TrainState, config: MeshConfig) -> Any:
    """Returns a sharding for every leaf: replicas over `replica`, the rows of large embedding tables over `model`."""
    size, whole = mesh.shape["model"], {}

    def of_leaf(path: Any, leaf: Any) -> NamedSharding:
        table = next((name for key in path if (name := str(getattr(key, "key", ""))).startswith(_TABLE_PREFIX)), None)
        if table is not None and size > 1 and leaf.shape[1] >= config.min_table_rows:
            if leaf.shape[1] % size == 0:
                return NamedSharding(mesh, P("replica", "model"))
            whole[table] = leaf.shape[1]
        return NamedSharding(mesh, P("replica"))

    replicas = jax.tree_util.tree_map_with_path(of_leaf, abstract.replicas)
    for table, num_rows in whole.items() if jax.process_index() == 0 else ():
        LOGGER.warning(
            "--config.mesh.model=%d does not divide the %d rows of %s: every device has them all", size, num_rows, table
        )
    fields: dict[str, Any] = {"step": NamedSharding(mesh, P()), "replicas": replicas}
    return abstract._replace(**fields)


def on_mesh(mesh: Mesh, spec: P, shape: tuple[int, ...], read_fn: Callable[[Any], np.ndarray]) -> Any:
    """Returns a global array of the shape.

    Args:
      mesh: the devices.
      spec: how the array is divided over them.
      shape: of the whole array.
      read_fn: returns the part of the array at the given slices; asked for the parts of this process's devices alone.
    """
    sharding = NamedSharding(mesh, spec)
    if mesh.size == 1:
        return jax.device_put(read_fn(tuple(slice(0, size) for size in shape)), sharding)
    return jax.make_array_from_callback(shape, sharding, read_fn)


def own_rows(mesh: Mesh, num_rows: int) -> slice:
    """Returns the rows of a batch, divided over `data`, that this process's devices need: the smallest range."""
    indices = NamedSharding(mesh, P("data")).addressable_devices_indices_map((num_rows,)).values()
    ranges = [index[0].indices(num_rows) for index in indices if index is not None]
    return slice(min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges))


def sum_over_processes(value: np.ndarray) -> np.ndarray:
    """Returns the sum of the processes' arrays, which are of one shape and type, on every process.

    They are exchanged a few MB at a time, and as bits: JAX would round float64.
    """
    if jax.process_count() == 1:
        return value
    flat = np.ascontiguousarray(value).reshape(-1)
    total = np.empty_like(flat)
    for start in range(0, len(flat), _ELEMENTS_PER_EXCHANGE):
        part = flat[start : start + _ELEMENTS_PER_EXCHANGE]
        bits_PxW = np.asarray(multihost_utils.process_allgather(part.view(np.uint32)))
        total[start : start + len(part)] = bits_PxW.view(part.dtype).sum(axis=0)
    return total.reshape(value.shape)


def of_lead(value: np.ndarray) -> np.ndarray:
    """Returns the lead process's array on every process, so that a decision made from it is everyone's."""
    return value if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(value))


def to_host(tree: Any) -> Any:
    """Returns the whole arrays as NumPy arrays on every process, wherever their parts lie."""

    def fetch(leaf: Any) -> np.ndarray:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(fetch, tree)
