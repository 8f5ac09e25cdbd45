"""`rlvr rescore`: a run's completions scored again, by the same or by other rewards."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestration.commands.arguments import add_json, add_run_dir, positive
from orchestration.errors import ConfigError, DataError, RlvrError

if TYPE_CHECKING:
    from orchestration.settings.config import RunConfig
    from orchestration.trace.rescore import Rescored
    from reward_service.types import RewardItem

_TOGETHER: Final = 64
"""Completions in a request."""


def add_rescore(commands: Any) -> None:
    """Adds `rescore` to the commands of `rlvr`."""
    rescore = commands.add_parser(
        "rescore",
        help="a run's completions scored again by other rewards, and where they differ",
        description="Score the completions that a run learned from again, by its own rewards or by others, and show "
        "where they differ. Results go to RUN_DIR/rescored, a row a completion.",
        epilog="example: rlvr rescore runs/one math '{name: regex, params: {pattern: therefore, mode: search}}'",
    )
    add_run_dir(rescore)
    rescore.add_argument("rewards", metavar="REWARD", nargs="*", help="a name, or YAML of name, weight and params")
    rescore.add_argument("--settings-file", type=Path, metavar="FILE", help="of the service, for rewards of your own")
    rescore.add_argument("--last", type=positive, metavar="N", help="only the last N steps")
    add_json(rescore)
    rescore.set_defaults(run=_rescore)


def _rescore(arguments: Any) -> int:
    from orchestration.report.progress import progress_printer
    from orchestration.trace.rescore import compare, in_words

    config = _config(arguments.run_dir, arguments.rewards, arguments.settings_file)
    rows = _rows(arguments.run_dir, arguments.last)
    _check(config, rows[0])
    try:
        with progress_printer(sys.stderr) as progress:
            scored = asyncio.run(_score(config, rows, progress))
    except (RlvrError, OSError) as error:
        raise RlvrError(f"the completions of {str(arguments.run_dir)!r} could not be scored: {error}") from error
    found = compare(scored) | {"results": str(_write(arguments.run_dir, scored))}
    print(json.dumps(found) if arguments.json else f"{in_words(found)}\nresults: {found['results']}")
    return 0


def _config(run_dir: Path, rewards: Sequence[str], settings_file: Path | None) -> RunConfig:
    """The run's settings with other rewards. Raises ConfigError."""
    import yaml

    from orchestration.run.ledger.names import config_of
    from orchestration.settings.config import load_config

    config_file = config_of(run_dir)
    try:
        asked = [yaml.safe_load(word) for word in rewards]
    except yaml.YAMLError as error:
        raise ConfigError(
            f"a reward is a name or YAML, and one of these is neither: {' '.join(str(error).split())}"
        ) from error
    specs = [{"name": one} if isinstance(one, str) else one for one in asked]
    overrides = ["audit=false", "reward.control=none", "reward.url=null", "reward.deployment=local"]
    if specs:
        overrides.append(f"reward.rewards={json.dumps(specs)}")
    if settings_file is not None:
        overrides.append(f"reward.settings_file={settings_file.absolute()}")
    return load_config(str(config_file), overrides)


def _rows(run_dir: Path, last: int | None) -> list[dict[str, Any]]:
    """Of the run's tables.

    Raises:
        DataError: They lack what rewards read.
    """
    from orchestration.trace.folder import TracedRun

    run = TracedRun.open(run_dir)
    steps = run.table_steps()[-last if last else 0 :]
    rows = [row for step in steps for row in run.completions(step)]
    if not rows:
        raise DataError(f"{str(run_dir)!r} has no completions yet")
    if any(row.get("reference") is None for row in rows):
        raise DataError(
            f"the completions of {str(run_dir)!r} were kept without references, by an earlier version of rlvr: they "
            f"cannot be scored again"
        )
    return rows


def _item(row: dict[str, Any]) -> RewardItem:
    from orchestration.run.rewards import answer_of
    from reward_service.types import RewardItem

    completion, episode = answer_of(row)
    metadata = json.loads(row["metadata"])
    return RewardItem(
        id=row["completion_id"],
        prompt=row["prompt"],
        completion=completion,
        reference=json.loads(row["reference"]),
        metadata=metadata if episode is None else {**metadata, "episode": episode},
        group=row["prompt_id"],
    )


def _check(config: RunConfig, row: dict[str, Any]) -> None:
    """Raises ConfigError where there is no such reward, or the run's references lack what it reads."""
    from orchestration.run.rewards import service_settings
    from reward_service.commands import find_lacks
    from reward_service.errors import ServiceError, ServiceStartError
    from reward_service.settings import ServiceSettings

    try:
        lacks = find_lacks(config.rewards, _item(row), ServiceSettings.model_validate(service_settings(config)))
    except (ServiceError, ServiceStartError) as error:
        raise ConfigError(str(error)) from error
    if lacks:
        raise ConfigError(f"the reward {lacks[0].reward!r} reads {lacks[0].key}, which this run's references lack")


async def _score(config: RunConfig, rows: Sequence[dict[str, Any]], progress: Any) -> list[Rescored]:
    from orchestration.cluster.reward.deployment import reward_client
    from orchestration.trace.rescore import Rescored
    from reward_service.clients.errors import RewardServiceError
    from reward_service.errors import ServiceStartError

    names = [spec.name for spec in config.rewards]
    scored: list[Rescored] = []
    try:
        with tempfile.TemporaryDirectory() as logs:
            async with reward_client(config, Path(logs)) as client:
                for start in range(0, len(rows), _TOGETHER):
                    some = rows[start : start + _TOGETHER]
                    items = [_item(row) for row in some]
                    results = await client.score(items, config.rewards)
                    scored += [
                        Rescored(
                            row=row,
                            rewards={name: result.rewards[name].score for name in names},
                            reasons={name: result.rewards[name].reason for name in names},
                            total=result.total,
                        )
                        for row, result in zip(some, results, strict=True)
                    ]
                    progress("scoring", len(scored) / len(rows))
    except (RewardServiceError, ServiceStartError) as error:
        raise RlvrError(str(error)) from error
    return scored


def _write(run_dir: Path, scored: Sequence[Rescored]) -> Path:
    """Results as parquet, a row a completion."""
    import pyarrow as pa
    from pyarrow import parquet

    from orchestration.run.ledger.names import RESCORED_FOLDER
    from orchestration.storage.atomic import atomic_write
    from orchestration.trace.rescore import verdicts_of

    names = list(scored[0].rewards)
    columns = {
        "completion_id": pa.array([one.row["completion_id"] for one in scored], pa.string()),
        "total_then": pa.array([one.row["total"] for one in scored], pa.float64()),
        "total_now": pa.array([one.total for one in scored], pa.float64()),
        "verdict": pa.array(verdicts_of(scored), pa.string()),
        **{f"reward_{name}": pa.array([one.rewards[name] for one in scored], pa.float64()) for name in names},
        **{f"reason_{name}": pa.array([one.reasons[name] for one in scored], pa.string()) for name in names},
    }
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink, compression="zstd")
    path = run_dir / RESCORED_FOLDER / f"{'+'.join(names)[:80]}-{time.strftime('%Y%m%d-%H%M%S')}.parquet"
    try:
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise RlvrError(f"cannot write {path}: {error.strerror}") from error
    return path
