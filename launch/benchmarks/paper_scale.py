"""The paper's job as a whole: 22 million customers x 720 features, four horizons, 15 epochs on one accelerator.

Command:  python launch/benchmarks/paper_scale.py --output=FOLDER [--scratch=/dev/shm/mean_jax] [--rows=22000000]

The real commands run one after the other: the generator, prepare in --parts (the first fits, the others are appended,
as monthly cohorts would be, so that the disk never holds the customers and their spill at once), training with all
rows in the accelerator's memory, and evaluation on the test split. The store is float16: 1.5 kB per row. Customers go
to --scratch (37 GB for 22 million) and are removed once they are in the store (32 GB; 16 GB more meanwhile). Prints
seconds, rows/s and memory per stage, and the time from the end of the first epoch to the end of the last. Linux only.
"""

from collections.abc import Iterator
import datetime
import os
from pathlib import Path
import re
import shutil
import sys

from absl import flags
from process_meter import Usage, measure
from scale_paper import table

from mean_jax.cli import common
from mean_jax.data.synthetic import CUSTOMERS_FOLDER, SyntheticSpec
from mean_jax.errors import UserError
from mean_jax.fileio import atomic_file
from mean_jax.log import LOGGER

_FLAGS = flags.FlagValues()  # of this command alone
_OUTPUT = flags.DEFINE_string(
    "output", None, "New folder for store, run, report and logs.", required=True, flag_values=_FLAGS
)
_SCRATCH = flags.DEFINE_string(
    "scratch", None, "New folder for the customers; inside the output if none.", flag_values=_FLAGS
)
_ROWS = flags.DEFINE_integer("rows", 22_000_000, "Customers.", lower_bound=5000, flag_values=_FLAGS)
_FEATURES = flags.DEFINE_integer("features", 720, "Features.", flag_values=_FLAGS)
_PARTS = flags.DEFINE_integer("parts", 4, "Calls of prepare.", lower_bound=1, flag_values=_FLAGS)
_EPOCHS = flags.DEFINE_integer("epochs", 15, "Epochs, none of them left out by early stopping.", flag_values=_FLAGS)
_TRAIN_FLAGS = flags.DEFINE_list("train_flags", [], "Further flags of mean-jax-train.", flag_values=_FLAGS)
_EPOCH_LINE = re.compile(r"^(\d\d:\d\d:\d\d) epoch \d+: .*$", re.MULTILINE)


def seconds_between_epochs(log: str) -> float | None:
    """Returns the mean time between the ends of two epochs in the log of training; None for fewer than two."""
    times = [datetime.datetime.strptime(text, "%H:%M:%S") for text in _EPOCH_LINE.findall(log)]
    if len(times) < 2:
        return None
    return (times[-1] - times[0]).total_seconds() % 86_400 / (len(times) - 1)


def _run(stage: str, output: Path, module: str, *arguments: str) -> Usage:
    usage = measure([sys.executable, "-m", f"mean_jax.{module}", *arguments], output / f"{stage}.log")
    LOGGER.info("%s: %.1f s", stage, usage.seconds)
    return usage


def _stages(output: Path, scratch: Path) -> Iterator[tuple[str, int, Usage]]:
    """Runs the commands; yields the name of each, the rows that it goes through, and what it cost."""
    data, store, run = scratch / "data", output / "store", output / "run"
    rows, epochs = _ROWS.value, _EPOCHS.value
    arguments = [f"--rows={rows}", f"--features={_FEATURES.value}", f"--output={data}"]
    yield "generator", rows, _run("generate", output, "data.synthetic", *arguments)
    files = sorted((data / CUSTOMERS_FOLDER).iterdir())
    for part in range(_PARTS.value):
        folder = scratch / f"part-{part}"
        folder.mkdir()
        for file in files[part :: _PARTS.value]:
            file.rename(folder / file.name)
        own = ["--append"] if part else ["--numeric_type=float16"]
        usage = _run(f"prepare-{part}", output, "cli.prepare", f"--input={folder}", f"--output={store}", *own)
        yield f"`mean-jax-prepare{' --append' if part else ''}`", rows // _PARTS.value, usage
        shutil.rmtree(folder)
    train = ["--config=mean", f"--data={store}", f"--workdir={run}", "--config.data.placement=device"]
    train += [f"--config.train.max_epochs={epochs}", f"--config.train.patience={epochs}", *_TRAIN_FLAGS.value]
    yield f"`mean-jax-train`, {epochs} epochs", epochs * rows, _run("train", output, "cli.train", *train)
    evaluate = [f"--workdir={run}", f"--data={store}", "--split=test", f"--output={output / 'report'}"]
    yield "`mean-jax-evaluate`, test split", rows, _run("evaluate", output, "cli.evaluate", *evaluate)


def _main() -> None:
    num_files = SyntheticSpec(_ROWS.value).num_shards
    if _PARTS.value > num_files:
        raise UserError(f"--parts={_PARTS.value}: {_ROWS.value} customers are {num_files} files; ask for no more parts")
    output = Path(_OUTPUT.value)
    scratch = Path(_SCRATCH.value) if _SCRATCH.value else output / "scratch"
    for folder in (output, scratch):
        if folder.exists():
            raise UserError(f"{folder} exists; choose other folders")
        folder.mkdir(parents=True)
    try:
        lines = [
            [
                name,
                f"{usage.seconds:.1f}",
                f"{rows / usage.seconds:,.0f}",
                f"{usage.cpu_seconds / usage.seconds:.1f}",
                f"{usage.peak_anonymous_bytes / 1e9:.1f}",
            ]
            for name, rows, usage in _stages(output, scratch)
        ]
    finally:
        shutil.rmtree(scratch)  # which may be memory
    seconds = seconds_between_epochs((output / "train.log").read_text())
    head = ("stage", "seconds", "of all customers, rows/s", "processors busy", "anonymous memory, GB")
    page = "\n\n".join(
        (
            f"Command: python launch/benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
            f"{_ROWS.value:,} customers, {_FEATURES.value} features, {os.cpu_count()} processors",
            table(head, lines),
            *([f"From the end of one epoch to the next: {seconds:.2f} s"] if seconds is not None else []),
        )
    )
    with atomic_file(output / "paper_scale.md") as temporary:
        temporary.write_text(page + "\n")
    print(page)


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
