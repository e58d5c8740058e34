"""What the tests of mean-jax-features share: a log, and the command called in this process."""

from collections.abc import Callable
import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.cli.features import main

START = datetime.datetime(2020, 1, 1)
DAY = datetime.timedelta(days=1)
Command = Callable[..., str]


def good_log(**columns: Any) -> pa.Table:
    """Returns a daily log of 4 customers over 400 days; columns replace those of the same name, None drops one."""
    log = {
        "customer_id": pa.array([3, 1, 2, 1, 4], pa.int32()),
        "timestamp": [START, START, START + DAY, START + 100 * DAY, START + 400 * DAY],
        "amount": [10.0, 20.0, 30.0, 40.0, 50.0],
        "city": ["Rome", "Oslo", "Rome", None, "Oslo"],
    }
    return pa.table({name: column for name, column in (log | columns).items() if column is not None})


@pytest.fixture
def command(call: Callable[..., tuple[int, str]]) -> Command:
    """Returns a function that runs the command and returns what it writes to standard error."""

    def run(*arguments: str, code: int = 0) -> str:
        found, error = call(main, *arguments)
        assert found == code, error
        return error

    return run


def fails(command: Command, folder: Path, *arguments: str) -> str:
    """Returns the line of a user's mistake, after checking that there is one line and that nothing was written."""
    before = sorted(folder.rglob("*"))
    error = command(*arguments, code=2)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return error


def write_log(path: Path, log: pa.Table) -> str:
    pq.write_table(log, path)
    return f"--transactions={path}"
