"""Past spend, RFM segments, the Markov chain and the two-stage scheme against definitions spelled out naively."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from mean_jax.errors import UserError
from mean_jax.experiments.peers import boosting, markov_chain, rfm_segments
from mean_jax.experiments.peers.forest import Imputer
from mean_jax.experiments.peers.task import Table
from mean_jax.experiments.peers.trivial import past_spend
from mean_jax.experiments.peers.two_stage import two_stage
from tests.peers_data import make_table, make_task, skip_unless_available, with_columns

TASK = make_task()
TEST = make_table(400, seed=2)


class TestPastSpend:
    def test_factor(self):
        task = with_columns(TASK, amount_sum=[10, 30, -50, np.nan], label=[4, 0, 2, 2])
        np.testing.assert_allclose(past_spend(task)(task.train), [2, 6, 0, 0])

    def test_nobody_spent(self):
        task = with_columns(TASK, amount_sum=[0, -5, np.nan], label=[1, 2, 3])
        np.testing.assert_array_equal(past_spend(task)(task.train), [0, 0, 0])


class TestRfm:
    def test_scores_of_equal_customers_are_equal(self):
        orders = np.array([1, 1, 1, 1, 1, 1, 1, 2, 3, 9])
        edges = rfm_segments.quintile_edges(orders)
        np.testing.assert_allclose(edges, [1, 2.2])  # 20, 40 and 60 % lie at 1, 80 % a fifth of the way from 2 to 3
        np.testing.assert_array_equal(rfm_segments.scores(orders, edges), [0, 0, 0, 0, 0, 0, 0, 1, 2, 2])

    def test_scores_are_quintiles_where_values_differ(self):
        value_V = np.random.default_rng(0).permutation(100) + 0.5
        score_V = rfm_segments.scores(value_V, rfm_segments.quintile_edges(value_V))
        np.testing.assert_array_equal(score_V, value_V.astype(int) // 20)

    def test_missing_values_score_0_and_move_no_edge(self):
        value_V = np.array([np.nan, 1, 2, 3, 4, 5, np.nan])
        edges = rfm_segments.quintile_edges(value_V)
        np.testing.assert_array_equal(edges, rfm_segments.quintile_edges(value_V[1:6]))
        np.testing.assert_array_equal(rfm_segments.scores(value_V, edges), [0, 0, 1, 2, 3, 4, 0])
        assert len(rfm_segments.quintile_edges(np.array([np.nan]))) == 0

    def test_prediction_by_loops(self):
        def key(table, row):
            parts = []
            for name, sign in (("recency_days", -1), ("order_count", 1), ("amount_sum", 1)):
                column = TASK.numeric_names.index(name)
                edges = np.quantile(sign * TASK.train.numeric[:, column].astype(float), [0.2, 0.4, 0.6, 0.8])
                parts.append(sum(sign * table.numeric[row, column] > edge for edge in set(edges)))
            return tuple(parts)

        segments: dict[tuple, list[float]] = {}
        for row, label in enumerate(TASK.train.label):
            segments.setdefault(key(TASK.train, row), []).append(label)
        mean = TASK.train.label.mean()
        expected = []
        for row in range(len(TEST.label)):
            labels = segments.get(key(TEST, row), [])
            expected.append((sum(labels) + 10 * mean) / (len(labels) + 10))
        np.testing.assert_allclose(rfm_segments.rfm(TASK)(TEST), expected, rtol=1e-12)
        assert len(segments) > 20


class TestMarkov:
    """Four customers over three periods: all three; the first; first and third; the second only."""

    IS_BOUGHT = np.array([[1, 1, 1], [1, 0, 0], [1, 0, 1], [0, 1, 0]], bool)
    SPEND = np.array([[10, 20, 30], [12, 0, 0], [6, 0, 9], [0, 8, 0]])
    # From state 1: 2 purchases in 5 transitions, from state 2: 1 in 2; one more transition each at the rate 3 / 7.
    PROBABILITY = (Fraction(2 * 7 + 3, 7 * 6), Fraction(1 * 7 + 3, 7 * 3))

    def task(self):
        windows = {f"order_count_window_{k + 1}": self.IS_BOUGHT[:, k] * (k + 1) for k in range(3)}
        windows |= {f"amount_sum_window_{k + 1}": self.SPEND[:, k] for k in range(3)}
        return dataclasses.replace(with_columns(TASK, **windows), observation_days=90.0, horizon_days=75.0)

    def test_states(self):
        np.testing.assert_array_equal(
            markov_chain.recency_states(self.IS_BOUGHT), [[1, 1, 1], [1, 2, 2], [1, 2, 1], [0, 1, 2]]
        )

    def test_probabilities(self):
        probability_Q = markov_chain.purchase_probabilities(self.IS_BOUGHT)
        np.testing.assert_allclose(probability_Q, [float(p) for p in self.PROBABILITY], rtol=1e-14)

    def test_no_transition_at_all(self):
        np.testing.assert_array_equal(markov_chain.purchase_probabilities(np.zeros((5, 3), bool)), [0, 0])

    def test_matrix(self):
        matrix = markov_chain.transition_matrix(np.array([0.5, 0.2, 0.1]))
        np.testing.assert_allclose(matrix, [[0.5, 0.5, 0], [0.2, 0, 0.8], [0.1, 0, 0.9]])
        np.testing.assert_allclose(markov_chain.transition_matrix(np.array([0.3])), [[1.0]])

    def test_prediction_by_hand(self):
        # Two and a half periods of 30 days; a path is a purchase or none in each period.
        p1, p2 = self.PROBABILITY
        second = {1: p1 * p1 + (1 - p1) * p2, 2: p2 * p1 + (1 - p2) * p2}
        third = {1: p1 * second[1] + (1 - p1) * second[2], 2: p2 * second[1] + (1 - p2) * second[2]}
        expected = {1: p1 + second[1] + third[1] / 2, 2: p2 + second[2] + third[2] / 2}
        mean = Fraction(95, 7)  # all spend over all periods with a purchase
        spend = [(60 + mean) / 4, (12 + mean) / 2, (15 + mean) / 3, (8 + mean) / 2]
        by_hand = [expected[1] * spend[0], expected[2] * spend[1], expected[1] * spend[2], expected[2] * spend[3]]
        task = self.task()
        np.testing.assert_allclose(
            markov_chain.markov(task)(task.train), [float(value) for value in by_hand], rtol=1e-14
        )

    def test_expected_periods_by_simulation(self):
        rng = np.random.default_rng(0)
        probability_Q = np.array([0.6, 0.3, 0.1])
        state_V = np.full(40_000, 2)
        purchases = 0
        for _ in range(6):
            is_bought_V = rng.random(40_000) < probability_Q[state_V - 1]
            purchases += is_bought_V.sum()
            state_V = np.where(is_bought_V, 1, np.minimum(state_V + 1, 3))
        expected_Q = markov_chain.expected_purchase_periods(probability_Q, 6)
        assert purchases / 40_000 == pytest.approx(expected_Q[1], abs=0.03)

    def test_horizon_within_one_period(self):
        np.testing.assert_allclose(markov_chain.expected_purchase_periods(np.array([0.4, 0.2]), 0.25), [0.1, 0.05])

    def test_returns_and_missing_windows_are_no_spend(self):
        task = self.task()
        numeric_VxC = task.train.numeric.copy()
        numeric_VxC[0, 3:] = [-10, np.nan, 30]
        numeric_VxC[1, :] = np.nan
        periods = markov_chain.read_periods(task, task.train._replace(numeric=numeric_VxC))
        np.testing.assert_array_equal(periods.spend[:2], [[0, 0, 30], [0, 0, 0]])
        np.testing.assert_array_equal(periods.is_bought[:2], [[1, 1, 1], [0, 0, 0]])

    def test_one_sub_window_is_too_few(self):
        task = with_columns(TASK, order_count_window_1=[1], amount_sum_window_1=[1], order_count_window_2=[1])
        with pytest.raises(UserError, match="at least two sub-windows"):
            markov_chain.markov(task)


class TestTwoStage:
    def test_each_stage_gets_its_rows_and_the_product_comes_out(self):
        seen = {}

        def stage(name, value):
            def fit(task):
                seen[name] = (task.train.label, task.validation.label)
                return lambda table: np.full(len(table.label), value)

            return fit

        task = with_columns(TASK, spend=[1, 2, 3], label=[0, 5, 7])
        task = dataclasses.replace(task, validation=task.train.rows(np.array([True, True, False])))
        predict = two_stage(task, stage("probability", 0.25), stage("amount", 6.0))
        np.testing.assert_array_equal(predict(task.train), [1.5] * 3)
        np.testing.assert_array_equal(seen["probability"][0], [0, 1, 1])
        np.testing.assert_array_equal(seen["probability"][1], [0, 1])
        np.testing.assert_array_equal(seen["amount"][0], [5, 7])
        np.testing.assert_array_equal(seen["amount"][1], [5])

    def test_imputer(self):
        nan = np.nan
        train = Table(
            np.array([[1, 2, nan], [3, nan, nan], [5, 8, nan]], np.float32), np.array([[2], [0], [1]]), np.zeros(3)
        )
        impute = Imputer(train)
        np.testing.assert_array_equal(impute(train), [[1, 2, 0, 0, 1, 2], [3, 5, 0, 1, 1, 0], [5, 8, 0, 0, 1, 1]])
        other = Table(np.array([[nan, nan, 4]], np.float32), np.array([[9]]), np.zeros(1))
        np.testing.assert_array_equal(impute(other), [[3, 5, 4, 1, 0, 9]])


class TestBoosting:
    def test_categories_are_no_numbers(self, monkeypatch):
        """Codes 2 and 4 spend, 3 does not: a single split parts them only if they are taken as categories."""
        skip_unless_available("lightgbm_l2")
        monkeypatch.setattr(boosting, "MAX_ROUNDS", 1)
        code_V = np.resize([2, 3, 4], 600)
        table = Table(np.zeros((600, 1), np.float32), code_V[:, None].astype(np.int32), 10.0 * (code_V != 3))
        task = dataclasses.replace(TASK, numeric_names=("x",), train=table, validation=table)
        one_split = {"objective": "regression", "num_leaves": 2, "learning_rate": 1.0, "feature_fraction": 1.0}
        np.testing.assert_allclose(boosting.boost(task, one_split)(table), table.label, atol=0.5)

    def test_validation_stops_it(self, monkeypatch):
        """Labels that are noise: nothing learnt in training carries over, so few rounds are kept."""
        skip_unless_available("lightgbm_l2")
        rng = np.random.default_rng(0)
        noise = dataclasses.replace(
            TASK,
            train=TASK.train._replace(label=rng.normal(size=500)),
            validation=TASK.validation._replace(label=rng.normal(size=250)),
        )
        stopped_V = boosting.lightgbm_l2(noise)(TEST)
        monkeypatch.setattr(boosting, "ROUNDS_WITHOUT_VALIDATION", 300)
        free_V = boosting.lightgbm_l2(dataclasses.replace(noise, validation=TASK.validation.rows(np.zeros(250, bool))))(
            TEST
        )
        assert stopped_V.std() < 0.5 * free_V.std()

    def test_many_threads_only_for_large_tables(self, monkeypatch):
        skip_unless_available("lightgbm_l2")
        import lightgbm

        threads = []
        monkeypatch.setattr(lightgbm, "train", lambda params, *args, **kwargs: threads.append(params["num_threads"]))
        boosting.lightgbm_l2(TASK)
        monkeypatch.setattr(boosting, "SINGLE_THREAD_CELLS", 500 * 14)  # TASK has 13 numeric columns and a categorical
        boosting.lightgbm_l2(TASK)
        assert threads == [1, 0]
