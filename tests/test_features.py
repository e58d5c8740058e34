"""The customer table: an oracle in plain Python, invariances, windows and labels at their borders, column kinds."""

from collections.abc import Callable, Iterator, Sequence
import datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.errors import UserError
from mean_jax.features.build import define_table
from mean_jax.features.duckdb_backend import DuckDB, session
from mean_jax.features.expressions import clip_labels
from mean_jax.features.files import open_log
from mean_jax.features.spec import FeatureSpec
from mean_jax.features.transactions import LogSpan
from tests import features_oracle as oracle
from tests.features_oracle import Row

# Ibis calls a method that DuckDB 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")

Compute = Callable[..., dict[Any, dict[str, Any]]]
START = datetime.datetime(2020, 1, 30)
MICROSECOND = datetime.timedelta(microseconds=1)
DAY = oracle.DAY
# Late enough that whatever a strategy draws is observed, and with a value of every type.
LAST = Row("zz", START + 400 * DAY + MICROSECOND, 100, 1.0, "s", True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDB]:
    with session(tmp_path_factory.mktemp("scratch"), None) as opened:
        yield opened


@pytest.fixture(scope="module")
def define(engine: DuckDB, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ir.Table]:
    """Returns a function from a log, as columns or as the text of a CSV file, and a spec to the customer table."""
    folder = tmp_path_factory.mktemp("log")

    def table(log: dict[str, Any] | str, spec: FeatureSpec) -> ir.Table:
        file = folder / ("log.csv" if isinstance(log, str) else "log.parquet")
        if isinstance(log, str):
            file.write_text(log)
        else:
            pq.write_table(pa.table(log), file)
        files = open_log(str(file))
        return define_table(engine, engine.read_log(files), spec, files)[0]

    return table


@pytest.fixture(scope="module")
def compute(engine: DuckDB, define: Callable[..., ir.Table]) -> Compute:
    """Returns a function from a log and a spec's arguments to the customer table's rows by id."""

    def customers(log: dict[str, Any] | str, **options: Any) -> dict[Any, dict[str, Any]]:
        spec = FeatureSpec(**options)
        rows = engine.stream(clip_labels(define(log, spec), spec)).read_all().to_pylist()
        return {row.pop(spec.id_column): row for row in rows}

    return customers


def simple(rows: Sequence[tuple[str, Any, float]]) -> dict[str, list[Any]]:
    """Returns columns for rows of customer, time and amount."""
    ids, times, amounts = zip(*rows, strict=True)
    return {"customer_id": list(ids), "timestamp": list(times), "amount": list(amounts)}


_offsets = st.one_of(
    st.integers(0, 70).map(lambda days: days * DAY),
    st.sampled_from([0, 1, 10, 20, 30, 31])
    .map(lambda days: days * DAY - MICROSECOND)
    .filter(lambda offset: offset > 0 * DAY),
    st.integers(0, 70 * 86400).map(lambda seconds: datetime.timedelta(seconds=seconds)),
)
_rows = st.builds(
    Row,
    customer=st.just("a"),
    time=_offsets.map(lambda offset: START + offset),
    cents=st.one_of(st.integers(-3000, 9000), st.sampled_from([10, 20, -30, 0])),
    price=st.sampled_from([None, float("nan"), 0.0, 1.5, -2.25, 7.0]),
    store=st.sampled_from([None, "", "A", "a", "é", "zebra"]),
    online=st.sampled_from([None, True, False]),
)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), rows=st.lists(_rows, min_size=1, max_size=12))
@pytest.mark.parametrize(
    "options",
    [
        {"days": 30, "horizons": (10, 30)},
        {"days": 31, "horizons": (7,), "as_of": datetime.date(2020, 3, 1), "net": False, "sub_windows": 7},
    ],
    ids=["after_first", "as_of"],
)
def test_every_column_is_that_of_the_oracle_whatever_the_order_and_split(
    compute: Compute, data: st.DataObject, rows: list[Row], options: dict[str, Any]
) -> None:
    """Customer b is a in another order; c is a with one amount split over two rows of the same instant."""
    split = data.draw(st.integers(0, len(rows) - 1))
    part = data.draw(st.integers(min(0, rows[split].cents), max(0, rows[split].cents)))
    pieces = [rows[split]._replace(cents=part), Row("c", rows[split].time, rows[split].cents - part)]
    log = [
        *rows,
        *(row._replace(customer="b") for row in data.draw(st.permutations(rows))),
        *(row._replace(customer="c") for row in [*rows[:split], *pieces, *rows[split + 1 :]]),
        LAST,
    ]
    spec = {"observation_days" if name == "days" else name: value for name, value in options.items()}
    actual, expected = compute(oracle.columns(log), **spec), oracle.customer_table(log, **options)
    assert set(actual) == set(expected)
    for customer, features in expected.items():
        oracle.assert_same(actual[customer], features)
    if "a" in actual:
        oracle.assert_same(actual["b"], actual["a"])
        oracle.assert_same(actual["c"], actual["a"])


def test_columns_stand_in_order_id_features_labels(define: Callable[..., ir.Table]) -> None:
    log = oracle.columns([Row("a", START, 1, 2.0, "s", True), LAST])
    spec = FeatureSpec(sub_windows=1, horizons=(90, 30), observation_days=10)
    table = define(log, spec)
    assert table.columns == (
        *("customer_id", "order_count", "active_days"),
        *("amount_sum", "amount_mean", "amount_max", "amount_min", "amount_std", "amount_first", "amount_last"),
        *("recency_days", "tenure_days", "inter_purchase_days_mean", "inter_purchase_days_last"),
        *("order_count_window_1", "amount_sum_window_1", "first_month", "first_day_of_week", "first_day_of_month"),
        *("price_sum", "price_mean", "store_first", "store_most_frequent", "store_distinct"),
        *("online_first", "online_most_frequent", "online_distinct", "cltv_90", "cltv_30"),
    )
    kinds = {str(kind) for name, kind in table.schema().items() if name not in ("customer_id", "store_first")}
    assert kinds == {"int64", "float64", "string", "boolean"}


def test_windows_are_half_open_to_the_microsecond(compute: Compute) -> None:
    end = START + 90 * DAY
    rows = [("a", START, 1.0), ("a", end - MICROSECOND, 2.0), ("a", end, 4.0)]
    rows += [("a", end + 30 * DAY - MICROSECOND, 8.0), ("a", end + 30 * DAY, 16.0), ("z", START + 500 * DAY, 1.0)]
    customer = compute(simple(rows), horizons=(30, 31))["a"]
    assert customer["amount_sum"] == 3.0
    assert (customer["cltv_30"], customer["cltv_31"]) == (12.0, 28.0)


def test_a_sub_window_border_belongs_to_the_later_part(compute: Compute) -> None:
    rows = [("a", START, 1.0), ("a", START + 3 * DAY - MICROSECOND, 2.0), ("a", START + 3 * DAY, 4.0)]
    customer = compute(simple([*rows, ("z", START + 99 * DAY, 1.0)]), observation_days=9, horizons=())["a"]
    assert [customer[f"amount_sum_window_{i}"] for i in (1, 2, 3)] == [3.0, 4.0, 0.0]
    assert [customer[f"order_count_window_{i}"] for i in (1, 2, 3)] == [2, 1, 0]


@pytest.mark.parametrize(("last_day", "is_observed"), [(39, True), (38, False)])
def test_a_daily_log_ends_with_its_last_day(compute: Compute, last_day: int, is_observed: bool) -> None:
    days = [START.date(), START.date() + last_day * DAY]
    table = compute(simple([("a", days[0], 1.0), ("b", days[1], 1.0)]), observation_days=10, horizons=(30, 1))
    assert set(table) == {"a"}
    assert table["a"]["cltv_1"] == 0.0
    assert table["a"]["cltv_30"] == (0.0 if is_observed else None)


@pytest.mark.parametrize(("lag", "is_observed"), [(0 * DAY, True), (-MICROSECOND, False)])
def test_a_log_with_times_of_day_ends_with_its_last_transaction(
    compute: Compute, lag: datetime.timedelta, is_observed: bool
) -> None:
    start = START + 9 * datetime.timedelta(hours=1)
    log = simple([("a", start, 1.0), ("b", start + 40 * DAY + lag, 5.0)])
    customer = compute(log, observation_days=10, horizons=(30, 1))["a"]
    assert customer["cltv_30"] == (0.0 if is_observed else None)


def test_customers_without_a_whole_window_are_left_out(compute: Compute) -> None:
    log = simple(
        [("a", START, 1.0), ("b", START + DAY, 1.0), ("c", START + 2 * DAY, 1.0), ("d", START + 11 * DAY, 1.0)]
    )
    assert set(compute(log, observation_days=10, horizons=())) == {"a", "b", "c"}


def test_as_of_takes_customers_with_a_transaction_in_the_window(compute: Compute) -> None:
    log = simple(
        [
            *(("a", START, 1.0), ("a", START + 20 * DAY, 2.0), ("b", START, 4.0), ("c", START + 30 * DAY, 8.0)),
            *(("d", START + 29 * DAY, 16.0), ("d", START + 31 * DAY, 32.0)),
        ]
    )
    as_of = (START + 30 * DAY).date()
    table = compute(log, observation_days=10, horizons=(1, 2, 3), as_of=as_of)
    assert set(table) == {"a", "d"}
    assert table["a"]["amount_sum"] == 2.0
    assert (table["d"]["cltv_1"], table["d"]["cltv_2"], table["d"]["cltv_3"]) == (0.0, 32.0, None)
    assert table["a"]["inter_purchase_days_last"] is None, "the order before the window does not count"


def test_returns_are_netted_or_taken_as_zero(compute: Compute) -> None:
    end = START + 10 * DAY
    rows = [("a", START, 50.0), ("a", START, -20.0), ("a", START + DAY, -10.0), ("a", end, 5.0), ("a", end + DAY, -7.0)]
    log = simple([*rows, ("z", end + 60 * DAY, 1.0)])
    net = compute(log, observation_days=10, horizons=(30,))["a"]
    assert (net["amount_sum"], net["amount_first"], net["amount_min"], net["cltv_30"]) == (20.0, 30.0, -10.0, 0.0)
    gross = compute(log, observation_days=10, horizons=(30,), net=False)["a"]
    assert (gross["amount_sum"], gross["amount_first"], gross["amount_min"], gross["cltv_30"]) == (50.0, 50.0, 0.0, 5.0)
    assert net["order_count"] == gross["order_count"] == 2


def test_a_purchase_and_its_return_cancel_to_exactly_zero(compute: Compute) -> None:
    """0.1 + 0.2 - 0.3 is 5.6e-17 in floating point, which would count as a customer who spent something."""
    end = START + 10 * DAY
    rows = [("a", START, 1.0), *(("a", end + i * DAY, amount) for i, amount in enumerate((0.1, 0.2, -0.3)))]
    customer = compute(simple([*rows, ("z", end + 60 * DAY, 1.0)]), observation_days=10, horizons=(30,))["a"]
    assert customer["cltv_30"] == 0.0


def test_times_are_read_in_utc_in_every_form(compute: Compute) -> None:
    """The same instants as naive and zoned timestamps of every unit and as text give the same table."""
    instants = [datetime.datetime(2020, 1, 1, 23, 30), datetime.datetime(2020, 1, 2, 1, 0), START + 300 * DAY]
    text = ["2020-01-02T01:30:00+02:00", "2020-01-02 01:00", "2020-11-25T00:00:00.0Z"]
    forms = [pa.array(instants, pa.timestamp(unit, zone)) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC")]
    forms += [pa.array(instants, pa.timestamp("us", "UTC")).cast(pa.timestamp("us", "America/New_York"))]
    forms += [pa.array(text), pa.array(text).dictionary_encode()]
    ids, amounts = ["a", "a", "z"], pa.array(["1.5", "2", "1"]).cast(pa.decimal128(9, 2))
    tables = [compute({"customer_id": ids, "timestamp": form, "amount": amounts}, horizons=(30,)) for form in forms]
    assert tables[0]["a"]["active_days"] == 2
    assert tables[0]["a"]["tenure_days"] == 1.5 / 24
    assert all(table == tables[0] for table in tables)


def test_times_before_1970_are_exact(compute: Compute) -> None:
    start = datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000)
    customer = compute(simple([("a", start, 1.0), ("a", start + DAY, 1.0), ("z", START, 1.0)]))["a"]
    assert (customer["tenure_days"], customer["first_month"], customer["first_day_of_week"]) == (1.0, 12, 2)


def test_further_columns_by_type(compute: Compute) -> None:
    count = 3
    log = simple([("a", START, 1.0), ("a", START + DAY, 1.0), ("z", START + 300 * DAY, 1.0)]) | {
        "small": pa.array([1, None, 3], pa.int8()),
        "money": pa.array(["1.10", "2.20", "0"]).cast(pa.decimal128(12, 2)),
        "ratio": [float("nan"), 0.5, 0.7],  # no null beside the NaN: DuckDB would look no further
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "empty": pa.array([None] * count, pa.string()),
        "shipped": pa.array([START] * count),
        "order number": pa.array(["q"] * count),
        "nested": pa.array([[1]] * count),
    }
    customer = compute(log, horizons=(), excluded=("nested", "order number"))["a"]
    assert (customer["small_sum"], customer["small_mean"], round(customer["money_sum"], 9)) == (1.0, 1.0, 3.3)
    assert (customer["ratio_sum"], customer["ratio_mean"]) == (0.5, 0.5)
    assert (customer["kind_first"], customer["kind_most_frequent"], customer["kind_distinct"]) == ("x", "x", 2)
    assert (customer["empty_first"], customer["empty_most_frequent"], customer["empty_distinct"]) == (None, None, 0)
    assert not any("shipped" in name or "nested" in name or "order number" in name for name in customer)


def test_among_equals_the_smallest_value_is_taken(compute: Compute) -> None:
    """First value of an instant with two, and most frequent of two in as many rows: by code point, not by row order."""
    log = simple([("a", START, 1.0), ("a", START, 1.0), ("z", START + 300 * DAY, 1.0)])
    for cities in (["b", "C", ""], ["C", "b", ""]):
        customer = compute(log | {"city": cities}, horizons=())["a"]
        assert (customer["city_first"], customer["city_most_frequent"], customer["city_distinct"]) == ("C", "C", 2)


def test_awkward_column_names_are_kept(compute: Compute) -> None:
    """Names that the expressions use themselves, quotes, spaces and letters beyond ASCII."""
    log = {"id": [1, 2], "time": [START, START + 300 * DAY], 'the "net" €': [1.0, 2.0]}
    log |= {"micros": [1, 2], "c0": ["u", "v"], "start": ["u", "v"], "offset": [1.0, 2.0]}
    table = compute(log, id_column="id", time_column="time", amount_column='the "net" €', horizons=(30,))
    assert (table[1]["micros_sum"], table[1]["c0_first"], table[1]["offset_mean"]) == (1.0, "u", 1.0)


def test_two_columns_of_one_name_are_refused(compute: Compute) -> None:
    log = {"customer_id": [1, 2], "timestamp": [START, START + 300 * DAY], "paid": [1.0, 2.0], "Amount": [1.0, 2.0]}
    with pytest.raises(UserError, match="would be called Amount_sum"):
        compute(log, amount_column="paid")


def test_csv_columns_get_their_type_from_all_values(compute: Compute) -> None:
    header = "customer_id,timestamp,amount,flag,size,mixed,none\n"
    rows = ["7,2020-01-01,1,TRUE,1,1,", "7,2020-01-02,2.5,,,2,", "12,2021-01-01,1e0,false,2,x,"]
    customer = compute(header + "\n".join(rows))[7]
    assert (customer["amount_sum"], customer["flag_first"], customer["size_sum"]) == (3.5, True, 1.0)
    assert (customer["mixed_first"], customer["none_first"]) == ("1", None)
    assert "007" in compute(header + "\n".join(["00" + rows[0], *rows[1:]])), "an id written so is text"


@pytest.mark.parametrize(("is_daily", "end"), [(True, 86_400_000_005), (False, 5)])
def test_log_end(is_daily: bool, end: int) -> None:
    assert LogSpan(rows=1, customers=1, first_micros=0, last_micros=5, is_daily=is_daily).end_micros == end
