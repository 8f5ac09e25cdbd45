"""A run as the training container sees it: what lies where, what is uploaded for it. Loads no heavy library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.machine.placement import MARK
from orchestration.run.ledger.names import ADAPTER_FOLDER
from orchestration.settings.config import RunConfig, dump_config
from orchestration.settings.sagemaker import SageMakerConfig
from orchestration.submit.common.hosts import REWARD
from orchestration.submit.common.instances import num_cpus
from orchestration.submit.common.job import JobSpec
from orchestration.submit.common.paths import data_files, local_model_folder, with_settings
from orchestration.submit.ray.jobs import RUN_FILE
from orchestration.submit.sagemaker.fitting import expected_gpus, instance_kinds, learner_on_head
from orchestration.submit.sagemaker.host import places
from orchestration.submit.sagemaker.host.facts import HEAD

_CHANNELS = {"data.train_file": "train", "data.eval_file": "validation"}  # SageMaker's own names for them
_CODE = "code"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where a job's things are on S3. What is uploaded for it lies below a name that is this submission's alone."""

    bucket: str
    folder: str
    """Key prefix of all jobs."""
    name: str
    submission: str

    @classmethod
    def of(cls, settings: SageMakerConfig, job: JobSpec) -> Layout:
        assert settings.bucket is not None, "checked before"
        return cls(bucket=settings.bucket, folder=f"{settings.prefix}/jobs", name=job.name, submission=job.submission)

    @property
    def output(self) -> str:
        """Above the job's own folder: SageMaker appends NAME/output."""
        return f"s3://{self.bucket}/{self.folder}"

    def channel(self, channel: str) -> str:
        """With the slash, without which folders beside it whose names begin alike would come too."""
        return f"{self.output}/{self.name}/input-{self.submission}/{channel}/"

    def checkpoints(self, job: str | None = None) -> str:
        """Those of `job`, or of this job."""
        return f"{self.output}/{job or self.name}/checkpoints"

    def run_folder(self, job: str | None = None) -> str:
        """What SageMaker copies of a job's run folder."""
        return f"{self.checkpoints(job)}/{places.RUN_FOLDER.name}"

    def resumed_by(self, job: str) -> str:
        """Below it lies the name of each job that goes on from `job` in its folder."""
        return f"{self.output}/{job}/resumed-by/"

    @property
    def token(self) -> str:
        """The cluster's, made when the job is submitted."""
        return f"{self.channel(places.AUTH)}{places.TOKEN_FILE}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A text, a file or a folder for a place on S3. A folder's files keep their names below it."""

    uri: str
    source: Path | str

    def files(self) -> list[tuple[Path | bytes, str]]:
        """Each file and its URI, without Python's caches; a link, as in the hub's own cache, counts as its file."""
        if isinstance(self.source, str):
            return [(self.source.encode(), self.uri)]
        if self.source.is_file():
            return [(self.source, self.uri)]
        return [
            (path, f"{self.uri}{path.relative_to(self.source).as_posix()}")
            for path in sorted(self.source.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        ]

    def describe(self) -> str:
        sizes = [len(file) if isinstance(file, bytes) else file.stat().st_size for file, _ in self.files()]
        size = f"{sum(sizes) / 1000:.0f} kB"
        return f"{len(sizes)} files, {size}" if self.uri.endswith("/") else size


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a run reads, placed in channels."""

    run: RunConfig
    """With the container's paths."""
    channels: Mapping[str, str]
    """What SageMaker copies into a folder of every host, in the order of the request: a prefix on S3, which ends in a
    slash, or a manifest, a list of objects."""
    uploads: tuple[Upload, ...]
    layout: Layout


def container_inputs(settings: SageMakerConfig, job: JobSpec) -> Inputs:
    """Rewrite a checked run's paths to the container's, and say which channels and uploads that takes.

    Files on S3 stay where they lie. `config`, `auth` and `code` are always there; the token in `auth` is made when the
    job is submitted.

    Args:
        settings: Of the place.
        job: Checked.

    Returns:
        Channels by name, uploads, and the settings as the container reads them. Nothing is uploaded yet.
    """
    run, layout = job.run, Layout.of(settings, job)
    channels = {name: layout.channel(name) for name in (places.CONFIG, places.AUTH, _CODE)}
    uploads = [Upload(uri=layout.channel(_CODE), source=job.code.folder)]
    changes: dict[str, Any] = {"run_dir": str(places.RUN_FOLDER), "ray_address": "auto"}
    for name, file in data_files(run).items():
        channel = _CHANNELS.get(name) or name.removeprefix("data.").replace("_", "-")
        folder, _, basename = file.rpartition("/")
        if file.startswith("s3://"):
            # As a prefix, train.jsonl would bring train.jsonl.bak along.
            channels[channel] = f"{layout.channel('manifests')}{channel}.json"
            uploads.append(Upload(uri=channels[channel], source=json.dumps([{"prefix": f"{folder}/"}, basename])))
        else:
            channels[channel] = layout.channel(channel)
            uploads.append(Upload(uri=f"{layout.channel(channel)}{basename}", source=Path(file).expanduser()))
        changes[name] = str(places.CHANNELS_FOLDER / channel / basename)
    if (model := _model_uri(run, layout)) is not None:
        if (own := local_model_folder(run)) is not None:
            uploads.append(Upload(uri=model, source=own))
        channels[places.MODEL] = model
        changes["model.name"] = str(places.CHANNELS_FOLDER / places.MODEL)
    for name, source, channel, beside in (
        ("reward.settings_file", run.reward.settings_file, places.CONFIG, "reward.yaml"),
        ("reward.api_key_file", run.reward.api_key_file, places.AUTH, "reward_api_key"),
    ):
        if source is not None:
            uploads.append(Upload(uri=f"{layout.channel(channel)}{beside}", source=source.expanduser()))
            changes[name] = str(places.CHANNELS_FOLDER / channel / beside)
    there = with_settings(run, changes | _role_changes(settings, run))
    config = layout.channel(places.CONFIG)
    uploads += [
        Upload(uri=f"{config}{RUN_FILE}", source=dump_config(there)),
        Upload(uri=f"{config}{places.HOSTS_FILE}", source=json.dumps(host_settings(settings, run, layout), indent=1)),
    ]
    if settings.resume is not None:
        uploads.append(Upload(uri=f"{layout.resumed_by(settings.resume)}{layout.name}/{layout.submission}", source=""))
    return Inputs(run=there, channels=channels, uploads=tuple(uploads), layout=layout)


def host_settings(settings: SageMakerConfig, run: RunConfig, layout: Layout) -> dict[str, Any]:
    """What the hosts are told beside the run's own settings; nothing secret."""
    return {
        "join_timeout_s": settings.join_timeout_s,
        "head_group": "learner" if settings.instance_groups else None,
        "gpus": expected_gpus(settings, run),
        "adapter": f"{layout.run_folder(settings.resume)}/{ADAPTER_FOLDER}",
        "secrets": settings.secrets,
        "endpoints": settings.endpoints,
    }


def _model_uri(run: RunConfig, layout: Layout) -> str | None:
    """Where the model lies on S3, None when the container finds it by its name."""
    if run.model.name.startswith("s3://"):
        return run.model.name.rstrip("/") + "/"
    return None if local_model_folder(run) is None else layout.channel(places.MODEL)


def _role_changes(settings: SageMakerConfig, run: RunConfig) -> dict[str, Any]:
    """Settings that send each room to its hosts, by the Ray resources that these carry, and to GPUs where there are
    any: `auto` would train on the processor of a host whose driver is broken."""
    changes: dict[str, Any] = {"device": "cuda"} if expected_gpus(settings, run) else {}
    if settings.instance_groups:
        changes |= {"rollout_nodes": "rollout", "learner_nodes": "learner"}
    if learner_on_head(settings, run):
        changes["learner_nodes"] = HEAD
    if (kind := instance_kinds(settings).get(REWARD)) is not None:
        asked = run.reward.deployment
        cores = asked.num_cpus if asked.kind == "actor" else max(1, num_cpus(kind[0]) - 1)  # one is for Ray
        changes["reward.deployment"] = {"kind": "actor", "num_cpus": cores, "resources": {REWARD: MARK}}
    return changes
