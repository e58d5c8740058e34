"""The arithmetic of the scaling benchmark: all-reduces, steps on paper, and what measured seconds say."""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np
from scale_paper import Machine


@dataclasses.dataclass(frozen=True)
class Network:
    """Links between devices, one way, and the fixed times of an all-reduce."""

    devices_per_host: int
    link_bytes_per_s: float  # of a device to the others of its host
    network_bytes_per_s: float  # of a device to other hosts, each with an adapter of its own
    base_seconds: float  # of any all-reduce
    ring_hop_seconds: float  # within a host
    ring_network_hop_seconds: float
    tree_hop_seconds: float
    tree_network_hop_seconds: float


def all_reduce_seconds(num_bytes: float, num_devices: int, network: Network) -> float:
    """Returns the time of an all-reduce by the better of a ring and a tree, as NCCL's own model weighs them.

    A ring passes 2 (n - 1) / n of the bytes through each device in 2 (n - 1) hops, one of n / hosts leaving the host; a
    tree passes them twice, along a chain in each host and a binary tree of the hosts.

    Args:
      num_bytes: of the array that each device has and gets.
      num_devices: n; whole hosts, if they are more than one.
      network: links and fixed times.
    """
    if num_devices == 1:
        return 0.0
    num_hosts = -(-num_devices // network.devices_per_host)
    rate = network.link_bytes_per_s
    if num_hosts > 1:
        rate = min(rate, network.devices_per_host * network.network_bytes_per_s)  # all adapters of a host at once
    ring_hops = (num_devices - num_hosts) * network.ring_hop_seconds
    ring_hops += (num_hosts - 1) * network.ring_network_hop_seconds
    tree_hops = (num_devices / num_hosts - 1) * network.tree_hop_seconds
    tree_hops += math.ceil(math.log2(num_hosts)) * network.tree_network_hop_seconds
    ring = 2 * ring_hops + 2 * (num_devices - 1) / num_devices * num_bytes / rate
    tree = 2 * tree_hops + 2 * num_bytes / rate
    return network.base_seconds + min(ring, tree)


@dataclasses.dataclass(frozen=True)
class StepWork:
    """One step of all models on one device."""

    flop_per_row: float
    bytes_per_row: float  # of the operands of the products, through device memory
    state_bytes: float  # of the optimizer's state, once per step
    kernels: float
    all_reduce_bytes: tuple[int, ...]  # one entry per sum


def step_bounds(work: StepWork, num_rows: float, machine: Machine) -> dict[str, float]:
    """Returns the seconds of a step that each part of one device needs at its full rate; the longest is the step's.

    Args:
      work: of the step.
      num_rows: on this device.
      machine: its rates.
    """
    return {
        "matrix products": num_rows * work.flop_per_row / machine.flop_per_s,
        "device memory": (num_rows * work.bytes_per_row + work.state_bytes) / machine.memory_bytes_per_s,
        "kernel launches": work.kernels * machine.kernel_seconds,
    }


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A step on n devices on paper."""

    num_devices: int
    rows_per_device: float
    bound: str  # what the device needs longest for
    compute_seconds: float
    sum_seconds: float  # of the all-reduces; nothing of them is taken to be hidden
    efficiency: float  # rows per second and device against one device


def scaled(work: StepWork, machine: Machine, network: Network, rows: Mapping[int, float]) -> list[Scaled]:
    """Returns a line per number of devices.

    Args:
      work: of the step.
      machine: a device.
      network: between the devices.
      rows: number of devices -> rows on each; 1 must be among them.
    """

    def seconds(num_devices: int) -> tuple[str, float, float]:
        bounds = step_bounds(work, rows[num_devices], machine)
        bound = max(bounds, key=lambda name: bounds[name])
        return bound, bounds[bound], sum(all_reduce_seconds(b, num_devices, network) for b in work.all_reduce_bytes)

    rate_of_one = rows[1] / sum(seconds(1)[1:])
    lines = []
    for num_devices, num_rows in rows.items():
        bound, compute, sums = seconds(num_devices)
        efficiency = num_rows / (compute + sums) / rate_of_one
        lines.append(Scaled(num_devices, num_rows, bound, compute, sums, efficiency))
    return lines


@dataclasses.dataclass(frozen=True)
class LoopTimes:
    """What a clocked training says, medians over its epochs."""

    bare_seconds: float  # per step, dispatches alone
    loop_seconds: float  # per step, in the loop
    loop_adds: float  # share by which the loop is longer
    part_seconds: Mapping[str, float]  # per step: feed, call, meter, and the rest of the loop; without the wait
    cpu_seconds: float  # per step: that the loop's thread computed

    @property
    def host_share(self) -> float:
        """Of the parts in a step, waits for a core included."""
        return sum(self.part_seconds.values()) / self.loop_seconds

    @property
    def cpu_share(self) -> float:
        """Of what the loop's thread computed in a step."""
        return self.cpu_seconds / self.loop_seconds


def loop_times(epochs: Sequence[Mapping[str, float]]) -> LoopTimes:
    """Returns the medians of the records of `clocked_train.Clock`.

    A share is taken within each epoch, where both sides were measured one right after the other.
    """

    def of_epochs(name: str) -> np.ndarray:
        return np.array([epoch[name] for epoch in epochs])

    steps, bare, loop = of_epochs("steps"), of_epochs("bare"), of_epochs("loop")
    parts = {name: of_epochs(name) for name in ("feed", "call", "meter")}
    parts["rest"] = loop - of_epochs("wait") - sum(parts.values())
    return LoopTimes(
        bare_seconds=float(np.median(bare / steps)),
        loop_seconds=float(np.median(loop / steps)),
        loop_adds=float(np.median(loop / bare)) - 1.0,
        part_seconds={name: float(np.median(seconds / steps)) for name, seconds in parts.items()},
        cpu_seconds=float(np.median(of_epochs("cpu") / steps)),
    )
