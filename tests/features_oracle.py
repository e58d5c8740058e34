"""The customer table computed a second time in plain Python, one customer at a time, to hold the expressions to it."""

from collections import Counter
from collections.abc import Sequence
import datetime
from fractions import Fraction
import itertools
import math
import statistics
from typing import Any, NamedTuple

DAY = datetime.timedelta(days=1)


class Row(NamedTuple):
    """One row of a log; `cents` is the amount in hundredths, so that sums are exact here."""

    customer: str
    time: datetime.datetime
    cents: int
    price: float | None = None
    store: str | None = None
    online: bool | None = None


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Returns the log as columns under the default names."""
    return {
        "customer_id": [row.customer for row in rows],
        "timestamp": [row.time for row in rows],
        "amount": [row.cents / 100 for row in rows],
        "price": [row.price for row in rows],
        "store": [row.store for row in rows],
        "online": [row.online for row in rows],
    }


def log_end(rows: Sequence[Row]) -> datetime.datetime:
    """Returns the instant before which every transaction is known."""
    last = max(row.time for row in rows)
    is_daily = all(row.time.time() == datetime.time() for row in rows)
    return last + DAY if is_daily else last


def customer_table(
    rows: Sequence[Row],
    days: int,
    horizons: Sequence[int],
    as_of: datetime.date | None = None,
    net: bool = True,
    sub_windows: int = 3,
) -> dict[str, dict[str, Any]]:
    """Returns the features and labels of each customer by id."""
    end_of_log = log_end(rows)
    if not net:
        rows = [row._replace(cents=max(row.cents, 0)) for row in rows]
    table = {}
    for customer in sorted({row.customer for row in rows}):
        own = sorted((row for row in rows if row.customer == customer), key=lambda row: row.time)
        end = own[0].time + days * DAY
        if as_of is not None:
            end = datetime.datetime.combine(as_of, datetime.time())
        inside = [row for row in own if end - days * DAY <= row.time < end]
        if inside and end <= end_of_log:
            table[customer] = _features(inside, end, days, sub_windows) | _labels(own, end, horizons, end_of_log)
    return table


def _features(rows: list[Row], end: datetime.datetime, days: int, sub_windows: int) -> dict[str, Any]:
    times = sorted({row.time for row in rows})
    cents = [sum(row.cents for row in rows if row.time == time) for time in times]
    gaps = [(later - earlier) / DAY for earlier, later in itertools.pairwise(times)]
    features: dict[str, Any] = {
        "order_count": len(times),
        "active_days": len({time.date() for time in times}),
        "amount_sum": sum(cents) / 100,
        "amount_mean": sum(cents) / 100 / len(cents),
        "amount_max": max(cents) / 100,
        "amount_min": min(cents) / 100,
        "amount_std": statistics.pstdev(cents) / 100,
        "amount_first": cents[0] / 100,
        "amount_last": cents[-1] / 100,
        "recency_days": (end - times[-1]) / DAY,
        "tenure_days": (times[-1] - times[0]) / DAY,
        "inter_purchase_days_mean": math.fsum(gaps) / len(gaps) if gaps else None,
        "inter_purchase_days_last": gaps[-1] if gaps else None,
        "first_month": times[0].month,
        "first_day_of_week": times[0].weekday(),
        "first_day_of_month": times[0].day,
    }
    micros = [(time - end + days * DAY) // datetime.timedelta(microseconds=1) for time in times]
    for window in range(1, sub_windows + 1):
        length = Fraction(days * DAY // datetime.timedelta(microseconds=1), sub_windows)
        part = [i for i, offset in enumerate(micros) if (window - 1) * length <= offset < window * length]
        features[f"order_count_window_{window}"] = len(part)
        features[f"amount_sum_window_{window}"] = sum(cents[i] for i in part) / 100
    prices = [row.price for row in rows if row.price is not None and not math.isnan(row.price)]
    features["price_sum"] = math.fsum(prices) if prices else None
    features["price_mean"] = math.fsum(prices) / len(prices) if prices else None
    for name in ("store", "online"):
        known = [(row.time, getattr(row, name)) for row in rows if getattr(row, name) is not None]
        counts = Counter(value for _, value in known)
        features[f"{name}_first"] = min(known)[1] if known else None
        features[f"{name}_most_frequent"] = min(counts, key=lambda v: (-counts[v], v)) if known else None
        features[f"{name}_distinct"] = len(counts)
    return features


def _labels(
    rows: list[Row], end: datetime.datetime, horizons: Sequence[int], end_of_log: datetime.datetime
) -> dict[str, float | None]:
    labels: dict[str, float | None] = {}
    for horizon in horizons:
        cents = sum(row.cents for row in rows if end <= row.time < end + horizon * DAY)
        labels[f"cltv_{horizon}"] = max(cents, 0) / 100 if end + horizon * DAY <= end_of_log else None
    return labels


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Asserts equal values, floats to 1e-9, after the same column names."""
    assert set(actual) == set(expected)
    for name, value in expected.items():
        if isinstance(value, float) and actual[name] is not None:
            assert math.isclose(actual[name], value, rel_tol=1e-9, abs_tol=1e-9), (name, actual[name], value)
        else:
            assert actual[name] == value, (name, actual[name], value)
