"""The rows of one batch on several devices: what a model needs to treat them as the one batch they are.

Inside `shard_map` each device sees its own rows. Whatever looks across rows goes through a `BatchAxis`: statistics of
the batch, comparisons of its rows, random numbers per row. A loss is then the device's share of the loss of the whole
batch; the shares of all devices add up to it, and so do their gradients.
"""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class BatchAxis:
    """How the rows of a batch are divided; by default they are not."""

    name: str | None = None  # of the mesh axis; None: all rows are here
    size: int = 1  # devices along it

    def sum(self, value: Any) -> Any:
        """Returns the sum over the devices of an array of any shape."""
        return value if self.name is None else jax.lax.psum(value, self.name)

    def all_rows(self, value_Bx: Any) -> Any:
        """Returns the rows of all devices, on every device."""
        return value_Bx if self.name is None else jax.lax.all_gather(value_Bx, self.name, axis=0, tiled=True)

    def own_rows(self, value_Bx: Any) -> Any:
        """Returns the device's part of an array with as many rows as the whole batch."""
        if self.name is None:
            return value_Bx
        num_rows = value_Bx.shape[0] // self.size
        return jax.lax.dynamic_slice_in_dim(value_Bx, jax.lax.axis_index(self.name) * num_rows, num_rows)

    def share(self, value: Any) -> Any:
        """Returns the device's share of a value that all devices have: the first one takes it, the others nothing.

        Equal parts would not do where a gradient is not linear in what flows back, as that of a ranking.
        """
        return value if self.name is None else jax.numpy.where(jax.lax.axis_index(self.name) == 0, value, 0.0)


WHOLE_BATCH = BatchAxis()
