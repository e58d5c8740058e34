"""What a customer table holds, counted once it is computed and before it is written."""

import dataclasses

import ibis.expr.types as ir

from mean_jax.errors import UserError
from mean_jax.features.engine import Engine, one_row
from mean_jax.features.spec import FLOAT32_MAX, FeatureSpec, label_name
from mean_jax.features.transactions import LogColumns, LogSpan


@dataclasses.dataclass(frozen=True)
class LabelSummary:
    """One label over the written customers: how many have it, the share of zeros, the sum, how many were negative."""

    labelled: int
    zero_share: float
    total: float
    clipped: int


@dataclasses.dataclass(frozen=True)
class FeatureSummary:
    """What a run read and wrote.

    Attributes:
      span: the log's rows, customers and time span.
      customers: rows of the customer table.
      columns: its columns, the id first and the labels last.
      labels: per label column.
      constant: feature columns with the same value in every row, of no use to a model.
      too_large: largest magnitude of the columns that a 32-bit float cannot hold, by name.
      ignored: date and time columns of the log that were not used.
      begins_before_log: the window of `as_of` begins before the log does.
    """

    span: LogSpan
    customers: int
    columns: tuple[str, ...]
    labels: dict[str, LabelSummary]
    constant: tuple[str, ...]
    too_large: dict[str, float]
    ignored: tuple[str, ...]
    begins_before_log: bool


def summarise(
    engine: Engine, customers: ir.Table, spec: FeatureSpec, span: LogSpan, columns: LogColumns
) -> FeatureSummary:
    """Counts a table that `expressions.customer_table` defined, in one pass."""
    labels = [label_name(horizon) for horizon in spec.horizons]
    features = [name for name in customers.columns if name != spec.id_column and name not in labels]
    values: dict[str, ir.Value] = {"rows": customers.count()}
    for name in labels:
        label = customers[name]
        values |= {
            f"labelled {name}": label.count(),
            f"zero {name}": (label <= 0.0).sum(),
            f"clipped {name}": (label < 0.0).sum(),
            f"total {name}": label.sum(where=label > 0.0),
        }
    for name in features:
        feature = customers[name]
        values |= {f"filled {name}": feature.count(), f"varies {name}": feature.min() != feature.max()}
    floats = [name for name in customers.columns if customers[name].type().is_floating()]
    values |= {f"largest {name}": customers[name].abs().max() for name in floats}
    found = one_row(engine, customers, values)
    return FeatureSummary(
        span=span,
        customers=found["rows"],
        columns=tuple(customers.columns),
        labels={
            name: LabelSummary(
                labelled=found[f"labelled {name}"],
                zero_share=found[f"zero {name}"] / max(found[f"labelled {name}"], 1),
                total=found[f"total {name}"],
                clipped=found[f"clipped {name}"],
            )
            for name in labels
        },
        constant=tuple(
            name for name in features if not found[f"varies {name}"] and found[f"filled {name}"] in (0, found["rows"])
        ),
        # So written, NaN (the sum of two infinities) is too large as well.
        too_large={name: size for name in floats if not (size := found[f"largest {name}"]) <= FLOAT32_MAX},
        ignored=columns.ignored,
        begins_before_log=spec.as_of_micros is not None and spec.as_of_micros - spec.window_micros < span.first_micros,
    )


def check_summary(summary: FeatureSummary, spec: FeatureSpec) -> None:
    """Raises UserError if no customer or no label asked for is left, or a number is too large for a 32-bit float."""
    covered = f"the log runs from {summary.span.first} to {summary.span.last}"
    if not summary.customers and spec.as_of is None:
        raise UserError(
            f"--observation_days={spec.observation_days}: no customer is left, as no window ends inside the log; "
            f"{covered}, choose fewer days"
        )
    if not summary.customers:
        raise UserError(
            f"--as_of={spec.as_of}: no customer is left, as none has a transaction in the {spec.observation_days} days "
            f"before; {covered}, choose another date or more --observation_days"
        )
    if spec.horizons and not any(label.labelled for label in summary.labels.values()):
        raise UserError(
            f"--horizons={','.join(map(str, spec.horizons))}: the log is too short for any of them after a window of "
            f"{spec.observation_days} days; {covered}, choose shorter ones or --horizons= for a table without labels"
        )
    for name, size in summary.too_large.items():
        raise UserError(
            f"column {name} of the customer table: reaches {size:.3g}, and a 32-bit float holds no more than 3.4e38; "
            "mend the log's amounts and numbers, or give them in a larger unit"
        )
