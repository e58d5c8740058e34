"""Tests of the map over threads: order, errors, how far it runs ahead."""

import threading
import time

import pytest

from mean_jax import threads
from mean_jax.threads import map_ahead


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "available_processors", lambda: 2)


def test_order_is_that_of_the_items():
    def slow_if_even(item):
        time.sleep(0.02 * (item % 2 == 0))
        return item * item

    assert list(map_ahead(slow_if_even, range(9))) == [item * item for item in range(9)]


@pytest.mark.parametrize("num_items", [0, 1])
def test_few_items(num_items):
    assert list(map_ahead(str, range(num_items))) == [str(item) for item in range(num_items)]


def test_first_is_done_before_the_others_and_those_at_the_same_time():
    together = threading.Barrier(2, timeout=30)  # passes only if two are under way at once
    seen = []

    def meet(item):
        seen.append(item)
        if item:
            together.wait()
        return threading.get_ident()

    first, *others = map_ahead(meet, range(5))
    assert seen[0] == 0
    assert first == threading.get_ident()
    assert len(set(others)) == 2 and first not in others


def test_does_not_run_far_ahead():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = map_ahead(str, items())
    assert [next(results), next(results)] == ["0", "1"]
    assert len(taken) == 4  # the first, two that are under way and one that is ready
    results.close()
    assert len(taken) == 4


def test_first_error_in_the_order_of_the_items():
    def fail(item):
        if item == 2:
            time.sleep(0.1)
        if item in (2, 3):
            raise ValueError(f"item {item}")
        return item

    results = map_ahead(fail, range(50))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(results)


@pytest.mark.parametrize("num_good", [0, 1, 2, 3, 7])
def test_error_of_the_items_comes_after_their_results(num_good):
    def items():
        yield from range(num_good)
        raise OSError("gone")

    results = map_ahead(lambda item: time.sleep(0.02) or item, items())
    assert [next(results) for _ in range(num_good)] == list(range(num_good))
    with pytest.raises(OSError, match="gone"):
        next(results)


def test_error_of_the_items_does_not_overtake_that_of_the_function():
    def items():
        yield from (1, 2, 3)
        raise OSError("gone")

    def fail(item):
        time.sleep(0.05)
        if item == 3:
            raise ValueError("item 3")

    with pytest.raises(ValueError, match="item 3"):
        list(map_ahead(fail, items()))


def test_what_waits_is_not_begun_after_an_error():
    begun = []

    def fail(item):
        begun.append(item)
        time.sleep(0.05)
        if item == 1:
            raise ValueError("no")
        return item

    with pytest.raises(ValueError, match="no"):
        list(map_ahead(fail, range(50)))
    assert len(begun) <= 5  # both threads may have taken another one by then
