"""What the devices send each other in a dispatch, read from the program that XLA compiled.

Command:  JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 python launch/benchmarks/collectives.py [--replica=1,4]

Nothing is run: one table per size of the mesh axis `replica`, the other devices lie along `data`. MEAN on several
devices along `data` has three sums in each step, whatever their number:

  - the sums behind the batch statistics of its experts, [R, 2 * M * H + 1];
  - the transpose of that sum in the backward pass: each row's gradient depends on all rows through the statistics, so
    a gradient that is that of the whole batch cannot do without;
  - the gradients of all parameters and the loss terms, in one array.

A dispatch has one more, the known labels per step and horizon. Devices along `replica` send each other nothing.
"""

from collections.abc import Iterator, Sequence
import math
from pathlib import Path
import re
import sys
from typing import Any, NamedTuple

from absl import flags
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from made_up import make_program
import numpy as np
from scale_paper import table

from mean_jax.cli import common
from mean_jax.config import MeshConfig
from mean_jax.errors import UserError
from mean_jax.run import Program
from mean_jax.sharding import make_mesh, state_shardings
from mean_jax.training.step import make_dispatch

_FLAGS = flags.FlagValues()  # of this command alone
_REPLICA = flags.DEFINE_list("replica", ["1"], "Sizes of the mesh axis replica; a table for each.", flag_values=_FLAGS)
_NUM_FEATURES = flags.DEFINE_integer("num_features", 720, "Numeric features F.", lower_bound=1, flag_values=_FLAGS)
_NUM_HORIZONS = flags.DEFINE_integer("num_horizons", 4, "Models: horizons.", lower_bound=1, flag_values=_FLAGS)
_NUM_SEEDS = flags.DEFINE_integer("num_seeds", 1, "Models per horizon.", lower_bound=1, flag_values=_FLAGS)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 1024, "Rows of a step, of all devices together.", lower_bound=1, flag_values=_FLAGS
)

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BODY = re.compile(r"\bwhile\(.*\bbody=%?([\w.\-]+)")
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One operation in which devices exchange data."""

    kind: str  # such as all-reduce
    shapes: tuple[str, ...]  # of the result on one device, such as f32[4,641]
    num_bytes: int  # of that result
    is_in_loop: bool  # once per step, rather than once per dispatch
    groups: tuple[tuple[int, ...], ...]  # devices that exchange with each other; none: all
    source: str  # the operation's name in the traced program

    @property
    def group_size(self) -> int:
        """Devices of a group; 0 if the text leaves it to the number of all devices."""
        return max(map(len, self.groups), default=0)


def _bytes_of(dtype: str, sizes: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.ceil(bits * math.prod(int(size) for size in sizes.split(",") if size) / 8)


def _groups_of(line: str) -> tuple[tuple[int, ...], ...]:
    """Returns the groups in either of XLA's notations: listed, or as a transposed and reshaped range."""
    iota = _IOTA_GROUPS.search(line)
    if iota:
        shape, sizes, order = ([int(size) for size in (part or "").split(",") if size] for part in iota.groups())
        numbers = np.arange(math.prod(sizes)).reshape(sizes).transpose(order or range(len(sizes)))
        return tuple(tuple(group) for group in numbers.reshape(shape).tolist())
    listed = _LISTED_GROUPS.search(line) or _PAIRS.search(line)
    groups = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    return tuple(tuple(int(number) for number in group.split(",")) for group in groups)


def _computations(hlo_text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and the lines of every computation."""
    name, lines = "", []
    for line in hlo_text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name, lines = head[1], []
        elif line.startswith("}"):
            yield name, lines
        else:
            lines.append(line)


def _in_loops(computations: dict[str, list[str]]) -> set[str]:
    """Returns the computations that a loop's body is or calls."""
    found: set[str] = set()
    waiting = [body for lines in computations.values() for line in lines for body in _BODY.findall(line)]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            for line in computations.get(name, []):
                branches = re.findall(r"[\w.\-]+", " ".join(_BRANCHES.findall(line)))
                waiting += _CALLED.findall(line) + branches
    return found


def parse(hlo_text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, in the order of its text.

    Args:
      hlo_text: of one device, as `lower(...).compile().as_text()` gives it.
    """
    computations = dict(_computations(hlo_text))
    in_loops = _in_loops(computations)
    collectives = []
    for name, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if not match:
                continue
            result, kind, is_start = match.groups()
            arrays = _ARRAY.findall(result)
            if is_start and kind in ("all-gather", "collective-permute"):
                # An operation that is started and awaited apart: (operands, results, and what it keeps for itself).
                arrays = [pair for pair in arrays if pair[1]]
                arrays = arrays[len(arrays) // 2 :]
            source = _SOURCE.search(line)
            collectives.append(
                Collective(
                    kind=kind,
                    shapes=tuple(f"{dtype}[{sizes}]" for dtype, sizes in arrays),
                    num_bytes=sum(_bytes_of(*array) for array in arrays),
                    is_in_loop=name in in_loops,
                    groups=_groups_of(line),
                    source=source[1] if source else "",
                )
            )
    return collectives


def sent_bytes(collective: Collective, num_devices: int) -> float:
    """Returns the bytes that one device of a group sends, in a ring where that is a choice.

    Args:
      collective: what is exchanged.
      num_devices: n, of a group.
    """
    others = (num_devices - 1) / num_devices
    factors = {"all-reduce": 2 * others, "all-gather": others, "reduce-scatter": others * num_devices}
    return collective.num_bytes * (factors | {"all-to-all": others}).get(collective.kind, 1.0)


def compile_dispatch(program: Program, mesh: Mesh, batch_size: int) -> Any:
    """Returns the compiled dispatch of a program; nothing is put on the devices.

    Args:
      program: what trains.
      mesh: the devices.
      batch_size: B, rows of a step on all devices together.
    """
    layout, num_steps = program.schema.layout, program.config.train.steps_per_dispatch
    abstract = program.abstract_state
    shardings = state_shardings(mesh, abstract, program.config.mesh)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )
    rows = NamedSharding(mesh, P(None, "data"))
    words = jax.ShapeDtypeStruct((num_steps, batch_size, layout.num_words), np.float32, sharding=rows)
    dispatch: Any = make_dispatch(program.step_rule(layout), mesh, shardings)
    return dispatch.lower(state, words).compile()


def collectives_table(collectives: Sequence[Collective], num_devices: int) -> str:
    """Returns a Markdown table.

    Args:
      collectives: of one program.
      num_devices: of all, for groups that the text leaves open.
    """
    lines = []
    for each in collectives:
        size = each.group_size or num_devices
        lines.append(
            [
                each.kind,
                "step" if each.is_in_loop else "dispatch",
                " ".join(f"`{shape}`" for shape in each.shapes),
                f"{each.num_bytes:,}",
                f"{sent_bytes(each, size):,.0f}",
                f"{max(1, len(each.groups))} x {size}",
                f"`{'/'.join(each.source.split('/')[-3:])}`",
            ]
        )
    head = [
        "collective",
        "once per",
        "array per device",
        "bytes",
        "bytes sent per device, ring",
        "groups x devices",
        "from",
    ]
    return table(head, lines) if lines else "No collectives."


def _main() -> None:
    program = make_program(_NUM_FEATURES.value, _NUM_HORIZONS.value, [f"train.num_seeds={_NUM_SEEDS.value}"])
    if not all(text.isdecimal() and int(text) for text in _REPLICA.value):
        raise UserError(f"--replica={','.join(_REPLICA.value)}: expected numbers above 0, such as 1,4")
    train = program.config.train
    print(f"Command: python launch/benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}")
    print(f"{len(program.specs)} models of F={_NUM_FEATURES.value}, batch {_BATCH_SIZE.value}, ", end="")
    print(f"S={train.steps_per_dispatch}, {jax.device_count()} devices ({jax.devices()[0].platform})")
    for text in _REPLICA.value:
        mesh = make_mesh(MeshConfig(replica=int(text)), len(program.specs), _BATCH_SIZE.value)
        collectives = parse(compile_dispatch(program, mesh, _BATCH_SIZE.value).as_text())
        print(f"\nMesh: replica {mesh.shape['replica']} x data {mesh.shape['data']}\n")
        print(collectives_table(collectives, mesh.size))


if __name__ == "__main__":
    common.run(_main, flag_values=_FLAGS)
