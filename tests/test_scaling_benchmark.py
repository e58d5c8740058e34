"""The scaling benchmark: all-reduces and steps on paper, the clock on the training loop, the tables."""

import dataclasses
import importlib
from pathlib import Path
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest

from mean_jax.errors import UserError
from mean_jax.training import loop
from tests.conftest import train_tiny

sys.path.append(str(Path(__file__).parents[1] / "launch" / "benchmarks"))
clocked_train = importlib.import_module("clocked_train")
scale_paper = importlib.import_module("scale_paper")
scaling = importlib.import_module("scaling")
scaling_paper = importlib.import_module("scaling_paper")
scaling_runs = importlib.import_module("scaling_runs")

NETWORK = scaling_paper.Network(
    devices_per_host=8,
    link_bytes_per_s=400e9,
    network_bytes_per_s=25e9,
    base_seconds=10e-6,
    ring_hop_seconds=2e-6,
    ring_network_hop_seconds=4e-6,
    tree_hop_seconds=1e-6,
    tree_network_hop_seconds=8e-6,
)
MACHINE = scale_paper.Machine(
    num_devices=1,
    flop_per_s=500e12,
    memory_bytes_per_s=2e12,
    pcie_bytes_per_s=1.0,
    link_bytes_per_s=1.0,
    disk_bytes_per_s=1.0,
    kernel_seconds=2e-6,
    dispatch_seconds=1.0,
)
WORK = scaling_paper.StepWork(
    flop_per_row=1e7, bytes_per_row=1e5, state_bytes=8e7, kernels=100.0, all_reduce_bytes=(4_000_000, 4_000)
)


# On paper.


def test_one_device_sums_nothing():
    assert scaling_paper.all_reduce_seconds(1e9, 1, NETWORK) == 0.0


def test_all_reduces_by_hand():
    """Large arrays go by the ring, which sends less; small ones by the tree, which has fewer hops."""
    ring = 10e-6 + 14 * 2e-6 + 2 * 7 / 8 * 4e9 / 400e9
    tree = 10e-6 + 14 * 1e-6 + 2 * 4e3 / 400e9
    assert scaling_paper.all_reduce_seconds(4e9, 8, NETWORK) == pytest.approx(ring)
    assert scaling_paper.all_reduce_seconds(4e3, 8, NETWORK) == pytest.approx(tree)


def test_hosts_are_as_fast_as_their_adapters_together():
    """32 devices: 28 hops of the ring stay within a host and 3 do not; four hosts are a tree of two levels."""
    ring = 10e-6 + 2 * (28 * 2e-6 + 3 * 4e-6) + 2 * 31 / 32 * 4e9 / 200e9
    tree = 10e-6 + 2 * (7 * 1e-6 + 2 * 8e-6) + 2 * 4e3 / 200e9
    assert scaling_paper.all_reduce_seconds(4e9, 32, NETWORK) == pytest.approx(ring)
    assert scaling_paper.all_reduce_seconds(4e3, 32, NETWORK) == pytest.approx(tree)


def test_what_bounds_a_step():
    assert scaling_paper.step_bounds(WORK, 1000, MACHINE) == pytest.approx(
        {"matrix products": 1000 * 1e7 / 500e12, "device memory": (1e8 + 8e7) / 2e12, "kernel launches": 2e-4}
    )


def test_weak_and_strong_scaling():
    weak = scaling_paper.scaled(WORK, MACHINE, NETWORK, {1: 1000.0, 8: 1000.0})
    sums = sum(scaling_paper.all_reduce_seconds(size, 8, NETWORK) for size in WORK.all_reduce_bytes)
    assert [line.bound for line in weak] == ["kernel launches"] * 2
    assert weak[0].efficiency == 1.0 and weak[0].sum_seconds == 0.0
    assert weak[1].efficiency == pytest.approx(2e-4 / (2e-4 + sums))
    strong = scaling_paper.scaled(WORK, MACHINE, NETWORK, {1: 80_000.0, 8: 10_000.0})
    one, eight = (8e9 + 8e7) / 2e12, (1e9 + 8e7) / 2e12
    assert [line.bound for line in strong] == ["device memory"] * 2
    assert strong[1].efficiency == pytest.approx(one / (8 * (eight + sums)))


# The clock.


class FakeDispatch(NamedTuple):
    num_steps: int
    run: object


def test_the_clock_tells_the_loop_from_the_dispatches():
    """Two epochs of three dispatches: in each one by itself, two in a row, two in the loop."""
    calls: list[int] = []

    def run(state):
        calls.append(state)
        time.sleep(0.01)
        return state + 1, {}

    def source():
        for _ in range(6):
            time.sleep(0.02)
            yield FakeDispatch(5, run)

    clock = clocked_train.Clock()
    state = 0
    for dispatch in clock.dispatches(source(), 3):
        state, _ = dispatch.run(state)
    assert calls == list(range(10)) and state == 10  # five of each epoch, one after the other
    assert len(clock.epochs) == 2
    for epoch in clock.epochs:
        assert epoch["steps"] == 10
        assert epoch["bare"] >= 0.02 and epoch["feed"] >= 0.04 and epoch["call"] >= 0.02
        assert epoch["loop"] >= epoch["feed"] + epoch["call"]
        assert epoch["cpu"] < epoch["feed"]  # it slept


def test_an_epoch_of_one_dispatch_cannot_be_clocked():
    with pytest.raises(UserError, match="--data: an epoch of the store is a single dispatch"):
        next(clocked_train.Clock().dispatches(iter([]), 1))


def test_a_training_with_a_clock(store_path, tmp_path, monkeypatch):
    """The windows hold the loop's dispatches alone: parts and wait make up less than the whole."""
    for name in ("make_feed", "EpochMeter"):
        monkeypatch.setattr(loop, name, getattr(loop, name))  # to have them back
    clock = clocked_train.Clock()
    clocked_train.install(clock)
    start = time.perf_counter()
    assert train_tiny(store_path, tmp_path / "run")
    seconds = time.perf_counter() - start
    assert len(clock.epochs) == 3
    for epoch in clock.epochs:
        assert epoch["steps"] in (6.0, 9.0)  # of an epoch of ten steps or so, all but a dispatch
        assert all(epoch[name] > 0 for name in ("bare", "feed", "call", "wait", "meter", "cpu"))
        assert epoch["feed"] + epoch["call"] + epoch["wait"] + epoch["meter"] <= epoch["loop"]
    assert sum(epoch["loop"] + epoch["bare"] for epoch in clock.epochs) < seconds


def test_medians_over_epochs():
    names = ("steps", "bare", "loop", "wait", "feed", "call", "meter", "cpu")
    values = [
        (10, 1.0, 1.1, 0.9, 0.04, 0.05, 0.01, 0.02),
        (10, 2.0, 2.1, 1.9, 0.04, 0.05, 0.01, 0.02),
        (10, 4.0, 4.8, 3.9, 0.10, 0.20, 0.30, 0.48),
    ]
    times = scaling_paper.loop_times([dict(zip(names, line, strict=True)) for line in values])
    assert times.bare_seconds == pytest.approx(0.2) and times.loop_seconds == pytest.approx(0.21)
    assert times.loop_adds == pytest.approx(0.1)  # the median of 10, 5 and 20 %
    rests = np.array(values)[:, 2] - np.array(values)[:, 3:7].sum(axis=1)
    expected = {"feed": 0.004, "call": 0.005, "meter": 0.001, "rest": np.median(rests) / 10}
    assert times.part_seconds == pytest.approx(expected)
    assert times.host_share == pytest.approx(sum(expected.values()) / 0.21)
    assert times.cpu_share == pytest.approx(0.002 / 0.21)


# Tables and flags.

TIMES = scaling_paper.LoopTimes(
    bare_seconds=0.1,
    loop_seconds=0.102,
    loop_adds=0.02,
    part_seconds={"feed": 0.0002, "call": 0.0001, "meter": 0.0001, "rest": 0.00011},
    cpu_seconds=0.000204,
)


def test_the_table_of_processes():
    """Two trainings apart count the rows of both; the share is that of the cores in use."""
    two = dataclasses.replace(TIMES, loop_seconds=0.06)
    layouts = {
        scaling_runs.Layout("one"): TIMES,
        scaling_runs.Layout("two", 2): two,
        scaling_runs.Layout("apart", 2, is_apart=True): two,
        scaling_runs.Layout("threads", cores_per_process=2): TIMES,
    }
    lines = scaling.processes_table(layouts, 1020).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2:] == [
        "| one | 1 | 102.0 | 10,000 | 1.00 | 100% | +2.0% |",
        "| two | 2 | 60.0 | 17,000 | 1.70 | 85% | +2.0% |",
        "| apart | 2 | 60.0 | 17,000 | 1.70 | 85% | +2.0% |",
        "| threads | 2 | 102.0 | 10,000 | 1.00 | 50% | +2.0% |",
    ]


def test_the_tables_of_dispatches_and_paper():
    lines = scaling.dispatch_table({"one model": TIMES}).splitlines()
    assert lines[2] == "| one model | 102.0 | 0.200 | 0.100 | 0.100 | 0.110 | 0.50% | 0.204: 0.20% | +2.0% |"
    assert len({line.count("|") for line in lines}) == 1
    weak = scaling_paper.Scaled(8, 1024.0, "kernel launches", 0.000375, 0.000145, 0.72)
    lines = scaling.paper_table({"weak": [weak]}).splitlines()
    assert lines[2] == "| weak | 8 | 1,024 | 0.375 | kernel launches | 0.145 | 72% |"


def test_training_flags_give_the_dispatches_asked_for(store, store_path):
    steps = len(store.split("train")) // 16
    flags = scaling_runs.train_flags(store_path, 16, 3, 2)
    (size,) = [int(flag.partition("=")[2]) for flag in flags if "steps_per_dispatch" in flag]
    assert -(-steps // size) == 3
    assert {"--config.train.batch_size=16", "--config.train.max_epochs=2", f"--data={store_path}"} <= set(flags)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts=paper,magic"], "--parts=paper,magic: expected some of paper,processes,dispatch,programs"),
        (["--seeds=0"], "--seeds=0: expected numbers above 0"),
        ([], "is not empty; choose another folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "a").touch()
    monkeypatch.setattr("sys.argv", ["scaling.py", f"--output={tmp_path}", *arguments])
    with pytest.raises(SystemExit, match="2"):
        scaling.common.run(scaling._main, flag_values=scaling._FLAGS)
    assert message in capsys.readouterr().err
