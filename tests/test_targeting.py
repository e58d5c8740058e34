"""Targeting by score against brute force: repeat the rows of a resample, sort them, cut them."""

import numpy as np
import pytest

from mean_jax.evaluation.targeting import compare_incremental, compare_lift, top_weights

RNG = np.random.default_rng(0)
V = 500
SCORE = RNG.normal(size=V)
OUTCOME = np.where(RNG.random(V) < 0.2 + 0.1 * (SCORE > 1), RNG.lognormal(size=V), 0.0)


def test_weights_are_those_of_the_repeated_rows():
    counts = RNG.integers(0, 4, V)
    repeated = np.repeat(np.arange(V), counts)
    size = int(0.1 * len(repeated))
    share = size / len(repeated)
    expected = np.bincount(repeated[:size], minlength=V)
    np.testing.assert_allclose(top_weights(counts, share), expected, atol=1e-9)
    assert top_weights(np.array([3, 0, 1]), 0.5).tolist() == [2, 0, 0]
    assert top_weights(np.array([1, 1, 1]), 0.5).tolist() == [1, 0.5, 0]


def test_lift_is_the_mean_of_the_top_against_the_mean_of_all():
    result = compare_lift(OUTCOME, SCORE, 0.1)
    top = np.argsort(-SCORE)[:50]
    assert result.targeted == pytest.approx(OUTCOME[top].mean())
    assert result.random == pytest.approx(OUTCOME.mean())
    assert result.difference == pytest.approx(result.targeted - result.random)
    assert result.low < result.difference < result.high


def test_targeting_everybody_is_targeting_at_random():
    result = compare_lift(OUTCOME, SCORE, 1.0)
    assert result.difference == pytest.approx(0.0, abs=1e-12) and result.high == pytest.approx(0.0, abs=1e-12)


def test_the_interval_has_the_width_of_the_sampling_error():
    """For a score that has nothing to do with the outcome: the error of a mean of the top tenth against all."""
    score, outcome = RNG.normal(size=4000), RNG.normal(size=4000)
    result = compare_lift(outcome, score, 0.1, num_resamples=1000)
    expected = 2 * 1.96 * np.sqrt(0.9 / 400)
    assert result.high - result.low == pytest.approx(expected, rel=0.15)


def test_incremental_is_treated_minus_untreated_among_the_top():
    is_treated = RNG.random(V) < 0.6
    outcome = OUTCOME + is_treated * (SCORE > 1)
    result = compare_incremental(outcome, is_treated, SCORE, 0.1)
    top = np.argsort(-SCORE)[:50]
    in_top = np.isin(np.arange(V), top)
    assert result.targeted == pytest.approx(outcome[in_top & is_treated].mean() - outcome[in_top & ~is_treated].mean())
    assert result.random == pytest.approx(outcome[is_treated].mean() - outcome[~is_treated].mean())
    assert result.targeted > 0.5 > result.random


def test_the_increment_of_targeting_everybody_is_that_of_all_in_every_resample():
    result = compare_incremental(OUTCOME, RNG.random(V) < 0.6, SCORE, 1.0)
    assert result.low == pytest.approx(0, abs=1e-12) and result.high == pytest.approx(0, abs=1e-12)


def test_nobody_treated_is_undefined_not_an_error():
    result = compare_incremental(OUTCOME, np.zeros(V, bool), SCORE, 0.1, num_resamples=10)
    assert np.isnan(result.targeted) and np.isnan(result.low)


def test_ties_are_broken_without_a_look_at_the_outcome():
    constant = np.zeros(2000)
    outcome = np.sort(RNG.lognormal(size=2000))
    result = compare_lift(outcome, constant, 0.1)
    assert result.low < 0 < result.high
