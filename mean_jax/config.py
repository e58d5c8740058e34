"""Configuration: frozen dataclasses that reject what they do not know, filled from a config file and flags.

A config file has a function `get_config() -> ConfigDict`; `--config.section.field=value` overrides one field. The
dataclass defaults are the paper's settings, so a config file states only where it differs. Model sections are
declared beside their models; everything else stands here.
"""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import difflib
from importlib.machinery import SourceFileLoader
from pathlib import Path
import types
import typing
from typing import Any, Literal

from ml_collections import ConfigDict

from mean_jax.errors import UserError

KIND = "mean-jax config"
VERSION = 1


def require(condition: bool, field: str, value: Any, expected: str) -> None:
    """Raises UserError naming the field unless `condition` holds."""
    if not condition:
        raise UserError(f"--config.{field}={value}: expected {expected}")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The input encoder, shared by all models."""

    numeric: Literal["standard", "ple"] = "standard"
    num_ple_bins: int = 16  # piecewise-linear bins per column, at most the number of fitted quantile intervals
    embedding_size: int = 0  # width of every categorical embedding; 0: int(V ** 0.25) + 1 for vocabulary size V

    def __post_init__(self) -> None:
        require(1 <= self.num_ple_bins <= 64, "encoder.num_ple_bins", self.num_ple_bins, "1 to 64")
        require(self.embedding_size >= 0, "encoder.embedding_size", self.embedding_size, "0 (automatic) or more")


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """From currency to the training scale: y_scaled = min(y / scale, cap), and the buckets."""

    num_buckets: int = 5  # N; bucket 0 is zero, the others split the positive labels by quantiles
    transform: Literal["linear", "log1p"] = "linear"  # log1p: y_scaled = min(log1p(y) / scale, cap)
    scale: float | Literal["auto"] = "auto"  # currency per unit, or auto: scale_quantile of positives maps to cap
    scale_quantile: float = 0.999
    cap: float = 20.0

    def __post_init__(self) -> None:
        require(self.num_buckets >= 2, "labels.num_buckets", self.num_buckets, "2 or more (zero is one of them)")
        require(self.scale == "auto" or self.scale > 0, "labels.scale", self.scale, "'auto' or a positive number")
        require(0 < self.scale_quantile <= 1, "labels.scale_quantile", self.scale_quantile, "a number in (0, 1]")
        require(self.cap > 0, "labels.cap", self.cap, "a positive number")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation, early stopping and checkpoints."""

    learning_rate: float = 1e-3
    batch_size: int = 1024
    max_epochs: int = 15
    patience: int = 5  # epochs without improvement after which a replica stops
    early_stopping_metric: Literal["gini", "percentile_mape", "loss"] = "gini"
    num_seeds: int = 1  # models per horizon, trained together; predictions are their mean
    seed: int = 0
    steps_per_dispatch: int = 16  # S, at most: steps that one call to the device runs
    checkpoint_every_steps: int = 0  # within an epoch; 0: at the end of each epoch only
    on_nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is not finite; skip: leave the batch out

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "a positive number")
        for name in ("batch_size", "max_epochs", "patience", "num_seeds", "steps_per_dispatch"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "1 or more")
        last_seed = self.seed + self.num_seeds - 1
        require(last_seed < 2**31, "train.seed", self.seed, "less than 2 ** 31 for the last of the seeds")
        for name in ("seed", "checkpoint_every_steps"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How training rows reach the devices; no choice here but `shuffle` and `numeric_type` changes a number."""

    placement: Literal["host", "device"] = "host"  # device: the training rows stay in accelerator memory
    numeric_type: Literal["stored", "bfloat16"] = "stored"  # of numeric values on their way, and in device memory
    shuffle: Literal["rows", "blocks"] = "rows"  # blocks: of consecutive rows, then rows within a window of blocks
    block_rows: int = 1024
    window_blocks: int = 64  # two windows are in memory at a time

    def __post_init__(self) -> None:
        for name in ("block_rows", "window_blocks"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "1 or more")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices of all processes are arranged; their product is the number of devices."""

    replica: int = 1  # groups of devices that share the replicas
    data: int = -1  # parts that a batch is divided into; -1: whatever is left
    model: int = 1  # parts of each large embedding table
    min_table_rows: int = 65_536  # an embedding table of fewer rows is not divided

    def __post_init__(self) -> None:
        for name in ("replica", "model", "min_table_rows"):
            require(getattr(self, name) >= 1, f"mesh.{name}", getattr(self, name), "1 or more")
        require(self.data == -1 or self.data >= 1, "mesh.data", self.data, "1 or more, or -1 for all that is left")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A number of the model's config that varies by replica, so that one program trains all its values."""

    field: str = ""  # one of the SCALARS of the model's config; empty: no sweep
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(
            bool(self.field) == bool(self.values), "sweep.values", self.values, "values exactly if sweep.field is set"
        )
        require(len(set(self.values)) == len(self.values), "sweep.values", self.values, "different numbers")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run is made from, besides its store."""

    model: Any  # the dataclass of the model that `model.name` names
    encoder: EncoderConfig = EncoderConfig()
    labels: LabelConfig = LabelConfig()
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    sweep: SweepConfig = SweepConfig()

    def __post_init__(self) -> None:
        if self.sweep.field:
            require(
                self.sweep.field in self.model.SCALARS, "sweep.field", self.sweep.field, " or ".join(self.model.SCALARS)
            )
        for value in self.sweep.values:  # each must be a value that the field itself accepts
            dataclasses.replace(self.model, **{self.sweep.field: value})


def to_config_dict(model: Any) -> ConfigDict:
    """Returns the complete default configuration around a model section, for a config file to change and return."""
    return ConfigDict(dataclasses.asdict(Config(model=model)), convert_dict=True)


def find_config_file(name: str, subfolder: str = "") -> Path:
    """Returns the config file for a path or for the name of a config that ships with mean-jax (`mean`).

    Args:
      name: what the user gave.
      subfolder: of the shipped configs, in which a name is looked up.

    Raises:
      UserError: there is no such file; the line lists the names that exist.
    """
    if Path(name).is_file():
        return Path(name)
    package = Path(__file__).parent
    # An installed wheel carries the configs inside the package; a checkout has them beside it.
    roots = (package / "configs" / subfolder, package.parent / "configs" / subfolder)
    folders = [folder for folder in roots if folder.is_dir()]
    relative = Path(name).with_suffix(".py")
    shipped = Path("configs") / subfolder
    if relative.is_relative_to(shipped):
        relative = relative.relative_to(shipped)
    for folder in folders:
        if (folder / relative).is_file():
            return folder / relative
    names = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    raise UserError(f"--config={name}: no such file; give a path or one of: {', '.join(names)}")


def load_config(name: str, overrides: Sequence[str] = (), subfolder: str = "") -> ConfigDict:
    """Returns the ConfigDict of a config file with `section.field=value` overrides applied.

    Args:
      name: a path, or the name of a config that ships with mean-jax.
      overrides: `section.field=value` each.
      subfolder: see `find_config_file`.

    Raises:
      UserError: the file is missing or broken, or an override names no field or has no value.
    """
    path = find_config_file(name, subfolder)
    module = types.ModuleType("mean_jax_config_file")
    try:
        SourceFileLoader(module.__name__, str(path)).exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise UserError(f"--config={path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: get_config() returns {type(config).__name__}, expected a ConfigDict")
    for override in overrides:
        _apply_override(config, override)
    return config


def _apply_override(config: ConfigDict, override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, field = key.split(".")
    node: Any = config
    for depth, name in enumerate([*sections, field]):
        if not isinstance(node, ConfigDict) or name not in node:
            prefix = ".".join(sections[:depth])
            raise _unknown_key(prefix, name, list(node) if isinstance(node, ConfigDict) else [])
        if depth < len(sections):
            node = node[name]
    if not equals:
        raise UserError(f"--config.{key}: has no value; write --config.{key}=VALUE")
    if isinstance(node[field], ConfigDict):
        raise UserError(f"--config.{key}: is a section; set one of its fields: {', '.join(node[field])}")
    with node.ignore_type():
        node[field] = _parse_value(text)


def _parse_value(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError):
        return text


def _unknown_key(prefix: str, name: str, valid: Sequence[str]) -> UserError:
    dotted = f"{prefix}.{name}".lstrip(".")
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    hint = f"did you mean {f'{prefix}.{near[0]}'.lstrip('.')}?" if near else f"valid keys: {', '.join(valid) or 'none'}"
    return UserError(f"--config.{dotted}: unknown config key; {hint}")


def parse_config(tree: Mapping[str, Any], model_configs: Mapping[str, type]) -> Config:
    """Turns a nested mapping into a frozen Config.

    Args:
      tree: sections and fields, from a config file or a run's config.json.
      model_configs: the model section's dataclass by model name.

    Raises:
      UserError: an unknown key (with the nearest valid one), a wrong type, or a value out of range.
    """
    tree = tree.to_dict() if isinstance(tree, ConfigDict) else dict(tree)
    sections = [field.name for field in dataclasses.fields(Config)]
    for name in tree:
        if name not in sections:
            raise _unknown_key("", name, sections)
    model = dict(tree.get("model", {}))
    name = str(model.get("name"))
    if name not in model_configs:
        raise UserError(f"--config.model.name={name}: unknown model; choose one of: {', '.join(sorted(model_configs))}")
    hints = typing.get_type_hints(Config)
    parts = {key: parse_section(hints[key], tree.get(key, {}), key) for key in sections if key != "model"}
    return Config(model=parse_section(model_configs[name], model, "model"), **parts)


def parse_section(cls: Any, values: Any, prefix: str) -> Any:
    """Returns the frozen dataclass `cls` filled from a mapping.

    Args:
      cls: the class; its fields may be numbers, text, tuples, mappings and dataclasses.
      values: a mapping of fields; those left out have their defaults.
      prefix: the dotted name of the section for error lines, empty at the top.

    Raises:
      UserError: an unknown key (with the nearest valid one), a wrong type, or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"--config.{prefix}={values!r}: expected a section with fields")
    hints = typing.get_type_hints(cls)
    valid = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in valid:
            raise _unknown_key(prefix, name, valid)
    return cls(**{name: _checked(hints[name], value, f"{prefix}.{name}".lstrip(".")) for name, value in values.items()})


def _checked(hint: Any, value: Any, field: str) -> Any:
    """Returns `value` as the annotated type, or raises UserError; int is accepted for float, a list for a tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return parse_section(hint, value, field)
    if origin is Literal:
        require(value in arguments, field, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _checked(option, value, field)
            except UserError:
                continue
        names = [
            " or ".join(map(repr, typing.get_args(option))) if typing.get_origin(option) is Literal else option.__name__
            for option in arguments
        ]
        raise UserError(f"--config.{field}={value}: expected {' or '.join(names)}")
    if origin is tuple:
        require(isinstance(value, list | tuple), field, value, "a tuple such as (256, 128)")
        return tuple(_checked(arguments[0], item, field) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    require(is_right, field, value, f"a value of type {hint.__name__}")
    return value
