"""The wheel works without the checkout: configs and templates travel as package data."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = ("features", "prepare", "train", "evaluate", "score", "experiment")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("mean_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", folder, source]
    subprocess.run(build, check=True)
    with zipfile.ZipFile(next(folder.glob("mean_jax-*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run_elsewhere(installed: Path, folder: Path, program: str) -> list[str]:
    """Runs Python in another folder with the wheel's content before all else and returns the lines that it prints."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_what_the_wheel_holds(installed):
    names = {path.relative_to(installed).parts[0] for path in installed.rglob("*") if path.is_file()}
    assert {name.split("-")[0] for name in names} == {"mean_jax"}
    shipped, source = installed / "mean_jax/configs", ROOT / "configs"
    assert {path.relative_to(source) for path in source.rglob("*.py")} == {
        path.relative_to(shipped) for path in shipped.rglob("*.py")
    }
    for templates in ("mean_jax/evaluation/templates", "mean_jax/experiments/templates"):
        assert sorted(os.listdir(installed / templates)) == sorted(os.listdir(ROOT / templates))


def test_config_and_package_come_from_the_wheel(installed, tmp_path):
    lines = run_elsewhere(
        installed,
        tmp_path,
        "import mean_jax\n"
        "from mean_jax.config import find_config_file, load_config, parse_config\n"
        "from mean_jax.models import MODEL_CONFIGS\n"
        "print(mean_jax.__file__)\n"
        "print(find_config_file('mean'))\n"
        "print(parse_config(load_config('mean'), MODEL_CONFIGS).model.name)\n",
    )
    assert Path(lines[0]) == installed / "mean_jax" / "__init__.py"
    assert Path(lines[1]) == installed / "mean_jax" / "configs" / "mean.py"
    assert lines[2] == "mean"


@pytest.mark.parametrize("command", COMMANDS)
def test_console_scripts(installed, tmp_path, command):
    lines = run_elsewhere(
        installed,
        tmp_path,
        "import sys\n"
        "from importlib.metadata import distribution\n"
        "scripts = distribution('mean-jax').entry_points.select(group='console_scripts')\n"
        f"script = scripts['mean-jax-{command}']\n"
        "sys.argv = [script.name, '--help']\n"
        "script.load()()\n",
    )
    assert lines[0].startswith(f"mean-jax-{command}: ")
    assert any(line.startswith("  --") for line in lines)
