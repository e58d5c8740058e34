"""mean-jax-experiment: the paper's tables and figures, on public, synthetic or your own data."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shlex
import tempfile

from absl import flags

from mean_jax.cli import common
from mean_jax.config import load_config
from mean_jax.errors import UserError
from mean_jax.log import LOGGER

_SUBFOLDER = "experiments"  # of the configs
_MIN_CACHED_SECONDS = 0.2  # of a program's compilation, below which it is not kept
_FLAGS = flags.FlagValues()  # of this command alone
_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Experiment file, or the name of one that comes with mean-jax: table1, table2_3, figure2, figure3, table4 or "
    "choices. --config.SECTION.FIELD=VALUE overrides a field, e.g. --config.data.name=ta_feng.",
    required=True,
    flag_values=_FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder of the experiment, new or of an interrupted call of the same experiment; what is finished is kept.",
    required=True,
    flag_values=_FLAGS,
)
_DATA = flags.DEFINE_string(
    "data", None, "Training store of your own, in place of the experiment's data.", flag_values=_FLAGS
)
_SMOKE = flags.DEFINE_boolean(
    "smoke",
    False,
    "Run everything on a small synthetic table with tiny networks and one epoch, to see that it works; the numbers "
    "mean nothing.",
    flag_values=_FLAGS,
)


def _main(overrides: list[str]) -> None:
    # Imported late so that --help and mistakes in flags answer at once.
    from mean_jax.experiments.runner import run_experiment
    from mean_jax.experiments.spec import parse_spec, smoke

    spec = parse_spec(load_config(_CONFIG.value, overrides, _SUBFOLDER))
    if _SMOKE.value:
        if _DATA.value is not None:
            raise UserError("--smoke: makes its own small table; leave out --data or --smoke")
        spec = smoke(spec)
    with _fast_compilation() if _SMOKE.value else contextlib.nullcontext():
        is_finished = run_experiment(spec, Path(_OUTPUT.value), _DATA.value)
    if is_finished:
        LOGGER.info("tables: %s, %s", Path(_OUTPUT.value) / "table.md", Path(_OUTPUT.value) / "report.html")


@contextlib.contextmanager
def _fast_compilation() -> Iterator[None]:
    """Has JAX, not yet in use, compile fast rather than well: tiny networks compile longer than they train."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    given = os.environ.get("XLA_FLAGS", "").strip()
    if not given or given.startswith("-"):  # else it names a file of flags
        # In the libraries of jaxlib 0.10 and 0.11, which pyproject.toml allows; an unknown one would end the process.
        os.environ["XLA_FLAGS"] = f"{given} --xla_cpu_use_fusion_emitters=false".strip()
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:  # variants of a network have programs in common
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_CACHED_SECONDS)
        yield


def _config_help() -> str:
    """Returns the fields of the data and the budget with the values of table1."""
    spec = load_config("table1", subfolder=_SUBFOLDER)
    quoted = lambda value: shlex.quote(str(value).replace("'", '"'))  # noqa: E731
    fields = (
        f"  --config.{section}.{name}={quoted(value)}"
        for section in ("data", "train")
        for name, value in spec[section].items()
    )
    return "\n".join(["Fields that all experiments have, with their values in table1:", *fields])


def main() -> None:
    common.run_with_config(_main, _FLAGS, _config_help)


if __name__ == "__main__":
    main()
