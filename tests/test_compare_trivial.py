"""The last table of the quickstart: a model beside two predictors that need none."""

import importlib
import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import Store
from mean_jax.errors import UserError
from mean_jax.evaluation.metrics import point_metrics
from tests.conftest import LABELS

LAUNCH = Path(__file__).parents[1] / "launch"
sys.path.append(str(LAUNCH))
compare_trivial = importlib.import_module("compare_trivial")


def test_the_table_shows_the_model_and_what_needs_none(table, tmp_path, capsys):
    spend = np.random.default_rng(0).gamma(1.0, 20.0, len(table))
    pq.write_table(table.append_column("amount_sum", pa.array(spend)), tmp_path / "customers.parquet")
    prepare(str(tmp_path / "customers.parquet"), tmp_path / "store", PrepareOptions(label_columns=LABELS))
    names = point_metrics(np.ones(1), np.ones(1))
    currency = {name: {"value": None if name == "spearman" else 0.125} for name in names}
    (tmp_path / "evaluation").mkdir()
    command = ["compare_trivial.py", f"--data={tmp_path / 'store'}", f"--evaluation={tmp_path / 'evaluation'}"]
    compare_trivial._FLAGS(command)

    def shown(*horizons):
        content = {"horizons": {horizon: {"currency": currency} for horizon in horizons}}
        (tmp_path / "evaluation/metrics.json").write_text(json.dumps(content))
        compare_trivial._main()
        head, *lines = capsys.readouterr().out.splitlines()
        metrics = head.split()[2:]
        return {tuple(line.split()[:2]): dict(zip(metrics, line.split()[2:], strict=True)) for line in lines}

    found = shown("30", "365")
    assert shown("365") == {key: values for key, values in found.items() if key[0] == "365"}  # 30 was left out
    assert list(found) == [(h, name) for h in ("30", "365") for name in ("MEAN", "past_spend", "constant_mean")]
    assert found["30", "MEAN"]["gini"] == "0.1250" and found["30", "MEAN"]["spearman"] == "nan"
    store = Store(tmp_path / "store")
    label, train_label = (
        store.layout.labels_of(rows.gather(np.arange(len(rows))))[:, 1].astype(np.float64)
        for rows in map(store.split, ("test", "train"))
    )
    label = label[~np.isnan(label)]
    mean = np.nanmean(train_label)
    assert found["365", "constant_mean"]["mae"] == f"{np.abs(label - mean).mean():.4f}"
    assert found["365", "constant_mean"]["bias"] == f"{mean / label.mean():.4f}"
    assert found["30", "past_spend"]["gini"] != found["365", "past_spend"]["gini"]

    (tmp_path / "evaluation/metrics.json").write_text(json.dumps({"horizons": {"60": {"currency": currency}}}))
    with pytest.raises(UserError, match=r"(?s)^--eval.*(horizon 60.*30, 365|30, 365.*horizon 60)"):
        compare_trivial._main()
    (tmp_path / "evaluation/metrics.json").unlink()
    result = subprocess.run([sys.executable, LAUNCH / command[0], *command[1:]], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: --eval") and "does not exist" in result.stderr
