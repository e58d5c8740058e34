"""How the train step scales over devices: on paper for many, measured on the cores of this machine, and what the loop
around it costs.

Command:  python launch/benchmarks/scaling.py --output=FOLDER [--parts=paper,processes,dispatch,programs]

  paper      the compiled program's operations and sums, and what follows for up to 256 devices from data sheets;
  processes  one training by one process or two, a core each, at the same batch; two trainings of half the batch at the
             same time beside it show what the cores themselves lose by sharing the machine;
  dispatch   the host's own time in a step: rows and their way to the device, the call, the losses, the rest of the
             loop, by the wall clock around the loop's parts, without the wait for the device; and what the loop's
             thread computed, which a busy machine does not change (see clocked_train.py);
  programs   all models in one program against one after the other.

Each is a page of Markdown in FOLDER and printed. Trainings are the real command on synthetic customers, on CPU
devices. Linux only; nothing else may run meanwhile.
"""

from collections.abc import Callable, Mapping
import os
from pathlib import Path
import sys

from absl import flags
from scale_paper import Machine, table
from scaling_paper import LoopTimes, Network, Scaled, StepWork, scaled
from scaling_runs import Layout, make_stores, run_clocked, run_plain, train_flags

from mean_jax.cli import common
from mean_jax.errors import UserError
from mean_jax.fileio import atomic_file
from mean_jax.log import LOGGER

_FLAGS = flags.FlagValues()  # of this command alone
_SHEET = "NVIDIA H100 Tensor Core GPU data sheet, SXM"
_NCCL = "LL128 in NCCL's src/graph/tuning.cc"


def _float(name: str, default: float, what: str) -> flags.FlagHolder[float]:
    return flags.DEFINE_float(name, default, what, lower_bound=0.0, flag_values=_FLAGS)


def _integer(name: str, default: int, what: str) -> flags.FlagHolder[int]:
    return flags.DEFINE_integer(name, default, what, lower_bound=1, flag_values=_FLAGS)


PARTS = ("paper", "processes", "dispatch", "programs")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make.", required=True, flag_values=_FLAGS)
_PARTS = flags.DEFINE_list("parts", list(PARTS), "What to do.", flag_values=_FLAGS)
_FEATURES = _integer("features", 720, "Features of the synthetic customers.")
_HORIZONS = flags.DEFINE_integer("horizons", 4, "Models.", lower_bound=2, upper_bound=4, flag_values=_FLAGS)
_BATCH = _integer("batch_size", 1024, "Rows of a step; on paper, per device where their number grows with the devices.")
_STEPS = _integer("steps", 16, "Steps of a dispatch, about.")
_DISPATCHES = flags.DEFINE_integer("dispatches", 3, "Of an epoch.", lower_bound=2, flag_values=_FLAGS)
_EPOCHS = _integer("epochs", 3, "Of each training; figures are medians over them.")
_SEEDS = flags.DEFINE_list("seeds", ["1", "2"], "Models per horizon in one program, a line each.", flag_values=_FLAGS)
_TOTAL = _integer("total_rows", 65_536, "On paper, rows of a step where their number stays.")
_STEP_GFLOP = _float("step_gflop", 3.65, "To compare: GFLOP per model and 1024 rows at F=720, as train_step.py prints.")
_TF32 = _float("tf32_tflops", 494.0, f"TFLOP/s of float32 products, TF32 being JAX's default, dense; {_SHEET}.")
_BF16 = _float("bf16_tflops", 989.0, f"TFLOP/s of bfloat16 products, dense; {_SHEET}.")
_MEMORY = _float("memory_tbs", 3.35, f"TB/s of device memory; {_SHEET}.")
_OPERANDS = _float("operand_mb", 71.0, "MB per model and 1024 rows: float32 operands of every product once, F=720.")
_STATE = _float("state_mb", 20.0, "MB per model and step of Adam's state, read and written, F=720.")
_KERNELS = _float("kernels_per_step", 133.0, "Kernels of a step, as step_kernels.py counts them on an H100.")
_KERNEL_US = _float("kernel_us", 3.8, "Microseconds per kernel, its work included: 506 per step on an H100.")
_PER_HOST = _integer("devices_per_host", 8, "Devices of a host; NVIDIA DGX H100 data sheet.")
_LINK = _float("link_gbs", 450.0, f"GB/s of NVLink one way, half of the 900 both ways; {_SHEET}.")
_NETWORK = _float("network_gbs", 50.0, "GB/s one way per device to other hosts: 400 Gb/s; NVIDIA DGX H100 data sheet.")
_BASE_US = _float("base_us", 14.0, f"Microseconds of any all-reduce, {_NCCL}.")
_RING_US = _float("ring_hop_us", 1.9, f"Microseconds of a ring's hop over NVLink, {_NCCL}.")
_RING_NET_US = _float("ring_network_hop_us", 4.0, f"Microseconds of a ring's hop between hosts, {_NCCL}.")
_TREE_US = _float("tree_hop_us", 1.25, f"Microseconds of a tree's hop over NVLink, {_NCCL}.")
_TREE_NET_US = _float("tree_network_hop_us", 8.5, f"Microseconds of a tree's hop between hosts, {_NCCL}.")
_NUM_DEVICES = (1, 8, 64, 256)
_COMPILED_DEVICES = 8


def _machine(tflops: float) -> Machine:
    return Machine(
        num_devices=1,
        flop_per_s=1e12 * tflops,
        memory_bytes_per_s=1e12 * _MEMORY.value,
        pcie_bytes_per_s=float("inf"),  # rows are not looked at here, see scale.py
        link_bytes_per_s=1e9 * _LINK.value,
        disk_bytes_per_s=float("inf"),
        kernel_seconds=1e-6 * _KERNEL_US.value,
        dispatch_seconds=0.0,
    )


def _network() -> Network:
    return Network(
        devices_per_host=_PER_HOST.value,
        link_bytes_per_s=1e9 * _LINK.value,
        network_bytes_per_s=1e9 * _NETWORK.value,
        base_seconds=1e-6 * _BASE_US.value,
        ring_hop_seconds=1e-6 * _RING_US.value,
        ring_network_hop_seconds=1e-6 * _RING_NET_US.value,
        tree_hop_seconds=1e-6 * _TREE_US.value,
        tree_network_hop_seconds=1e-6 * _TREE_NET_US.value,
    )


def _compiled_work(dtype: str) -> StepWork:
    """Returns the work of a step as the compiled program has it.

    XLA's cost analysis looks at the body of the loop over steps once, so its FLOP are those of a step on one device.
    """
    from collectives import compile_dispatch, parse
    from made_up import make_program

    from mean_jax.sharding import make_mesh

    program = make_program(_FEATURES.value, _HORIZONS.value, [f"model.compute_dtype={dtype}"])
    rows = _COMPILED_DEVICES * _BATCH.value
    mesh = make_mesh(program.config.mesh, len(program.specs), rows)
    compiled = compile_dispatch(program, mesh, rows)
    sums = [each for each in parse(compiled.as_text()) if each.is_in_loop]
    others = {each.kind for each in sums} - {"all-reduce"}
    if others:
        raise UserError(f"--parts=paper: the compiled step has {', '.join(others)}, of which this page has no model")
    operand_share = 1.0 if dtype == "float32" else 0.5
    return StepWork(
        flop_per_row=compiled.cost_analysis()["flops"] / _BATCH.value,
        bytes_per_row=operand_share * 1e6 * _OPERANDS.value * _HORIZONS.value / 1024,
        state_bytes=1e6 * _STATE.value * _HORIZONS.value,
        kernels=_KERNELS.value,
        all_reduce_bytes=tuple(each.num_bytes for each in sums),
    )


def paper_table(lines: Mapping[str, list[Scaled]]) -> str:
    """Returns a Markdown table; the lines stand under what they are for."""
    head = ["a step on paper", "devices", "rows per device", "device, ms", "bound by", "sums, ms", "efficiency"]
    rows = [
        [
            name,
            f"{each.num_devices}",
            f"{each.rows_per_device:,.0f}",
            f"{1e3 * each.compute_seconds:.3f}",
            each.bound,
            f"{1e3 * each.sum_seconds:.3f}",
            f"{each.efficiency:.0%}",
        ]
        for name, group in lines.items()
        for each in group
    ]
    return table(head, rows)


def _paper(folder: Path) -> str:
    import jax

    jax.config.update("jax_num_cpu_devices", _COMPILED_DEVICES)
    lines, words = {}, []
    for dtype, tflops in (("float32", _TF32.value), ("bfloat16", _BF16.value)):
        LOGGER.info("compiling the %s step for %d devices", dtype, _COMPILED_DEVICES)
        work = _compiled_work(dtype)
        gflop = work.flop_per_row * 1024 / _HORIZONS.value / 1e9
        words.append(
            f"{dtype}: {gflop:.2f} GFLOP per model and 1024 rows in the compiled step, {gflop / _STEP_GFLOP.value:.2f} "
            f"times the {_STEP_GFLOP.value:g} of its matrix products at F=720; all-reduces of "
            f"{', '.join(f'{size:,}' for size in work.all_reduce_bytes)} bytes per step."
        )
        rows = {"weak": dict.fromkeys(_NUM_DEVICES, float(_BATCH.value))}
        rows["strong"] = {count: _TOTAL.value / count for count in _NUM_DEVICES}
        for name, per_device in rows.items():
            lines[f"{name}, {dtype}"] = scaled(work, _machine(tflops), _network(), per_device)
    note = (
        f"{_HORIZONS.value} models in one program. Weak: {_BATCH.value:,} rows per device; strong: {_TOTAL.value:,} in "
        "all. Nothing of the sums is taken to hide behind computing, and every rate is that of the data sheet."
    )
    return "\n\n".join([paper_table(lines), note, *words])


def processes_table(times: Mapping[Layout, LoopTimes], batch_size: int) -> str:
    """Returns a Markdown table; the first layout is what the others are compared with."""

    def rate(layout: Layout) -> float:
        rows = batch_size / 2 * layout.num_processes if layout.is_apart else batch_size
        return rows / times[layout].loop_seconds

    first = next(iter(times))
    lines = []
    for layout, each in times.items():
        speed = rate(layout) / rate(first)
        share = speed / (layout.num_cores / first.num_cores)
        figures = [f"{1e3 * each.loop_seconds:.1f}", f"{rate(layout):,.0f}", f"{speed:.2f}", f"{share:.0%}"]
        lines.append([layout.name, f"{layout.num_cores}", *figures, f"{each.loop_adds:+.1%}"])
    head = ["", "cores", "ms per step", "rows/s", "speed-up", "of the cores' share", "the loop adds"]
    return table(head, lines)


def _processes(folder: Path) -> str:
    store = _stores(folder)[_HORIZONS.value]
    two, apart = Layout("two processes", 2), Layout("two trainings apart, half the batch each", 2, is_apart=True)
    layouts = {
        "one": Layout("one process"),
        "two": two,
        "devices": Layout("one process, two devices", 1, 2, 2),
        "threads": Layout("one process, one device", 1, 1, 2),
        "apart": apart,
    }
    times = {}
    for name, layout in layouts.items():
        LOGGER.info("%s on %d cores", layout.name, layout.num_cores)
        batch = _BATCH.value // 2 if layout.is_apart else _BATCH.value
        dispatches = 2 * _DISPATCHES.value if layout.is_apart else _DISPATCHES.value
        times[layout] = run_clocked(layout, folder / name, train_flags(store, batch, dispatches, _EPOCHS.value))
    loss = times[two].loop_seconds / times[apart].loop_seconds - 1
    return (
        f"{processes_table(times, _BATCH.value)}\n\n{_HORIZONS.value} models, batch {_BATCH.value}. Against two "
        f"trainings apart, which exchange nothing, a step of the two processes takes {loss:+.1%}: the sums and the "
        "wait for the slower one."
    )


def dispatch_table(times: Mapping[str, LoopTimes]) -> str:
    """Returns a Markdown table of the host's time in a step."""
    names = ("feed", "call", "meter", "rest")
    head = ["ms per step", "step", *names, "share of the step", "computed by the loop's thread", "the loop adds"]
    lines = [
        [
            name,
            f"{1e3 * each.loop_seconds:.1f}",
            *(f"{1e3 * each.part_seconds[part]:.3f}" for part in names),
            f"{each.host_share:.2%}",
            f"{1e3 * each.cpu_seconds:.3f}: {each.cpu_share:.2%}",
            f"{each.loop_adds:+.1%}",
        ]
        for name, each in times.items()
    ]
    return table(head, lines)


def _dispatch(folder: Path) -> str:
    times = {}
    cores = len(os.sched_getaffinity(0))
    for count, store in _stores(folder).items():
        LOGGER.info("the host's time with %d models", count)
        arguments = train_flags(store, _BATCH.value, _DISPATCHES.value, _EPOCHS.value)
        layout = Layout("one process", cores_per_process=cores)
        times["one model" if count == 1 else f"{count} models"] = run_clocked(layout, folder / f"d-{count}", arguments)
    return (
        f"{dispatch_table(times)}\n\nF={_FEATURES.value}, batch {_BATCH.value}, about {_STEPS.value} steps per "
        f"dispatch, one process on {cores} cores. The host's time runs beside the device's but for the first dispatch."
    )


def _programs(folder: Path) -> str:
    stores = _stores(folder)
    store, single = stores[_HORIZONS.value], stores[1]
    LOGGER.info("a model alone")
    alone = run_plain(folder / "p-single", train_flags(single, _BATCH.value, _DISPATCHES.value, _EPOCHS.value))
    lines = []
    for text in _SEEDS.value:
        count = int(text) * _HORIZONS.value
        LOGGER.info("%d models in one program", count)
        arguments = train_flags(store, _BATCH.value, _DISPATCHES.value, _EPOCHS.value)
        one = run_plain(folder / f"p-{text}", [*arguments, f"--config.train.num_seeds={text}"])
        apart = count * alone.seconds
        memory = f"{one.peak_rss_bytes / 1e9:.2f} | {alone.peak_rss_bytes / 1e9:.2f}"
        lines.append(
            [f"{_HORIZONS.value} x {text}", f"{one.seconds:.1f}", f"{apart:.1f}", f"{apart / one.seconds:.2f}", memory]
        )
    head = ["horizons x seeds", "one program, s", "one after the other, s", "times as fast"]
    head += ["one program, peak GB", "each alone, peak GB"]
    return (
        f"{table(head, lines)}\n\nWhole commands with their start, {_EPOCHS.value} epochs of about "
        f"{_DISPATCHES.value * _STEPS.value} steps. One model alone was run once and its {alone.seconds:.1f} s are "
        "counted for each."
    )


def _stores(folder: Path) -> dict[int, Path]:
    """Returns the stores by their number of horizons, made once."""
    made = {count: folder / f"store-{count}" for count in (1, _HORIZONS.value)}
    if all(path.exists() for path in made.values()):
        return made
    LOGGER.info("making the stores")
    num_rows = _BATCH.value * _STEPS.value * _DISPATCHES.value
    return make_stores(folder, num_rows, _FEATURES.value, _HORIZONS.value)


def _main() -> None:
    unknown = [part for part in _PARTS.value if part not in PARTS]
    if unknown or not _PARTS.value:
        raise UserError(f"--parts={','.join(_PARTS.value)}: expected some of {','.join(PARTS)}")
    if not all(text.isdecimal() and int(text) for text in _SEEDS.value):
        raise UserError(f"--seeds={','.join(_SEEDS.value)}: expected numbers above 0, such as 1,2")
    folder = Path(_OUTPUT.value)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output: {folder} is not empty; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process and of those that it starts
    print(f"Command: python launch/benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}")
    pages: dict[str, Callable[[Path], str]] = dict(zip(PARTS, (_paper, _processes, _dispatch, _programs), strict=True))
    for part in _PARTS.value:
        page = pages[part](folder)
        with atomic_file(folder / f"{part}.md") as temporary:
            temporary.write_text(page + "\n")
        print(f"\n{page}", flush=True)


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
