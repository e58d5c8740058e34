"""A JAX trace of a few dispatches, for TensorBoard."""

from collections.abc import Iterator
import contextlib
from pathlib import Path

import jax

from mean_jax.log import LOGGER

FOLDER_NAME = "profile"
_FIRST, _LAST = 3, 8  # dispatches of this call that are traced; the first ones compile


class Profile:
    """Counts dispatches and traces some of them."""

    def __init__(self, workdir: Path | None) -> None:
        """Traces into a folder of the run folder, or nothing without one."""
        self._folder = None if workdir is None else workdir / FOLDER_NAME
        self._count = 0

    @contextlib.contextmanager
    def dispatch(self) -> Iterator[None]:
        """Surrounds the start of a dispatch and the reading of what came of the one before.

        So the last one that is traced is over, on the devices too, when this has surrounded the next.
        """
        self._count += 1
        if self._folder is not None and self._count == _FIRST:
            jax.profiler.start_trace(str(self._folder))
        with jax.profiler.StepTraceAnnotation("dispatch", step_num=self._count):
            yield
        if self._folder is not None and self._count > _LAST:
            self.stop()

    def stop(self) -> None:
        """Ends the trace, if one is under way, or says why there is none."""
        if self._folder is None:
            return
        if self._count >= _FIRST:
            jax.profiler.stop_trace()
            LOGGER.info("trace of dispatches %d to %d: %s", _FIRST, min(self._count, _LAST), self._folder)
        else:
            LOGGER.warning(
                "--profile: no trace, dispatch %d would be the first of it and there were only %d; "
                "lower --config.train.steps_per_dispatch or train for longer",
                _FIRST,
                self._count,
            )
        self._folder = None
