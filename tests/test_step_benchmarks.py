"""The benchmarks of the train step: their PyTorch peer, the count of kernels in a trace, the log of the paper's job."""

import importlib
from pathlib import Path
import sys

import jax
import pytest

from mean_jax.sharding import data_mesh, state_shardings
from mean_jax.training.state import make_init
from mean_jax.training.step import make_dispatch

sys.path.append(str(Path(__file__).parents[1] / "launch" / "benchmarks"))
made_up = importlib.import_module("made_up")
paper_scale = importlib.import_module("paper_scale")
step_kernels = importlib.import_module("step_kernels")


def test_the_pytorch_peer_has_the_losses_of_the_train_step():
    pytest.importorskip("torch", reason="the extra [bench] is not installed")
    mean_torch = importlib.import_module("mean_torch")
    program = made_up.make_program(6, 1, ["model.bottom_sizes=(16, 8)", "train.batch_size=64"])
    layout = program.schema.layout
    words_SxBxW = made_up.normal_words(layout, 5 * 64).reshape(5, 64, -1)
    state = make_init(program.model, program.optimizer, program.specs, program.label_constants, layout)()
    params = jax.tree.map(lambda leaf: leaf[0], state.replicas.variables.params)
    trainer = mean_torch.TorchTrainer(program, jax.device_get(params), num_threads=1, mode=None)
    mesh = data_mesh(jax.devices()[:1])
    shardings = state_shardings(mesh, program.abstract_state, program.config.mesh)
    _, metrics = make_dispatch(program.step_rule(layout), mesh, shardings)(state, words_SxBxW)
    first = trainer.dispatch(trainer.place(words_SxBxW))
    assert first == pytest.approx(float(metrics["total"][0]), rel=1e-4)
    assert trainer.dispatch(trainer.place(words_SxBxW)) < first  # and learns


def test_made_up_categories_have_tables():
    program = made_up.make_program(2, 1, (), [3, 6])
    encoder = program.abstract_state.replicas.variables.params["encoder"]
    assert [leaf.shape[1] for leaf in jax.tree.leaves(encoder)] == [5, 8]  # unknown and missing have rows too


def test_kernels_are_the_finished_events_on_the_streams_of_a_gpu():
    def name(what, pid, text, **more):
        return {"ph": "M", "name": what, "pid": pid, "args": {"name": text}, **more}

    kernel = {"ph": "X", "name": "fusion_1", "pid": 1, "tid": 7, "ts": 1.0, "dur": 2.0}
    trace = {
        "traceEvents": [
            name("process_name", 1, "/device:GPU:0"),
            name("thread_name", 1, "Stream #14(Compute)", tid=7),
            name("thread_name", 1, "XLA Modules", tid=8),
            name("process_name", 2, "/host:CPU"),
            name("thread_name", 2, "Stream", tid=7),
            kernel,
            kernel | {"tid": 8},
            kernel | {"pid": 2},
            kernel | {"ph": "i"},
            {},
        ]
    }
    assert step_kernels.stream_kernels(trace) == [kernel]


def test_seconds_between_epochs_are_those_of_the_log():
    log = "23:59:40 epoch 1: loss 2.4\n23:59:50 train: 10 of 20 rows\n00:00:00 epoch 2: loss 2.3\n00:00:10 epoch 3: x\n"
    assert paper_scale.seconds_between_epochs(log) == 15.0
    assert paper_scale.seconds_between_epochs(log[:28]) is None
