"""Where training numbers go: metrics.jsonl and TensorBoard."""

import json
from pathlib import Path
from typing import Any

from mean_jax.fileio import atomic_file

METRICS_NAME = "metrics.jsonl"


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
        import tensorboardX  # which loads PyTorch where it is installed: seconds that evaluating does without

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
