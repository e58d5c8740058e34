"""The same numbers from one process and from several: training, going on with another number, evaluation, scores."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.data.append import append
from mean_jax.evaluation.evaluate import evaluate
from mean_jax.run import load_run
from mean_jax.scoring.score import score
from mean_jax.training.writers import read_metrics
from tests.conftest import TINY, train_tiny
from tests.test_step import assert_trees_close

ROOT = Path(__file__).parent.parent
CONFIG = [f"--config.{override}" for override in TINY]
SCORE_ARGUMENTS = ("--rows_per_part=150",)


def run_script(num_processes, devices_per_process, *command):
    """Runs a command as several processes with fake CPU devices; returns the finished launcher."""
    launcher = [sys.executable, str(ROOT / "launch/local_processes.py"), f"--num_processes={num_processes}"]
    launcher += [f"--devices_per_process={devices_per_process}", "--"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [*launcher, *map(str, command)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def run_job(num_processes, devices_per_process, module, *arguments, check=True):
    """Runs a command of mean-jax as `run_script` does."""
    result = run_script(num_processes, devices_per_process, sys.executable, "-m", f"mean_jax.cli.{module}", *arguments)
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def alone(store_path, tmp_path_factory):
    """A run of this process, on its four devices."""
    path = tmp_path_factory.mktemp("alone") / "run"
    assert train_tiny(store_path, path, "mesh.data=4")
    return path


@pytest.fixture(scope="module")
def together(store_path, tmp_path_factory):
    """A run of two processes with two devices each."""
    path = tmp_path_factory.mktemp("together") / "run"
    arguments = (f"--data={store_path}", f"--workdir={path}", *CONFIG)
    run_job(2, 2, "train", *arguments, "--config.mesh.replica=2")
    return path


def test_two_processes_with_two_devices_train_as_one_with_four(alone, together):
    one, two = load_run(alone), load_run(together)
    assert_trees_close(one.variables, two.variables, rtol=2e-3, atol=2e-5)
    for first, second in zip(read_metrics(alone), read_metrics(together), strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == (pytest.approx(value, rel=2e-3, abs=1e-5) if isinstance(value, float) else value)


def test_evaluation_and_scores_of_two_processes_are_those_of_one(together, store_path, table_path, tmp_path):
    run_job(2, 1, "evaluate", f"--workdir={together}", f"--data={store_path}", f"--output={tmp_path / 'two'}")
    expected = evaluate(str(together), str(store_path), "test", tmp_path / "one")
    found = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert found["rows"] == expected["rows"]
    for horizon, spaces in expected["horizons"].items():
        for space, metrics in spaces.items():
            for name, metric in metrics.items():
                value = metric["value"] if isinstance(metric, dict) else metric
                other = found["horizons"][horizon][space][name]
                other = other["value"] if isinstance(other, dict) else other
                assert other == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)), name
    outputs = {}
    score(str(together), str(table_path), tmp_path / "scores_one", rows_per_part=150)
    run_job(2, 1, "score", f"--workdir={together}", f"--input={table_path}", f"--output={tmp_path / 'scores_two'}",
            *SCORE_ARGUMENTS)  # fmt: skip
    for name in ("scores_one", "scores_two"):
        folder = tmp_path / name
        assert sorted(path.name for path in folder.iterdir()) == [
            "_SUCCESS",
            *(f"part-0000{i}.parquet" for i in range(7)),
        ]
        outputs[name] = pq.read_table(folder)
    assert outputs["scores_two"].column("customer_id").equals(outputs["scores_one"].column("customer_id"))
    for name in ("cltv_30", "cltv_365_raw", "cltv_30_percentile"):
        first, second = (outputs[folder].column(name).to_numpy() for folder in ("scores_one", "scores_two"))
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_a_job_goes_on_with_another_number_of_processes(alone, store_path, tmp_path):
    """Two processes are stopped in the middle of an epoch, one goes on: the loss curve is that of a run in one go."""
    path = tmp_path / "run"
    arguments = (f"--data={store_path}", f"--workdir={path}", *CONFIG)
    stopper = (
        "import os, signal, sys\n"
        "from mean_jax.training import loop\n"
        "from mean_jax.cli import train\n"
        "make = loop.make_feed\n"
        "def make_feed(*given):\n"
        "    feed = make(*given)\n"
        "    def stop(first):\n"
        "        for number, dispatch in enumerate(feed(first), start=1):\n"
        "            if number == 4 and os.environ['MEAN_JAX_PROCESS_ID'] == '1':\n"
        "                os.kill(os.getpid(), signal.SIGTERM)\n"
        "            yield dispatch\n"
        "    return stop\n"
        "loop.make_feed = make_feed\n"
        "train.main()\n"
    )
    script = tmp_path / "stopped_train.py"
    script.write_text(stopper)
    stopped = run_script(2, 2, sys.executable, script, *arguments)
    assert stopped.returncode == 0, stopped.stderr[-3000:]
    assert "SIGTERM: saved step" in stopped.stderr and not (path / "run.json").exists()
    assert train_tiny(store_path, path, "data.placement=device")
    assert_trees_close(load_run(alone).variables, load_run(path).variables, rtol=2e-3, atol=2e-5)


def test_a_table_can_lie_on_two_processes(alone, store_path, tmp_path):
    """And the lead alone writes a trace: two of a host would write one file."""
    path = tmp_path / "run"
    arguments = (f"--data={store_path}", f"--workdir={path}", *CONFIG)
    run_job(2, 1, "train", *arguments, "--config.mesh.model=2", "--config.mesh.min_table_rows=2", "--profile")
    assert_trees_close(load_run(alone).variables, load_run(path).variables, rtol=2e-3, atol=2e-5)
    assert len(list(path.glob("profile/**/*.xplane.pb"))) == 1


EXCHANGES = """
from absl import flags
from jax.sharding import Mesh
import jax
import numpy as np
from mean_jax import distributed, sharding
from mean_jax.cli import common

FLAGS = flags.FlagValues()
common.define_job_flags(FLAGS)


def main():
    sharding._ELEMENTS_PER_EXCHANGE = 7
    own = np.random.default_rng(jax.process_index()).normal(size=(3, 8)) * 1e9
    both = sum(np.random.default_rng(process).normal(size=(3, 8)) * 1e9 for process in range(2))
    total = sharding.sum_over_processes(own)
    assert total.dtype == np.float64
    np.testing.assert_array_equal(total, both)  # to the last bit: float32 would keep seven digits
    counts = sharding.sum_over_processes(np.arange(20, dtype=np.int64) + jax.process_index())
    np.testing.assert_array_equal(counts, 2 * np.arange(20) + 1)
    assert sharding.sum_over_processes(np.zeros((0, 3), np.float32)).shape == (0, 3)

    first = 32 * jax.process_index()
    assert sharding.own_rows(sharding.data_mesh(jax.devices()), 64) == slice(first, first + 32)
    # Two replicas, one per process: each needs all rows.
    devices = np.array(jax.devices()).reshape(2, 2, 1)
    assert sharding.own_rows(Mesh(devices, sharding.AXES), 64) == slice(0, 64)
    print("all is well", flush=True)
    distributed.barrier("the end")


common.run(main, flag_values=FLAGS)
"""


def test_what_processes_exchange_and_which_rows_are_theirs(tmp_path):
    (tmp_path / "exchanges.py").write_text(EXCHANGES)
    result = run_script(2, 2, sys.executable, tmp_path / "exchanges.py")
    assert result.returncode == 0 and result.stdout.count("all is well") == 2, result.stderr[-3000:]


@pytest.mark.parametrize(
    "flag",
    ["--config.data.placement=device", "--config.mesh.min_table_rows=7", "--data=OTHER"],
    ids=["rows", "mesh", "store"],
)
def test_processes_that_do_not_agree_are_refused(flag, store_path, table_path, tmp_path):
    name = flag.split("=")[0]
    if name == "--data":
        other = shutil.copytree(store_path, tmp_path / "other")
        table = pq.read_table(table_path).slice(0, 50)
        ids = pa.array([f"n{index}" for index in range(50)])
        pq.write_table(table.set_column(0, "customer_id", ids), tmp_path / "more.parquet")
        append(str(tmp_path / "more.parquet"), other)
        flag = f"--data={other}"
    command = f'exec "$@" $(test "$MEAN_JAX_PROCESS_ID" = 0 || echo {flag})'
    train = (sys.executable, "-m", "mean_jax.cli.train", f"--data={store_path}", f"--workdir={tmp_path / 'run'}")
    result = run_script(2, 1, "sh", "-c", command, "sh", *train, *CONFIG)
    assert result.returncode == 2 and result.stderr.count("error:") == 1, result.stderr[-3000:]
    assert f"{name}: not the same as in process 0" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_copy_of_the_run_folder_is_not_the_run_folder(together, store_path, tmp_path):
    """As on two machines without a file system in common: each would wait for ever for what the other has saved."""
    copy = shutil.copytree(together, tmp_path / "copy")
    command = f'exec "$@" $(test "$MEAN_JAX_PROCESS_ID" = 0 || echo --workdir={copy})'
    train = (sys.executable, "-m", "mean_jax.cli.train", f"--data={store_path}", f"--workdir={tmp_path / 'run'}")
    result = run_script(2, 1, "sh", "-c", command, "sh", *train, *CONFIG)
    assert result.returncode == 2 and result.stderr.count("error:") == 1, result.stderr[-3000:]
    assert f"--workdir: {copy} is not the folder that process 0 trains in" in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_process_0_says_whether_the_run_is_finished(together, store_path, tmp_path):
    """Another process may not see the last file yet."""
    script = tmp_path / "late_train.py"
    script.write_text(
        "import os\n"
        "from mean_jax import run\n"
        "from mean_jax.cli import train\n"
        "if os.environ['MEAN_JAX_PROCESS_ID'] == '1':\n"
        "    run.is_finished = lambda workdir: False\n"
        "train.main()\n"
    )
    result = run_script(2, 2, sys.executable, script, f"--data={store_path}", f"--workdir={together}", *CONFIG)
    assert result.returncode == 0 and "finished already" in result.stderr, result.stderr[-3000:]


def test_a_user_error_is_said_once(store_path, tmp_path):
    result = run_job(2, 1, "train", f"--data={store_path}", f"--workdir={tmp_path / 'run'}", *CONFIG,
                     "--config.mesh.replica=3", check=False)  # fmt: skip
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if "error:" in line] and result.stderr.count("error:") == 1
    assert "does not make the 2 devices" in result.stderr and "Traceback" not in result.stderr
