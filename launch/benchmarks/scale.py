"""How seconds, bytes and memory of every command grow with the rows, and what that says of 22 million customers.

Command:  python launch/benchmarks/scale.py --output=FOLDER [--rows=250000,500000,1000000,2000000] [--rounds=3]

For each size the real commands run one after the other as processes: generator, prepare, one epoch of training,
evaluate on the test split, score on all customers. All horizons are trained together unless --horizons names fewer. A
run of --base_rows comes last; its seconds are taken for the fixed cost. Inputs have just been written, so what is read
comes from the page cache as far as memory goes. The epoch is also shown by itself: training starts, compiles and
calibrates besides, the last on a sample of at most a million training rows. The slope of processor seconds in user mode
leaves out what the kernel does, such as handing out memory. FOLDER gets scale.md, scale.json and the logs; what the
commands write is deleted once a size is done. Medians of the rounds are printed, and the slopes of single rounds beside
theirs where they are of seconds by the clock. A second call with the same settings goes on after the last finished
stage, or with further rounds. Linux only.
"""

from collections.abc import Sequence
import dataclasses
import operator
import os
from pathlib import Path
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

from absl import flags
from process_meter import measure
from scale_paper import Machine, Work, epoch_bounds
from scale_report import (
    STAGES,
    Sizes,
    Target,
    assumptions,
    curves,
    medians,
    paper_table,
    seconds_table,
    usage_table,
    user_slopes,
)

from mean_jax.cli import common
from mean_jax.config import load_config
from mean_jax.data.synthetic import CUSTOMERS_FOLDER, LABELS
from mean_jax.errors import UserError
from mean_jax.fileio import atomic_file, read_json, write_json
from mean_jax.log import LOGGER

KIND, VERSION = "mean-jax scale benchmark", 4
_SHEET = "NVIDIA H100 Tensor Core GPU data sheet, SXM"
_MAX_RUNS = 5
_FLAGS = flags.FlagValues()  # of this command alone


def _float(name: str, default: float, what: str) -> flags.FlagHolder[float]:
    return flags.DEFINE_float(name, default, what, lower_bound=0.0, flag_values=_FLAGS)


_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the results and, meanwhile, the data.", required=True, flag_values=_FLAGS
)
_ROWS = flags.DEFINE_list("rows", ["250000", "500000", "1000000", "2000000"], "Customers per size.", flag_values=_FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Rounds over all sizes.", lower_bound=1, flag_values=_FLAGS)
_REPEAT_SECONDS = flags.DEFINE_float(
    "repeat_seconds",
    0.0,
    f"Each command runs again until its runs took so long in all, at most {_MAX_RUNS} times: the speed of a shared "
    "machine moves. The run of median time counts, the slower of two.",
    lower_bound=0.0,
    flag_values=_FLAGS,
)
_BASE_ROWS = flags.DEFINE_integer(
    "base_rows",
    150_000,  # of which enough are training rows to fill the sample that prepare fits on
    "Customers of the run that shows the fixed cost.",
    lower_bound=5000,
    flag_values=_FLAGS,
)
_FEATURES = flags.DEFINE_integer("features", 720, "Features.", flag_values=_FLAGS)
_HORIZONS = flags.DEFINE_list("horizons", list(LABELS), "Labels to train, a model each.", flag_values=_FLAGS)
_PREPARE_FLAGS = flags.DEFINE_list("prepare_flags", [], "Further flags of mean-jax-prepare.", flag_values=_FLAGS)
_TRAIN_FLAGS = flags.DEFINE_list("train_flags", [], "Further flags of mean-jax-train.", flag_values=_FLAGS)
_KEEP = flags.DEFINE_boolean("keep", False, "Keep what the commands wrote.", flag_values=_FLAGS)
_TARGET_ROWS = flags.DEFINE_integer("target_rows", 22_000_000, "Customers to extrapolate to.", flag_values=_FLAGS)
_TARGET_EPOCHS = flags.DEFINE_integer("target_epochs", 15, "Epochs to extrapolate to.", flag_values=_FLAGS)
_TRAIN_SHARE = _float("train_share", 0.7, "Share of training rows on paper.")
_STEP_GFLOP = _float("step_gflop", 3.65, "GFLOP per model and step at F=720, batch 1024, as train_step.py prints it.")
_STEP_MB = _float(
    "step_mb", 90.0, "MB per model and step: float32 operands of every product once (71) and Adam's state (20), F=720."
)
_PARAMETERS = flags.DEFINE_integer("parameters", 705_355, "Of one model at F=720.", flag_values=_FLAGS)
_KERNELS = _float("kernels_per_step", 133.0, "Kernels of a step, as step_kernels.py counts them on an H100.")
_TFLOPS = _float(
    "tflops", 494.0, f"TFLOP/s of matrix products: 494 TF32 (JAX's default), 989 bfloat16, 67 float32, dense; {_SHEET}."
)
_MEMORY = _float("memory_tbs", 3.35, f"TB/s of device memory; {_SHEET}.")
_PCIE = _float("pcie_gbs", 64.0, f"GB/s of PCIe Gen5 x16 one way, half of the 128 both ways; {_SHEET}.")
_LINK = _float("link_gbs", 450.0, f"GB/s of NVLink one way, half of the 900 both ways; {_SHEET}.")
_DISK = _float("disk_gbs", 6.0, "GB/s from the host's disks: an assumption, about one PCIe Gen4 NVMe drive.")
_KERNEL_US = _float("kernel_us", 3.8, "Microseconds per kernel, its work included: 506 per step on an H100.")
_DISPATCH_US = _float("dispatch_us", 100.0, "Microseconds of the host per dispatch: an assumption.")


def commands(folder: Path, rows: int) -> dict[str, tuple[list[str], Path]]:
    """Returns the command of each stage, in order, and the folder that it writes."""
    data, store, run, report, scores = (folder / name for name in ("data", "store", "run", "report", "scores"))
    customers = data / CUSTOMERS_FOLDER
    left_out = ",".join(label for label in LABELS if label not in _HORIZONS.value)
    prepare = [f"--input={customers}", f"--output={store}", f"--label_columns={','.join(_HORIZONS.value)}"]
    prepare += [f"--exclude={left_out}"] if left_out else []
    train = ["--config=mean", f"--data={store}", f"--workdir={run}", "--config.train.max_epochs=1"]
    evaluate = [f"--workdir={run}", f"--data={store}", "--split=test", f"--output={report}"]
    stages = {
        "generate": ("data.synthetic", [f"--rows={rows}", f"--features={_FEATURES.value}", f"--output={data}"], data),
        "prepare": ("cli.prepare", [*prepare, *_PREPARE_FLAGS.value], store),
        "train": ("cli.train", [*train, *_TRAIN_FLAGS.value], run),
        "evaluate": ("cli.evaluate", evaluate, report),
        "score": ("cli.score", [f"--workdir={run}", f"--input={customers}", f"--output={scores}"], scores),
    }
    return {
        name: ([sys.executable, "-m", f"mean_jax.{module}", *arguments], output)
        for name, (module, arguments, output) in stages.items()
    }


def _bytes_in(folder: Path, pattern: str = "*") -> int:
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file())


def epoch_seconds(log: str) -> float:
    """Returns the seconds of steps and validation in the log of a training.

    Raises:
      UserError: they do not stand there.
    """
    parts = re.search(r" parts: (.*)", log)
    seconds = dict(re.findall(r"(\w+) ([\d.]+) s", parts[1])) if parts else {}
    if not {"steps", "validation"} <= set(seconds):
        raise UserError("mean-jax-train: its log does not say what steps and validation took")
    return float(seconds["steps"]) + float(seconds["validation"])


def _machine() -> str:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    name = cpu.partition(":")[2].strip() or platform.machine()
    # A process of its own asks: one that holds a GPU takes most of its memory from the commands measured here.
    question = "import jax; print(*{d.device_kind for d in jax.devices() if d.platform != 'cpu'}, jax.device_count())"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True).stdout.split()
    accelerators = [f"{answer[-1]} x {' '.join(answer[:-1])}"] if len(answer) > 1 else []
    return ", ".join((*accelerators, f"{os.cpu_count()} processors", name, f"{memory:.0f} GB memory"))


def _open_results(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the results so far.

    Raises:
      UserError: they were measured with other settings or on another machine.
    """
    if not path.exists():
        return {"settings": settings, "rounds": []}
    results = read_json(path, KIND, VERSION)
    measured = results["settings"]
    differing = [name for name, value in settings.items() if measured.get(name) != value]
    if differing:
        name = differing[0]
        raise UserError(
            f"--output: {path} was measured with {name} {measured.get(name)!r}, now it is "
            f"{settings[name]!r}; choose another folder"
        )
    return {"settings": settings, "rounds": results["rounds"]}


def _measure_size(results: dict[str, Any], number: int, output: Path, rows: int) -> None:
    """Runs the stages of one size that have no result yet in a round, and saves each result at once."""
    while len(results["rounds"]) <= number:
        results["rounds"].append({})
    done = results["rounds"][number].setdefault(str(rows), {})
    folder = output / f"{rows}-rows"
    folder.mkdir(exist_ok=True)
    is_whole = all(stage in done for stage in STAGES)
    for stage, (command, written) in commands(folder, rows).items():
        if stage in done and (is_whole or written.exists()):
            continue
        runs: list[dict[str, float]] = []
        while not runs or (len(runs) < _MAX_RUNS and sum(run["seconds"] for run in runs) < _REPEAT_SECONDS.value):
            shutil.rmtree(written, ignore_errors=True)  # what an interrupted call left, or the run before
            LOGGER.info("round %d, %d rows: %s", number + 1, rows, stage)
            log = output / f"{rows}-{stage}.log"
            runs.append(dataclasses.asdict(measure(command, log)))
            if stage == "train":
                runs[-1]["epoch_seconds"] = epoch_seconds(log.read_text())
        done[stage] = sorted(runs, key=operator.itemgetter("seconds"))[len(runs) // 2]
        done[stage]["output_bytes"] = _bytes_in(written)
        if stage == "prepare":
            done[stage]["row_bytes"] = _bytes_in(written, "*.bin") / rows
        write_json(output / "scale.json", KIND, VERSION, results)
        LOGGER.info("%d rows: %s took %.1f s", rows, stage, done[stage]["seconds"])
    if not _KEEP.value:
        shutil.rmtree(folder)


def _paper(row_bytes: float) -> tuple[Work, list[Machine]]:
    train = load_config("mean").train
    work = Work(
        num_rows=round(_TRAIN_SHARE.value * _TARGET_ROWS.value),
        row_bytes=row_bytes,
        batch_size=train.batch_size,
        steps_per_dispatch=train.steps_per_dispatch,
        num_models=len(_HORIZONS.value),
        step_flop=1e9 * _STEP_GFLOP.value,
        step_bytes=1e6 * _STEP_MB.value,
        gradient_bytes=4.0 * _PARAMETERS.value,
        kernels_per_step=_KERNELS.value,
    )
    machines = [
        Machine(
            num_devices=num_devices,
            flop_per_s=1e12 * _TFLOPS.value,
            memory_bytes_per_s=1e12 * _MEMORY.value,
            pcie_bytes_per_s=1e9 * _PCIE.value,
            link_bytes_per_s=1e9 * _LINK.value,
            disk_bytes_per_s=1e9 * _DISK.value,
            kernel_seconds=1e-6 * _KERNEL_US.value,
            dispatch_seconds=1e-6 * _DISPATCH_US.value,
        )
        for num_devices in (1, 8)
    ]
    return work, machines


def _report(results: dict[str, Any], output: Path, all_rows: Sequence[int]) -> str:
    """Adds what follows from the measurements to the results, saves them and returns the page."""
    rounds: list[Sizes] = [
        {rows: measured[str(rows)] for rows in all_rows} for measured in results["rounds"][: _ROUNDS.value]
    ]
    sizes = medians(rounds)
    target = Target(_TARGET_ROWS.value, _TARGET_EPOCHS.value)
    stages = curves(sizes, _BASE_ROWS.value)
    of_rounds = [curves(measured, _BASE_ROWS.value) for measured in rounds]
    in_user_mode = user_slopes(sizes, _BASE_ROWS.value)
    work, machines = _paper(sizes[max(sizes)]["prepare"]["row_bytes"])
    results["stages"] = {
        name: {
            "raw_slope": curve.raw_slope,
            "net_slope": curve.net_slope,
            "last_net_slope": curve.last_net_slope,
            "user_net_slope": in_user_mode.get(name),
            "net_slope_of_rounds": [single[name].net_slope for single in of_rounds],
            "projected_seconds": dict(zip(("by_net_slope", "linear"), target.projections(name, curve), strict=True)),
        }
        for name, curve in stages.items()
    }
    results["paper"] = {
        "target": dataclasses.asdict(target),
        "work": dataclasses.asdict(work),
        "machines": [dataclasses.asdict(each) | {"epoch_bounds": epoch_bounds(work, each)} for each in machines],
    }
    write_json(output / "scale.json", KIND, VERSION, results)
    settings = results["settings"]
    return "\n\n".join(
        (
            f"Command: python launch/benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}\n"
            f"Machine: {settings['machine']}\n"
            f"{settings['features']} features, horizons {', '.join(settings['horizons'])}; "
            f"rounds: {len(rounds)}, medians",
            seconds_table(stages, of_rounds, in_user_mode, target),
            usage_table(sizes),
            f"Training on {target.num_rows:,} customers, on paper:",
            paper_table(work, machines, target.epochs),
            assumptions(work, machines[0]) + "\n",
        )
    )


def _sizes(texts: Sequence[str]) -> list[int]:
    if not texts or not all(text.isdecimal() and int(text) > _BASE_ROWS.value for text in texts):
        raise UserError(f"--rows={','.join(texts)}: expected numbers of customers above --base_rows={_BASE_ROWS.value}")
    return sorted({int(text) for text in texts})


def _main() -> None:
    all_rows = [_BASE_ROWS.value, *_sizes(_ROWS.value)]
    unknown = [label for label in _HORIZONS.value if label not in LABELS]
    if unknown or not _HORIZONS.value:
        raise UserError(f"--horizons={','.join(_HORIZONS.value)}: expected some of {','.join(LABELS)}")
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    settings = {
        "machine": _machine(),
        "features": _FEATURES.value,
        "horizons": _HORIZONS.value,
        "base_rows": _BASE_ROWS.value,
        "repeat_seconds": _REPEAT_SECONDS.value,
        "prepare_flags": _PREPARE_FLAGS.value,
        "train_flags": _TRAIN_FLAGS.value,
    }
    results = _open_results(output / "scale.json", settings)
    for number in range(_ROUNDS.value):
        for rows in reversed(all_rows):  # the small run last: the first process reads all libraries from the disk
            _measure_size(results, number, output, rows)
    page = _report(results, output, all_rows)
    with atomic_file(output / "scale.md") as temporary:
        temporary.write_text(page)
    print(page)


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
