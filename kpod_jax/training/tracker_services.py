"""Adapters of Weights & Biases, Trackio and MLflow to `trackers.Tracker`.

Each library reads its own environment variables, such as WANDB_MODE, WANDB_PROJECT,
TRACKIO_SPACE_ID, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, and finds its own API key.
"""

import os
import pathlib
import time
import uuid
from collections.abc import Mapping
from typing import Any

from kpod_jax.training.trackers import PROJECT, Opener, Run, Tracker

# MLflow's limits: parameters per request, and characters per parameter.
_PARAMS, _PARAM_LENGTH = 100, 500


def _new_id() -> str:
    return uuid.uuid4().hex[:12]


def _prefixed(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in values.items()}


class WandB:
    """A run of Weights & Biases."""

    def __init__(self, module: Any, run: Any) -> None:
        """Takes the imported module and the run that it opened."""
        self._module, self._run = module, run
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics over the stage's own steps."""
        # The step of a W&B run never decreases, but each stage starts at 1.
        if stage not in self._stages:
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log(_prefixed(stage, values) | {f"{stage}/step": step})

    def results(self, values: Mapping[str, float]) -> None:
        """Adds results to the run's summary."""
        self._run.summary.update(dict(values))

    def artifact(self, path: pathlib.Path) -> None:
        """Logs a file as an artifact of one file."""
        artifact = self._module.Artifact(f"{path.stem}-{self._run.id}", type=path.stem)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self, succeeded: bool) -> None:
        """Ends the run."""
        self._run.finish(exit_code=0 if succeeded else 1)


def open_wandb(run: Run) -> tuple[Tracker, str]:
    """Opens a run of Weights & Biases that does not upload code or console output."""
    import wandb  # pyright: ignore[reportMissingImports]

    run_id = run.id or _new_id()
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        name=run.name,
        id=run_id,
        resume="allow",
        config=dict(run.config),
        dir=str(run.folder),
        settings=wandb.Settings(
            silent=True, console="off", save_code=False, disable_git=True, init_timeout=60
        ),
    )
    return WandB(wandb, opened), run_id


class Trackio:
    """A run of Trackio."""

    def __init__(self, module: Any, run: Any) -> None:
        """Takes the imported module and the run that it opened."""
        self._module, self._run = module, run

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics of a step."""
        self._run.log(_prefixed(stage, values), step=step)

    def results(self, values: Mapping[str, float]) -> None:
        """Logs results as metrics at step 0; Trackio has no summary."""
        self._run.log(dict(values), step=0)

    def artifact(self, path: pathlib.Path) -> None:
        """Logs a file as an artifact of one file."""
        artifact = self._module.Artifact(f"{path.stem}-{self._run.name}", path.stem)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self, succeeded: bool) -> None:
        """Ends the run."""
        del succeeded
        self._run.finish()


def open_trackio(run: Run) -> tuple[Tracker, str]:
    """Opens a run of Trackio, whose name is its id. A new Space is private."""
    import trackio  # pyright: ignore[reportMissingImports]

    name = run.id or f"{run.name}-{_new_id()}"
    opened = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
        name=name,
        resume="allow",
        config=dict(run.config),
        private=True,
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return Trackio(trackio, opened), name


class MLflow:
    """A run of MLflow."""

    def __init__(self, client: Any, metric: Any, run_id: str) -> None:
        """Takes a client, the class of metrics, and the run's id."""
        self._client, self._metric, self._run_id = client, metric, run_id

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics of a step."""
        self._log(step, _prefixed(stage, values))

    def results(self, values: Mapping[str, float]) -> None:
        """Logs results as metrics at step 0."""
        self._log(0, values)

    def artifact(self, path: pathlib.Path) -> None:
        """Logs a file as an artifact."""
        self._client.log_artifact(self._run_id, str(path))

    def finish(self, succeeded: bool) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)


def open_mlflow(run: Run) -> tuple[Tracker, str]:
    """Opens a run of MLflow. Parameters are logged when it is created; they cannot change."""
    import mlflow  # pyright: ignore[reportMissingImports]
    from mlflow import entities  # pyright: ignore[reportMissingImports]

    client = mlflow.MlflowClient()
    if run.id:
        client.update_run(run.id, status="RUNNING")
        return MLflow(client, entities.Metric, run.id), run.id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    run_id = client.create_run(experiment, run_name=run.name).info.run_id
    params = [entities.Param(key, f"{value}"[:_PARAM_LENGTH]) for key, value in run.config.items()]
    for start in range(0, len(params), _PARAMS):
        client.log_batch(run_id, params=params[start : start + _PARAMS])
    return MLflow(client, entities.Metric, run_id), run_id


OPENERS: dict[str, Opener] = {
    "wandb": open_wandb,
    "trackio": open_trackio,
    "mlflow": open_mlflow,
}
