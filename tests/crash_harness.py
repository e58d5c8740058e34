"""Kills a training run at random and aimed moments, and checks that nothing of that shows in the finished run.

    python tests/crash_harness.py --kills=50 --seed=0
    python tests/crash_harness.py --kills=10 --num_processes=2    # kill -9 of one process of two

A run is started, killed, started again until it is finished; then the next one begins, until all kills are spent.
Every start must go on from the newest sealed checkpoint, and every finished run must equal one that was never killed:
parameters and optimiser bit by bit, metrics line by line, no file too many.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import multiprocessing
import os
from pathlib import Path
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pyarrow.parquet as pq

from mean_jax.cli import train as train_cli
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.errors import UserError
from mean_jax.run import BEST, LATEST, is_finished, load_run, load_setup
from mean_jax.training import checkpoints, lock
from mean_jax.training.writers import METRICS_NAME, read_metrics
from tests.conftest import LABELS, TINY, make_table

ROOT = Path(__file__).resolve().parents[1]
SAVE_STEPS = 8
# 32 steps in each epoch, so 4 saves, the last of them after validation.
OVERRIDES = (
    *TINY,
    "train.batch_size=32",
    "train.max_epochs=3",
    "train.steps_per_dispatch=2",
    f"train.checkpoint_every_steps={SAVE_STEPS}",
)
NUM_ROWS, EPOCH_STEPS, LAST_STEP = 1500, 32, 96
# How much sooner the next kill comes after one that came too late, and later after one that did not: machines have
# slow and quick minutes.
_SOONER, _LATER = 0.7, 1.1
_POLL_SECONDS = 0.001
_DEADLINE_SECONDS = 300.0


def make_store(folder: Path) -> Path:
    """Prepares the store that all runs train on."""
    pq.write_table(make_table(NUM_ROWS), folder / "customers.parquet")
    prepare(str(folder / "customers.parquet"), folder / "store", PrepareOptions(label_columns=LABELS))
    return folder / "store"


def _train(arguments: list[str], log: Path) -> None:
    """Runs the command in a process that has imported everything already."""
    jax.config.update("jax_num_cpu_devices", 1)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["mean-jax-train", *arguments]
    train_cli.main()


class ForkedJob:
    """The command as one process, forked from one that has imported JAX: starting takes no seconds."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.crash_harness"])
        self._process = context.Process(target=_train, args=(arguments, log))
        self._process.start()

    def exit_code(self) -> int | None:
        return self._process.exitcode

    def kill(self, generator: random.Random) -> None:
        self._process.kill()
        self._process.join()

    def terminate(self) -> None:
        self._process.terminate()


class LaunchedJob:
    """The command as two processes of one device each."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        launcher = [sys.executable, ROOT / "launch" / "local_processes.py", "--num_processes=2"]
        command = [sys.executable, "-m", "mean_jax.cli.train", *arguments]
        # No cache of compiled programs that others share: a killed process may leave half an entry.
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment["PYTHONPATH"] = str(ROOT)
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [*launcher, "--devices_per_process=1", "--", *command],
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=environment,
            )

    def exit_code(self) -> int | None:
        return self._process.poll()

    def kill(self, generator: random.Random) -> None:
        """Kills one of the two; the launcher has to end the other."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(generator.choice(children)), signal.SIGKILL)
        try:
            self._process.wait(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def terminate(self) -> None:
        self._process.terminate()


Job = ForkedJob | LaunchedJob


@dataclasses.dataclass
class Sight:
    """What can be seen of a run from outside."""

    workdir: Path

    def saves(self) -> set[int]:
        """Returns the steps of all saves that have been begun."""
        folder = self.workdir / LATEST
        names = os.listdir(folder) if folder.is_dir() else []
        return {int(found[0]) for name in names if (found := re.match(r"\d+", name))}

    def sealed(self) -> list[int]:
        return checkpoints.sealed_steps(self.workdir / LATEST)

    def num_lines(self) -> int:
        path = self.workdir / METRICS_NAME
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def is_sealing(self) -> bool:
        return (self.workdir / BEST).is_dir()


@dataclasses.dataclass
class Pace:
    """How long the parts of the run took that was not killed, in seconds."""

    starting: float
    training: float
    validation: float
    sealing: float

    def times(self, factor: float) -> "Pace":
        return Pace(*(factor * seconds for seconds in dataclasses.astuple(self)))


def measure(job: Job, sight: Sight) -> Pace:
    """Watches a run to its end."""
    start, times, validations, ready = time.monotonic(), {}, [], None
    while job.exit_code() is None:
        now = time.monotonic()
        saves, num_lines = sight.saves(), sight.num_lines()
        if saves:
            times.setdefault("first save", now)
            is_last = max(saves) % EPOCH_STEPS == EPOCH_STEPS - SAVE_STEPS
            if is_last and ready is None:
                ready = (now, num_lines)
        if ready is not None and num_lines > ready[1]:
            validations.append(now - ready[0])
            ready = None
        if sight.is_sealing():
            times.setdefault("sealing", now)
        time.sleep(_POLL_SECONDS)
    end = time.monotonic()
    first, sealing = times["first save"], times["sealing"]
    return Pace(first - start, sealing - first, float(np.median(validations)), end - sealing)


def _moments(kind: str, sight: Sight, pace: Pace, generator: random.Random) -> Iterator[Callable[[], bool]]:
    """Yields conditions that must come true one after another; the kill follows the last."""

    def after(seconds: float) -> Callable[[], bool]:
        deadline = time.monotonic() + seconds
        return lambda: time.monotonic() >= deadline

    before = max(sight.saves(), default=0)
    if kind == "starting":
        yield after(generator.uniform(0, pace.starting))
        return
    if kind == "sealing":
        yield sight.is_sealing
        yield after(generator.uniform(0, pace.sealing))
        return
    yield lambda: max(sight.saves(), default=0) > before
    if kind == "random":
        yield after(generator.uniform(0, pace.training))
    elif kind == "saving":
        count = min(before + SAVE_STEPS * generator.randint(1, 3), LAST_STEP)
        yield lambda: max(sight.saves(), default=0) >= count and max(sight.saves()) not in sight.sealed()
        yield after(generator.uniform(0, 0.02))
    else:
        yield lambda: max(sight.saves(), default=0) % EPOCH_STEPS == EPOCH_STEPS - SAVE_STEPS
        yield after(generator.uniform(0, pace.validation))


KINDS = ("saving", "validation", "random", "sealing", "starting", "random")


class Harness:
    """Runs in one folder, on one store, of one number of processes."""

    def __init__(self, folder: Path, num_processes: int = 1, seed: int = 0) -> None:
        self._folder = folder
        self._store = make_store(folder)
        self._job = ForkedJob if num_processes == 1 else LaunchedJob
        self._generator = random.Random(seed)
        self.reference = folder / "reference"
        self._pace = measure(self.start(self.reference), Sight(self.reference))
        assert is_finished(self.reference), self.log(self.reference)

    def start(self, workdir: Path) -> Job:
        flags = [f"--config.{override}" for override in OVERRIDES]
        log = workdir.with_suffix(".log")
        log.write_text("")
        return self._job([f"--data={self._store}", f"--workdir={workdir}", *flags], log)

    def log(self, workdir: Path) -> str:
        """Returns what the last start said."""
        return workdir.with_suffix(".log").read_text()

    def wait(self, job: Job, workdir: Path) -> None:
        """Waits for the end of a job that must succeed."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while job.exit_code() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        assert job.exit_code() == 0, f"exit code {job.exit_code()}: {self.log(workdir)}"

    def newest_whole(self, workdir: Path) -> int | None:
        """Returns the step that the next start has to go on from; whatever is sealed and newer is not whole."""
        for step in Sight(workdir).sealed():
            try:
                return int(checkpoints.verify(workdir / LATEST, step)["step"])
            except UserError as error:
                raise AssertionError(f"a kill left a damaged checkpoint: {error}") from error
        return None

    def check_start(self, workdir: Path, expected: int | None) -> None:
        """Checks where the last start went on, if it came so far."""
        found = re.search(r"going on from the checkpoint at step (\d+)", self.log(workdir))
        if found is not None:
            assert int(found[1]) == expected, f"went on from {found[1]}, the newest sealed is {expected}"
        else:
            assert expected is None or not is_finished(workdir), "trained without the sealed checkpoint"

    def kill_once(self, workdir: Path, kind: str) -> bool:
        """Starts the run and kills it at a moment of the kind; returns False if it was finished before."""
        expected = self.newest_whole(workdir)
        sight, job = Sight(workdir), self.start(workdir)
        for is_time in _moments(kind, sight, self._pace, self._generator):
            while not is_time():
                if job.exit_code() is not None:
                    self.wait(job, workdir)
                    self.check_start(workdir, expected)
                    return False
                time.sleep(_POLL_SECONDS)
        job.kill(self._generator)
        if not is_finished(workdir):
            self.check_start(workdir, expected)
        assert (self.newest_whole(workdir) or 0) >= (expected or 0), "a start lost a sealed checkpoint"
        return True

    def finish(self, workdir: Path) -> None:
        """Starts the run a last time and compares it with the one that was never killed."""
        was_finished, expected = is_finished(workdir), self.newest_whole(workdir)
        self.wait(self.start(workdir), workdir)
        if not was_finished:
            self.check_start(workdir, expected)
        self.compare(workdir)

    def compare(self, workdir: Path) -> None:
        run, reference = load_run(workdir), load_run(self.reference)
        assert run.identity == reference.identity
        abstract = load_setup(workdir).abstract_state
        states = [checkpoints.load_newest(path / LATEST, abstract) for path in (workdir, self.reference)]
        for path, (one, other) in {BEST: (run.variables, reference.variables), LATEST: states}.items():
            leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
            assert len(leaves) == len(others)
            same = [np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(leaves, others, strict=True)]
            assert all(same), f"{path}: {same.count(False)} of {len(same)} arrays differ"
        lines, expected_lines = read_metrics(workdir), read_metrics(self.reference)
        assert lines == expected_lines, f"{METRICS_NAME} differs: {lines} instead of {expected_lines}"
        names = {str(path.relative_to(workdir)) for path in workdir.rglob("*")}
        left = [name for name in names if name.endswith(".tmp") or "orbax-checkpoint-tmp" in name]
        left += [path.name for path in workdir.iterdir() if lock.is_lock(path)]
        assert not left, f"left behind: {left}"
        sealed = {step: checkpoints.verify(workdir / LATEST, step) for step in Sight(workdir).sealed()}
        assert {str(step) for step in sealed} == {path.name for path in (workdir / LATEST).iterdir()}

    def spend(self, kills: int, tell: Callable[[str], None] = lambda line: None) -> dict[str, int]:
        """Kills so many times; returns how often at which kind of moment, and how many runs that made.

        Args:
          kills: how many.
          tell: gets a line for each.
        """
        spent = dict.fromkeys(KINDS, 0)
        num_runs = 0
        while sum(spent.values()) < kills:
            num_runs += 1
            workdir = self._folder / f"run_{num_runs}"
            while sum(spent.values()) < kills and not is_finished(workdir):
                kind = KINDS[sum(spent.values()) % len(KINDS)]
                is_killed = self.kill_once(workdir, kind)
                self._pace = self._pace.times(_LATER if is_killed else _SOONER)
                spent[kind] += is_killed
                tell(
                    f"run {num_runs}: {kind}: {'killed' if is_killed else 'too late'}, sealed {Sight(workdir).sealed()}"
                )
            self.finish(workdir)
        return spent | {"runs": num_runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--num_processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(Path(folder), arguments.num_processes, arguments.seed)
        print(f"a run that is not killed: {harness._pace}", flush=True)
        start = time.monotonic()
        spent = harness.spend(arguments.kills, lambda line: print(line, flush=True))
        print(f"{spent} in {time.monotonic() - start:.0f} s: every run equals it")


if __name__ == "__main__":
    from tests.crash_harness import main as importable_main  # processes find its functions under this name

    importable_main()
