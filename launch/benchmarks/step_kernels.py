"""What a train step consists of on an accelerator: time, rows/s and kernels by number of models and batch size.

Command:  python launch/benchmarks/step_kernels.py [--models=1,4] [--batch_sizes=1024,4096]

MEAN on made-up numeric features, rows in the accelerator's memory as with data.placement=device. Each program is timed
over the same number of steps five times; a trace of one more dispatch counts the kernels on the streams of the device.
Products are TF32 on a GPU unless JAX_DEFAULT_MATMUL_PRECISION says otherwise. On a CPU there are no streams to count.
"""

from collections.abc import Callable
import gzip
import json
from pathlib import Path
import sys
import tempfile
import time

from absl import flags
import jax
import jax.numpy as jnp
from made_up import make_program, normal_words
import numpy as np
from scale_paper import table

from mean_jax.cli import common
from mean_jax.errors import UserError
from mean_jax.sharding import data_mesh, state_shardings
from mean_jax.training.state import make_init
from mean_jax.training.step import make_resident_dispatch

_FLAGS = flags.FlagValues()  # of this command alone
_MODELS = flags.DEFINE_list("models", ["1", "4"], "Numbers of models in one program.", flag_values=_FLAGS)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1024", "4096"], "Rows of a batch.", flag_values=_FLAGS)
_FEATURES = flags.DEFINE_integer("features", 720, "Numeric features.", lower_bound=1, flag_values=_FLAGS)
_STEPS = flags.DEFINE_integer("steps", 256, "Steps of a dispatch.", lower_bound=1, flag_values=_FLAGS)
_DISPATCHES = flags.DEFINE_integer("dispatches", 4, "Dispatches of a round.", lower_bound=1, flag_values=_FLAGS)
_ROUNDS = 5
_ROWS_PER_BATCH_ROW = 16  # resident rows, so that batches are not all the same


def stream_kernels(trace: dict) -> list[dict]:
    """Returns the kernels in a JAX trace: the finished events on the streams of a GPU."""
    events = trace["traceEvents"]
    names = {
        (event["pid"], event.get("tid") if event["name"] == "thread_name" else None): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    }
    return [
        event
        for event in events
        if event.get("ph") == "X"
        and "GPU" in names.get((event["pid"], None), "")
        and "Stream" in names.get((event["pid"], event["tid"]), "")
    ]


def _traced(run: Callable[[], None]) -> tuple[int, float]:
    """Returns how many kernels ran, and the microseconds that they took in all."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        file = next(Path(folder).rglob("*.trace.json.gz"))
        kernels = stream_kernels(json.loads(gzip.decompress(file.read_bytes())))
    return len(kernels), sum(kernel["dur"] for kernel in kernels)


def _line(num_models: int, batch_size: int) -> list[str]:
    program = make_program(_FEATURES.value, num_models, [f"train.batch_size={batch_size}"])
    layout, steps = program.schema.layout, _STEPS.value
    mesh = data_mesh(jax.devices()[:1])
    shardings = state_shardings(mesh, program.abstract_state, program.config.mesh)
    dispatch = make_resident_dispatch(program.step_rule(layout), mesh, shardings)
    words_NxW = jnp.asarray(normal_words(layout, _ROWS_PER_BATCH_ROW * batch_size))
    index = np.random.default_rng(0).integers(0, len(words_NxW), (steps, batch_size))
    index_SxB = jnp.asarray(index.astype(np.int32))
    state = make_init(program.model, program.optimizer, program.specs, program.label_constants, layout)()

    def run(count: int = 1) -> None:
        nonlocal state
        for _ in range(count):
            state, metrics = dispatch(state, words_NxW, index_SxB)
        jax.block_until_ready(metrics)

    run()  # compiles
    milliseconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run(_DISPATCHES.value)
        milliseconds.append(1e3 * (time.perf_counter() - start) / (_DISPATCHES.value * steps))
    median = float(np.median(milliseconds))
    num_kernels, busy = _traced(run)
    return [
        str(num_models),
        f"{batch_size:,}",
        f"{median:.3f} ({min(milliseconds):.3f}-{max(milliseconds):.3f})",
        f"{1e3 * batch_size / median:,.0f}",
        f"{1e3 * num_models * batch_size / median:,.0f}",
        f"{num_kernels / steps:.0f}" if num_kernels else "-",
        f"{busy / steps:.0f}" if num_kernels else "-",
    ]


def _numbers(name: str, texts: list[str]) -> list[int]:
    if not texts or not all(text.isdecimal() and int(text) > 0 for text in texts):
        raise UserError(f"--{name}={','.join(texts)}: expected whole numbers above 0")
    return [int(text) for text in texts]


def _main() -> None:
    all_models, sizes = _numbers("models", _MODELS.value), _numbers("batch_sizes", _BATCH_SIZES.value)
    lines = [_line(num_models, size) for size in sizes for num_models in all_models]
    print(f"Command: python launch/benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}")
    print(f"Device: {jax.devices()[0].device_kind}; jax {jax.__version__}; {_FEATURES.value} numeric features\n")
    head = ("models", "batch", "ms per step", "rows/s", "rows/s x models", "kernels per step", "their us per step")
    print(table(head, lines))


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
