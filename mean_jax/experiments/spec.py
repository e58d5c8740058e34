"""What an experiment is: which systems are trained on which data, and how the results are laid out.

A config file in `configs/experiments/` returns `ExperimentSpec` as a ConfigDict, see `to_config_dict`.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any, Literal

from ml_collections import ConfigDict
import numpy as np

from mean_jax.config import Config, TrainConfig, load_config, parse_config, parse_section, require
from mean_jax.data.synthetic import LABELS
from mean_jax.data.synthetic_features import MIN_FEATURES
from mean_jax.evaluation.metrics import point_metrics
from mean_jax.experiments.peers import PEERS
from mean_jax.models import MODEL_CONFIGS

SYNTHETIC = "synthetic"
ORACLE = "oracle"  # the system that predicts E[label | all that decides it], on synthetic data
METRICS = tuple(point_metrics(np.ones(1), np.ones(1)))
_BUDGET = TrainConfig(num_seeds=3)


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The data that all systems of an experiment share; a store named on the command line takes its place."""

    name: str = "cdnow"  # synthetic, or a public data set
    source: str = ""  # of a public data set that is not downloaded: the user's copy
    split_seed: int = 8  # draws the split by a hash of the ids; 26 is the quickstart's, chosen with an eye on its test
    rows: int = 300_000  # of synthetic
    num_features: int = 720  # of synthetic
    labels: tuple[str, ...] = LABELS  # of synthetic: those to predict
    seed: int = 0  # of synthetic

    def __post_init__(self) -> None:
        require(self.rows >= 1, "data.rows", self.rows, "1 or more")
        require(self.num_features >= MIN_FEATURES, "data.num_features", self.num_features, f"{MIN_FEATURES} or more")
        is_some = bool(self.labels) and self.labels == tuple(label for label in LABELS if label in self.labels)
        require(is_some, "data.labels", self.labels, f"some of {', '.join(LABELS)}, in this order")
        for name in ("split_seed", "seed"):
            require(getattr(self, name) >= 0, f"data.{name}", getattr(self, name), "0 or more")


@dataclasses.dataclass(frozen=True)
class ExperimentSpec:
    """One experiment: every network and peer on the same store, split, budget and metrics."""

    title: str = ""
    # comparison: a table of systems; curve: a figure over a number; targeting: what the best-ranked tenth is worth.
    layout: Literal["comparison", "curve", "targeting"] = "comparison"
    # Of each: name in the table, config of mean-jax-train, then overrides, e.g. ("MEAN", "mean", "model.tau=4.0").
    networks: tuple[tuple[str, ...], ...] = ()
    peers: tuple[str, ...] = ()  # names of mean_jax.experiments.peers
    num_peer_seeds: int = 0  # of peers with something random; 0: as many as the networks
    reference: str = "MEAN"  # the network that the others are compared with, seed by seed
    metrics: tuple[str, ...] = ("percentile_mape", "gini", "spearman", "auc")  # columns of the table
    paper: Literal["", "table1", "table2_3", "table4"] = ""  # the paper's numbers to print beside ours
    horizontal: str = ""  # of a curve: what the number is; a network's sweep or else its name gives it
    data: DataSpec = DataSpec()
    train: TrainConfig = _BUDGET  # of all networks

    def __post_init__(self) -> None:
        for entry in self.networks:
            require(len(entry) >= 2, "networks", entry, "name, config and overrides of each network")
        names = self.network_names
        require(self.num_peer_seeds >= 0, "num_peer_seeds", self.num_peer_seeds, "0 (as the networks) or more")
        for peer in self.peers:
            require(peer in PEERS, "peers", peer, f"some of {', '.join(PEERS)}")
        for metric in self.metrics:
            require(metric in METRICS, "metrics", metric, f"some of {', '.join(METRICS)}")
        names = self.network_names
        require(bool(names), "networks", self.networks, "at least one network")
        files = [slug(name) for name in (*names, *self.peers)]
        is_told_apart = len(set(files)) == len(files) and not {"", ORACLE} & set(files)
        require(
            is_told_apart, "networks", [*names, *self.peers], f"names that differ in a letter or digit, not {ORACLE}"
        )
        require(self.reference in names, "reference", self.reference, f"one of {', '.join(names)}")

    @property
    def network_names(self) -> list[str]:
        """The names of the networks in the order of the table."""
        return [entry[0] for entry in self.networks]

    def network_config(self, name: str) -> Config:
        """Returns the parsed configuration of one network: its config file, this budget, then its overrides.

        Raises:
          UserError: no such config, or an override that it does not accept.
        """
        (config_name, *overrides), *_ = [rest for first, *rest in self.networks if first == name]
        budget = [f"train.{field}={value}" for field, value in dataclasses.asdict(self.train).items()]
        return parse_config(load_config(config_name, [*budget, *overrides]), MODEL_CONFIGS)


def slug(name: str) -> str:
    """Returns the name of a system as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def to_config_dict(spec: ExperimentSpec) -> ConfigDict:
    """Returns the experiment for a config file to return; any field can be overridden on the command line."""
    return ConfigDict(dataclasses.asdict(spec), convert_dict=True)


def parse_spec(tree: Mapping[str, Any] | ConfigDict) -> ExperimentSpec:
    """Returns the experiment of a config file or of an experiment.json.

    Raises:
      UserError: an unknown key, a wrong type or a value out of range, in the experiment or in one of its networks.
    """
    spec = parse_section(ExperimentSpec, tree.to_dict() if isinstance(tree, ConfigDict) else tree, "")
    for name in spec.network_names:
        sweep = spec.network_config(name).sweep
        if spec.layout == "curve":
            is_point = bool(sweep.field) or re.fullmatch(r"\d+(\.\d+)?", name) is not None
            require(is_point, "networks", name, "a network with a sweep, or a number as its name, on a curve")
        else:
            require(not sweep.field, "networks", name, "a network without a sweep, which only a curve can show")
    return spec


def smoke(spec: ExperimentSpec) -> ExperimentSpec:
    """Returns the experiment on a small synthetic table with one epoch and tiny networks, to see that it runs.

    Two horizons, as a multi-task network compiles as many heads.

    Its numbers mean nothing.
    """
    tiny = tuple((*entry, *_tiny_overrides(entry[1])) for entry in spec.networks)
    return dataclasses.replace(
        spec,
        networks=tiny,
        data=DataSpec(SYNTHETIC, rows=3000, num_features=MIN_FEATURES, labels=LABELS[:2]),
        train=dataclasses.replace(spec.train, num_seeds=2, max_epochs=1, batch_size=256),
    )


def _tiny_overrides(config_name: str) -> list[str]:
    """Returns overrides that shrink every layer size of a network's config."""
    model = load_config(config_name).model
    return [f"model.{field}=(8,)" for field in model if field.endswith("_sizes")]
