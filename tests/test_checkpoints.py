"""Checkpoints: damage of every kind, trees that do not fit, and moves between topologies and processes."""

import json
import os
from pathlib import Path
import socket
import subprocess
import sys

import jax
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from mean_jax.errors import UserError
from mean_jax.training import checkpoints

STEPS = (8, 12)


def tree(step):
    """Returns a tree with the kinds of leaves that a training state has."""
    rng = np.random.default_rng(step)
    return {
        "step": np.int32(step),
        "params": {"kernel": rng.normal(size=(4, 6)).astype(np.float32), "scale": np.full((4,), 0.1, np.float32)},
        "is_active": np.array([True, False, True, True]),
        "key": rng.integers(0, 2**32, (4, 2), dtype=np.uint32),
    }


def abstract(sharding_of=lambda leaf: None):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(leaf)), tree(0))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, a), b)
    assert jax.tree.map(lambda leaf: leaf.dtype, a) == jax.tree.map(lambda leaf: leaf.dtype, b)


def write(folder, steps=STEPS):
    writer = checkpoints.CheckpointWriter(folder, -1)
    for step in steps:
        writer.save(step, jax.tree.map(jax.numpy.asarray, tree(step)), {"epoch": step, "sum": 0.1})
    writer.close()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "checkpoints" / "latest"
    write(folder)
    return folder


def content_of(folder, step):
    """Returns the largest file of a checkpoint."""
    return max(
        (path for path in (folder / str(step)).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# A kind of damage -> (what is done to step N, what the log or error line says).
DAMAGE = {
    "flipped bit": (lambda folder, step: flip(content_of(folder, step)), "checksum does not match"),
    "cut file": (lambda folder, step: os.truncate(content_of(folder, step), 10), "checksum does not match"),
    "missing file": (lambda folder, step: content_of(folder, step).unlink(), "missing from the checkpoint"),
    "missing seal": (lambda folder, step: seal(folder, step).unlink(), r"missing; checkpoint .* was never finished"),
    "cut seal": (lambda folder, step: os.truncate(seal(folder, step), 100), "damaged or not a mean-jax checkpoint"),
    "altered seal": (
        lambda folder, step: seal(folder, step).write_text(seal(folder, step).read_text().replace("0.1", "0.2")),
        "checksum does not match, the file was altered",
    ),
}


def seal(folder, step):
    return folder.with_name(f"{folder.name}-{step}.json")


def test_the_newest_comes_back_bit_by_bit_with_its_notes(folder):
    step, restored = checkpoints.load_newest(folder, abstract())
    assert step == 12
    assert_same(restored, tree(12))
    assert checkpoints.read_notes(folder, 12) == {"epoch": 12, "sum": 0.1}
    assert_same(checkpoints.load(folder, 8, abstract()), tree(8))


def test_the_newest_two_are_kept_and_other_files_are_not_taken_for_seals(tmp_path):
    folder = tmp_path / "checkpoints" / "latest"
    write(folder, (4, 8, 12))
    for name in ("latest-old.json", "latest-x-3.json", "best-99.json"):
        (folder.parent / name).write_text("{}")
    assert checkpoints.sealed_steps(folder) == [12, 8]
    assert sorted(path.name for path in folder.iterdir()) == ["12", "8"]


def test_no_checkpoint_at_all(tmp_path):
    assert checkpoints.load_newest(tmp_path / "checkpoints" / "latest", abstract()) is None


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_is_named_and_the_one_before_used_or_refused(kind, folder, caplog):
    harm, message = DAMAGE[kind]
    harm(folder, 12)
    with pytest.raises(UserError, match=message) as refused:
        checkpoints.load_newest(folder, abstract(), strict=True)
    assert "--strict_restore" in str(refused.value) and f"remove {folder / '12'}" in str(refused.value)
    step, restored = checkpoints.load_newest(folder, abstract())
    assert step == 8 and f"{folder.name}" in caplog.text and "skipping a damaged checkpoint" in caplog.text
    assert_same(restored, tree(8))
    checkpoints.CheckpointWriter(folder, step).close()
    assert [path.name for path in folder.iterdir()] == ["8"] and checkpoints.sealed_steps(folder) == [8]


def test_all_damaged_is_an_error_and_no_beginning_from_scratch(folder):
    for step in STEPS:
        flip(content_of(folder, step))
    with pytest.raises(UserError, match=r"latest: all 2 checkpoints are damaged; restore the run"):
        checkpoints.load_newest(folder, abstract())


def test_a_first_save_that_was_never_sealed_is_no_checkpoint(tmp_path, caplog):
    folder = tmp_path / "checkpoints" / "latest"
    write(folder, (4,))
    seal(folder, 4).unlink()
    assert checkpoints.load_newest(folder, abstract()) is None
    assert "latest-4.json: missing" in caplog.text


def test_what_a_killed_process_leaves_is_removed(folder):
    (folder / "16.orbax-checkpoint-tmp").mkdir()
    (folder / "note").write_text("")
    (folder.parent / ".latest-16.json.0123456789ab.tmp").write_text("{")
    (folder.parent / ".best-16.json.0123456789ab.tmp").write_text("{")  # another writer may be at work on it
    checkpoints.CheckpointWriter(folder, 12).close()
    assert sorted(path.name for path in folder.iterdir()) == ["12", "8"]
    assert sorted(path.name for path in folder.parent.glob(".*")) == [".best-16.json.0123456789ab.tmp"]


def test_an_older_checkpoint_that_was_being_removed_goes_whole(folder):
    older, newest = sorted(checkpoints.sealed_steps(folder))
    next(path for path in sorted((folder / str(older)).rglob("*")) if path.is_file()).unlink()
    checkpoints.CheckpointWriter(folder, newest).close()
    assert checkpoints.sealed_steps(folder) == [newest]
    assert [path.name for path in folder.iterdir()] == [str(newest)]


def test_a_tree_that_does_not_fit_names_every_leaf(folder):
    other = abstract()
    other["params"]["kernel"] = jax.ShapeDtypeStruct((4, 7), np.float32)
    other["key"] = jax.ShapeDtypeStruct((4, 2), np.int32)
    other["params"]["bias"] = other["params"].pop("scale")
    with pytest.raises(UserError) as refused:
        checkpoints.load_newest(folder, other)
    for part in (
        "12: does not fit the model in 4 arrays",
        "['params']['kernel']: saved float32[4, 6], expected float32[4, 7]",
        "['key']: saved uint32[4, 2], expected int32[4, 2]",
        "['params']['bias']: saved nothing, expected float32[4]",
        "['params']['scale']: saved float32[4], expected nothing",
    ):
        assert part in str(refused.value)


def test_a_long_list_of_leaves_is_cut(folder):
    other = abstract() | {"more": [jax.ShapeDtypeStruct((1,), np.float32)] * 30}
    with pytest.raises(UserError, match=r"in 30 arrays: .*; and 10 more; use the config") as refused:
        checkpoints.load_newest(folder, other)
    assert str(refused.value).count("expected float32[1]") == 20


def four_devices():
    return jax.make_mesh((2, 2), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)


def over_four_devices(leaf):
    return NamedSharding(four_devices(), P("replica") if leaf.ndim else P())


def test_one_device_and_four(folder, tmp_path):
    """Shardings are those that are asked for, whatever the checkpoint was saved with."""
    divided = checkpoints.load(folder, 12, abstract(over_four_devices))
    assert_same(divided, tree(12))
    for leaf in jax.tree.leaves(divided):
        assert leaf.sharding.is_equivalent_to(over_four_devices(leaf), leaf.ndim)
    writer = checkpoints.CheckpointWriter(tmp_path / "again", -1)
    writer.save(12, divided)
    writer.close()
    together = checkpoints.load(tmp_path / "again", 12, abstract())
    assert_same(together, tree(12))
    assert {leaf.sharding for leaf in jax.tree.leaves(together)} == {SingleDeviceSharding(jax.local_devices()[0])}


# What each of two processes with two devices does; arguments: its number, the port, the folders.
JOB = """
import os, signal, sys
import jax
import numpy as np
process, port, given, made = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f"localhost:{port}", 2, process)
from pathlib import Path
from mean_jax.errors import UserError
from mean_jax.training import checkpoints
from mean_jax.training.interruption import Interruption
from tests.test_checkpoints import abstract, over_four_devices, seal, tree, flip, content_of

given, made = Path(given), Path(made)
with Interruption().watch() as interruption:
    step, state = checkpoints.load_newest(given, abstract(over_four_devices))
    assert step == 12
    shards = [(shard.index, np.asarray(shard.data)) for shard in state["params"]["kernel"].addressable_shards]
    assert len(shards) == 2 and all(np.array_equal(data, tree(12)["params"]["kernel"][index]) for index, data in shards)

    writer, other = checkpoints.CheckpointWriter(made, -1), checkpoints.CheckpointWriter(made.with_name("best"), -1)
    for step in (13, 14, 15):
        writer.save(step, state, {"process": process})
    other.save(15, state["params"])  # while the one before is still being saved
    other.close()
    writer.wait()
    assert seal(made, 15).is_file() and seal(made.with_name("best"), 15).is_file()
    writer.close()

    answers = []
    for boundary in range(10):
        if boundary == 4 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        answers.append(interruption.agreed())
    assert answers == [False] * 5 + [True] * 5 and interruption.signal_name == "SIGTERM", answers

jax.experimental.multihost_utils.sync_global_devices("spoil")
if process == 0:
    for step in (8, 12):
        flip(content_of(given, step))
jax.experimental.multihost_utils.sync_global_devices("spoilt")
try:
    checkpoints.load_newest(given, abstract(over_four_devices))
except UserError as error:
    print(f"refused by {process}: {error}")
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def test_two_processes_save_load_refuse_and_stop_together(folder, tmp_path):
    root = Path(checkpoints.__file__).parents[2]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(root)}
    port, made = free_port(), tmp_path / "made" / "latest"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, str(number), str(port), folder, made],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    for number in range(2):
        assert f"refused by {number}: {folder}: all 2 checkpoints are damaged" in outputs[number]
    assert checkpoints.sealed_steps(made) == [15, 14]
    assert checkpoints.read_notes(made, 15) == {"process": 0}
    assert_same(checkpoints.load(made, 15, abstract()), tree(12))
    assert_same(checkpoints.load(made, 15, abstract(over_four_devices)), tree(12))
    assert json.loads(seal(made, 15).read_text())["leaves"]["['params']['kernel']"] == "float32[4, 6]"
