"""The trainings that the scaling benchmark times, each as processes of its own."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
import sys

from clocked_train import KIND, VERSION
from process_meter import Usage, measure
from scaling_paper import LoopTimes, loop_times

from mean_jax.data.store import Store
from mean_jax.data.synthetic import CUSTOMERS_FOLDER, LABELS
from mean_jax.fileio import read_json

_HERE = Path(__file__).parent
_TRAIN_SHARE = 0.7  # of the customers, as mean-jax-prepare divides them by default


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one training, or several of the same kind, lies on the cores."""

    name: str
    num_processes: int = 1
    devices_per_process: int = 1
    cores_per_process: int = 1
    is_apart: bool = False  # every process trains a model of its own

    @property
    def num_cores(self) -> int:
        return self.num_processes * self.cores_per_process


def make_stores(folder: Path, num_rows: int, num_features: int, num_horizons: int) -> dict[int, Path]:
    """Makes stores of synthetic customers with all horizons and with one; returns them by their number.

    Args:
      folder: gets data, stores and logs.
      num_rows: for training, about.
      num_features: F.
      num_horizons: up to those of the synthetic customers.
    """
    data = folder / "data"
    generate = [f"--rows={round(num_rows / _TRAIN_SHARE)}", f"--features={num_features}", f"--output={data}"]
    measure([sys.executable, "-m", "mean_jax.data.synthetic", *generate], folder / "generate.log")
    stores = {}
    for count in sorted({1, num_horizons}):
        stores[count] = folder / f"store-{count}"
        arguments = [f"--input={data / CUSTOMERS_FOLDER}", f"--output={stores[count]}"]
        arguments += [f"--label_columns={','.join(LABELS[:count])}"]
        arguments += [f"--exclude={','.join(LABELS[count:])}"] if count < len(LABELS) else []
        measure([sys.executable, "-m", "mean_jax.cli.prepare", *arguments], folder / f"prepare-{count}.log")
    return stores


def train_flags(store: Path, batch_size: int, num_dispatches: int, num_epochs: int) -> list[str]:
    """Returns the flags of a training without early stopping, whose epochs have about that many dispatches."""
    num_steps = -(-len(Store(store).split("train")) // batch_size // num_dispatches)
    return [
        "--config=mean",
        f"--data={store}",
        f"--config.train.batch_size={batch_size}",
        f"--config.train.steps_per_dispatch={max(1, num_steps)}",
        f"--config.train.max_epochs={num_epochs}",
        f"--config.train.patience={num_epochs}",
    ]


def run_clocked(layout: Layout, workdir: Path, arguments: Sequence[str]) -> LoopTimes:
    """Trains with a clock on the loop; returns the times of process 0, or over all processes where each trains alone.

    Args:
      layout: processes, devices and cores.
      workdir: run folder to make.
      arguments: of mean-jax-train, without --workdir.
    """
    command = [sys.executable, str(_HERE.parent / "local_processes.py"), f"--num_processes={layout.num_processes}"]
    command += [f"--devices_per_process={layout.devices_per_process}", "--", sys.executable]
    command += [str(_HERE / "clocked_train.py"), f"--workdir={workdir}"]
    command += [f"--cores_per_process={layout.cores_per_process}", *(["--apart"] if layout.is_apart else [])]
    measure([*command, "--", *arguments], workdir.with_suffix(".log"))
    epochs = []
    for process in range(layout.num_processes if layout.is_apart else 1):
        epochs += read_json(Path(f"{workdir}-clock-{process}.json"), KIND, VERSION)["epochs"]
    return loop_times(epochs)


def run_plain(workdir: Path, arguments: Sequence[str]) -> Usage:
    """Trains by the command; returns what it cost from its start to its end."""
    command = [sys.executable, "-m", "mean_jax.cli.train", *arguments, f"--workdir={workdir}"]
    return measure(command, workdir.with_suffix(".log"))
