"""The scale benchmark: slopes, extrapolation, bounds on paper, its tables, and the meter of a process tree."""

import dataclasses
import importlib
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from mean_jax.errors import UserError

sys.path.append(str(Path(__file__).parents[1] / "launch" / "benchmarks"))
process_meter = importlib.import_module("process_meter")
scale_paper = importlib.import_module("scale_paper")
scale_report = importlib.import_module("scale_report")
scale = importlib.import_module("scale")

ROWS = (250_000, 500_000, 1_000_000, 2_000_000)
BASE_ROWS = 20_000
H100 = scale_paper.Machine(
    num_devices=1,
    flop_per_s=494e12,
    memory_bytes_per_s=3.35e12,
    pcie_bytes_per_s=64e9,
    link_bytes_per_s=450e9,
    disk_bytes_per_s=6e9,
    kernel_seconds=2.5e-6,
    dispatch_seconds=1e-4,
)
WORK = scale_paper.Work(
    num_rows=1_024_000,
    row_bytes=2896.0,
    batch_size=1024,
    steps_per_dispatch=16,
    num_models=4,
    step_flop=3.65e9,
    step_bytes=90e6,
    gradient_bytes=2.8e6,
    kernels_per_step=150.0,
)


LOG = (
    "12:00:00 epoch 1: loss 2.5\n"
    "12:00:01 parts: start 9.0 s, steps 1024.5 s, checkpoints 1.0 s, validation 2.0 s, calibration 3.0 s\n"
)


def curve(seconds_of) -> "scale_paper.Curve":
    return scale_paper.Curve(ROWS, tuple(seconds_of(rows) for rows in ROWS), BASE_ROWS, seconds_of(BASE_ROWS))


# Slopes and extrapolation.


def test_the_slope_is_that_of_least_squares():
    seconds = [3.0, 7.0, 11.0, 31.0]
    assert scale_paper.slope(ROWS, seconds) == pytest.approx(np.polyfit(np.log(ROWS), np.log(seconds), 1)[0])
    assert scale_paper.slope(ROWS, [2e-9 * rows**1.25 for rows in ROWS]) == pytest.approx(1.25)


@pytest.mark.parametrize(("rows", "seconds"), [([10], [1.0]), ([10, 10], [1.0, 2.0]), ([10, 20], [0.0, 1.0])])
def test_a_slope_that_is_not_defined(rows, seconds):
    assert scale_paper.slope(rows, seconds) is None


def test_a_fixed_cost_bends_the_raw_slope_alone():
    fixed = curve(lambda rows: 30.0 + 1e-4 * rows)
    assert fixed.raw_slope < 0.8
    assert fixed.net_slope == pytest.approx(1.0)
    assert fixed.last_net_slope == pytest.approx(1.0)
    late = curve(lambda rows: 30.0 + 1e-4 * rows + (1.0 if rows == ROWS[0] else 0.0))  # noise of a second
    assert late.last_net_slope == pytest.approx(1.0)
    assert abs(late.net_slope - 1.0) > 0.005
    assert curve(lambda rows: 1e-4 * rows).raw_slope == pytest.approx(1.0)


def test_extrapolation_of_a_line_and_of_a_square():
    line = curve(lambda rows: 30.0 + 1e-4 * rows)
    assert line.project(22_000_000, line.net_slope) == pytest.approx(30.0 + 1e-4 * 22_000_000)
    assert line.project(22_000_000, 1.0) == pytest.approx(30.0 + 1e-4 * 22_000_000)
    square = curve(lambda rows: 5.0 + 1e-11 * (rows - BASE_ROWS) ** 2)
    assert square.net_slope == pytest.approx(2.0)
    assert square.project(22_000_000, square.net_slope) == pytest.approx(5.0 + 1e-11 * 21_980_000**2)


def test_noise_that_hides_the_growth_gives_no_extrapolation():
    flat = curve(lambda rows: 5.0 if rows > BASE_ROWS else 6.0)
    assert flat.net_slope is None
    assert flat.project(22_000_000, flat.net_slope) is None
    assert scale_paper.duration(None) == "-"


# On paper.


def test_the_bounds_of_an_epoch():
    """1000 steps of four models, by hand."""
    expected = {
        "matrix products": 4 * 3.65 / 494,
        "device memory": 4 * 90 / 3350,
        "kernel launches": 1000 * 150 * 2.5e-6,
        "dispatches": 62.5 * 1e-4,
        "PCIe": 1.024 * 2.896 / 64,
        "disk": 1.024 * 2.896 / 6,
        "sums of gradients": 0.0,
    }
    bounds = scale_paper.epoch_bounds(WORK, H100)
    assert bounds == pytest.approx(expected)
    assert scale_paper.longest(bounds) == "disk"


def test_eight_devices_share_all_but_the_disk():
    one = scale_paper.epoch_bounds(WORK, H100)
    eight = scale_paper.epoch_bounds(WORK, dataclasses.replace(H100, num_devices=8))
    for name in ("matrix products", "device memory", "kernel launches", "dispatches", "PCIe"):
        assert eight[name] == pytest.approx(one[name] / 8)
    assert eight["disk"] == one["disk"]
    assert eight["sums of gradients"] == pytest.approx(125 * 4 * 2 * 7 / 8 * 2.8e6 / 450e9)


# Tables.


def usage(seconds: float) -> dict[str, float]:
    names = [field.name for field in dataclasses.fields(process_meter.Usage)]
    further = {"cpu_seconds": 2 * seconds, "user_seconds": 4 + abs(seconds - 12) ** 1.25}
    further |= {"epoch_seconds": seconds / 2, "output_bytes": 1e9}
    return dict.fromkeys(names, 2e9) | {"seconds": seconds} | further


def test_the_tables():
    sizes = {rows: {stage: usage(10 + 1e-4 * rows) for stage in scale_report.STAGES} for rows in (BASE_ROWS, *ROWS)}
    target = scale_report.Target(22_000_000, 15)
    stages = scale_report.curves(sizes, BASE_ROWS)
    sizes[ROWS[-1]]["prepare"]["user_seconds"] *= 2
    in_user_mode = scale_report.user_slopes(sizes, BASE_ROWS)
    user_seconds = [sizes[rows]["prepare"]["user_seconds"] - 4 for rows in ROWS]
    expected = np.polyfit(np.log(np.array(ROWS) - BASE_ROWS), np.log(user_seconds), 1)[0]
    lines = scale_report.seconds_table(stages, [stages], in_user_mode, target).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    figures = f"12.0 | 35.0 | 60.0 | 110.0 | 210.0 | 0.86 | 1.00 | 1.00 | {expected:.2f} | 36.8 min | 36.8 min"
    assert lines[3] == f"| `mean-jax-prepare` | {figures} |"
    assert lines[4].endswith("| 1.00 | 1.25 | - | - |")  # calibration is of a bounded sample, done once
    assert lines[5].startswith("| of it steps and validation | 6.0 | 17.5 |")
    assert lines[5].endswith("| 1.00 | - | 4.6 h | 4.6 h |")
    lines = scale_report.usage_table(sizes).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "at 250,000 rows" in lines[0]
    assert lines[3] == ("| `mean-jax-prepare` | 9,524 | 2.0 | 2.00 / 2.00 | 2.00 / 2.00 | 1.00 | 2.00 | 2.00 (2.00) |")


def test_medians_of_rounds_and_the_slopes_of_each():
    rounds = [
        {rows: {stage: usage(factor * rows) for stage in scale_report.STAGES} for rows in (BASE_ROWS, *ROWS)}
        for factor in (1.0, 5.0, 2.0)
    ]
    for stage in scale_report.STAGES:
        rounds[1][ROWS[-1]][stage]["seconds"] *= 2  # the slope of a round, but not that of the medians
    assert scale_report.medians(rounds) == rounds[2]
    stages = scale_report.curves(scale_report.medians(rounds), BASE_ROWS)
    of_rounds = [scale_report.curves(sizes, BASE_ROWS) for sizes in rounds]
    line = scale_report.seconds_table(stages, of_rounds, {}, scale_report.Target(22_000_000, 15)).splitlines()[2]
    rows = np.array(ROWS) - BASE_ROWS
    seconds = np.array([1.0, 1.0, 1.0, 2.0]) * ROWS - BASE_ROWS
    expected = np.polyfit(np.log(rows), np.log(seconds), 1)[0]
    assert f"| 1.00 | 1.00 (1.00-{expected:.2f}) |" in line


def test_the_paper_table():
    machines = [H100, dataclasses.replace(H100, num_devices=8)]
    text = scale_report.paper_table(WORK, machines, 15)
    assert text.startswith("| an epoch on paper | 1 x H100 | 8 x H100 |\n| --- | --- | --- |\n")
    assert "| **an epoch at least** | 494 ms, by disk | 494 ms, by disk |" in text
    assert "| **15 epochs at least** | 7.4 s | 7.4 s |" in text
    assert "1,000 steps of 1024 rows for one device and 62 dispatches" in scale_report.assumptions(WORK, H100)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.01234, "12.3 ms"),
        (1.0, "1.0 s"),
        (119.0, "119.0 s"),
        (120.0, "2.0 min"),
        (7200.0, "2.0 h"),
        (4e6, "1,111.1 h"),
    ],
)
def test_durations(seconds, text):
    assert scale_paper.duration(seconds) == text


# What runs.


@pytest.fixture
def horizons():
    def choose(text: str, *others: str) -> None:
        scale._FLAGS(["scale", "--output=x", f"--horizons={text}", *others])

    yield choose
    scale._FLAGS.unparse_flags()


def test_the_stages_hand_on_what_they_write(horizons, tmp_path):
    horizons("cltv_30")
    stages = scale.commands(tmp_path, 1234)
    assert tuple(stages) == scale_report.STAGES
    words = {name: command[3:] for name, (command, _) in stages.items()}
    assert "--rows=1234" in words["generate"]
    assert {"--label_columns=cltv_30", "--exclude=cltv_90,cltv_180,cltv_365"} <= set(words["prepare"])
    assert f"--input={stages['generate'][1]}/customers" in words["prepare"]
    assert f"--data={stages['prepare'][1]}" in words["train"]
    assert (
        f"--workdir={stages['train'][1]}" in words["evaluate"] and f"--workdir={stages['train'][1]}" in words["score"]
    )
    horizons("cltv_30,cltv_90,cltv_180,cltv_365")
    assert not [word for word in scale.commands(tmp_path, 1)["prepare"][0] if word.startswith("--exclude")]


def test_results_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "scale.json"
    results = scale._open_results(path, {"features": 100})
    results["rounds"].append({"5": {"generate": {"seconds": 1.0}}})
    scale.write_json(path, scale.KIND, scale.VERSION, results)
    assert scale._open_results(path, {"features": 100}) == results
    with pytest.raises(UserError, match=r"--output: .* was measured with features 100, now it is 720; choose another"):
        scale._open_results(path, {"features": 720})


def test_finished_stages_are_skipped(horizons, tmp_path, monkeypatch):
    horizons("cltv_30")
    ran: list[str] = []

    def measure(command: list[str], log: Path) -> "process_meter.Usage":
        name = log.stem.partition("-")[2]
        if name == "train" and "train" not in ran:
            ran.append(name)
            raise UserError("no luck")
        ran.append(name)
        written = scale.commands(tmp_path / "9-rows", 9)[name][1]
        assert not written.exists()
        written.mkdir()
        (written / "a.bin").write_bytes(bytes(90))
        log.write_text(LOG)
        return process_meter.Usage(*range(9))

    monkeypatch.setattr(scale, "measure", measure)
    results = scale._open_results(tmp_path / "scale.json", {})
    with pytest.raises(UserError, match="no luck"):
        scale._measure_size(results, 0, tmp_path, 9)
    (tmp_path / "9-rows" / "run").mkdir()  # what the interrupted stage left
    results = scale._open_results(tmp_path / "scale.json", {})
    for _ in range(2):
        scale._measure_size(results, 0, tmp_path, 9)
        assert ran == ["generate", "prepare", "train", "train", "evaluate", "score"]
    scale._measure_size(results, 1, tmp_path, 9)  # of the next round
    assert ran[6:] == ["generate", "prepare", "train", "evaluate", "score"]
    assert [measured["9"]["prepare"]["row_bytes"] for measured in results["rounds"]] == [10, 10]
    assert [measured["9"]["train"]["epoch_seconds"] for measured in results["rounds"]] == [1026.5, 1026.5]
    assert not (tmp_path / "9-rows").exists()


def test_a_log_without_the_parts_of_training():
    with pytest.raises(UserError, match="mean-jax-train: its log does not say what steps and validation took"):
        scale.epoch_seconds("12:00:00 epoch 1: loss 2.5\n")


def test_short_commands_run_again_and_the_median_counts(horizons, tmp_path, monkeypatch):
    horizons("cltv_30", "--repeat_seconds=10")
    seconds = {
        "generate": iter([6.0, 3.0, 4.0]),
        "prepare": iter([1.0, 2.0, 1.5, 0.5, 3.0]),  # at most five
        "train": iter([30.0]),
        "evaluate": iter([7.0, 8.0]),
        "score": iter([10.0]),
    }

    def measure(command: list[str], log: Path) -> "process_meter.Usage":
        name = log.stem.partition("-")[2]
        written = scale.commands(tmp_path / "9-rows", 9)[name][1]
        assert not written.exists()
        written.mkdir()
        log.write_text(LOG)
        return process_meter.Usage(next(seconds[name]), *range(8))

    monkeypatch.setattr(scale, "measure", measure)
    results = scale._open_results(tmp_path / "scale.json", {})
    scale._measure_size(results, 0, tmp_path, 9)
    assert {name: stage["seconds"] for name, stage in results["rounds"][0]["9"].items()} == {
        "generate": 4.0, "prepare": 1.5, "train": 30.0, "evaluate": 8.0, "score": 10.0
    }  # fmt: skip
    assert all(next(rest, None) is None for rest in seconds.values())


def test_the_report_keeps_what_it_prints(horizons, tmp_path):
    base_rows = 150_000
    horizons("cltv_30", f"--base_rows={base_rows}")
    sizes = {rows: {stage: usage(10 + 1e-4 * rows) for stage in scale_report.STAGES} for rows in (base_rows, *ROWS)}
    for measured in sizes.values():
        measured["prepare"]["row_bytes"] = 2896.0
    settings = {"machine": "2 processors", "features": 720, "horizons": ["cltv_30"]}
    results = {"settings": settings, "rounds": [{str(rows): measured for rows, measured in sizes.items()}]}
    page = scale._report(results, tmp_path, [base_rows, *ROWS])
    kept = scale.read_json(tmp_path / "scale.json", scale.KIND, scale.VERSION)
    assert kept["rounds"] == results["rounds"]
    for stage in scale_report.STAGES:
        expected = scale_report.user_slopes(sizes, base_rows)[stage]
        assert kept["stages"][stage]["user_net_slope"] == expected is not None
        assert kept["stages"][stage]["net_slope"] == pytest.approx(1.0)
        assert f"| {expected:.2f} |" in next(line for line in page.splitlines() if scale_report._WHAT[stage] in line)
    assert kept["stages"]["epoch"]["user_net_slope"] is None


# The meter.


def test_the_texts_of_proc():
    assert process_meter.session_of("12 (a) b (c) S 1 12 77 0 -1") == 77
    assert process_meter.memory_of("Name:\tx\nVmRSS:\t  300 kB\nRssAnon:\t  200 kB\n") == (307_200, 204_800)
    assert process_meter.memory_of("Name:\tx\nState:\tZ (zombie)\n") == (0, 0)


CHILD = "import time; a = bytearray(b'x') * 50_000_000; open('child', 'wb').write(a); time.sleep(0.6)"
PARENT = f"""
import subprocess, sys
open('own', 'wb').write(bytes(10_000_000))
subprocess.run([sys.executable, '-c', {CHILD!r}])
"""


def test_the_meter_counts_children(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cost = process_meter.measure([sys.executable, "-c", PARENT], tmp_path / "log")
    assert 60_000_000 <= cost.written_bytes < 61_000_000
    assert cost.peak_anonymous_bytes > 50_000_000
    assert cost.peak_rss_bytes > cost.peak_anonymous_bytes
    assert cost.seconds > 0.6
    assert 0 < cost.cpu_seconds < cost.seconds * 64


def test_the_meter_tells_the_program_from_the_kernel(tmp_path):
    cost = process_meter.measure([sys.executable, "-c", "sum(range(30_000_000))"], tmp_path / "log")
    assert 0.5 * cost.cpu_seconds < cost.user_seconds <= cost.cpu_seconds


def test_a_command_that_fails(tmp_path):
    command = [sys.executable, "-c", "import sys; print('first', flush=True); sys.exit('error: the last line')"]
    with pytest.raises(UserError, match=r"exit code 1, see .*log: error: the last line"):
        process_meter.measure(command, tmp_path / "log")


def test_an_interrupted_meter_leaves_no_process(tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(process_meter.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0])
    monkeypatch.setattr(process_meter, "_session_memory", lambda _: sys.exit(143))
    with pytest.raises(SystemExit):
        process_meter.measure([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    assert started[0].returncode == -15
