"""What every peer promises: finite and repeatable predictions that rank, on clean and on awkward data, quietly."""

import dataclasses
from pathlib import Path
import re
import sys
import tomllib
import warnings

import numpy as np
import pytest

from mean_jax.errors import UserError
from mean_jax.evaluation.metrics import gini
from mean_jax.experiments import peers
from mean_jax.experiments.peers import PEERS, applies, forest, unavailable
from mean_jax.experiments.peers.contain import contained
from mean_jax.experiments.peers.task import PeerTask, Table
from tests.peers_data import make_table, make_task, skip_unless_available

TASK = make_task()
TEST = make_table(400, seed=2)
UNLABELLED = TEST._replace(label=np.full(400, np.nan))
CONSTANTS = ("constant_zero", "constant_mean")
LEAST_GINI = 0.75  # of all that are not constant; they reach 0.80 to 0.84
FITTED_TO_LABELS = [name for name in PEERS if name not in ("constant_zero", "markov", "bgnbd", "paretonbd")]


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setitem(forest._SETTINGS, "n_estimators", 40)


@pytest.fixture(params=PEERS)
def name(request) -> str:
    skip_unless_available(request.param)
    return request.param


@pytest.fixture(params=FITTED_TO_LABELS)
def name_of_label_user(request) -> str:
    skip_unless_available(request.param)
    return request.param


def predict(name: str, task: PeerTask, table: Table) -> np.ndarray:
    value_V = PEERS[name].fit(task)(table)
    assert value_V.dtype == np.float64
    assert value_V.shape == (len(table.numeric),)
    assert np.isfinite(value_V).all()
    return value_V


class TestPredictions:
    def test_rank_and_leave_no_trace(self, name, capsys):
        filters = list(warnings.filters)
        value_V = predict(name, TASK, UNLABELLED)
        assert gini(TEST.label, value_V) == 0 if name in CONSTANTS else gini(TEST.label, value_V) > LEAST_GINI
        assert warnings.filters == filters
        assert capsys.readouterr() == ("", "")

    def test_depend_on_the_seed_alone(self, name):
        first_V, again_V = (PEERS[name].fit(TASK)(UNLABELLED) for _ in range(2))
        np.testing.assert_array_equal(again_V, first_V)
        other_V = PEERS[name].fit(dataclasses.replace(TASK, seed=1))(UNLABELLED)
        assert np.array_equal(other_V, first_V) != PEERS[name].is_random

    def test_a_row_does_not_depend_on_the_others(self, name):
        fitted = PEERS[name].fit(TASK)
        order = np.random.default_rng(0).permutation(len(TEST.label))[:150]
        part = Table(*(column[order] for column in UNLABELLED))
        np.testing.assert_allclose(fitted(part), fitted(UNLABELLED)[order], rtol=1e-12)

    def test_missing_values_and_unseen_categories(self, name):
        rng = np.random.default_rng(0)
        holes = rng.random(TASK.train.numeric.shape) < 0.1
        train = TASK.train._replace(numeric=np.where(holes, np.float32(np.nan), TASK.train.numeric))
        numeric_VxC = UNLABELLED.numeric.copy()
        numeric_VxC[:40] = np.nan
        numeric_VxC[40:] = np.where(rng.random((360, numeric_VxC.shape[1])) < 0.1, np.nan, numeric_VxC[40:])
        codes = np.resize(np.array([0, 1, 2, 77], np.int32), (400, 1))
        predict(name, dataclasses.replace(TASK, train=train), Table(numeric_VxC, codes, UNLABELLED.label))


class TestLabels:
    @pytest.mark.parametrize("value", [0.0, 7.5])
    def test_all_equal(self, name_of_label_user, value):
        task = dataclasses.replace(
            TASK,
            train=TASK.train._replace(label=np.full(500, value)),
            validation=TASK.validation._replace(label=np.full(250, value)),
        )
        value_V = predict(name_of_label_user, task, UNLABELLED)
        if name_of_label_user != "past_spend":
            np.testing.assert_allclose(value_V, value, rtol=1e-6)

    def test_nobody_in_validation_spends(self, name_of_label_user):
        task = dataclasses.replace(TASK, validation=TASK.validation._replace(label=np.zeros(250)))
        predict(name_of_label_user, task, UNLABELLED)

    def test_no_validation(self, name_of_label_user):
        task = dataclasses.replace(TASK, validation=TASK.validation.rows(np.zeros(250, bool)))
        value_V = predict(name_of_label_user, task, UNLABELLED)
        assert name_of_label_user in CONSTANTS or gini(TEST.label, value_V) > LEAST_GINI

    @pytest.mark.parametrize("num_positive", [1, 499, 500])
    def test_few_or_all_spend(self, name_of_label_user, num_positive):
        label_V = np.where(np.arange(500) < num_positive, TASK.train.label + 1, 0)
        task = dataclasses.replace(TASK, train=TASK.train._replace(label=label_V))
        predict(name_of_label_user, task, UNLABELLED)


class TestErrors:
    def test_nothing_to_fit_on(self, name):
        task = dataclasses.replace(TASK, train=TASK.train.rows(np.zeros(500, bool)))
        with pytest.raises(UserError, match=f"^{name}: the training split has no row"):
            PEERS[name].fit(task)

    @pytest.mark.parametrize("name", ["markov", "bgnbd", "paretonbd"])
    def test_label_without_days(self, name):
        skip_unless_available(name)
        with pytest.raises(UserError, match=f"^{name}: the label's name has no number of days"):
            PEERS[name].fit(dataclasses.replace(TASK, horizon_days=None))

    def test_predictions_that_are_not_finite(self):
        fit = contained("wild", lambda task: lambda table: np.array([1.0, np.nan, -np.inf]))
        with pytest.raises(UserError, match=r"^wild: 2 of 3 predictions are not finite"):
            fit(TASK)(UNLABELLED)

    def test_noise_of_a_library_stays_inside(self, capsys):
        def make_noise():
            print("converging")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            warnings.simplefilter("ignore", FutureWarning)  # as lifetimes does
            return np.zeros(1) / np.zeros(1)

        def fit(task):
            make_noise()
            return lambda table: np.nan_to_num(make_noise())

        filters = list(warnings.filters)
        with np.errstate(all="raise"):
            np.testing.assert_array_equal(contained("noisy", fit)(TASK)(UNLABELLED), [0.0])
        assert warnings.filters == filters
        assert capsys.readouterr() == ("", "")


class TestApplies:
    def test_to_a_log(self, name):
        assert applies(name, TASK.numeric_names, 90.0) is None

    def test_to_other_tables(self):
        able = [name for name in PEERS if applies(name, ("age", "income"), None) is None]
        assert able == [
            "constant_zero",
            "constant_mean",
            "lightgbm_l2",
            "lightgbm_tweedie",
            "two_stage_forest",
            "two_stage_boosting",
        ]

    @pytest.mark.parametrize(("name", "column"), [(n, c) for n in PEERS for c in PEERS[n].columns])
    def test_names_the_column_that_is_missing(self, name, column):
        others = [other for other in TASK.numeric_names if other != column]
        assert applies(name, others, 90.0) == f"the data has no column {column}"

    @pytest.mark.parametrize("name", [name for name in PEERS if PEERS[name].needs_log])
    def test_needs_the_window(self, name):
        assert "not a transaction log" in applies(name, TASK.numeric_names, None)

    @pytest.mark.parametrize("name", [name for name in PEERS if not PEERS[name].needs_log])
    def test_runs_without_a_window(self, name):
        assert applies(name, TASK.numeric_names, None) is None
        skip_unless_available(name)
        predict(name, dataclasses.replace(TASK, observation_days=None, horizon_days=None), UNLABELLED)


class TestUnavailable:
    def test_the_extra_has_their_libraries_and_little_else(self):
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        extra = {re.match(r"[\w-]+", wanted)[0] for wanted in project["optional-dependencies"]["peers"]}
        assert extra == {"pandas", *(peer.library for peer in PEERS.values())} - {"numpy"}

    def test_numpy_is_always_there(self):
        assert unavailable("rfm") is None

    @pytest.mark.parametrize(
        ("name", "module", "library"),
        [("lightgbm_l2", "lightgbm", "lightgbm"), ("two_stage_forest", "sklearn", "scikit-learn")],
    )
    def test_not_installed(self, monkeypatch, name, module, library):
        monkeypatch.setitem(sys.modules, module, None)
        assert unavailable(name) == f'{library} is not installed; pip install "mean-jax[peers]"'

    def test_installed_but_broken(self, monkeypatch):
        def break_down(module):
            raise AttributeError(f"{module} misses something")

        monkeypatch.setattr(peers.importlib, "import_module", break_down)
        reason = 'lifetimes cannot be imported: lifetimes misses something; pip install "mean-jax[peers]"'
        assert unavailable("bgnbd") == reason
