"""A transaction log as an Ibis table: roles of its columns, checks of its rows, one canonical form.

Everything here and in `expressions` is built from Ibis expressions that DuckDB and Spark both run, and that mean the
same in both: where their casts of text differ, a pattern says first what counts as a number or a time; NaN, which Ibis
takes for null on Spark alone, is asked for by name.
"""

import dataclasses

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from mean_jax.data.tables import missing_column
from mean_jax.errors import UserError
from mean_jax.features.engine import Engine, one_row
from mean_jax.features.spec import FLOAT32_MAX, MICROS_PER_DAY, FeatureSpec, to_datetime

# Year first: 01/02/2020 means two dates, and databases differ in what else they accept.
_TIME_OF_DAY = r"([01]\d|2[0-3]):[0-5]\d"
_ZONE = r"(Z|[+-](0\d|1[0-7])(:?[0-5]\d)?)?"
_ISO_TIME = rf"^\d{{4}}-\d{{2}}-\d{{2}}([ T]{_TIME_OF_DAY}(:[0-5]\d(\.\d{{1,9}})?)?{_ZONE})?$"
_WITHOUT_SECONDS = rf"^.{{10}}[ T]{_TIME_OF_DAY}{_ZONE}$"
_MINUTES_END = 16  # letters of 2020-12-31 23:59
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$|^(?i:nan|[+-]?inf(inity)?)$"
_BOOLEAN_WORDS = ("true", "false")


@dataclasses.dataclass(frozen=True)
class LogColumns:
    """The further columns of a log by role; `ignored` are dates and times other than the transaction's."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LogSpan:
    """What a log covers; times in microseconds since 1970, UTC.

    Attributes:
      rows: number of rows.
      customers: number of distinct ids.
      first_micros: the earliest transaction.
      last_micros: the latest transaction.
      is_daily: every transaction stands at midnight, so the log records days.
    """

    rows: int
    customers: int
    first_micros: int
    last_micros: int
    is_daily: bool

    @property
    def end_micros(self) -> int:
        """The log's end: the latest transaction, or for a daily log the end of its last day.

        Every transaction before this instant is in the log; a window is fully observed if it ends here or earlier.
        """
        return self.last_micros + (MICROS_PER_DAY if self.is_daily else 0)

    @property
    def first(self) -> str:
        """The earliest transaction as text, UTC."""
        return str(to_datetime(self.first_micros))

    @property
    def last(self) -> str:
        """The latest transaction as text, UTC."""
        return str(to_datetime(self.last_micros))


def type_text_columns(engine: Engine, raw: ir.Table, spec: FeatureSpec) -> ir.Table:
    """Returns a CSV log, read as text, with typed columns; a type depends on all values, never on a sample.

    Ids are int64 if every one is written as an integer is (so 007 stays text). Any other column is boolean if every
    value is true or false, float64 if every value is a number, else text; the time stays text here.
    """
    tests: dict[str, ir.Value] = {}
    for name in raw.columns:
        column = raw[name]
        is_number = column.re_search(_NUMBER)
        if name == spec.id_column:
            is_number = column.try_cast("int64").cast("string") == column
        tests[f"number {name}"] = (column.notnull() & ~is_number.fill_null(False)).sum()
        tests[f"boolean {name}"] = (column.notnull() & ~column.lower().isin(_BOOLEAN_WORDS)).sum()
        tests[f"filled {name}"] = column.count()
    failures = one_row(engine, raw, tests)

    typed: dict[str, ir.Value] = {}
    for name in raw.columns:
        if name == spec.time_column or not failures[f"filled {name}"]:
            continue
        if name == spec.id_column:
            typed |= {} if failures[f"number {name}"] else {name: raw[name].cast("int64")}
        elif not failures[f"boolean {name}"]:
            typed[name] = raw[name].lower() == "true"
        elif not failures[f"number {name}"]:
            typed[name] = raw[name].cast("float64")
    return raw.mutate(**typed)


def assign_roles(schema: ibis.Schema, spec: FeatureSpec, where: str) -> LogColumns:
    """Returns the roles of the further columns after checking id, time and amount.

    Args:
      schema: of the log.
      spec: names the id, time, amount and excluded columns.
      where: the log's path, for error lines.

    Raises:
      UserError: a named column is missing or of a type that cannot be used, or a further column is nested.
    """
    for flag, name in [*spec.roles(), *(("--exclude", name) for name in spec.excluded)]:
        if name not in schema:
            raise missing_column(name, flag, schema.names, where)
    if not (schema[spec.id_column].is_integer() or schema[spec.id_column].is_string()):
        raise UserError(
            f"--id_column={spec.id_column}: is of type {schema[spec.id_column]} in {where}; ids are integers or text"
        )
    time_type = schema[spec.time_column]
    if not (time_type.is_timestamp() or time_type.is_date() or time_type.is_string()):
        raise UserError(
            f"--time_column={spec.time_column}: is of type {time_type} in {where}; expected a timestamp, a date or "
            "text such as 2020-12-31 23:59:59"
        )
    numeric, categorical, ignored = [], [], []
    for name, kind in schema.items():
        if name in (spec.id_column, spec.time_column, spec.amount_column, *spec.excluded):
            continue
        if kind.is_numeric() and not kind.is_boolean():
            numeric.append(name)
        elif kind.is_string() or kind.is_boolean():
            categorical.append(name)
        elif kind.is_temporal() or kind.is_interval():
            ignored.append(name)
        else:
            raise UserError(
                f"{where}: column {name} is of type {kind}; further columns are numbers, text or booleans, "
                f"leave it out with --exclude={name}"
            )
    return LogColumns(tuple(numeric), tuple(categorical), tuple(ignored))


def check_rows(engine: Engine, raw: ir.Table, spec: FeatureSpec, columns: LogColumns, where: str) -> None:
    """Raises UserError for a log without rows, or if an id, a time, an amount or a number in a row cannot be used."""
    problems = _row_problems(raw, spec, columns)
    tests = {"rows": raw.count()}
    for i, problem in enumerate(problems):
        tests[f"wrong {i}"] = problem.is_wrong.sum()
        if raw[problem.column].type().is_string():
            tests[f"example {i}"] = raw[problem.column].min(where=problem.is_wrong)
    found = one_row(engine, raw, tests)
    if not found["rows"]:
        raise UserError(f"--transactions: {where} holds no rows; give a log with transactions")
    for i, problem in enumerate(problems):
        if found[f"wrong {i}"]:
            example = found.get(f"example {i}")
            raise UserError(
                f"{problem.subject}: {problem.what} in {found[f'wrong {i}']:,} of {found['rows']:,} rows of {where}"
                f"{f', such as {example!r}' if example else ''}; mend or drop them"
            )
    amount = raw[spec.amount_column].type()
    if not amount.is_numeric() or amount.is_boolean():
        raise UserError(f"--amount_column={spec.amount_column}: is of type {amount} in {where}; convert it to a number")


@dataclasses.dataclass(frozen=True)
class _RowProblem:
    """A condition that no row of a log may meet."""

    subject: str
    column: str
    what: str
    is_wrong: ir.BooleanValue


def _row_problems(raw: ir.Table, spec: FeatureSpec, columns: LogColumns) -> list[_RowProblem]:
    problems = []
    for flag, name in spec.roles():
        is_null = raw[name].isnull()
        if raw[name].type().is_floating():
            is_null &= ~raw[name].isnan().fill_null(False)
        problems.append(_RowProblem(f"{flag}={name}", name, "is null", is_null))
    for flag, name in [("--amount_column", spec.amount_column), *(("column", name) for name in columns.numeric)]:
        if raw[name].type().is_floating():
            is_wrong = ~raw[name].isnan() & (raw[name].abs() > FLOAT32_MAX)
            problems.append(_RowProblem(f"{flag}={name}", name, "is infinite or beyond 3.4e38", is_wrong))
    name = spec.amount_column
    if raw[name].type().is_floating():
        problems.append(_RowProblem(f"--amount_column={name}", name, "is NaN", raw[name].isnan()))
    if raw[name].type().is_string():
        is_wrong = ~raw[name].re_search(_NUMBER)
        problems.append(_RowProblem(f"--amount_column={name}", name, "is no number", is_wrong))
    name = spec.time_column
    if raw[name].type().is_string():
        is_wrong = raw[name].notnull() & parse_time(raw[name]).isnull()
        problems.append(_RowProblem(f"--time_column={name}", name, "is no ISO 8601 time", is_wrong))
    return problems


def canonical_log(engine: Engine, raw: ir.Table, spec: FeatureSpec, columns: LogColumns) -> ir.Table:
    """Returns the log with the columns id, time (UTC), micros, amount, n0.. (numeric) and c0.. (categorical).

    Short names of its own keep a user's column names out of the expressions. Amounts and numeric columns are float64,
    NaN in a numeric column is null; a negative amount is 0 unless `spec.net`.
    """
    time = parse_time(raw[spec.time_column])
    amount = raw[spec.amount_column].cast("float64")
    if not spec.net:
        amount = ibis.ifelse(amount > 0.0, amount, 0.0)
    numeric = {f"n{i}": _number_or_null(raw[name]) for i, name in enumerate(columns.numeric)}
    categorical = {f"c{i}": raw[name] for i, name in enumerate(columns.categorical)}
    return raw.select(
        id=raw[spec.id_column], time=time, micros=engine.epoch_micros(time), amount=amount, **numeric, **categorical
    )


def measure_span(engine: Engine, log: ir.Table, spec: FeatureSpec, where: str) -> LogSpan:
    """Returns what a canonical log covers.

    Raises:
      UserError: a time outside the years 1 to 9999.
    """
    found = one_row(
        engine,
        log,
        {
            "rows": log.count(),
            "customers": log.id.nunique(),
            "first": log.micros.min(),
            "last": log.micros.max(),
            "within days": (log.micros % MICROS_PER_DAY != 0).sum(),
        },
    )
    for micros in (found["first"], found["last"]):
        try:
            to_datetime(micros)
        except OverflowError:
            raise UserError(
                f"--time_column={spec.time_column}: a time lies outside the years 1 to 9999 in {where}; mend or drop it"
            ) from None
    return LogSpan(found["rows"], found["customers"], found["first"], found["last"], found["within days"] == 0)


def parse_time(column: ir.Value) -> ir.Value:
    """Returns a timestamp, date or ISO 8601 text column as UTC timestamps; other text becomes null.

    Times with an offset are converted to UTC, times without one are taken as they stand. The engine's session must be
    in UTC.
    """
    if column.type().is_string():
        # Spark reads an offset after seconds only.
        with_seconds = column.left(_MINUTES_END) + ":00" + column.substr(_MINUTES_END)
        text = ibis.ifelse(column.re_search(_WITHOUT_SECONDS), with_seconds, column)
        # Through the type with a zone: DuckDB's plain cast drops a written offset without a word.
        zoned = ibis.ifelse(column.re_search(_ISO_TIME), text, None).try_cast(dt.Timestamp(timezone="UTC"))
        return zoned.cast(dt.timestamp)
    return column.cast(dt.timestamp)


def _number_or_null(column: ir.Value) -> ir.Value:
    number = column.cast("float64")
    return ibis.ifelse(number.isnan(), None, number)
