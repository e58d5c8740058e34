"""The batch scripts on a real Slurm: when a job queues again, and a training that goes on from its checkpoint.

The rules of launch/slurm/restarts.sh are shown with commands that end as told, one start after the other; the last test
runs mean-jax itself.
"""

import os
from pathlib import Path
import re
import sys
import time
from typing import NamedTuple

import jax
import pytest

from tests import slurm_harness
from tests.conftest import TINY

SCRIPTS = Path(__file__).parents[1] / "launch" / "slurm"
MISSING = slurm_harness.missing_programs()
NUM_TASKS = 2  # of the job that trains

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed; Debian: apt-get install slurm-wlm munge"
)


class Rule(NamedTuple):
    """What the command does at its first and at its later starts, and what becomes of the job."""

    command: str
    first: str
    later: str
    state: str
    exit_code: str  # of the job, as Slurm writes it: CODE:SIGNAL
    restarts: int


STUB = """#!/usr/bin/env bash
if [ -z "${SLURM_RESTART_COUNT:-}" ]; then
  FIRST
else
  LATER
fi
"""
FINISH = "touch run.json"
SAVE = "trap 'sleep 1; echo saved; exit 0' TERM; echo started; while true; do sleep 0.1; done"
RULES = {
    "finished": Rule("train", FINISH, "exit 1", "COMPLETED", "0:0", 0),
    "stopped": Rule("train", "exit 0", FINISH, "COMPLETED", "0:0", 1),
    "lost a peer": Rule("train", "exit 75", FINISH, "COMPLETED", "0:0", 1),
    "killed": Rule("train", "kill -KILL $$", FINISH, "COMPLETED", "0:0", 1),
    "mistake": Rule("train", "exit 2", FINISH, "FAILED", "2:0", 0),
    "crash": Rule("train", "exit 1", FINISH, "FAILED", "1:0", 0),
    "stopped forever": Rule("train", "exit 0", "exit 0", "FAILED", "1:0", 1),
    "lost a peer forever": Rule("train", "exit 75", "exit 75", "FAILED", "75:0", 1),
    "evaluated": Rule("evaluate", "exit 0", "exit 1", "COMPLETED", "0:0", 0),
    "scoring stopped": Rule("score", "exit 143", "exit 0", "COMPLETED", "0:0", 1),
}
SIGNALS = {
    "step stopped": Rule("train", SAVE, FINISH, "COMPLETED", "0:0", 1),
    "requeued": Rule("train", SAVE, FINISH, "COMPLETED", "0:0", 1),
    "cancelled": Rule("train", SAVE, FINISH, "CANCELLED", "0:0", 0),
}


@pytest.fixture(scope="module")
def cluster():
    # More processors than the machine has, for short jobs side by side.
    with slurm_harness.SlurmCluster(num_cpus=16) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def jobs(cluster, tmp_path_factory):
    """Submits every job of RULES and SIGNALS at once; returns name -> (job, its log)."""
    submitted = {}
    for name, rule in (RULES | SIGNALS).items():
        folder = tmp_path_factory.mktemp("job")
        stub = folder / f"mean-jax-{rule.command}"
        stub.write_text(STUB.replace("FIRST", rule.first).replace("LATER", rule.later))
        stub.chmod(0o755)
        environ = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "MEAN_JAX_MAX_RESTARTS": "1"}
        script = SCRIPTS / f"{rule.command}.sbatch"
        arguments = ["--workdir=."] if rule.command == "train" else []
        job = cluster.submit(folder, "--cpus-per-task=1", script, *arguments, environ=environ)
        submitted[name] = (job, folder / f"{job}.log")
    return submitted


def check(cluster, job, rule):
    info = cluster.wait(job)
    assert (info["JobState"], info["ExitCode"], int(info["Restarts"])) == (rule.state, rule.exit_code, rule.restarts)


def wait_for(log, text, timeout=30.0):
    deadline = time.monotonic() + timeout
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else f"no {log}"
        time.sleep(0.05)


@pytest.mark.parametrize("name", SIGNALS)
def test_signals(cluster, jobs, name):
    job, log = jobs[name]
    wait_for(log, "0: started")
    command = {
        "step stopped": ("scancel", "--signal=TERM", f"{job}.0"),  # as Slurm does before the time limit
        "requeued": ("scontrol", "requeue", job),  # as Slurm does for a preempted job
        "cancelled": ("scancel", job),
    }[name]
    cluster.call(*command)
    check(cluster, job, SIGNALS[name])
    wait_for(log, "0: saved")  # nobody killed the step before it was ready
    # The script asks for a restart only where Slurm does nothing itself.
    assert ("queues again" in log.read_text()) == (name == "step stopped")


@pytest.mark.parametrize("name", RULES)
def test_rules(cluster, jobs, name):
    job, log = jobs[name]
    check(cluster, job, RULES[name])
    assert ("as often as MEAN_JAX_MAX_RESTARTS allows" in log.read_text()) == ("forever" in name)


def test_training_needs_a_run_folder(cluster, tmp_path):
    job = cluster.submit(tmp_path, SCRIPTS / "train.sbatch", "--config=mean")
    info = cluster.wait(job)
    assert (info["JobState"], info["ExitCode"]) == ("FAILED", "2:0")
    assert "error: --workdir: not given; add --workdir=RUN" in (tmp_path / f"{job}.log").read_text()


def submit_command(cluster, folder, command, *arguments, num_tasks=1):
    """Submits a command of mean-jax; compiled programs of this suite serve it too."""
    cache = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    environ = {name.upper(): str(getattr(jax.config, name)) for name in cache}
    environ |= {"JAX_NUM_CPU_DEVICES": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    options = ("--cpus-per-task=1", f"--ntasks-per-node={num_tasks}", SCRIPTS / f"{command}.sbatch")
    job = cluster.submit(folder, *options, *arguments, environ=environ)
    return job, folder / f"{job}.log"


def check_completed(cluster, job, log, restarts=0):
    info = cluster.wait(job, timeout=120.0)
    assert (info["JobState"], info["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()
    assert info["Restarts"] == str(restarts)


def test_a_requeued_training_goes_on_and_serves(cluster, store_path, table_path, tmp_path):
    """Training of NUM_TASKS processes is requeued in the middle and finishes; its run is evaluated and scored."""
    max_epochs = 40
    config = [f"--config.{item}" for item in (*TINY, f"train.max_epochs={max_epochs}", f"train.patience={max_epochs}")]
    arguments = ["--config=mean", f"--data={store_path}", "--workdir=run", *config]
    job, log = submit_command(cluster, tmp_path, "train", *arguments, num_tasks=NUM_TASKS)
    wait_for(log, "epoch 2:", timeout=120.0)
    assert not (tmp_path / "run" / "run.json").exists()
    cluster.call("scontrol", "requeue", job)
    check_completed(cluster, job, log, restarts=1)
    assert (tmp_path / "run" / "run.json").exists()
    text = log.read_text()
    stopped = re.search(r"SIGTERM: saved step (\d+)", text)
    resumed = re.search(r"going on from the checkpoint at step (\d+)", text)
    assert stopped and resumed and stopped[1] == resumed[1]
    assert text.count(f"{NUM_TASKS} processes on 1 host (from SLURM)") == 2  # both starts
    # Every epoch was trained once, before or after.
    assert [int(epoch) for epoch in re.findall(r"epoch (\d+): ", text)] == list(range(1, max_epochs + 1))

    outputs = {"evaluate": (f"--data={store_path}", "metrics.json"), "score": (f"--input={table_path}", "_SUCCESS")}
    submitted = [
        submit_command(cluster, tmp_path, command, "--workdir=run", data, f"--output={command}d")
        for command, (data, _) in outputs.items()
    ]
    for (command, (_, name)), (job, log) in zip(outputs.items(), submitted, strict=True):
        check_completed(cluster, job, log)
        assert (tmp_path / f"{command}d" / name).exists()
