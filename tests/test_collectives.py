"""What devices exchange: the parser of compiled programs, and the train step held to its few sums."""

import dataclasses
import importlib
import math
import os
from pathlib import Path
import re
import subprocess
import sys

import jax
import pytest

from mean_jax.config import MeshConfig
from mean_jax.run import Program
from mean_jax.sharding import make_mesh

BENCHMARKS = Path(__file__).parents[1] / "launch" / "benchmarks"
sys.path.append(str(BENCHMARKS))
collectives = importlib.import_module("collectives")

HLO = """\
HloModule jit_f, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%called (p: f32[4,3]) -> f32[4,3] {
  %p = f32[4,3]{1,0} parameter(0)
  ROOT %r = f32[4,3]{1,0:T(8,128)} all-reduce(%p), replica_groups={{0,2},{1,3}}, to_apply=%add, \
metadata={op_name="jit(f)/while/body/psum"}
}

%body (s: (s32[], f32[4,3])) -> (s32[], f32[4,3]) {
  %c = f32[4,3]{1,0} call(%x), to_apply=%called
  %g = (bf16[2,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%y), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  %h = bf16[4,8]{1,0} all-gather-done(%g)
}

%condition (s: (s32[], f32[4,3])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.1 (x: f32[4]) -> f32[4] {
  %w = (s32[], f32[4,3]{1,0}) while(%t), condition=%condition, body=%body
  %two = (f32[5]{0}, pred[3]{0}) all-reduce(%u, %v), replica_groups={}, to_apply=%add
  %scatter = s32[2]{0} reduce-scatter(%k), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
  %send = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %name.all-reduce.done = f32[4]{0} collective-permute-done(%send)
}
"""


def test_what_the_text_of_a_program_says():
    found = collectives.parse(HLO)
    assert [(each.kind, each.shapes, each.num_bytes, each.is_in_loop) for each in found] == [
        ("all-reduce", ("f32[4,3]",), 48, True),  # in a computation that the loop's body calls
        ("all-gather", ("bf16[4,8]",), 64, True),  # of an operation in two halves, the result alone
        ("all-reduce", ("f32[5]", "pred[3]"), 23, False),
        ("reduce-scatter", ("s32[2]",), 8, False),
        ("collective-permute", ("f32[4]",), 16, False),
    ]
    assert [each.groups for each in found] == [
        ((0, 2), (1, 3)),
        ((0, 2), (1, 3)),
        (),
        ((0, 1, 2, 3),),
        ((0, 1), (1, 0)),
    ]
    assert [each.group_size for each in found] == [2, 2, 0, 4, 2]
    assert found[0].source == "jit(f)/while/body/psum"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("all-reduce", 2 * 3 / 4 * 80),
        ("all-gather", 3 / 4 * 80),  # of 80 bytes, a fourth was here
        ("reduce-scatter", 3 * 80),  # 80 bytes stay of 320
        ("all-to-all", 3 / 4 * 80),
        ("collective-permute", 80),
    ],
)
def test_bytes_that_a_device_sends(kind, expected):
    assert collectives.sent_bytes(collectives.Collective(kind, ("f32[20]",), 80, True, (), ""), 4) == expected


def test_no_collectives_are_said_in_words():
    assert collectives.collectives_table([], 1) == "No collectives."


@pytest.fixture(scope="module")
def tables():
    """The command's own tables for eight models on eight devices: size of `replica` -> cells of each line."""
    command = [sys.executable, str(BENCHMARKS / "collectives.py"), "--replica=1,4,8", "--num_seeds=2"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [*command, "--num_features=8", "--batch_size=64"],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    pages = re.split(r"Mesh: replica (\d+) x data \d+\n", result.stdout)[1:]
    rows = {
        int(size): [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line]
        for size, page in zip(pages[::2], pages[1::2], strict=True)
    }
    assert all(len(row) == 7 for lines in rows.values() for row in lines)
    return {size: lines[2:] for size, lines in rows.items()}


def num_parameters(num_features: int) -> int:
    """Returns the parameters of one model of configs/mean.py, by hand."""
    bottom = num_features * 512 + 512 + 512 * 256 + 256
    experts = 256 * 5 * 64 + 2 * 5 * 64  # no bias: scale and shift of the batch norm do its work
    gates = 256 * 5 * 5
    attention = 2 * 64 * 64 + 64 + 64 * 5 + 5 + 64 + 1
    dam = 256 * 256 + 256 + 256 * 128 + 128 + 128 * 64 + 64 + 64 * 5 + 5
    return bottom + experts + gates + attention + dam


def test_the_parameters_counted_by_hand():
    assert num_parameters(720) == 705_355  # as scale.py has it


@pytest.mark.parametrize(("replica", "num_models", "groups"), [(1, 8, "1 x 8"), (4, 2, "4 x 2")])
def test_a_step_has_three_sums_and_a_dispatch_one(tables, replica, num_models, groups):
    """Batch statistics, their transpose, and all gradients with the five loss terms; the bytes are those at least."""
    in_step = [row for row in tables[replica] if row[1] == "step"]
    in_dispatch = [row for row in tables[replica] if row[1] == "dispatch"]
    statistics = 4 * num_models * (2 * 5 * 64 + 1)
    gradients = 4 * num_models * (num_parameters(8) + 5)
    assert [row[0] for row in in_step] == ["all-reduce"] * 3
    assert sorted(int(row[3].replace(",", "")) for row in in_step) == [statistics, statistics, gradients]
    assert [(row[0], row[3]) for row in in_dispatch] == [("all-reduce", f"{4 * 16 * 4}")]
    assert {row[5] for row in tables[replica]} == {groups}


def test_replicas_on_devices_of_their_own_exchange_nothing(tables):
    assert tables[8] == []


def test_a_divided_table_is_gathered_nowhere(program):
    """Its gradient is summed over `data` in parts, and rows are looked up where they lie."""
    num_rows, num_columns = 1002, len(program.transform.category_counts)
    counts = (num_rows - 1) * (2,) + (1,)
    transform = dataclasses.replace(program.transform, category_counts=num_columns * (counts,))
    config = dataclasses.replace(program.config, mesh=MeshConfig(model=2, min_table_rows=1000))
    program = Program(config, program.schema, transform)
    mesh = make_mesh(config.mesh, len(program.specs), 64)
    assert dict(mesh.shape) == {"replica": 1, "data": 2, "model": 2}
    found = collectives.parse(collectives.compile_dispatch(program, mesh, 64).as_text())
    sizes = [[int(size) for size in re.findall(r"[0-9]+", shape.split("[")[1])] for c in found for shape in c.shapes]
    parts = [size for size in sizes if num_rows // 2 in size]
    assert len(parts) == num_columns  # the gradient of each, half of it
    table_sizes = [leaf.size for leaf in jax.tree.leaves(program.abstract_state.replicas.variables.params)]
    assert max(math.prod(size) for size in sizes if num_rows // 2 not in size) < max(table_sizes)
