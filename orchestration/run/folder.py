"""The folder of one run, and the only place that knows what lies where in it.

    config.yaml                      the resolved settings
    metrics.jsonl                    one JSON object a step, in order, each step once
    completions/step-000012.parquet  what step 12 learned from, one row a completion
    adapter/                         the latest adapter, a peft folder
    checkpoints/step-000012/         what a stopped run goes on from: see `orchestration.run.resume`
    summary.json                     written at the end

Whole files are written beside their place and renamed, so a reader (or a crash) never meets half a file.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from learner.types import ScoredGroup
from orchestration.errors import ConfigError, MachineError, RlvrError
from orchestration.settings.config import RunConfig, dump_config
from orchestration.storage.atomic import atomic_write
from rollout_server.types import ADAPTER_WEIGHTS

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FOLDER = "completions"
ADAPTER_FOLDER = "adapter"
SUMMARY_FILE = "summary.json"

_NEW_ADAPTER, _OLD_ADAPTER = ".adapter.new", ".adapter.old"


class RunFolder:
    """An open run folder; this process is its only writer until `close`.

    Reusing the folder of an unfinished run is allowed: the first step written replaces that step and all later ones.
    """

    def __init__(self, path: Path, metrics: FileIO) -> None:
        self.path = path
        self._metrics = metrics
        self._first_write = True

    @classmethod
    def create(cls, config: RunConfig) -> RunFolder:
        """Make or take over the run's folder and write `config.yaml` into it.

        Raises:
            ConfigError: the folder holds something else, a finished run or a running one, or cannot be written.
            MachineError: the disk is full.
        """
        path = _choose_path(config)
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign_content(path)
            metrics = _open_metrics(path / METRICS_FILE)
            try:
                _clear_leftovers(path)
                atomic_write(path / CONFIG_FILE, dump_config(config).encode())
            except BaseException:
                metrics.close()
                if not (path / CONFIG_FILE).exists():  # a new folder: leave nothing that would look like somebody's
                    with suppress(OSError):
                        (path / METRICS_FILE).unlink()
                        path.rmdir()
                raise
        return cls(path, metrics)

    @property
    def adapter_path(self) -> Path:
        return self.path / ADAPTER_FOLDER

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a step's row (it must hold `step`) to `metrics.jsonl`; non-finite numbers become null.

        Raises:
            RlvrError: the line could not be written; what was written of it is taken back.
        """
        self._forget_later_steps(row["step"])
        line = _to_json(row) + b"\n"
        with _explained(self.path / METRICS_FILE):
            end = self._metrics.seek(0, os.SEEK_END)
            try:
                _write_all(self._metrics, line)
            except OSError:
                with suppress(OSError):  # the first error is the one to tell; reopening repairs what this cannot
                    self._metrics.truncate(end)
                raise

    def write_completions(
        self,
        step: int,
        groups: Sequence[ScoredGroup],
        prompt_texts: Mapping[str, str],
        reward_names: Sequence[str],
        advantages: Sequence[Sequence[float | None]] = (),
    ) -> Path:
        """Write what a step learned from as parquet, one row a completion.

        Args:
            prompt_texts: text by prompt id, for every group.
            advantages: as in `UpdateMetrics`: one entry per group and member; empty leaves the column null.

        Returns: the file's path. Rewards are columns `reward_NAME`; null is "could not be scored".
        """
        from pyarrow import BufferOutputStream, parquet

        self._forget_later_steps(step)
        sink = BufferOutputStream()
        table = completions_table(step, groups, prompt_texts, reward_names, advantages)
        parquet.write_table(table, sink, compression="zstd")
        path = self.path / COMPLETIONS_FOLDER / f"step-{step:06d}.parquet"
        with _explained(path):
            path.parent.mkdir(exist_ok=True)
            atomic_write(path, sink.getvalue().to_pybytes())
        return path

    def write_adapter(self, files: Sequence[tuple[str, bytes]], tied: Sequence[tuple[str, str]] = ()) -> Path:
        """Replace `adapter/` by a payload's files, as plain peft loads them.

        After a crash the folder is whole: the old or the new.

        Args:
            files: (name, content).
            tied: (name, the name its tensor is stored under): such tensors are written under both.
        """
        for name, _ in files:
            if name in ("", ".", "..") or Path(name).name != name:
                raise ValueError(f"{name!r} is not a plain file name")
        new, old = self.path / _NEW_ADAPTER, self.path / _OLD_ADAPTER
        with _explained(self.adapter_path):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                for name, content in files:
                    whole = _with_tied_names(content, tied) if tied and name == ADAPTER_WEIGHTS else content
                    atomic_write(new / name, whole)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            # POSIX cannot swap folders in one call; between these renames only `.adapter.old` exists, and
            # `create` puts that back.
            if self.adapter_path.exists():
                self.adapter_path.rename(old)
            new.rename(self.adapter_path)
            shutil.rmtree(old, ignore_errors=True)
        return self.adapter_path

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write `summary.json`; a `status` other than "finished" leaves the folder open for another start."""
        path = self.path / SUMMARY_FILE
        with _explained(path):
            atomic_write(path, _to_json(summary, indent=2) + b"\n")
        return path

    def close(self) -> None:
        """Let go of the folder; another process may then take it."""
        self._metrics.close()

    def _forget_later_steps(self, step: int) -> None:
        """Before this process's first step: drop what an earlier, unfinished run wrote of it and of later ones."""
        if not self._first_write:
            return
        path = self.path / METRICS_FILE
        with _explained(path):
            self._metrics.truncate(_bytes_before_step(path.read_bytes(), step))
            for file in (self.path / COMPLETIONS_FOLDER).glob("step-*.parquet"):
                number = file.stem.removeprefix("step-")
                if number.isdigit() and int(number) > step:  # this step's own file is replaced when it is written
                    file.unlink()
        self._first_write = False


def _with_tied_names(content: bytes, tied: Sequence[tuple[str, str]]) -> bytes:
    from safetensors.numpy import load, save  # what a learner trains is float32, which numpy knows

    tensors = load(content)
    whole: bytes = save(tensors | {name: tensors[stored] for name, stored in tied}, {"format": "pt"})
    return whole


def completions_table(
    step: int,
    groups: Sequence[ScoredGroup],
    prompt_texts: Mapping[str, str],
    reward_names: Sequence[str],
    advantages: Sequence[Sequence[float | None]],
) -> Any:
    """The `pyarrow.Table` of `RunFolder.write_completions`; column types do not depend on the values."""
    import pyarrow as pa

    advantages = advantages or [[None] * len(group.members) for group in groups]
    rows = [
        {
            "step": step,
            "prompt_id": group.prompt_id,
            "prompt": _encodable(prompt_texts[group.prompt_id]),
            "completion": _encodable(member.completion.text),
            **{f"reward_{name}": reward for name, reward in zip(reward_names, member.rewards, strict=True)},
            "total": member.total,
            "advantage": advantage,
            "adapter_version": member.completion.adapter_version,
            "finish_reason": str(member.completion.finish_reason),
            "num_tokens": len(member.completion.token_ids),
        }
        for group, group_advantages in zip(groups, advantages, strict=True)
        for member, advantage in zip(group.members, group_advantages, strict=True)
    ]
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("prompt_id", pa.string()),
            ("prompt", pa.string()),
            ("completion", pa.string()),
            *((f"reward_{name}", pa.float64()) for name in reward_names),
            ("total", pa.float64()),
            ("advantage", pa.float64()),
            ("adapter_version", pa.int64()),
            ("finish_reason", pa.string()),
            ("num_tokens", pa.int64()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _choose_path(config: RunConfig) -> Path:
    """The configured folder, or a new `runs/RECIPE-TIME`, with a number behind it when two runs start in one second."""
    if config.run_dir is not None:
        return Path(config.run_dir).expanduser()
    recipe = re.sub(r"[^\w.-]+", "-", config.recipe).strip(".-") or "run"
    base = Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = base, 1
    with _explained(base):
        base.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1
                path = base.with_name(f"{base.name}-{number}")


def _refuse_foreign_content(path: Path) -> None:
    content = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    if content and not (path / CONFIG_FILE).is_file():
        raise ConfigError(f"run_dir={str(path)!r} is not empty and not a run's folder; choose another run_dir")
    if (path / SUMMARY_FILE).is_file() and read_status(path) in ("finished", None):  # None: not ours to throw away
        raise ConfigError(f"run_dir={str(path)!r} holds a finished run; choose another run_dir")


def read_status(path: Path) -> str | None:
    """How the run in a folder ended: `finished`, `stopped` or `failed`; None where no summary says."""
    try:
        return str(json.loads((path / SUMMARY_FILE).read_bytes())["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open_metrics(path: Path) -> FileIO:
    """Open unbuffered for appending, as the folder's only writer, with a half-written last line cut off."""
    metrics = FileIO(path, "a+")
    try:
        is_ours = lock_descriptor(metrics.fileno(), blocking=False)
    except OSError:
        is_ours = True  # some network file systems have no locks; there the user has to keep runs apart
    if not is_ours:
        metrics.close()
        raise ConfigError(f"another run is writing to run_dir={str(path.parent)!r}; choose another run_dir")
    content = path.read_bytes()
    metrics.truncate(content.rfind(b"\n") + 1)
    return metrics


def _clear_leftovers(path: Path) -> None:
    """What a killed process left behind: temporary files, an adapter half way through its replacement, a summary."""
    for file in path.glob(".*.tmp"):
        file.unlink()
    old = path / _OLD_ADAPTER
    if old.is_dir() and not (path / ADAPTER_FOLDER).exists():
        old.rename(path / ADAPTER_FOLDER)
    for folder in (old, path / _NEW_ADAPTER):
        shutil.rmtree(folder, ignore_errors=True)
    (path / SUMMARY_FILE).unlink(missing_ok=True)  # of a stopped run: it is going on


def _bytes_before_step(content: bytes, step: int) -> int:
    """Length of the leading lines of a `metrics.jsonl` that are whole rows of steps before `step`."""
    length = 0
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(row, dict) or not row.get("step", step) < step:
            break
        length += len(line)
    return length


def _write_all(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # an unbuffered write may take only a part, for example of the last free block
        rest = rest[file.write(rest) :]


def _to_json(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _encodable(text: str) -> str:
    """Lone surrogates have no UTF-8 form; everything else passes unchanged."""
    return text.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn a file-system error into one sentence with the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(f"cannot write {path}: {reason}; free some space or choose another run_dir") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise ConfigError(f"cannot write {path}: {reason}; choose another run_dir") from error
        raise RlvrError(f"cannot write {path}: {reason}") from error
