"""Dependencies point one way: who may import whom inside mean_jax, and where the large libraries may appear."""

import ast
from pathlib import Path
import subprocess
import sys

import pytest

import mean_jax

PACKAGE = Path(mean_jax.__file__).parent
MODULES = {
    ".".join(("mean_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# A group of modules, and what none of them imports anywhere.
FORBIDDEN = {
    "data": ("models", "training", "evaluation", "scoring", "experiments", "cli", "run"),
    "features": ("models", "training", "evaluation", "scoring", "experiments", "cli", "run"),
    "models": ("data", "training", "evaluation", "scoring", "experiments", "cli", "run", "features", "log", "fileio"),
    "training": ("cli", "scoring", "experiments"),
    "evaluation": ("cli", "scoring", "experiments"),
    "scoring": ("cli", "evaluation", "experiments"),
    "experiments": ("cli", "scoring"),
    "run": ("cli", "scoring", "experiments"),
    "losses": ("data", "models", "training", "evaluation", "scoring", "cli", "run", "features", "labels", "config"),
    "labels": ("data", "models", "training", "evaluation", "scoring", "cli", "run", "features"),
    "config": ("data", "models", "training", "evaluation", "scoring", "cli", "run", "features", "labels", "losses"),
    "types": tuple(name.removeprefix("mean_jax.") for name in MODULES if name.count(".") == 1),
}
# Who alone imports a library.
ONLY = {"absl.flags": "mean_jax.cli.", "orbax": "mean_jax.training.checkpoints"}

# A command that stands outside cli/; its main() imports flags when it is called, the module never does.
COMMANDS = ("mean_jax.data.public.__main__", "mean_jax.data.synthetic")


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Returns the dotted names that a file imports; `from a import b` counts as a and as a.b."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("group", FORBIDDEN)
def test_directions(group):
    members = [name for name in MODULES if is_within(name, f"mean_jax.{group}")]
    assert members
    found = [
        f"{member} imports {name}"
        for member in members
        for name in sorted(imports_of(MODULES[member], member in COMMANDS))
        for other in FORBIDDEN[group]
        if other != group and is_within(name, f"mean_jax.{other}")
    ]
    assert not found


@pytest.mark.parametrize(("library", "owner"), ONLY.items())
def test_a_library_has_one_place(library, owner):
    users = [
        name
        for name, path in MODULES.items()
        if any(is_within(found, library) for found in imports_of(path, name in COMMANDS))
    ]
    assert users
    assert [name for name in users if not name.startswith(owner)] == []


@pytest.mark.parametrize("library", ["pandas", "polars", "torch", "sklearn", "lightgbm", "lifetimes", "pyspark"])
def test_optional_libraries_are_not_imported_at_the_top(library):
    found = [name for name, path in MODULES.items() for used in imports_of(path, True) if is_within(used, library)]
    assert not found


@pytest.mark.parametrize("module", ["data.prepare", "data.append", "features.build"])
def test_work_on_tables_does_without_jax(module):
    """Its import takes longer than a small table, in each worker."""
    code = f"import sys, mean_jax.{module}; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
