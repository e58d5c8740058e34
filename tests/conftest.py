"""Settings of the whole suite and the small customer table, store and run that many tests share."""

import os
import tempfile

os.environ["JAX_NUM_CPU_DEVICES"] = "4"  # before JAX is imported
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far more than they compute: without optimisations and MLIR fusions the suite takes a third of the time.
os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
).strip()
# What took long to compile, no later process of the suite and no second run on the same machine compiles again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), "mean_jax_test_compilation_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.cli import experiment
from mean_jax.config import load_config, parse_config
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import Store
from mean_jax.evaluation import plots
from mean_jax.models import MODEL_CONFIGS
from mean_jax.run import Program
from mean_jax.training.loop import train

jax.config.update("jax_numpy_rank_promotion", "raise")

LABELS = ("cltv_30", "cltv_365")
# Two networks and a peer are enough where not the systems but the machinery of experiments is tested.
SMALL_EXPERIMENT = (
    '--config.networks=(("MEAN", "mean"), ("ZILN", "dnn_ziln"))',
    '--config.peers=("past_spend", "constant_mean", "constant_zero")',
)
# A model that compiles and trains in seconds, with every part of the real one.
TINY = (
    "model.bottom_sizes=(16, 8)",
    "model.num_experts=3",
    "model.expert_size=8",
    "model.dam_sizes=(8,)",
    "labels.num_buckets=4",
    "train.batch_size=64",
    "train.max_epochs=3",
    "train.steps_per_dispatch=3",
)
# The files that take longest; each runs in one process, and one begun last would leave the other processors idle.
_FIRST = ("test_processes", "test_training", "test_models", "test_crash", "test_sharding", "test_experiments")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    items.sort(key=lambda item: _FIRST.index(item.path.stem) if item.path.stem in _FIRST else len(_FIRST))


def make_table(num_rows: int = 1000, seed: int = 0) -> pa.Table:
    """Returns a customer table with every kind of column, missing values and censored labels."""
    rng = np.random.default_rng(seed)
    spend = rng.lognormal(3.0, 1.2, num_rows)
    orders = rng.poisson(1.5, num_rows)
    channel = rng.choice(["web", "shop", "app"], num_rows, p=[0.5, 0.3, 0.2])
    is_active = rng.random(num_rows) < 0.25 + 0.1 * (channel == "app")
    short = np.where(is_active, spend * rng.lognormal(0.0, 0.5, num_rows), 0.0)
    long = short + np.where(rng.random(num_rows) < 0.3, spend * rng.lognormal(0.5, 0.5, num_rows), 0.0)
    age = rng.normal(40.0, 12.0, num_rows)
    return pa.table(
        {
            "customer_id": pa.array([f"c{index:05d}" for index in range(num_rows)]),
            "spend": spend,
            "orders": orders.astype(np.int64),
            "age": pa.array(age, mask=rng.random(num_rows) < 0.2),
            "is_member": rng.random(num_rows) < 0.5,
            "channel": pa.array(channel).dictionary_encode(),
            "city": pa.array(rng.choice(["a", "b"], num_rows), mask=rng.random(num_rows) < 0.1),
            "cltv_30": short,
            "cltv_365": pa.array(long, mask=rng.random(num_rows) < 0.3),
        }
    )


def tiny_config(*overrides: str):
    """Returns the parsed tiny configuration with further overrides."""
    return parse_config(load_config("mean", [*TINY, *overrides]), MODEL_CONFIGS)


def train_tiny(store: Path, workdir: Path, *overrides: str) -> bool:
    """Trains the tiny model in this process."""
    config = tiny_config(*overrides)
    return train(lambda opened: Program(config, opened.schema, opened.transform), store, workdir)


@pytest.fixture(scope="module", autouse=True)
def small_heap(request):
    """Forgets what the long files compiled: with it every collection of garbage takes seconds in the files after."""
    yield
    if request.path.stem in _FIRST:
        jax.clear_caches()


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are made but not written as SVG, which is most of an evaluation's time here."""
    monkeypatch.setattr(plots, "inline_svg", lambda figure, name, title: "<svg></svg>")


@pytest.fixture(scope="session")
def table() -> pa.Table:
    return make_table()


@pytest.fixture(scope="session")
def table_path(table, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("table") / "customers.parquet"
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="session")
def store_path(table_path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    prepare(str(table_path), path, PrepareOptions(label_columns=LABELS))
    return path


@pytest.fixture(scope="session")
def store(store_path) -> Store:
    return Store(store_path)


@pytest.fixture(scope="session")
def program(store) -> Program:
    return Program(tiny_config(), store.schema, store.transform)


@pytest.fixture(scope="session")
def run_path(store_path, tmp_path_factory) -> Path:
    """A finished run of two seeds."""
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train_tiny(store_path, path, "train.num_seeds=2")
    return path


@pytest.fixture(scope="session")
def finished_experiment(tmp_path_factory) -> Path:
    """A finished comparison in smoke mode; a test that takes something away has it made again."""
    folder = tmp_path_factory.mktemp("experiments") / "small"
    arguments = ["mean-jax-experiment", "--config=table1", f"--output={folder}", "--smoke", *SMALL_EXPERIMENT]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # which --smoke changes
        patch.setattr("sys.argv", arguments)
        experiment.main()
    assert stopped.value.code == 0
    return folder


@pytest.fixture
def call(capsys, monkeypatch):
    """Returns a function (main, *arguments) -> (exit code, standard error) that runs a command in this process."""
    from absl import flags

    def run(main, *arguments):
        monkeypatch.setattr("sys.argv", ["mean-jax", *map(str, arguments)])
        monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # which --smoke changes
        flags.FLAGS.unparse_flags()
        for name in list(flags.FLAGS):
            flags.FLAGS[name].unparse()
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        return (0 if code is None else code), capsys.readouterr().err

    return run
