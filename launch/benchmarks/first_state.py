"""What the first parameters cost before the first step: drawn together, and one by one as Flax does it.

Command:  python launch/benchmarks/first_state.py [--tables=0,120] [--rounds=3]

MEAN of configs/mean.py on made-up features, four models in one program. Each round traces and compiles the drawing of
the parameters both ways, without a compilation cache; table i has 5 + 3 i values. On a CPU the compiler optimises at
level 1: with 120 tables drawn one by one it takes minutes at its usual level.
"""

from collections.abc import Callable
from pathlib import Path
import sys
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from made_up import make_program
import numpy as np
from scale_paper import table

from mean_jax.cli import common
from mean_jax.errors import UserError
from mean_jax.models.initial import init_variables

_FLAGS = flags.FlagValues()  # of this command alone
_TABLES = flags.DEFINE_list("tables", ["0", "120"], "Numbers of categorical features.", flag_values=_FLAGS)
_FEATURES = flags.DEFINE_integer("features", 600, "Numeric features.", lower_bound=1, flag_values=_FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Compilations of each.", lower_bound=1, flag_values=_FLAGS)
_HORIZONS = 4


def _seconds(init_fn: Callable[..., Any], keys_Rx2: jax.Array) -> float:
    start = time.perf_counter()
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    jax.jit(jax.vmap(init_fn)).lower(keys_Rx2).compile(compiler_options=options)
    return time.perf_counter() - start


def _line(num_tables: int) -> list[str]:
    program = make_program(_FEATURES.value, _HORIZONS, (), [3 + 3 * index for index in range(num_tables)])
    layout = program.schema.layout
    batch = layout.unpack(jnp.zeros((2, layout.num_words)), jnp.ones(2, bool))
    labels = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:1], program.label_constants)
    inputs = (batch.numeric, batch.categorical, batch.mask, labels)
    keys_Rx2 = jax.vmap(jax.random.PRNGKey)(jnp.arange(_HORIZONS))
    ways = [
        lambda key: init_variables(program.model, key, *inputs, train=False),
        lambda key: program.model.init(key, *inputs, train=False),
    ]
    seconds = np.zeros((2, _ROUNDS.value))
    for number in range(_ROUNDS.value):
        for way in (0, 1) if number % 2 else (1, 0):  # what both have to import or trace first is paid by either
            seconds[way, number] = _seconds(ways[way], keys_Rx2)
    columns = [*seconds, seconds[1] / seconds[0]]
    texts = [f"{np.median(values):.1f} ({min(values):.1f}-{max(values):.1f})" for values in columns]
    return [str(num_tables), str(len(jax.tree.leaves(program.abstract_state.replicas.variables.params))), *texts]


def _main() -> None:
    if not _TABLES.value or not all(text.isdecimal() for text in _TABLES.value):
        raise UserError(f"--tables={','.join(_TABLES.value)}: expected whole numbers")
    jax.config.update("jax_enable_compilation_cache", False)
    lines = [_line(int(text)) for text in _TABLES.value]
    print(f"Command: python launch/benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}")
    print(f"Device: {jax.devices()[0].device_kind}; jax {jax.__version__}\n")
    print(table(("tables", "parameter arrays", "seconds, together", "seconds, one by one", "times as fast"), lines))


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
