"""mean-jax-score: run folder + raw customer table -> Parquet scores."""

from pathlib import Path

from absl import flags

from mean_jax.cli import common
from mean_jax.log import LOGGER

_FLAGS = flags.FlagValues()  # of this command alone
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Finished run folder of mean-jax-train.", required=True, flag_values=_FLAGS
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "Customer table with the id and the raw feature columns: a Parquet or CSV file, a folder of them, or a glob.",
    required=True,
    flag_values=_FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder for part files and _SUCCESS; a name that ends in .parquet is one file.",
    required=True,
    flag_values=_FLAGS,
)
_ROWS_PER_PART = flags.DEFINE_integer(
    "rows_per_part",
    1 << 20,
    "Rows per part file; an interrupted job goes on after its last whole part.",
    lower_bound=1,
    flag_values=_FLAGS,
)
common.define_job_flags(_FLAGS)


def _main() -> None:
    from mean_jax.scoring.score import score  # imported late so that --help answers at once

    num_rows = score(_WORKDIR.value, _INPUT.value, Path(_OUTPUT.value), _ROWS_PER_PART.value)
    LOGGER.info("%d customers scored: %s", num_rows, _OUTPUT.value)


def main() -> None:
    common.run(_main, flag_values=_FLAGS)


if __name__ == "__main__":
    main()
