"""The trackers by the names that `report_to` has for them. Each imports its library when it is opened."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final

from orchestration.errors import ConfigError
from orchestration.extras import require
from orchestration.tracking.sink import Sink, Tracked

_FOLDER: Final = "tracking"
_BATCH: Final = 100
_LONGEST_VALUE: Final = 500


class TensorBoard:
    """Event files in RUN_DIR/tracking: `tensorboard --logdir RUN_DIR`."""

    def __init__(self, run: Tracked) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run.folder / _FOLDER))

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def artefact(self, path: Path, name: str) -> None:
        """Event files hold figures; the run's folder, in which they lie, has the rest."""

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class MLflow:
    """A run of an experiment: on the server that MLFLOW_TRACKING_URI names (a URL, a folder, or the ARN of a tracking
    server of SageMaker, for which the package sagemaker-mlflow is needed), else in ./mlruns."""

    def __init__(self, run: Tracked) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").resolve().as_uri()
        if uri.startswith("arn:"):
            require("sagemaker_mlflow", by=f"MLFLOW_TRACKING_URI={uri}", extra="mlflow", package="sagemaker-mlflow")
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(run.project)
        experiment = known.experiment_id if known else self._client.create_experiment(run.project)
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        parameters = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in run.settings.items()]
        for start in range(0, len(parameters), _BATCH):
            self._client.log_batch(self._id, params=parameters[start : start + _BATCH])

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[self._metric(name, v, now, step) for name, v in figures.items()])

    def artefact(self, path: Path, name: str) -> None:
        if path.is_dir():
            self._client.log_artifacts(self._id, str(path), artifact_path=name)
        else:
            self._client.log_artifact(self._id, str(path))

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class WandB:
    """A run of a project. WANDB_MODE, WANDB_API_KEY and the like are its own; offline it lies in RUN_DIR/tracking."""

    def __init__(self, run: Tracked) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
            raise ConfigError(
                "report_to=wandb has no key: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
            )
        folder = run.folder / _FOLDER
        folder.mkdir(exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            dir=str(folder),
            config=dict(run.settings),
            settings=wandb.Settings(silent=True, console="off", init_timeout=60),
        )

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def artefact(self, path: Path, name: str) -> None:
        artifact = self._wandb.Artifact(f"{self._run.id}-{path.stem}", type=path.stem)
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class Trackio:
    """A run of a project in Trackio's own folder (TRACKIO_DIR): `trackio show`."""

    def __init__(self, run: Tracked) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):  # it prints what it does, into what shows the run
            self._run = trackio.init(
                project=run.project,
                name=run.name,
                config=dict(run.settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def artefact(self, path: Path, name: str) -> None:
        """It takes figures, and files only as media; the run's folder has them."""

    def close(self, *, finished: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()


TRACKERS: Final[Mapping[str, tuple[Callable[[Tracked], Sink], str, str]]] = {
    "tensorboard": (TensorBoard, "tensorboard", "tensorboard"),
    "mlflow": (MLflow, "mlflow", "mlflow-skinny"),
    "wandb": (WandB, "wandb", "wandb"),
    "trackio": (Trackio, "trackio", "trackio"),
}
"""How a tracker is opened, its module and its package."""


def check_trackers(names: tuple[str, ...]) -> None:
    """For before anything starts: all libraries are here.

    Raises:
        ConfigError: One is not installed; it names the tracker and its extra.
    """
    for name in names:
        _, module, package = TRACKERS[name]
        require(module, by=f"report_to={name}", extra=name, package=package)


def open_trackers(names: tuple[str, ...], run: Tracked) -> dict[str, Sink]:
    """Every tracker of these names, opened.

    Raises:
        ConfigError: a library is not installed, or a tracker cannot be had as it is set up.
    """
    check_trackers(names)
    opened: dict[str, Sink] = {}
    for name in names:
        try:
            opened[name] = TRACKERS[name][0](run)
        except Exception as error:  # whatever a tracker raises
            for sink in opened.values():
                sink.close(finished=False)
            told = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                told if isinstance(error, ConfigError) else f"report_to={name} cannot start: {told}"
            ) from error
    return opened


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """A configuration by dotted keys; lists as text, what is unset left out."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, (str, int, float, bool)) else str(value)
    return flat
