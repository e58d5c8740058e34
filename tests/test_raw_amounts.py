"""The benchmark of raw amounts below zero: the experiment's own numbers, the floored ones, and what it refuses."""

import importlib
from pathlib import Path
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from mean_jax.cli import common
from mean_jax.run import load_run

sys.path.append(str(Path(__file__).parents[1] / "launch" / "benchmarks"))
raw_amounts = importlib.import_module("raw_amounts")


def _program() -> None:
    common.run(raw_amounts._main, flag_values=raw_amounts._FLAGS)


def _contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_what_is_not_floored_is_the_experiments_own(finished_experiment):
    rows = pq.read_table(finished_experiment / "results.parquet").to_pylist()
    before = _contents(finished_experiment)
    runs, store = raw_amounts.find_runs(finished_experiment), raw_amounts.open_store(finished_experiment)
    assert list(runs) == ["MEAN", "ZILN"]
    for name, folder in runs.items():
        by_seed = raw_amounts.measure(load_run(folder), store)
        assert list(by_seed) == [0, 1]
        for seed, values in by_seed.items():
            own = [row for row in rows if (row["system"], row["seed"], row["split"]) == (name, seed, "test")]
            assert len(own) == 2
            for column, metric in ((0, "raw_percentile_mape"), (3, "raw_bias")):
                assert values[column] == pytest.approx(np.mean([row[metric] for row in own]), rel=1e-4)
            if name == "ZILN":  # an expectation of amounts, so never below zero
                assert values[2] == 0.0 and values[1] == values[0] and values[4] == values[3]
    assert _contents(finished_experiment) == before


def test_floored_by_hand(finished_experiment, monkeypatch):
    """Three customers, each a bin of its own; at the second of two horizons all amounts are twice as high."""
    raw_SxV = np.array([[-50.0, 50.0, 300.0], [20.0, 100.0, 100.0]])
    label_V = np.array([100.0, 100.0, 200.0])

    class Predicted:
        def known(self, program, horizon):
            return raw_SxV * (1 + horizon), label_V

    monkeypatch.setattr(raw_amounts, "predict_rows", lambda *_: Predicted())
    run, store = load_run(finished_experiment / "runs/mean"), raw_amounts.open_store(finished_experiment)
    by_seed = raw_amounts.measure(run, store)
    first = [np.mean([1.5, 0.5, 0.5]), np.mean([1.0, 0.5, 0.5]), 1 / 3, 300 / 400, 350 / 400]
    second = [np.mean([2.0, 0.0, 2.0]), np.mean([1.0, 0.0, 2.0]), 1 / 3, 600 / 400, 700 / 400]
    np.testing.assert_allclose(by_seed[0], np.mean([first, second], axis=0))
    assert by_seed[1][0] == by_seed[1][1] and by_seed[1][2] == 0.0
    line = raw_amounts.table_line("MEAN", {0: np.arange(5.0), 1: np.arange(5.0) + 2})
    assert line.startswith("| MEAN | 1.0000 (1.4142) | 2.0000 (1.4142) |")
    assert raw_amounts.table_line("MEAN", {0: np.arange(5.0)}).endswith("| 3.0000 | 4.0000 |")


def test_mistakes_are_one_line(finished_experiment, tmp_path, call):
    def refusal(folder):
        code, lines = call(_program, f"--experiment={folder}")
        assert code == 2 and lines.count("\n") == 1
        return lines

    assert "folder /nowhere does not exist" in refusal("/nowhere")
    assert "has no results.parquet; finish it" in refusal(tmp_path)
    (tmp_path / "results.parquet").symlink_to(finished_experiment / "results.parquet")
    assert "runs holds no finished run" in refusal(tmp_path)
    (tmp_path / "runs").symlink_to(finished_experiment / "runs")
    assert "name an experiment that was run without --data" in refusal(tmp_path)
    assert "experiment must have a value" in call(_program)[1]


def test_the_table(finished_experiment, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["raw_amounts.py", f"--experiment={finished_experiment}"])
    with pytest.raises(SystemExit) as stopped:
        _program()
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 0 and [line.split(" | ")[0] for line in lines[2:]] == ["| MEAN", "| ZILN"]
    assert all(line.count("|") == 7 for line in lines)
