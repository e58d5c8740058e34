"""Stopping at a dispatch boundary when the scheduler or the user asks for it, in every process at the same one.

The preemption service of JAX would be the other way. It counts the calls of everyone, and Orbax asks it at each save:
the answer that says stop may be given to Orbax, and the loop would never hear it.
"""

from collections.abc import Iterator
import contextlib
import signal
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np


class Interruption:
    """Remembers SIGTERM and SIGINT while it is entered, for the loop to stop at the next dispatch boundary."""

    def __init__(self) -> None:
        self.signal_name: str | None = None  # of the signal that all processes have agreed to stop for
        self._received = 0
        self._asked: jax.Array | None = None
        if jax.process_count() > 1:
            mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
            self._per_device = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
            everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            self._max = jax.jit(jnp.max, out_shardings=everywhere)

    @property
    def is_asked(self) -> bool:
        """Whether this process was asked to stop, be it after the last boundary."""
        return bool(self._received)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt  # the second signal means now
        self._received = number

    @contextlib.contextmanager
    def watch(self) -> Iterator["Interruption"]:
        previous = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def agreed(self) -> bool:
        """Tells whether to stop now; every process calls it once at each dispatch boundary and gets the same answer.

        In a job of several processes the question of this boundary is put to all as a maximum on the devices, queued
        between two dispatches, and the answer to that of the boundary before is read: nobody waits for it.
        """
        if self.signal_name is None:
            number = self._ask_all() if jax.process_count() > 1 else self._received
            self.signal_name = signal.Signals(number).name if number else None
        return self.signal_name is not None

    def _ask_all(self) -> int:
        """Returns the highest number of a signal that any process had received at the boundary before."""
        received_D = np.full(jax.local_device_count(), self._received, np.int32)
        asked, self._asked = (
            self._asked,
            self._max(jax.make_array_from_process_local_data(self._per_device, received_D)),
        )
        return 0 if asked is None else int(asked)
