"""A run as the training container sees it: what lies where, what is uploaded for it. Loads no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestration.machine.placement import MARK
from orchestration.settings.config import RunConfig
from orchestration.settings.sagemaker import SageMakerConfig
from orchestration.submit.common.paths import local_model_folder, with_settings
from orchestration.submit.sagemaker.fitting import groups_by_role, learner_on_head
from orchestration.submit.sagemaker.host.facts import HEAD
from orchestration.submit.sagemaker.host.places import AUTH, CHANNELS_FOLDER, CONFIG, MODEL, RUN_FOLDER

_CHANNELS = {"data.train_file": "train", "data.eval_file": "validation"}  # SageMaker's own names for them


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where a job's things are on S3."""

    bucket: str
    folder: str
    """Key prefix of all jobs."""
    name: str

    @classmethod
    def of(cls, settings: SageMakerConfig, name: str) -> Layout:
        assert settings.bucket is not None, "checked before"
        return cls(bucket=settings.bucket, folder=f"{settings.prefix}/jobs", name=name)

    @property
    def output(self) -> str:
        """Above the job's own folder: SageMaker appends NAME/output."""
        return f"s3://{self.bucket}/{self.folder}"

    def channel(self, channel: str) -> str:
        return f"s3://{self.bucket}/{self.folder}/{self.name}/input/{channel}"

    def checkpoints(self, job: str | None) -> str:
        """Those of `job`, or of this job."""
        return f"s3://{self.bucket}/{self.folder}/{job or self.name}/checkpoints"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file or a folder for a place on S3. A folder's files keep their names below it."""

    uri: str
    source: Path

    def files(self) -> list[tuple[Path, str]]:
        """Each file and its URI, without Python's caches; a link, as in the hub's own cache, counts as its file."""
        if self.source.is_file():
            return [(self.source, self.uri)]
        return [
            (path, f"{self.uri}/{path.relative_to(self.source).as_posix()}")
            for path in sorted(self.source.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        ]

    def describe(self) -> str:
        files = [path for path, _ in self.files()]
        size = f"{sum(path.stat().st_size for path in files) / 1000:.0f} kB"
        return f"{len(files)} files, {size}" if self.source.is_dir() else size


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a run reads, placed in channels."""

    run: RunConfig
    """With the container's paths."""
    channels: Mapping[str, str]
    """URI of each, in the order of the request."""
    uploads: tuple[Upload, ...]


def container_inputs(
    settings: SageMakerConfig, run: RunConfig, data_files: Mapping[str, str], layout: Layout
) -> Inputs:
    """Rewrite a checked run's paths to the container's, and say which channels and uploads that takes.

    Args:
        data_files: the files that the run reads, by the setting that names them.
        layout: where the job's things are on S3.

    Files on S3 stay where they lie. `config` and `auth` are always there: what is in them is made at submission.
    """
    channels = {CONFIG: layout.channel(CONFIG), AUTH: layout.channel(AUTH)}
    uploads: list[Upload] = []
    changes: dict[str, Any] = {"run_dir": str(RUN_FOLDER), "ray_address": "auto"}
    for name, file in data_files.items():
        channel = _CHANNELS.get(name) or name.removeprefix("data.").replace("_", "-")
        basename = PurePosixPath(file).name
        uri = file if file.startswith("s3://") else f"{layout.channel(channel)}/{basename}"
        if not file.startswith("s3://"):
            uploads.append(Upload(uri=uri, source=Path(file).expanduser()))
        channels[channel] = uri
        changes[name] = str(CHANNELS_FOLDER / channel / basename)
    if (model := _model_uri(run, layout)) is not None:
        if (folder := local_model_folder(run)) is not None:
            uploads.append(Upload(uri=model, source=folder))
        channels[MODEL] = model
        changes["model.name"] = str(CHANNELS_FOLDER / MODEL)
    for name, source, channel, beside in (
        ("reward.settings_file", run.reward.settings_file, CONFIG, "reward.yaml"),
        ("reward.api_key_file", run.reward.api_key_file, AUTH, "reward_api_key"),
    ):
        if source is not None:
            uploads.append(Upload(uri=f"{layout.channel(channel)}/{beside}", source=source))
            changes[name] = str(CHANNELS_FOLDER / channel / beside)
    changes |= _role_changes(settings, run)
    return Inputs(run=with_settings(run, changes), channels=channels, uploads=tuple(uploads))


def _model_uri(run: RunConfig, layout: Layout) -> str | None:
    """Where the model lies on S3, None when the container finds it by its name."""
    if run.model.name.startswith("s3://"):
        # Without the slash, folders beside it whose names begin alike would come too.
        return run.model.name.rstrip("/") + "/"
    return None if local_model_folder(run) is None else layout.channel(MODEL)


def _role_changes(settings: SageMakerConfig, run: RunConfig) -> dict[str, Any]:
    """Settings that send each room to its hosts, by the Ray resources that these carry."""
    groups = groups_by_role(settings)
    on_head = {"learner_nodes": HEAD} if learner_on_head(settings, run) else {}
    if not groups:
        return on_head
    changes: dict[str, Any] = {"rollout_nodes": "rollout", "learner_nodes": "learner"} | on_head
    if "reward" in groups:
        deployment = run.reward.deployment
        cores = {"num_cpus": deployment.num_cpus} if deployment.kind == "actor" else {}
        changes["reward.deployment"] = {"kind": "actor", **cores, "resources": {"reward": MARK}}
    return changes
