"""Configuration: overrides, the lines for mistakes, and the way to and from a run's config.json."""

import dataclasses
import json
from pathlib import Path
import re

import pytest

from mean_jax.cli import train as train_cli
from mean_jax.config import find_config_file, load_config, parse_config
from mean_jax.errors import UserError
from mean_jax.models import MODEL_CONFIGS


def parse(*overrides):
    return parse_config(load_config("mean", overrides), MODEL_CONFIGS)


def test_defaults_are_the_papers():
    config = parse()
    assert config.model.bottom_sizes == (512, 256)
    assert (config.labels.num_buckets, config.labels.cap) == (5, 20.0)
    assert (config.train.learning_rate, config.train.batch_size, config.train.max_epochs) == (1e-3, 1024, 15)


@pytest.mark.parametrize(
    ("override", "section", "field", "expected"),
    [
        ("train.learning_rate=3e-4", "train", "learning_rate", 3e-4),
        ("train.learning_rate=1", "train", "learning_rate", 1.0),
        ("train.num_seeds=5", "train", "num_seeds", 5),
        ("train.early_stopping_metric=loss", "train", "early_stopping_metric", "loss"),
        ("labels.scale=auto", "labels", "scale", "auto"),
        ("labels.scale=12", "labels", "scale", 12.0),
        ("model.bottom_sizes=(64, 32)", "model", "bottom_sizes", (64, 32)),
        ("model.bottom_sizes=[64]", "model", "bottom_sizes", (64,)),
        ("model.multi_task=TRUE", "model", "multi_task", True),
    ],
)
def test_an_override_sets_one_field(override, section, field, expected):
    value = getattr(getattr(parse(override), section), field)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.learnig_rate=1",
            r"--config\.train\.learnig_rate: unknown config key; did you mean train\.learning_rate",
        ),
        ("trian.seed=1", r"--config\.trian: unknown config key; did you mean train\?"),
        ("train.zzz=1", r"--config\.train\.zzz: unknown config key; valid keys: .*batch_size"),
        ("train.seed.x=1", r"--config\.train\.seed\.x: unknown config key"),
        ("train.batch_size=many", r"--config\.train\.batch_size=many: expected a value of type int"),
        ("train.batch_size=1.5", r"--config\.train\.batch_size=1\.5: expected a value of type int"),
        ("train.batch_size=True", r"--config\.train\.batch_size=True: expected a value of type int"),
        ("train.batch_size={[]: 1}", r"--config\.train\.batch_size=.*: expected a value of type int"),
        ("model.multi_task=1", r"--config\.model\.multi_task=1: expected a value of type bool"),
        ("model.bottom_sizes=256", r"--config\.model\.bottom_sizes=256: expected a tuple such as \(256, 128\)"),
        ("model.bottom_sizes=(1.5,)", r"--config\.model\.bottom_sizes=1\.5: expected a value of type int"),
        ("labels.scale=wide", r"--config\.labels\.scale=wide: expected float or 'auto'"),
        ("labels.scale=0", r"--config\.labels\.scale=0\.0: expected 'auto' or a positive number"),
        ("labels.num_buckets=1", r"--config\.labels\.num_buckets=1: expected 2 or more"),
        ("labels.scale_quantile=1.5", r"--config\.labels\.scale_quantile=1\.5: expected a number in \(0, 1\]"),
        ("encoder.num_ple_bins=0", r"--config\.encoder\.num_ple_bins=0: expected 1 to 64"),
        ("train.max_epochs=0", r"--config\.train\.max_epochs=0: expected 1 or more"),
        ("train.seed=-1", r"--config\.train\.seed=-1: expected 0 or more"),
        ("train.early_stopping_metric=auc", r"expected one of gini, percentile_mape, loss"),
        ("model.name=meen", r"--config\.model\.name=meen: unknown model; choose one of: .*mean"),
        ("train.seed", r"--config\.train\.seed: has no value; write --config\.train\.seed=VALUE"),
        ("train=3", r"--config\.train: is a section; set one of its fields: .*batch_size"),
    ],
)
def test_a_wrong_override_is_named_with_its_mend(override, message):
    with pytest.raises(UserError, match=message):
        parse(override)


def test_a_stored_config_is_checked_like_an_override():
    tree = dataclasses.asdict(parse())
    with pytest.raises(UserError, match=r"--config\.optimizer: unknown config key"):
        parse_config(tree | {"optimizer": {}}, MODEL_CONFIGS)
    with pytest.raises(UserError, match=r"--config\.train=3: expected a section"):
        parse_config(tree | {"train": 3}, MODEL_CONFIGS)


def test_config_json_gives_the_config_back():
    config = parse("model.bottom_sizes=(8, 4)", "labels.scale=2.5", "train.num_seeds=3", "encoder.numeric=ple")
    assert parse_config(dataclasses.asdict(config), MODEL_CONFIGS) == config
    assert parse_config(json.loads(json.dumps(dataclasses.asdict(config))), MODEL_CONFIGS) == config


def test_a_config_is_found_by_name_and_by_path(tmp_path):
    by_name = find_config_file("mean")
    assert by_name.is_file()
    assert find_config_file("configs/mean.py").samefile(by_name)
    copy = tmp_path / "my config.txt"  # any name will do
    copy.write_text(by_name.read_text())
    assert load_config(str(copy)) == load_config("mean")


def test_a_missing_config_lists_those_that_exist():
    with pytest.raises(UserError, match=r"--config=maen: no such file; give a path or one of: .*mean"):
        load_config("maen")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    raise ValueError('no luck')", "ValueError: no luck"),
        ("def get_config(:", "SyntaxError"),
        ("x = 1", "AttributeError: .*get_config"),
        ("def get_config(): return {'train': {}}", r"get_config\(\) returns dict, expected a ConfigDict"),
    ],
)
def test_a_broken_config_file_is_named(tmp_path: Path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"--config={path}: {message}"):
        load_config(str(path), ["train.seed=1"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sweep.field=expert_size", "sweep.values=(4.0,)"], "sweep.field=expert_size: expected huber_delta or"),
        (["sweep.field=tau"], "sweep.values=(): expected values exactly if"),
        (["sweep.field=tau", "sweep.values=(1.0, 1.0)"], "expected different numbers"),
        (["sweep.field=tau", "sweep.values=(1.0, -2.0)"], "model.tau=-2.0: expected a positive number"),
    ],
)
def test_a_sweep_that_cannot_be_trained_is_refused(overrides, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        parse_config(load_config("mean", overrides), MODEL_CONFIGS)


@pytest.mark.parametrize(
    ("flags", "name", "field"),
    [
        ((), "mean", "model.attention=row"),
        (("--config=optdist",), "optdist", "model.inference=hard"),
        (("--config", "odmn", "--process_id=x"), "odmn", "model.decode=hard"),
        (("--config.train.seed=1", "-config=mdan"), "mdan", "train.seed=0"),
        (("--config=nowhere",), "mean", "model.attention=row"),
        (("--config",), "mean", "model.attention=row"),
        (("--config=PARTIAL",), "PARTIAL", "train.patience=9"),
    ],
)
@pytest.mark.parametrize("is_last", [False, True])
def test_help_lists_the_fields_of_the_config_that_is_named(flags, name, field, is_last, tmp_path, monkeypatch, capsys):
    partial = tmp_path / "partial.py"  # states only where it differs
    partial.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(): return ConfigDict({'model': {'name': 'odmn'}, 'train': {'patience': 9}})\n"
    )
    flags = [flag.replace("PARTIAL", str(partial)) for flag in flags]
    monkeypatch.setattr("sys.argv", ["mean-jax-train", *([*flags, "--help"] if is_last else ["--help", *flags])])
    with pytest.raises(SystemExit) as stopped:
        train_cli.main()
    assert stopped.value.code == 0
    _, heading, fields = capsys.readouterr().out.partition("\nFields of ")
    assert heading and fields.startswith(f"--config={name.replace('PARTIAL', str(partial))} and")
    assert f"  --config.{field}\n" in fields and "  --config.data.placement=host\n" in fields
    assert ("model.attention" in fields) == (name == "mean")
