"""The arithmetic of the scale benchmark: slopes, what they say of more rows, the least time of an epoch on paper."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np


def slope(rows: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Returns the least-squares slope of log(seconds) against log(rows): 1 is linear.

    None where it is not defined: fewer than two sizes, or a time that is not above zero.
    """
    if len(set(rows)) < 2 or min(seconds) <= 0:
        return None
    x, y = np.log(rows), np.log(seconds)
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@dataclasses.dataclass(frozen=True)
class Curve:
    """Seconds of a stage by rows, and those of a small run, which are nearly all fixed costs: start and compilation."""

    rows: tuple[int, ...]  # rising, all above base_rows
    seconds: tuple[float, ...]
    base_rows: int
    base_seconds: float

    @property
    def raw_slope(self) -> float | None:
        return slope(self.rows, self.seconds)

    @property
    def net_slope(self) -> float | None:
        """Of the seconds beyond the small run against the rows beyond it.

        Both are taken off: a stage whose seconds are a + b * rows then has the slope 1 exactly.
        """
        return self._net_slope_from(0)

    @property
    def last_net_slope(self) -> float | None:
        """The same of the two largest sizes alone, which seconds of noise bend least."""
        return self._net_slope_from(-2)

    def _net_slope_from(self, first: int) -> float | None:
        rows = [rows - self.base_rows for rows in self.rows[first:]]
        return slope(rows, [seconds - self.base_seconds for seconds in self.seconds[first:]])

    def project(self, rows: int, exponent: float | None) -> float | None:
        """Returns the seconds for more rows from those of the largest size.

        Args:
          rows: at least those of the small run.
          exponent: by which time grows with the rows, such as the net slope; None gives None.
        """
        if exponent is None:
            return None
        growth = ((rows - self.base_rows) / (self.rows[-1] - self.base_rows)) ** exponent
        return self.base_seconds + (self.seconds[-1] - self.base_seconds) * growth


@dataclasses.dataclass(frozen=True)
class Work:
    """One epoch of training."""

    num_rows: int
    row_bytes: float  # of the store
    batch_size: int  # rows per step and device
    steps_per_dispatch: int
    num_models: int  # trained together by one program
    step_flop: float  # of one model's matrix products
    step_bytes: float  # of one model: operands of its products and the optimizer's state, each once through memory
    gradient_bytes: float  # of one model
    kernels_per_step: float  # of the program; each does its work for all models


@dataclasses.dataclass(frozen=True)
class Machine:
    """Data-sheet rates of devices in one host; per device, one way."""

    num_devices: int
    flop_per_s: float
    memory_bytes_per_s: float
    pcie_bytes_per_s: float
    link_bytes_per_s: float  # between the devices
    disk_bytes_per_s: float  # of the host
    kernel_seconds: float
    dispatch_seconds: float


def epoch_bounds(work: Work, machine: Machine) -> dict[str, float]:
    """Returns the seconds per epoch that each resource needs at its full rate.

    The rows are divided among the devices, each with its own PCIe lanes, and the disk serves them all; gradients are
    summed in a ring at each step. The longest is the least time of an epoch if all else hides behind it.
    """
    rows_per_device = work.num_rows / machine.num_devices
    steps = rows_per_device / work.batch_size
    ring_share = 2 * (machine.num_devices - 1) / machine.num_devices
    return {
        "matrix products": steps * work.num_models * work.step_flop / machine.flop_per_s,
        "device memory": steps * work.num_models * work.step_bytes / machine.memory_bytes_per_s,
        "kernel launches": steps * work.kernels_per_step * machine.kernel_seconds,
        "dispatches": steps / work.steps_per_dispatch * machine.dispatch_seconds,
        "PCIe": rows_per_device * work.row_bytes / machine.pcie_bytes_per_s,
        "disk": work.num_rows * work.row_bytes / machine.disk_bytes_per_s,
        "sums of gradients": steps * work.num_models * ring_share * work.gradient_bytes / machine.link_bytes_per_s,
    }


def longest(bounds: Mapping[str, float]) -> str:
    """Returns the resource that bounds the epoch."""
    return max(bounds, key=lambda name: bounds[name])


def duration(seconds: float | None) -> str:
    """Returns a readable time with two or three digits; a dash for None."""
    if seconds is None:
        return "-"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
