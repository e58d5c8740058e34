"""The run folder: everything that evaluating and scoring need, in files that verify themselves.

config.json       the complete configuration
schema.json       columns and roles
transform.json    the fitted transform and the store it came from
checkpoints/      latest (training state) and best (variables to predict with)
metrics.jsonl     training and validation numbers, with TensorBoard events beside it
calibration.json  per horizon, fitted on the validation split
run.json          written last: the run is finished; its identity and what it trained
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from mean_jax import config as config_lib
from mean_jax.config import Config
from mean_jax.data.schema import FILE_NAME as SCHEMA_NAME
from mean_jax.data.schema import Schema
from mean_jax.data.transform import Transform
from mean_jax.errors import UserError
from mean_jax.evaluation.calibration import Calibration
from mean_jax.fileio import read_json, write_json
from mean_jax.labels import LabelConstants, fit_label_constants
from mean_jax.models import MODEL_CONFIGS, MODELS
from mean_jax.sharding import local_mesh
from mean_jax.training import checkpoints
from mean_jax.training.state import ReplicaSpec, TrainState, Variables, make_init, plan_replicas
from mean_jax.training.step import PredictFn, StepRule, make_predict
from mean_jax.types import RowLayout

TRANSFORM_KIND, TRANSFORM_VERSION = "mean-jax transform", 1
CALIBRATION_KIND, CALIBRATION_VERSION = "mean-jax calibration", 1
RUN_KIND, RUN_VERSION = "mean-jax run", 2
CONFIG_NAME, TRANSFORM_NAME = "config.json", "transform.json"
CALIBRATION_NAME, RUN_NAME = "calibration.json", "run.json"
BEST, LATEST = Path("checkpoints/best"), Path("checkpoints/latest")
# Levels of the stored validation quantiles, for the percentile of a score.
PERCENTILE_LEVELS = np.linspace(0.0, 100.0, 1001)


@dataclasses.dataclass(frozen=True)
class Program:
    """What follows from configuration, schema and transform: the model, its replicas, their constants."""

    config: Config
    schema: Schema
    transform: Transform

    @functools.cached_property
    def label_constants(self) -> LabelConstants:
        """Scale and bucket edges of all T horizons."""
        transform = self.transform
        return fit_label_constants(transform.positive_quantiles, transform.positive_rate, self.config.labels)

    @functools.cached_property
    def specs(self) -> tuple[ReplicaSpec, ...]:
        """The replicas that the configuration asks for."""
        config, train = self.config, self.config.train
        num_horizons = len(self.schema.labels)
        return plan_replicas(num_horizons, train.seed, train.num_seeds, config.model.multi_task, config.sweep)

    @functools.cached_property
    def model(self) -> Any:
        """The Flax module of one replica."""
        return MODELS[self.config.model.name].module(
            config=self.config.model,
            encoder_config=self.config.encoder,
            encoder_constants=self.transform.encoder_constants(),
            num_horizons=len(self.specs[0].horizons),
            num_buckets=self.config.labels.num_buckets,
        )

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam, as the paper."""
        return optax.adam(self.config.train.learning_rate)

    @functools.cached_property
    def init_state(self) -> Callable[[], TrainState]:
        """The function that returns the state before the first step."""
        return make_init(self.model, self.optimizer, self.specs, self.label_constants, self.schema.layout)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The shapes and types of the training state."""
        return jax.eval_shape(self.init_state)

    @functools.cached_property
    def predict_fn(self) -> PredictFn:
        """Predicts rows of the store on all devices of this process; compiled once for all its splits."""
        return make_predict(self.model, self.schema.layout, local_mesh())

    def step_rule(self, layout: RowLayout) -> StepRule:
        """Returns what training and validation steps follow on rows of a layout."""
        skip = self.config.train.on_nonfinite == "skip"
        return StepRule(self.model, self.optimizer, self.config.labels, layout, skip)

    def no_predictions(self, num_rows: int) -> np.ndarray:
        """Returns zeros [R, B, K] in place of the scaled predictions of rows that another process predicts."""
        return np.zeros((len(self.specs), num_rows, len(self.specs[0].horizons)), np.float32)

    def replica_of(self, horizon: int) -> list[tuple[int, int]]:
        """Returns (replica, position among its horizons) for every seed of a horizon."""
        return [(r, spec.horizons.index(horizon)) for r, spec in enumerate(self.specs) if horizon in spec.horizons]


@dataclasses.dataclass(frozen=True)
class HorizonCalibration:
    """What turns the predictions of one horizon into scores."""

    ensemble: Calibration  # of the mean over seeds, which scoring uses
    seeds: tuple[Calibration, ...]  # of each seed alone, for the spread over seeds
    percentiles: np.ndarray  # [1001] raw currency predictions of the validation split at PERCENTILE_LEVELS

    def percentile(self, raw_B: np.ndarray) -> np.ndarray:
        """Returns what share of the validation customers have a lower raw prediction, [B], 0 to 100."""
        above_B = np.interp(raw_B, self.percentiles, PERCENTILE_LEVELS)  # of many equal ones, the level of the last
        first_B = np.minimum(np.searchsorted(self.percentiles, raw_B), len(self.percentiles) - 1)
        return np.where(self.percentiles[first_B] == raw_B, PERCENTILE_LEVELS[first_B], above_B)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ensemble": self.ensemble.to_dict(),
            "seeds": [calibration.to_dict() for calibration in self.seeds],
            "percentiles": self.percentiles.tolist(),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "HorizonCalibration":
        seeds = tuple(Calibration.from_dict(item) for item in content["seeds"])
        return cls(Calibration.from_dict(content["ensemble"]), seeds, np.array(content["percentiles"]))


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, opened for evaluation or scoring."""

    folder: Path
    identity: str
    program: Program
    variables: Variables  # leaves [R, ...]
    calibrations: tuple[HorizonCalibration, ...]  # per horizon


def save_setup(folder: Path, program: Program) -> None:
    """Writes what is fixed before the first step."""
    folder.mkdir(parents=True, exist_ok=True)
    program.schema.save(folder)
    content = program.transform.to_dict()
    write_json(folder / TRANSFORM_NAME, TRANSFORM_KIND, TRANSFORM_VERSION, content)
    write_json(
        folder / CONFIG_NAME, config_lib.KIND, config_lib.VERSION, dataclasses.asdict(program.config)
    )  # last: a folder with a config.json is a run


def load_setup(folder: Path) -> Program:
    """Returns what `save_setup` wrote.

    Raises:
      UserError: a file is missing, altered or of another version.
    """
    config = config_lib.parse_config(
        read_json(folder / CONFIG_NAME, config_lib.KIND, config_lib.VERSION), MODEL_CONFIGS
    )
    transform = Transform.from_dict(read_json(folder / TRANSFORM_NAME, TRANSFORM_KIND, TRANSFORM_VERSION))
    return Program(config, Schema.load(folder), transform)


def is_finished(folder: Path) -> bool:
    """Tells whether training in this folder came to its end."""
    return (folder / RUN_NAME).is_file()


def _identity(folder: Path, variables: Variables) -> str:
    """Returns a hash of all that decides a score, so two runs that score alike have the same one."""
    digest = hashlib.sha256()
    for name in (CONFIG_NAME, SCHEMA_NAME, TRANSFORM_NAME, CALIBRATION_NAME):
        digest.update((folder / name).read_bytes())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def seal(folder: Path, step: int, variables: Variables, calibrations: tuple[HorizonCalibration, ...]) -> None:
    """Writes the calibrations and marks the run as finished."""
    content = {"horizons": [calibration.to_dict() for calibration in calibrations]}
    write_json(folder / CALIBRATION_NAME, CALIBRATION_KIND, CALIBRATION_VERSION, content)
    write_json(folder / RUN_NAME, RUN_KIND, RUN_VERSION, {"identity": _identity(folder, variables), "best": step})


def load_run(
    folder: str | Path, flag: str = "--workdir", allow_sweep: bool = False, program: Program | None = None
) -> Run:
    """Opens a finished run.

    Args:
      folder: the run folder.
      flag: where its name came from, for error lines.
      allow_sweep: also open runs whose replicas are not seeds of one model; a mean over these is no prediction.
      program: the one that trained the run, if it is at hand: what was traced for it need not be traced again.

    Raises:
      UserError: not a run, not finished, another version, a sweep, or a file that is missing, cut or altered.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{flag}: run folder {folder} does not exist; train with mean-jax-train first")
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"{flag}: {folder} is not a run folder, it has no {CONFIG_NAME}")
    if not is_finished(folder):
        raise UserError(f"{flag}: the run in {folder} is not finished; run the same mean-jax-train command to go on")
    program = program or load_setup(folder)
    sweep = program.config.sweep
    if sweep.field and not allow_sweep:
        raise UserError(
            f"{flag}: the run in {folder} sweeps {sweep.field} over {list(sweep.values)}; "
            f"train the value to use with --config.model.{sweep.field}=VALUE"
        )
    sealed = read_json(folder / RUN_NAME, RUN_KIND, RUN_VERSION)
    abstract = program.abstract_state.replicas.best
    variables = checkpoints.load(folder / BEST, sealed["best"], abstract)
    content = read_json(folder / CALIBRATION_NAME, CALIBRATION_KIND, CALIBRATION_VERSION)
    calibrations = tuple(HorizonCalibration.from_dict(item) for item in content["horizons"])
    if _identity(folder, variables) != sealed["identity"]:
        raise UserError(f"{flag}: {folder} mixes files of several runs; copy the whole folder again")
    return Run(folder, sealed["identity"], program, variables, calibrations)
