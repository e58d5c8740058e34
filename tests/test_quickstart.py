"""The quickstart script: its arguments, and where an interrupt leaves it."""

import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import pytest

SCRIPT = Path(__file__).parents[1] / "launch/quickstart.sh"
COMMANDS = ("python", *(f"mean-jax-{name}" for name in ("features", "prepare", "train", "evaluate", "score")))
# A shell's background jobs start with SIGINT ignored, which a script cannot change.
START = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp('bash', ['bash', sys.argv[1]])"


@pytest.fixture
def script(tmp_path):
    """The script in a folder where every command says its name and nothing else, without an environment of its own."""
    for name in ("launch", "bin"):
        (tmp_path / name).mkdir()
    shutil.copy(SCRIPT, tmp_path / "launch")
    environment = 'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")/.."\nPATH=$PWD/bin:$PATH\n'
    (tmp_path / "launch/environment.sh").write_text(environment)
    for name in COMMANDS:
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\necho {name}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path / "launch/quickstart.sh"


def test_every_step_runs(script, tmp_path):
    done = subprocess.run(["bash", script, "mine"], check=True, capture_output=True, text=True)
    ran = [line for line in done.stdout.splitlines() if line in COMMANDS]
    assert ran == [*COMMANDS, "python"]
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["-h"], 0), (["--folder=a"], 2), (["a", "b"], 2), (["a", "--help"], 2)]
)
def test_other_arguments_than_a_folder_get_the_usage(script, tmp_path, arguments, code):
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(["bash", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    said, nothing = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert said.startswith("usage: bash launch/quickstart.sh [FOLDER]") and said.count("\n") == 1
    assert not nothing
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupt_in_training_ends_it(script, tmp_path):
    """Training saves and ends with 0 then."""
    train = "#!/usr/bin/env bash\ntrap 'exit 0' INT\necho training\nwhile :; do sleep 0.05; done\n"
    (tmp_path / "bin/mean-jax-train").write_text(train)
    command = [sys.executable, "-c", START, script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process:
        while process.stdout.readline() != "training\n":
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "interrupted; the same command goes on from here\n"
    assert "mean-jax-evaluate" not in output
