"""mean-jax-evaluate: run folder + store or labelled table -> metrics and report."""

from pathlib import Path

from absl import flags

from mean_jax.cli import common
from mean_jax.log import LOGGER

_FLAGS = flags.FlagValues()  # of this command alone
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Finished run folder of mean-jax-train.", required=True, flag_values=_FLAGS
)
_DATA = flags.DEFINE_string(
    "data",
    None,
    "Training store, or a labelled customer table (Parquet, CSV, folder or glob).",
    required=True,
    flag_values=_FLAGS,
)
_SPLIT = flags.DEFINE_enum(
    "split",
    "test",
    ["train", "validation", "test", "all"],
    "Rows to evaluate; of a customer table they are found by the hash of the id, all is for tables only.",
    flag_values=_FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder for metrics.json, bins.parquet, seeds.parquet and report.html.",
    required=True,
    flag_values=_FLAGS,
)
_NUM_RESAMPLES = flags.DEFINE_integer(
    "num_resamples",
    200,
    "Bootstrap resamples of the rows behind each 95 % interval.",
    lower_bound=2,
    flag_values=_FLAGS,
)
common.define_job_flags(_FLAGS)


def _main() -> None:
    from mean_jax.evaluation.evaluate import evaluate  # imported late so that --help answers at once

    metrics = evaluate(_WORKDIR.value, _DATA.value, _SPLIT.value, Path(_OUTPUT.value), _NUM_RESAMPLES.value)
    for horizon, spaces in metrics["horizons"].items():
        values = {name: spaces["currency"][name]["value"] for name in ("gini", "auc", "spearman", "bias")}
        line = ", ".join(f"{name} {'undefined' if value is None else f'{value:.4f}'}" for name, value in values.items())
        LOGGER.info("horizon %s: %s", horizon, line)
    LOGGER.info("report: %s", Path(_OUTPUT.value) / "report.html")


def main() -> None:
    common.run(_main, flag_values=_FLAGS)


if __name__ == "__main__":
    main()
