"""Writes a public data set as one Parquet file: a transaction log for mean-jax-features, or a customer table.

The data sets that are not downloaded are read from --source, your copy of the official files.
"""

from pathlib import Path

from mean_jax.data.public import DATASETS, DEFAULT_CACHE, write_dataset


def main() -> None:
    """The command; flags --name, --output, --source, --company and --cache."""
    # Only here: as a library this package knows neither flags nor commands.
    from absl import flags

    from mean_jax.cli import common
    from mean_jax.log import LOGGER

    own = flags.FlagValues()
    name = flags.DEFINE_enum("name", None, sorted(DATASETS), "Data set.", required=True, flag_values=own)
    output = flags.DEFINE_string(
        "output",
        None,
        "Table to write: a file that ends in .parquet and does not exist.",
        required=True,
        flag_values=own,
    )
    source = flags.DEFINE_string(
        "source",
        None,
        "Your copy of the official files: a file or a folder, see the error without it.",
        flag_values=own,
    )
    company = flags.DEFINE_integer(
        "company",
        None,
        "Company of acquire_valued_shoppers; by default the first of the 20 with published results.",
        flag_values=own,
    )
    cache = flags.DEFINE_string(
        "cache", str(DEFAULT_CACHE), "Folder that keeps the downloaded packages.", flag_values=own
    )

    def write() -> None:
        path = Path(output.value)
        num_rows = write_dataset(name.value, path, source.value, Path(cache.value), company.value)
        dataset = DATASETS[name.value]
        LOGGER.info("%s: %d %s written to %s", dataset.card.title, num_rows, dataset.kind, path)
        LOGGER.info("source: %s; licence: %s", dataset.card.source, dataset.card.licence)
        for trap in dataset.card.traps:
            LOGGER.info("note: %s", trap)
        for line in dataset.recipe.commands(path):
            LOGGER.info("next: %s", line)

    common.run(write, flag_values=own)


if __name__ == "__main__":
    main()
