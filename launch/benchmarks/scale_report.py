"""The pages of the scale benchmark: Markdown tables from what was measured and from the arithmetic on paper."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np
from scale_paper import Curve, Machine, Work, duration, epoch_bounds, longest, table

STAGES = ("generate", "prepare", "train", "evaluate", "score")
_SECONDS = {  # the curves: a stage, and which of its figures
    "generate": ("generate", "seconds"),
    "prepare": ("prepare", "seconds"),
    "train": ("train", "seconds"),
    "epoch": ("train", "epoch_seconds"),
    "evaluate": ("evaluate", "seconds"),
    "score": ("score", "seconds"),
}
_WHAT = {
    "generate": "`mean_jax.data.synthetic`",
    "prepare": "`mean-jax-prepare`",
    "train": "`mean-jax-train`, one epoch",
    "epoch": "of it steps and validation",
    "evaluate": "`mean-jax-evaluate`, test split",
    "score": "`mean-jax-score`, all rows",
}
_GB = 1e9

Sizes = Mapping[int, Mapping[str, Mapping[str, float]]]  # rows -> stage -> its usage by name


@dataclasses.dataclass(frozen=True)
class Target:
    """What is extrapolated to."""

    num_rows: int
    epochs: int

    def projections(self, name: str, curve: Curve) -> tuple[float | None, float | None]:
        """Returns the seconds of a curve on this machine by the net slope, and if they were linear in the rows.

        None for the whole training, whose calibration is done once, on a sample of bounded size.
        """
        if name == "train":
            return None, None
        repeats = self.epochs if name == "epoch" else 1
        by_slope, linear = (curve.project(self.num_rows, exponent) for exponent in (curve.net_slope, 1.0))
        return by_slope and repeats * by_slope, linear and repeats * linear


def medians(rounds: Sequence[Sizes]) -> Sizes:
    """Returns the median over rounds of every figure."""
    return {
        rows: {
            stage: {name: float(np.median([sizes[rows][stage][name] for sizes in rounds])) for name in usage}
            for stage, usage in stages.items()
        }
        for rows, stages in rounds[0].items()
    }


def _curve(sizes: Sizes, base_rows: int, stage: str, figure: str) -> Curve:
    rows = tuple(sorted(rows for rows in sizes if rows != base_rows))
    values = tuple(sizes[size][stage][figure] for size in rows)
    return Curve(rows, values, base_rows, sizes[base_rows][stage][figure])


def curves(sizes: Sizes, base_rows: int) -> dict[str, Curve]:
    """Returns the curve of each stage, and of the epoch within the training.

    Args:
      sizes: the small run among them.
      base_rows: rows of the small run.
    """
    return {name: _curve(sizes, base_rows, stage, figure) for name, (stage, figure) in _SECONDS.items()}


def user_slopes(sizes: Sizes, base_rows: int) -> dict[str, float | None]:
    """Returns each stage's slope, less the fixed cost, of its processor seconds in user mode; see `curves`."""
    return {stage: _curve(sizes, base_rows, stage, "user_seconds").net_slope for stage in STAGES}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _with_rounds(value: float | None, of_rounds: Sequence[float | None]) -> str:
    """Returns a number with the smallest and the largest of single rounds, if there are several and all are known."""
    known = [single for single in of_rounds if single is not None]
    if len(of_rounds) == 1:
        return _number(value)
    spread = f"{min(known):.2f}-{max(known):.2f}" if len(known) == len(of_rounds) else "-"
    return f"{_number(value)} ({spread})"


def seconds_table(
    stages: Mapping[str, Curve],
    of_rounds: Sequence[Mapping[str, Curve]],
    in_user_mode: Mapping[str, float | None],
    target: Target,
) -> str:
    """Returns seconds by rows, the slopes, and the time of the target on this machine.

    Args:
      stages: curves of the medians.
      of_rounds: those of single rounds.
      in_user_mode: slopes of the medians of processor seconds in user mode, by stage.
      target: what is extrapolated to.
    """
    first = stages[STAGES[0]]
    head = ["seconds", *(f"{rows:,} rows" for rows in (first.base_rows, *first.rows)), "slope"]
    head += [
        "slope less the fixed cost",
        "of the two largest sizes",
        "of processor seconds in user mode",
        f"{target.num_rows:,} rows, {target.epochs} epochs by the slope less the fixed cost",
        "if linear",
    ]
    lines = []
    for stage, curve in stages.items():
        seconds = [f"{value:,.1f}" for value in (curve.base_seconds, *curve.seconds)]
        projected = [duration(value) for value in target.projections(stage, curve)]
        net_slope = _with_rounds(curve.net_slope, [single[stage].net_slope for single in of_rounds])
        last_slope = _with_rounds(curve.last_net_slope, [single[stage].last_net_slope for single in of_rounds])
        slopes = _number(curve.raw_slope), net_slope, last_slope, _number(in_user_mode.get(stage))
        lines.append([_WHAT[stage], *seconds, *slopes, *projected])
    return table(head, lines)


def usage_table(sizes: Sizes) -> str:
    """Returns rows/s, bytes and memory at the largest size, and the memory at the second smallest beside it."""
    small, large = sorted(sizes)[min(1, len(sizes) - 1)], max(sizes)
    head = [f"{large:,} rows", "rows/s", "processors busy", "GB read / of it from disk", "GB written / to disk"]
    head += ["GB in the folder written", "peak memory, GB", f"of it anonymous, GB (at {small:,} rows)"]
    lines = []
    for stage in STAGES:
        usage = sizes[large][stage]
        gb = {name: value / _GB for name, value in usage.items() if name.endswith("_bytes")}
        lines.append(
            [
                _WHAT[stage],
                f"{large / usage['seconds']:,.0f}",
                f"{usage['cpu_seconds'] / usage['seconds']:.1f}",
                f"{gb['read_bytes']:.2f} / {gb['disk_read_bytes']:.2f}",
                f"{gb['written_bytes']:.2f} / {gb['disk_written_bytes']:.2f}",
                f"{gb['output_bytes']:.2f}",
                f"{gb['peak_rss_bytes']:.2f}",
                f"{gb['peak_anonymous_bytes']:.2f} ({sizes[small][stage]['peak_anonymous_bytes'] / _GB:.2f})",
            ]
        )
    return table(head, lines)


def paper_table(work: Work, machines: Sequence[Machine], epochs: int) -> str:
    """Returns the seconds per epoch that each resource needs, and the least time of training."""
    bounds = [epoch_bounds(work, machine) for machine in machines]
    lines = [[name, *(duration(bound[name]) if bound[name] else "-" for bound in bounds)] for name in bounds[0]]
    lines.append(["**an epoch at least**", *(f"{duration(max(b.values()))}, by {longest(b)}" for b in bounds)])
    lines.append([f"**{epochs} epochs at least**", *(duration(epochs * max(b.values())) for b in bounds)])
    return table(["an epoch on paper", *(f"{machine.num_devices} x H100" for machine in machines)], lines)


def assumptions(work: Work, machine: Machine) -> str:
    """Returns what the paper table takes for granted, one line each."""
    steps = work.num_rows / work.batch_size
    lines = (
        f"{work.num_rows:,} training rows of {work.row_bytes:,.0f} bytes in the store (measured), "
        f"{work.num_rows * work.row_bytes / _GB:,.1f} GB, read from the disk in every epoch.",
        f"{steps:,.0f} steps of {work.batch_size} rows for one device and {steps / work.steps_per_dispatch:,.0f} "
        f"dispatches of {work.steps_per_dispatch} steps; with more devices each takes {work.batch_size} rows, so the "
        "steps are fewer and the global batch is larger, which is another optimisation problem.",
        f"{work.num_models} models in one program; per model and step {work.step_flop / 1e9:.2f} GFLOP of matrix "
        f"products, {work.step_bytes / 1e6:.0f} MB through device memory and {work.gradient_bytes / 1e6:.2f} MB of "
        f"gradients; {work.kernels_per_step:.0f} kernels per step of the program (numeric columns).",
        f"Rates per device, from the data sheet and not reached by products this small: {machine.flop_per_s / 1e12:.0f}"
        f" TFLOP/s, {machine.memory_bytes_per_s / 1e12:.2f} TB/s memory, {machine.pcie_bytes_per_s / _GB:.0f} GB/s "
        f"PCIe and {machine.link_bytes_per_s / _GB:.0f} GB/s NVLink, each one way.",
        f"{1e6 * machine.kernel_seconds:.1f} us per kernel, its work included. Assumed: "
        f"{machine.disk_bytes_per_s / _GB:.0f} GB/s from the host's disks and {1e6 * machine.dispatch_seconds:.0f} us "
        "of the host per dispatch.",
        "All overlap, so the longest counts: a lower bound, not a forecast. The host's work per row is left out.",
    )
    return "\n".join(f"- {line}" for line in lines)
