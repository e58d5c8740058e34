"""The one definition of the customer table, as Ibis expressions over a canonical log.

An order is all rows of one customer at one instant: its amount is their sum. Features describe the orders (and for
further columns the rows) inside the observation window, a half-open interval of `observation_days` times 24 hours that
begins with the customer's first transaction or, with `as_of`, ends at that date. `cltv_H` is the sum of amounts in the
H days from the window's end on. All comparisons are made on 64-bit microseconds, so no border depends on rounding.
"""

import ibis
import ibis.expr.types as ir

from mean_jax.errors import UserError
from mean_jax.features.spec import MICROS_PER_DAY, FeatureSpec, label_name
from mean_jax.features.transactions import LogColumns, LogSpan

# A float64 sum that is this small against the sum of absolute amounts is a purchase and its return: exactly 0. Else
# 0.1 + 0.2 - 0.3 would count as a customer who spent something.
_CANCELLATION = 1e-12


def customer_table(log: ir.Table, spec: FeatureSpec, span: LogSpan, columns: LogColumns) -> ir.Table:
    """Returns one row per customer whose observation window lies inside the log: id, features, labels.

    Args:
      log: as `transactions.canonical_log` returns it.
      spec: windows and horizons.
      span: what the log covers.
      columns: names of the further columns.

    Returns:
      The customer table in no particular order. Labels are net sums and may lie below 0, see `clip_labels`; null
      where the horizon ends after the log.

    Raises:
      UserError: two columns of the table would have the same name.
    """
    rows = _place_rows(log, spec, span)
    orders = _orders(rows, columns)
    in_window = orders.offset < spec.window_micros
    features = _order_features(orders, in_window, spec)
    labels = _labels(orders, spec, span)
    customers = orders.group_by("id").aggregate(**features, **_further_features(orders, in_window, columns), **labels)
    customers = customers.filter(customers.order_count > 0)
    window_rows = rows.filter(rows.offset < spec.window_micros)
    for i in range(len(columns.categorical)):
        customers = customers.left_join(_value_counts(window_rows, f"c{i}"), "id").drop("id_right")
    return _rename(customers, spec, columns, [*features], [*labels])


def clip_labels(customers: ir.Table, spec: FeatureSpec) -> ir.Table:
    """Returns the table with labels below 0 set to 0: returns of earlier purchases make no negative lifetime value."""
    labels = {label_name(horizon): customers[label_name(horizon)] for horizon in spec.horizons}
    return customers.mutate(**{name: ibis.ifelse(label < 0.0, 0.0, label) for name, label in labels.items()})


def _place_rows(log: ir.Table, spec: FeatureSpec, span: LogSpan) -> ir.Table:
    """Returns the rows that matter, with `offset`: microseconds from the start of the customer's window."""
    reach = spec.window_micros + max(spec.horizons, default=0) * MICROS_PER_DAY
    if spec.as_of_micros is not None:
        start = spec.as_of_micros - spec.window_micros
        placed = log.mutate(start=ibis.literal(start, "int64"), offset=log.micros - start)
    else:
        first = log.group_by("id").aggregate(start=log.micros.min())
        first = first.filter(first.start <= span.end_micros - spec.window_micros)
        placed = log.inner_join(first, "id")
        placed = placed.mutate(offset=placed.micros - placed.start)
    return placed.filter(placed.offset >= 0, placed.offset < reach)


def _orders(rows: ir.Table, columns: LogColumns) -> ir.Table:
    """Returns one row per customer and instant, with the time since the customer's previous order."""
    further: dict[str, ir.Value] = {}
    for i in range(len(columns.numeric)):
        further |= {f"n{i}": rows[f"n{i}"].sum(), f"n{i}_count": rows[f"n{i}"].count()}
    for i in range(len(columns.categorical)):
        further[f"c{i}"] = rows[f"c{i}"].min()
    orders = rows.group_by("id", "start", "offset").aggregate(
        time=rows.time.min(),
        amount=_sum(rows.amount, rows.amount.abs()),
        turnover=rows.amount.abs().sum(),
        **further,
    )
    previous = orders.offset.lag().over(group_by="id", order_by="offset")
    return orders.mutate(gap=orders.offset - previous)


def _order_features(orders: ir.Table, in_window: ir.BooleanValue, spec: FeatureSpec) -> dict[str, ir.Value]:
    order_count = in_window.sum()
    amount_sum = _sum(orders.amount, orders.turnover, in_window)
    first = orders.offset.min(where=in_window)
    last = orders.offset.max(where=in_window)
    first_time = orders.time.min(where=in_window)
    features = {
        "order_count": order_count,
        "active_days": orders.time.date().nunique(where=in_window),
        "amount_sum": amount_sum,
        "amount_mean": amount_sum / order_count.nullif(0),  # customers without orders are dropped only afterwards
        "amount_max": orders.amount.max(where=in_window),
        "amount_min": orders.amount.min(where=in_window),
        "amount_std": orders.amount.std(how="pop", where=in_window),
        "amount_first": orders.amount.argmin(orders.offset, where=in_window),
        "amount_last": orders.amount.argmax(orders.offset, where=in_window),
        "recency_days": (spec.window_micros - last) / MICROS_PER_DAY,
        "tenure_days": (last - first) / MICROS_PER_DAY,
        "inter_purchase_days_mean": (last - first) / (order_count - 1).nullif(0) / MICROS_PER_DAY,
        "inter_purchase_days_last": orders.gap.argmax(orders.offset, where=in_window) / MICROS_PER_DAY,
    }
    for window in range(1, spec.sub_windows + 1):
        # The borders are window * W / K; multiplied out they stay integers.
        scaled = orders.offset * spec.sub_windows
        inside = (scaled >= (window - 1) * spec.window_micros) & (scaled < window * spec.window_micros)
        features[f"order_count_window_{window}"] = inside.sum()
        features[f"amount_sum_window_{window}"] = _sum(orders.amount, orders.turnover, inside)
    return features | {
        "first_month": first_time.month(),
        "first_day_of_week": first_time.day_of_week.index(),
        "first_day_of_month": first_time.day(),
    }


def _further_features(orders: ir.Table, in_window: ir.BooleanValue, columns: LogColumns) -> dict[str, ir.Value]:
    features: dict[str, ir.Value] = {}
    for i in range(len(columns.numeric)):
        total = orders[f"n{i}"].sum(where=in_window)
        count = orders[f"n{i}_count"].sum(where=in_window)
        features |= {f"n{i}_sum": total, f"n{i}_mean": total / count.nullif(0)}
    for i in range(len(columns.categorical)):
        value = orders[f"c{i}"]
        features[f"c{i}_first"] = value.argmin(orders.offset, where=in_window & value.notnull())
    return features


def _labels(orders: ir.Table, spec: FeatureSpec, span: LogSpan) -> dict[str, ir.Value]:
    labels = {}
    start = orders.start.min()
    for horizon in spec.horizons:
        end = spec.window_micros + horizon * MICROS_PER_DAY
        inside = (orders.offset >= spec.window_micros) & (orders.offset < end)
        is_observed = start <= span.end_micros - end
        total = _sum(orders.amount, orders.turnover, inside)
        labels[label_name(horizon)] = ibis.ifelse(is_observed, total, ibis.null("float64"))
    return labels


def _value_counts(window_rows: ir.Table, column: str) -> ir.Table:
    """Returns per customer the most frequent value among the rows (the smallest of equals) and how many differ."""
    rows = window_rows.filter(window_rows[column].notnull())
    counts = rows.group_by("id", column).aggregate(count=rows.count())
    counts = counts.mutate(highest=counts["count"].max().over(group_by="id"))
    return counts.group_by("id").aggregate(
        **{
            f"{column}_most_frequent": counts[column].min(where=counts["count"] == counts.highest),
            f"{column}_distinct": counts.count(),
        }
    )


def _rename(
    customers: ir.Table, spec: FeatureSpec, columns: LogColumns, features: list[str], labels: list[str]
) -> ir.Table:
    """Returns the columns in their final order under their final names; integers are int64 on every backend."""
    names = [(spec.id_column, "id"), *((name, name) for name in features)]
    for i, column in enumerate(columns.numeric):
        names += [(f"{column}_{statistic}", f"n{i}_{statistic}") for statistic in ("sum", "mean")]
    for i, column in enumerate(columns.categorical):
        names += [(f"{column}_{part}", f"c{i}_{part}") for part in ("first", "most_frequent", "distinct")]
    names += [(name, name) for name in labels]

    output: dict[str, ir.Value] = {}
    for name, internal in names:
        if name.lower() in (known.lower() for known in output):
            raise UserError(
                f"two columns of the customer table would be called {name}; rename the log's or --exclude it"
            )
        value = customers[internal]
        is_count = internal != "id" and value.type().is_integer()
        if internal.endswith("_distinct"):
            value = value.fill_null(0)  # every value of the customer was null
        output[name] = value.cast("int64") if is_count else value
    return customers.select(**output)


def _sum(amount: ir.Value, turnover: ir.Value, where: ir.BooleanValue | None = None) -> ir.Value:
    """Returns the sum of amounts, exactly 0 where they cancel out or where there are none."""
    total = amount.sum(where=where)
    # Without rows the comparison is null, and that takes the second branch too.
    return ibis.ifelse(total.abs() > _CANCELLATION * turnover.sum(where=where), total, 0.0)
