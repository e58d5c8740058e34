"""mean-jax-train: training store -> run folder."""

import argparse
import dataclasses
from pathlib import Path

from absl import flags

from mean_jax.cli import common
from mean_jax.config import load_config, parse_config
from mean_jax.errors import UserError
from mean_jax.log import LOGGER

_FLAGS = flags.FlagValues()  # of this command alone
_CONFIG = flags.DEFINE_string(
    "config",
    "mean",
    "Config file, or the name of one that comes with mean-jax: mean, mean_tuned, mtl_mean, dnn_ziln, mtl_ziln, odmn, "
    "mdan, optdist. "
    "--config.SECTION.FIELD=VALUE overrides a field, e.g. --config.train.learning_rate=3e-4; "
    "--config=NAME --help lists the fields of a config.",
    flag_values=_FLAGS,
)
_DATA = flags.DEFINE_string(
    "data", None, "Training store that mean-jax-prepare wrote.", required=True, flag_values=_FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Run folder to make, or to go on with where an earlier call stopped.",
    required=True,
    flag_values=_FLAGS,
)
_STRICT_RESTORE = flags.DEFINE_boolean(
    "strict_restore",
    False,
    "Refuse to go on if the newest checkpoint is damaged, rather than using the one before it.",
    flag_values=_FLAGS,
)
_PROFILE = flags.DEFINE_boolean(
    "profile", False, "Write a JAX trace of a few dispatches to WORKDIR/profile, for TensorBoard.", flag_values=_FLAGS
)
common.define_job_flags(_FLAGS)


def _main(overrides: list[str]) -> None:
    # Imported late so that --help and mistakes in flags answer at once.
    from mean_jax.models import MODEL_CONFIGS
    from mean_jax.run import Program
    from mean_jax.training.loop import train

    config = parse_config(load_config(_CONFIG.value, overrides), MODEL_CONFIGS)
    workdir = Path(_WORKDIR.value)
    finished = train(
        lambda store: Program(config, store.schema, store.transform),
        Path(_DATA.value),
        workdir,
        strict_restore=_STRICT_RESTORE.value,
        profile=_PROFILE.value,
    )
    if finished:
        LOGGER.info("run finished: %s", workdir)


def _config_help() -> str:
    """Returns every field of the configuration that --config names with its value; of the default if that is broken."""
    from mean_jax.models import MODEL_CONFIGS

    # Beside --help the other flags may be missing or wrong: they are not parsed.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-config", nargs="?", default=_CONFIG.default, const=_CONFIG.default)
    name = parser.parse_known_args()[0].config
    try:
        config = parse_config(load_config(name), MODEL_CONFIGS)
    except UserError:
        name = _CONFIG.default
        config = parse_config(load_config(name), MODEL_CONFIGS)
    lines = [f"Fields of --config={name} and their values (each has a comment in the source):"]
    for section, fields in dataclasses.asdict(config).items():
        lines += [f"  --config.{section}.{field}={value}" for field, value in fields.items()]
    return "\n".join(lines)


def main() -> None:
    common.run_with_config(_main, _FLAGS, _config_help)


if __name__ == "__main__":
    main()
