"""mean-jax-experiment end to end on tiny data: it runs, resumes, and its tables say what its rows say."""

import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.cli import experiment
from mean_jax.config import load_config
from mean_jax.data.store import Store
from mean_jax.evaluation.metrics import point_metrics
from mean_jax.experiments import runner
from mean_jax.experiments.data import ExperimentData
from mean_jax.experiments.results import Results
from mean_jax.experiments.spec import parse_spec
from mean_jax.training.loop import Trainer
from tests.conftest import SMALL_EXPERIMENT

SHIPPED = sorted(path.stem for path in Path("configs/experiments").glob("*.py"))
HORIZONS = ("30", "90")  # of the smoke table


def read_rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / "results.parquet").to_pylist()


def test_a_comparison_has_a_row_per_system_horizon_seed_and_split(finished_experiment):
    rows = read_rows(finished_experiment)
    counts = {}
    for row in rows:
        key = (row["system"], row["horizon"], row["split"])
        counts[key] = counts.get(key, 0) + 1
    seeds = {"MEAN": 2, "ZILN": 2, "constant_mean": 1, "constant_zero": 1, "oracle": 1}
    expected = {
        (system, horizon, split): number
        for system, number in seeds.items()
        for horizon in HORIZONS
        for split in ("validation", "test")
    }
    assert counts == expected  # past_spend has no column here and is left out
    assert all(np.isfinite(row["calibrated_gini"]) for row in rows if row["system"] in ("MEAN", "ZILN", "oracle"))


def test_the_labels_that_a_smoke_table_leaves_out_are_no_features(finished_experiment):
    schema = Store(finished_experiment / "data/store").schema
    assert schema.horizons == HORIZONS
    assert len(schema.numeric) + len(schema.categorical) == 24
    assert not [name for name in (*schema.numeric, *schema.categorical) if name.startswith("cltv_")]


def test_a_networks_rows_are_the_metrics_of_its_run(finished_experiment, tmp_path):
    """The numbers of the table are those that mean-jax-evaluate gives for the same run and store."""
    from mean_jax.evaluation.evaluate import evaluate

    run, store = finished_experiment / "runs/mean", finished_experiment / "data/store"
    evaluate(str(run), str(store), "test", tmp_path / "evaluation", 2)
    seeds = pq.read_table(tmp_path / "evaluation/seeds.parquet").to_pylist()
    rows = Results(tuple(read_rows(finished_experiment)))
    names = {"currency": "calibrated", "currency_raw": "raw"}
    compared = 0
    for row in seeds:
        if row["space"] in names:
            column = f"{names[row['space']]}_{row['metric']}"
            values = rows.values(column, system="MEAN", horizon=row["horizon"], split="test")
            assert values[row["seed"]] == pytest.approx(row["value"], rel=1e-6, nan_ok=True), column
            compared += 1
    assert compared == 2 * 13 * len(HORIZONS) * 2


def test_constant_predictions_are_what_they_say(finished_experiment):
    rows = Results(tuple(read_rows(finished_experiment)))
    for horizon in HORIZONS:
        wanted = {"horizon": horizon, "split": "test"}
        assert rows.values("raw_bias", system="constant_zero", **wanted) == {-1: 0.0}
        assert rows.values("raw_gini", system="constant_mean", **wanted) == {-1: 0.0}
        mae = rows.values("raw_mae", system="constant_zero", **wanted)[-1]
        oracle = pq.read_table(finished_experiment / "data/synthetic/oracle").column(f"oracle_{horizon}").to_numpy()
        assert mae == pytest.approx(oracle.mean(), rel=0.5)  # the mean label of 600 customers


def test_tables_say_what_the_rows_say(finished_experiment):
    text = (finished_experiment / "table.md").read_text()
    rows = Results(tuple(read_rows(finished_experiment)))
    values = list(rows.values("calibrated_gini", system="MEAN", horizon="30", split="test").values())
    (line,) = [line for line in text.split("## ")[2].splitlines() if line.startswith("| 30 | MEAN |")]
    assert f"{np.mean(values):.4f} ({np.std(values, ddof=1):.4f})" in line
    horizons = [
        list(rows.values("calibrated_gini", system="MEAN", horizon=horizon, split="test").values())
        for horizon in HORIZONS
    ]
    together = np.mean(horizons, axis=0)
    (line,) = [line for line in text.split("## ")[1].splitlines() if line.startswith("| MEAN |")]
    assert f"{together.mean():.4f} ({together.std(ddof=1):.4f})" in line
    for title in ("MEAN against the others", "Share of what is attainable", "Totals and errors", "Runtime"):
        assert f"## {title}" in text
    assert "| 30 | oracle | 100.0 % | 100.0 % | 100.0 % |" in text
    html = (finished_experiment / "report.html").read_text()
    assert "<script" not in html and "http" not in html.replace("http://www.w3.org", "")
    assert f"{np.mean(values):.4f}" in html


def test_finished_systems_are_not_run_again_and_a_lost_one_alone_is(finished_experiment, call, monkeypatch):
    ran = []
    original = runner.cells.network_predictions
    monkeypatch.setattr(runner.cells, "network_predictions", lambda *a: ran.append(a[2].name) or original(*a))
    before = read_rows(finished_experiment)
    command = ("--config=table1", f"--output={finished_experiment}", "--smoke", *SMALL_EXPERIMENT)
    assert call(experiment.main, *command)[0] == 0
    assert ran == []
    (finished_experiment / "cells/mean.json").unlink()
    assert call(experiment.main, *command)[0] == 0
    assert ran == ["mean"]
    after = read_rows(finished_experiment)
    assert {row["cell_seconds"] for row in after if row["system"] == "MEAN"} == {None}  # it was begun by another call
    runtime = (finished_experiment / "table.md").read_text().split("## Runtime")[1]
    assert "| MEAN | n/a |" in runtime and "all together" not in runtime
    for row in (*before, *after):
        row.pop("cell_seconds")
    assert after == before


def test_an_interrupted_experiment_goes_on(finished_experiment, call, monkeypatch):
    def stop(*_):
        raise runner.cells.Interrupted

    command = ("--config=table1", f"--output={finished_experiment}", "--smoke", *SMALL_EXPERIMENT)
    (finished_experiment / "cells/ziln.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(runner.cells, "network_predictions", stop)
        code, lines = call(experiment.main, *command)
    assert code == 0 and "stopped in ZILN; run the same command to go on" in lines
    assert not (finished_experiment / "cells/ziln.json").exists()
    assert call(experiment.main, *command)[0] == 0
    assert (finished_experiment / "cells/ziln.json").exists()


def test_a_signal_after_the_last_dispatch_stops_the_experiment(finished_experiment, call, tmp_path, monkeypatch):
    """The run of the moment is sealed, and no other system begins."""

    def interrupted(trainer, state):
        os.kill(os.getpid(), signal.SIGTERM)
        seal(trainer, state)

    seal = Trainer._finish
    shutil.copytree(finished_experiment / "data", tmp_path / "e/data")
    command = ("--config=table1", f"--output={tmp_path / 'e'}", "--smoke", *SMALL_EXPERIMENT)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", interrupted)
        code, lines = call(experiment.main, *command)
    assert code == 0 and "stopped in MEAN; run the same command to go on" in lines
    assert (tmp_path / "e/runs/mean/run.json").exists() and not (tmp_path / "e/runs/ziln").exists()


def test_a_process_of_its_own_knows_the_flags_that_smoke_sets(tmp_path):
    """XLA ends a process that is given a flag which it does not know."""
    say = "import atexit, os; atexit.register(lambda: print(os.environ['XLA_FLAGS']))"
    code = f"{say}; from mean_jax.cli import experiment; experiment.main()"
    command = [sys.executable, "-c", code, "--config=table1", f"--output={tmp_path / 'out'}"]
    command += ["--smoke", '--config.networks=(("MEAN", "mean"),)', "--config.peers=()"]
    ours = "--xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": ours}
    del environment["JAX_COMPILATION_CACHE_DIR"]  # so that it makes one of its own, as a user's does
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [ours, "--xla_cpu_use_fusion_emitters=false"]
    assert {row["system"] for row in read_rows(tmp_path / "out")} == {"MEAN", "oracle"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_experiment_is_complete_and_valid(name):
    spec = parse_spec(load_config(name, [], "experiments"))
    assert spec.title and spec.network_names


def test_a_curve_has_its_points_in_order(tmp_path, call):
    folder = tmp_path / "curve"
    sweep = '--config.networks=(("MEAN", "mean", "sweep.field=huber_delta", "sweep.values=(2.0, 0.5)"),)'
    code, lines = call(experiment.main, "--config=figure2", f"--output={folder}", "--smoke", sweep)
    assert code == 0, lines
    rows = read_rows(folder)
    assert {row["point"] for row in rows if row["kind"] == "network"} == {0.5, 2.0}
    table = (folder / "table.md").read_text()
    assert table.index("| 0.5 |") < table.index("| 2 |")
    assert "Huber delta" in (folder / "calibrated_percentile_mape.svg").read_text()


def test_targeting_of_a_labelled_set(tmp_path, call):
    folder = tmp_path / "targeting"
    networks = '--config.networks=(("MEAN", "mean"),)'
    code, lines = call(
        experiment.main, "--config=table4", f"--output={folder}", "--smoke", networks, "--config.peers=()"
    )
    assert code == 0, lines
    rows = read_rows(folder)
    assert {row["outcome"] for row in rows} == {"conversion rate", "amount per day"}
    oracle = [row for row in rows if row["system"] == "oracle" and row["outcome"] == "conversion rate"]
    assert all(row["difference"] > 0 for row in oracle)
    assert "The paper's A/B test" in (folder / "table.md").read_text()


def test_what_a_campaign_adds_on_randomised_data(tmp_path, call):
    """Hillstrom's layout with a made-up effect: e-mail brings visits of customers with a high history alone."""
    rng = np.random.default_rng(0)
    size = 3000
    history, arm = rng.lognormal(5.0, 1.0, size), rng.integers(0, 3, size)
    visit = rng.random(size) < 0.1 + 0.5 * (history > 500) * (arm > 0)
    spend = np.where(visit & (rng.random(size) < 0.5), history / 10, 0.0)
    columns = {
        "recency": rng.integers(1, 12, size),
        "history_segment": np.array(["low", "high"])[(history > 200).astype(int)],
        "history": history,
        "mens": rng.integers(0, 2, size),
        "womens": rng.integers(0, 2, size),
        "zip_code": rng.choice(["Urban", "Rural"], size),
        "newbie": rng.integers(0, 2, size),
        "channel": rng.choice(["Web", "Phone"], size),
        "segment": np.array(["No E-Mail", "Mens E-Mail", "Womens E-Mail"])[arm],
        "visit": visit.astype(np.int64),
        "conversion": (spend > 0).astype(np.int64),
        "spend": spend,
    }
    pq.write_table(pa.table(columns), tmp_path / "hillstrom.parquet")
    small = (
        "--config.data.name=hillstrom",
        f"--config.data.source={tmp_path / 'hillstrom.parquet'}",
        '--config.networks=(("MEAN", "mean", "model.bottom_sizes=(8,)", "model.dam_sizes=(8,)"),)',
        "--config.peers=('lightgbm_tweedie',)",
        "--config.train.batch_size=256",
        "--config.train.num_seeds=1",
        "--config.train.max_epochs=1",
    )
    code, lines = call(experiment.main, "--config=table4", f"--output={tmp_path / 'out'}", *small)
    assert code == 0, lines
    rows = read_rows(tmp_path / "out")
    assert {row["comparison"] for row in rows} == {"lift", "incremental"}
    (visits,) = [
        row
        for row in rows
        if (row["system"], row["outcome"], row["comparison"]) == ("lightgbm_tweedie", "visit", "incremental")
    ]
    assert visits["targeted"] > 0.25 > visits["random"] > 0
    assert visits["low"] < visits["difference"] < visits["high"]


def test_outcomes_that_nobody_has_are_left_out(store, monkeypatch):
    """Where all customers were active before, there is no activation to compare."""
    from mean_jax.experiments import targeting

    data = ExperimentData("x", store)
    with monkeypatch.context() as patch:
        patch.setattr(targeting, "ORDER_COUNT", "orders")  # some have 0 or 1
        assert "activation rate" in {outcome.name for outcome in targeting.split_outcomes(data, "test")}
        patch.setattr(targeting, "ORDER_COUNT", "age")  # above 1 for everybody
        names = {outcome.name for outcome in targeting.split_outcomes(data, "test")}
    assert names == {"conversion rate", "amount per day"}


def test_your_own_store(store_path, tmp_path, call):
    folder = tmp_path / "own"
    small = (
        '--config.networks=(("MEAN", "mean", "model.bottom_sizes=(8,)", "train.batch_size=64"),)',
        '--config.peers=("constant_mean", "rfm")',
        "--config.train.num_seeds=1",
        "--config.train.max_epochs=1",
        "--config.metrics=('gini',)",
    )
    code, lines = call(experiment.main, "--config=table1", f"--output={folder}", f"--data={store_path}", *small)
    assert code == 0, lines
    assert "rfm is left out" in lines
    assert {row["system"] for row in read_rows(folder)} == {"MEAN", "constant_mean"}


def test_metrics_of_the_oracle_are_those_of_its_file(finished_experiment):
    store = Store(finished_experiment / "data/store")
    rows = store.split("test")
    labels = store.schema.layout.labels_of(rows.gather(np.arange(len(rows))))[:, 0].astype(np.float64)
    oracle = pq.read_table(finished_experiment / "data/synthetic/oracle").to_pydict()
    by_id = dict(zip(oracle["customer_id"], oracle["oracle_30"], strict=True))
    values = np.array([by_id[id_] for id_ in rows.ids().to_pylist()])
    expected = point_metrics(labels, values)["gini"]
    results = Results(tuple(read_rows(finished_experiment)))
    assert results.values("raw_gini", system="oracle", horizon="30", split="test") == {-1: pytest.approx(expected)}
    assert json.loads((finished_experiment / "experiment.json").read_text())["format"] == "mean-jax experiment"
