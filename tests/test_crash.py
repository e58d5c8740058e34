"""A run that is killed or stopped again and again ends as one that never was; see crash_harness.py for more kills."""

import time

import pytest

from mean_jax.run import LATEST
from mean_jax.training import checkpoints
from tests.crash_harness import Harness, Sight


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness(tmp_path_factory.mktemp("crash"))


def test_four_kills_change_nothing(harness):
    spent = harness.spend(4)
    assert [spent[kind] for kind in ("saving", "validation", "random", "sealing")] == [1, 1, 1, 1]


def test_sigterm_saves_and_ends_within_seconds(harness, tmp_path):
    run = tmp_path / "run"
    job = harness.start(run)
    while not Sight(run).saves():
        assert job.exit_code() is None, harness.log(run)
        time.sleep(0.01)
    job.terminate()
    start = time.monotonic()
    harness.wait(job, run)
    assert time.monotonic() - start < 10
    (step,) = checkpoints.sealed_steps(run / LATEST)[:1]
    assert f"SIGTERM: saved step {step} and stopped" in harness.log(run)
    harness.finish(run)
