"""mean-jax-train with a clock on the parts of its loop; scaling.py runs it:

  python launch/benchmarks/clocked_train.py --workdir=RUN [--cores_per_process=1] -- --data=STORE ...

What follows -- are the command's flags. The first dispatch of an epoch of D is run by itself, then D - 1 times in a row
with nothing between: that is what the devices can do. The other D - 1 go through the loop and are timed from the first
request for rows until the last loss is read, with validation and checkpoints outside. So both begin and end with idle
devices, one right after the other. RUN-clock-I.json gets the seconds of process I, a record per epoch.
"""

from collections.abc import Callable, Iterator
import functools
import os
from pathlib import Path
import sys
import time
from typing import Any

from absl import flags

from mean_jax.cli import common
from mean_jax.errors import UserError
from mean_jax.fileio import write_json

KIND, VERSION = "mean-jax loop clock", 1
_FLAGS = flags.FlagValues()  # of this command alone
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder to make.", required=True, flag_values=_FLAGS)
_CORES = flags.DEFINE_integer(
    "cores_per_process", 0, "Cores that a process keeps to, each its own; 0: all.", lower_bound=0, flag_values=_FLAGS
)
_APART = flags.DEFINE_boolean("apart", False, "Every process trains alone, in RUN-I.", flag_values=_FLAGS)


class Clock:
    """Seconds of each epoch: of the bare dispatches, of the loop around as many, and of the loop's parts.

    `feed` is the wait for rows and their way to the devices, `call` the call of the dispatch, `wait` that for the
    devices, `meter` the reading of the losses after it. `cpu` is what the loop's thread computed in all that time: on
    busy cores the others also hold waits for a core.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._start, self._cpu_start = 0.0, 0.0

    def dispatches(self, source: Iterator[Any], per_epoch: int) -> Iterator[Any]:
        """Yields the dispatches of a feed with clocks around them.

        Args:
          source: from the beginning of an epoch on.
          per_epoch: D.

        Raises:
          UserError: an epoch is a single dispatch.
        """
        if per_epoch < 2:
            raise UserError("--data: an epoch of the store is a single dispatch; give more rows or smaller dispatches")
        for number in range(sys.maxsize):
            start, cpu_start = time.perf_counter(), time.thread_time()
            dispatch = next(source, None)
            if dispatch is None:
                return
            if number % per_epoch == 0:
                run = functools.partial(self._run_bare, dispatch, per_epoch - 1)
            else:
                if number % per_epoch == 1:
                    self._start, self._cpu_start = start, cpu_start
                self.add("feed", start)
                run = functools.partial(self._run, dispatch)
            yield dispatch._replace(run=run)

    def add(self, name: str, start: float) -> None:
        """Adds the time since `start` to a part of the loop; the epoch's window reaches until now."""
        now, epoch = time.perf_counter(), self.epochs[-1]
        epoch[name] += now - start
        epoch["loop"] = now - self._start
        epoch["cpu"] = time.thread_time() - self._cpu_start

    @property
    def is_running(self) -> bool:
        """Whether the dispatch under way is one of the loop's."""
        return bool(self.epochs) and self.epochs[-1]["feed"] > 0

    def _run(self, dispatch: Any, state: Any) -> Any:
        start = time.perf_counter()
        result = dispatch.run(state)
        self.add("call", start)
        return result

    def _run_bare(self, dispatch: Any, count: int, state: Any) -> Any:
        import jax

        result = jax.block_until_ready(dispatch.run(state))  # compiles, the first time
        start = time.perf_counter()
        for _ in range(count):
            result = dispatch.run(result[0])
        jax.block_until_ready(result)
        parts = dict.fromkeys(("feed", "call", "wait", "meter", "loop", "cpu"), 0.0)
        steps = float(count * dispatch.num_steps)
        self.epochs.append({"steps": steps, "bare": time.perf_counter() - start, **parts})
        return result


def install(clock: Clock) -> None:
    """Puts the clock into the training loop of this process."""
    import jax

    from mean_jax.training import loop

    make_feed: Callable[..., Any] = loop.make_feed

    def make_clocked_feed(rule: Any, mesh: Any, shardings: Any, rows: Any, order: Any, config: Any) -> Any:
        feed = make_feed(rule, mesh, shardings, rows, order, config)
        return lambda first_step: clock.dispatches(feed(first_step), order.plan.num_dispatches)

    class ClockedMeter(loop.EpochMeter):  # type: ignore[misc]
        """Tells the wait for the devices from the reading."""

        _last: Any = None

        def push(self, first_step: int, last_step: int, metrics: Any) -> None:
            self._last = metrics
            super().push(first_step, last_step, metrics)

        def read(self, is_active_R: Any) -> None:
            last, self._last = self._last, None
            is_timed = last is not None and clock.is_running  # the loop also asks when there is nothing to read
            start = time.perf_counter()
            jax.block_until_ready(last)
            if is_timed:
                clock.add("wait", start)
            start = time.perf_counter()
            super().read(is_active_R)
            if is_timed:
                clock.add("meter", start)

    loop.make_feed = make_clocked_feed
    loop.EpochMeter = ClockedMeter


def main() -> None:
    split = sys.argv.index("--")
    try:
        _FLAGS(sys.argv[:split])
    except flags.Error as error:
        common.fail(error)
    process = int(os.environ.get("MEAN_JAX_PROCESS_ID", "0"))
    if _CORES.value:  # before JAX counts them
        own = sorted(os.sched_getaffinity(0))[process * _CORES.value : (process + 1) * _CORES.value]
        if len(own) < _CORES.value:
            common.fail(f"--cores_per_process={_CORES.value}: there are too few cores for process {process}")
        os.sched_setaffinity(0, own)
    from mean_jax.cli import train

    clock = Clock()
    install(clock)
    workdir = _WORKDIR.value
    alone = ["--num_processes=1", "--process_id=0"] if _APART.value else []
    where = [f"--workdir={workdir}-{process}" if _APART.value else f"--workdir={workdir}"]
    sys.argv = [sys.argv[0], *sys.argv[split + 1 :], *where, *alone]
    try:
        train.main()
    finally:
        write_json(Path(f"{workdir}-clock-{process}.json"), KIND, VERSION, {"epochs": clock.epochs})


if __name__ == "__main__":
    main()
