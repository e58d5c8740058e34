"""Rows/s of MEAN's train step on this machine, against PyTorch and against the machine's matrix products.

Command:  python launch/benchmarks/train_step.py

On the CPU, or on a GPU if JAX and PyTorch see one; both compute products in TF32 there. One replica, one horizon, Adam,
float32, standard-encoded numeric features: dispatches of S steps as training runs them. In every round each contender
runs once after the other, so a load that comes and goes hits all alike; a ratio is the median over the rounds, with the
smallest and the largest. PyTorch (extra [bench]) computes the same model, which
is checked first on a whole dispatch. The ceiling is the time of the step's own matrix products as an XLA program of
nothing else; mixing the experts and weighting the buckets, 0.3 % of the FLOP, are left out of it. The store has just
been written, so its reads come from the page cache.
"""

from collections.abc import Callable, Iterator
import importlib.metadata
import importlib.util
import itertools
import os
from pathlib import Path
import platform
import sys
import tempfile
import time
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
from made_up import make_program, normal_words
import numpy as np

from mean_jax.cli import common
from mean_jax.data.pipeline import plan_epoch, train_dispatches
from mean_jax.data.store import Shard, SplitRows
from mean_jax.errors import UserError
from mean_jax.run import Program
from mean_jax.sharding import data_mesh, state_shardings
from mean_jax.training.state import TrainState, make_init
from mean_jax.training.step import make_dispatch

_NUM_FEATURES = flags.DEFINE_integer("num_features", 720, "Numeric features F.", lower_bound=1)
_NUM_ROWS = flags.DEFINE_integer("num_rows", 50_000, "Rows of the store on disk.", lower_bound=16 * 1024)
_NUM_HORIZONS = flags.DEFINE_integer("num_horizons", 4, "Replicas of the line with several models.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds over all contenders.", lower_bound=1)
_COMPILED = flags.DEFINE_boolean("compiled", True, "Also torch.compile, which needs a C++ compiler and a minute.")


class _Kind(NamedTuple):
    """What differs between the devices that this runs on."""

    num_dispatches: int  # timed per round
    square_size: int  # of a product that keeps the device busy
    loss_tolerance: float  # relative: sums in another order, and TF32's 10 bits of fraction
    torch_device: str
    torch_modes: dict[str, str | None]  # of torch.compile, per contender


_CPU = _Kind(2, 2048, 1e-4, "cpu", {"PyTorch eager": None, "PyTorch compiled": "default"})
_GPU = _Kind(50, 8192, 2e-3, "cuda", {**_CPU.torch_modes, "PyTorch compiled, CUDA graphs": "reduce-overhead"})

Contender = Callable[[int], None]  # runs that many dispatches to their end


def _kind() -> _Kind:
    return _CPU if jax.default_backend() == "cpu" else _GPU


def _single_state(program: Program) -> TrainState:
    layout = program.schema.layout
    return make_init(program.model, program.optimizer, program.specs[:1], program.label_constants, layout)()


def _dispatch_of(program: Program) -> Callable[[TrainState, Any], tuple[TrainState, Any]]:
    mesh = data_mesh(jax.devices()[:1])
    shardings = state_shardings(mesh, program.abstract_state, program.config.mesh)
    return make_dispatch(program.step_rule(program.schema.layout), mesh, shardings)


def _jax_contender(program: Program, state: TrainState, dispatches: Iterator[jax.Array | np.ndarray]) -> Contender:
    dispatch = _dispatch_of(program)

    def run(count: int) -> None:
        nonlocal state
        for words_SxBxW in itertools.islice(dispatches, count):
            state, metrics = dispatch(state, words_SxBxW)
        jax.block_until_ready(metrics)

    return run


def _products(program: Program) -> list[tuple[int, int, int]]:
    """Returns (rows, inputs, outputs) of every product x @ w in the forward pass, the one on the features first."""
    model, num_buckets, batch = program.config.model, program.config.labels.num_buckets, program.config.train.batch_size
    size, width = model.expert_size, model.bottom_sizes[-1]
    stacks = ((len(program.schema.numeric), *model.bottom_sizes), (width, *model.dam_sizes, num_buckets))
    products = [(batch, *pair) for stack in stacks for pair in itertools.pairwise(stack)]
    products += [(batch, width, model.num_experts * size), (batch, width, num_buckets * model.num_experts)]
    products += [(batch * num_buckets, size, size), (batch * num_buckets, size, num_buckets), (batch, size, 1)]
    return products


def _num_flop(program: Program) -> int:
    """Returns the FLOP of the step's matrix products: three per layer, but no gradient by the features."""
    flop = [2 * int(np.prod(shape)) for shape in _products(program)]
    return 3 * sum(flop) - flop[0]


def _products_contender(program: Program) -> Contender:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    operands = [(normal(b, i), normal(i, o), normal(b, o)) for b, i, o in _products(program)]

    @jax.jit
    def products(operands: list[tuple[jax.Array, jax.Array, jax.Array]]) -> list[jax.Array]:
        forward = [x @ w for x, w, _ in operands]
        return forward + [x.T @ g for x, _, g in operands] + [g @ w.T for _, w, g in operands[1:]]

    def run(count: int) -> None:
        for _ in range(count * program.config.train.steps_per_dispatch):
            done = products(operands)
        jax.block_until_ready(done)

    return run


def _square_contender() -> Contender:
    size = _kind().square_size
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32))
    square = jax.jit(lambda a: a @ a)

    def run(count: int) -> None:
        for _ in range(count):
            done = square(a)
        jax.block_until_ready(done)

    return run


def _torch_contenders(program: Program, words_SxBxW: np.ndarray) -> dict[str, Contender]:
    """Returns the peers, after checking that they compute the losses of our dispatch from the same parameters.

    Raises:
      UserError: they do not.
    """
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, so its lines are left out: pip install -e '.[bench]'\n")
        return {}
    import mean_torch
    import torch

    if _kind().torch_device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU and JAX does: install its CUDA build, or set JAX_PLATFORMS=cpu")
    dispatch = _dispatch_of(program)
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0]), _single_state(program).replicas.variables.params)
    _, metrics = dispatch(_single_state(program), words_SxBxW)
    expected = float(metrics["total"][0])
    contenders: dict[str, Contender] = {}
    for name, mode in _kind().torch_modes.items():
        if mode and not _COMPILED.value:
            continue
        trainer = mean_torch.TorchTrainer(program, params, os.cpu_count() or 1, mode, _kind().torch_device)
        words = trainer.place(words_SxBxW)
        loss = trainer.dispatch(words)
        if not abs(loss - expected) <= _kind().loss_tolerance * abs(expected):
            raise UserError(f"{name}: mean loss {loss} of the first dispatch, expected {expected} as in JAX")

        def run(count: int, trainer: mean_torch.TorchTrainer = trainer, words: Any = words) -> None:
            for _ in range(count):
                trainer.dispatch(words)

        contenders[name] = run
    return contenders


def _measure(contenders: dict[str, Contender]) -> dict[str, np.ndarray]:
    """Returns the seconds per dispatch of every round; each contender first runs one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender(1)  # compiles
    for _ in range(_ROUNDS.value):
        for name, contender in contenders.items():
            contender(1)
            start = time.perf_counter()
            contender(_kind().num_dispatches)
            seconds[name].append((time.perf_counter() - start) / _kind().num_dispatches)
    return {name: np.array(values) for name, values in seconds.items()}


def _spread(values: np.ndarray, digits: int) -> str:
    return f"{np.median(values):,.{digits}f} ({values.min():,.{digits}f}-{values.max():,.{digits}f})"


def _machine() -> str:
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ["jax", "jaxlib", "flax", *(["torch"] if importlib.util.find_spec("torch") else [])]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    cpu = names[0] if names else platform.machine()
    device = "" if jax.default_backend() == "cpu" else f"{jax.devices()[0].device_kind}, "
    return f"{device}{os.cpu_count()} cores, {cpu}; Python {platform.python_version()}, {versions}"


def _print_report(program: Program, seconds: dict[str, np.ndarray]) -> None:
    train, num_replicas = program.config.train, len(program.specs)
    step, several = seconds["train step"], seconds["several horizons"]
    lines = [("train step, rows in memory", step, 1, "")]
    for name in _kind().torch_modes:
        if name in seconds:
            lines.append((name, seconds[name], 1, f"{_spread(seconds[name] / step, 2)} times as fast"))
    lines += [
        (
            "its matrix products alone",
            seconds["products"],
            1,
            f"{_spread(seconds['products'] / step, 2)} of the ceiling",
        ),
        ("end to end from the store on disk", seconds["store"], 1, f"{_spread(step / seconds['store'], 2)} of it kept"),
        (
            f"{num_replicas} horizons in one program",
            several,
            num_replicas,
            f"{_spread(num_replicas * step / several, 2)} of {num_replicas} single ones' speed",
        ),
    ]
    print(f"Command: python launch/benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}")
    print(f"Machine: {_machine()}")
    print(f"F={len(program.schema.numeric)}, batch {train.batch_size}, S={train.steps_per_dispatch}, float32; ", end="")
    print(f"median of {_ROUNDS.value} interleaved rounds (smallest-largest)\n")
    print("| | rows/s and model | ms per step | the train step beside it |\n| --- | --- | --- | --- |")
    for name, values, num_models, ratio in lines:
        ms_per_step = 1e3 * values / train.steps_per_dispatch
        digits = 1 if np.median(ms_per_step) >= 10 else 3
        rows_per_s = num_models * train.batch_size * train.steps_per_dispatch / values
        print(f"| {name} | {_spread(rows_per_s, 0)} | {_spread(ms_per_step, digits)} | {ratio} |")
    flop = _num_flop(program)
    own = flop * train.steps_per_dispatch / step / 1e9
    size = _kind().square_size
    square = 2 * size**3 / seconds["square"] / 1e9
    print(f"\nThe step's matrix products are {flop / 1e9:.2f} GFLOP: {_spread(own, 0)} GFLOP/s over the whole step.")
    print(f"A {size} x {size} product alone reaches {_spread(square, 0)} GFLOP/s; ", end="")
    print(f"the step has {_spread(own / square, 2)} of that.")


def _main() -> None:
    program = make_program(_NUM_FEATURES.value, _NUM_HORIZONS.value)
    train, layout = program.config.train, program.schema.layout
    words_BxW = normal_words(layout, _NUM_ROWS.value)
    plan = plan_epoch(len(words_BxW), train.batch_size, train.steps_per_dispatch)
    size = train.batch_size * train.steps_per_dispatch
    if plan.num_steps != train.steps_per_dispatch:
        raise UserError(
            f"--num_rows={len(words_BxW)}: gives dispatches of {plan.num_steps} steps; use a multiple of {size}"
        )
    words_SxBxW = words_BxW[:size].reshape(train.steps_per_dispatch, train.batch_size, -1)
    contenders = _torch_contenders(program, words_SxBxW)
    with tempfile.TemporaryDirectory() as folder:
        shard = Shard("train-00000.bin", "", len(words_BxW), "", "")
        words_BxW.tofile(Path(folder) / shard.file)
        rows = SplitRows(Path(folder), (shard,), program.schema.layout)
        from_store = train_dispatches(rows, plan, num_epochs=1_000_000, seed=0, start=0)
        in_memory = itertools.repeat(jnp.asarray(words_SxBxW))
        contenders |= {
            "train step": _jax_contender(program, _single_state(program), in_memory),
            "products": _products_contender(program),
            "square": _square_contender(),
            "store": _jax_contender(program, _single_state(program), from_store),
            "several horizons": _jax_contender(program, program.init_state(), in_memory),
        }
        seconds = _measure(contenders)
    _print_report(program, seconds)


if __name__ == "__main__":
    common.run(_main)
