"""Where training numbers go: metrics.jsonl, TensorBoard, and a progress bar or log lines."""

import json
import logging
import math
from pathlib import Path
import sys
import time
from typing import Any

import tensorboardX
from tqdm import tqdm

from mean_jax.fileio import atomic_file
from mean_jax.log import LOGGER

METRICS_NAME = "metrics.jsonl"
_SECONDS_BETWEEN_LINES = 10.0


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, one per step and replica, without a half-written last one."""
    path = Path(folder) / METRICS_NAME
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class MetricsWriter:
    """Appends lines {"step", "epoch", "horizon", "seed", "split/term": value} and the same to TensorBoard."""

    def __init__(self, folder: Path, restored_step: int) -> None:
        """Opens the files; lines after the restored step are dropped, they will be written again."""
        path = Path(folder) / METRICS_NAME
        kept = [row for row in read_metrics(folder) if row["step"] <= restored_step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(str(folder), purge_step=restored_step + 1 if restored_step else None)

    def write(self, step: int, epoch: int, horizon: str, seed: int, values: dict[str, float]) -> None:
        """Writes the values of one replica; their names are `split/term`."""
        line = {"step": step, "epoch": epoch, "horizon": horizon, "seed": seed, **values}
        self._file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{name}/{horizon}/seed_{seed}", value, step)

    def flush(self) -> None:
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()


class Progress:
    """A bar on a terminal; one log line every so often elsewhere."""

    def __init__(self, total_rows: int, done_rows: int) -> None:
        is_terminal = sys.stderr.isatty() and LOGGER.isEnabledFor(logging.INFO)  # on the lead process alone
        self._bar = tqdm(
            total=total_rows, initial=done_rows, unit=" rows", unit_scale=True, desc="train", disable=not is_terminal
        )
        self._is_terminal = is_terminal
        self._total, self._rows = total_rows, done_rows
        self._line_time, self._line_rows = time.monotonic(), done_rows

    def update(self, num_rows: int, epoch: int, loss: float) -> None:
        """Adds trained rows; `loss` is the mean over replicas."""
        self._rows += num_rows
        self._bar.update(num_rows)
        self._bar.set_postfix(epoch=epoch, loss=f"{loss:.4f}", refresh=False)
        elapsed = time.monotonic() - self._line_time
        if not self._is_terminal and elapsed >= _SECONDS_BETWEEN_LINES:
            rate = (self._rows - self._line_rows) / elapsed
            share = 100 * self._rows / self._total
            known = f", loss {loss:.4f}" if math.isfinite(loss) else ""  # not read yet just after a start
            LOGGER.info("epoch %d, %.0f %% of the rows, %.0f rows/s%s", epoch, share, rate, known)
            self._line_time, self._line_rows = time.monotonic(), self._rows

    def close(self) -> None:
        self._bar.close()
