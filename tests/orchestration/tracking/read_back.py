"""Tells every tracker of a run as the run does, and reads it back by the tracker's own library; prints JSON.

`python -m tests.orchestration.tracking.read_back PACKAGES WORK`: the trackers' packages come behind all others.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEPS = 3


def tell(names: tuple[str, ...], folder: Path) -> list[str]:
    """What was said of it."""
    from orchestration.settings.config import load_config
    from orchestration.tracking.reporter import TrackingReporter
    from orchestration.tracking.trackers import Tracked, flat_settings, open_trackers
    from tests.orchestration.tracking.silent import SilentReporter

    config = load_config("tiny", [f"run_dir={folder}"])
    run = Tracked(project="rlvr", name="run", folder=folder, settings=flat_settings(config.model_dump(mode="json")))
    (folder / "report.html").write_text("a page")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    inner = SilentReporter()
    paths = (folder / "report.html", folder / "adapter")
    reporter = TrackingReporter(inner, open_trackers(names, run), lambda summary: paths)
    reporter.start(config, "here")
    reporter.evaluation("before", {"strict": 0.25}, 4)
    for step in range(1, STEPS + 1):
        reporter.step({"step": step, "reward_mean": 0.5 * step, "accuracy": None, "entropy": float("nan")})
    reporter.evaluation("after", {"strict": 0.75}, 4)
    reporter.finish({"status": "finished"})
    reporter.close()
    return inner.notes


def read_tensorboard(folder: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tracking"))
    events.Reload()
    return {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_mlflow(folder: Path) -> dict[str, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("rlvr").experiment_id])
    figures = {
        name: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }
    artefacts = sorted(one.path for one in client.list_artifacts(run.info.run_id))
    settings = [run.data.params["model.name"], len(run.data.params) > 100]
    return {"figures": figures, "artefacts": artefacts, "settings": settings, "status": run.info.status}


def read_wandb(folder: Path) -> dict[str, Any]:
    """The offline file, which `wandb sync` sends later, by the library's own messages."""
    from wandb.proto import wandb_internal_pb2

    (file,) = (folder / "tracking").rglob("run-*.wandb")
    figures: dict[str, list[list[float]]] = {}
    artefacts, settings = [], {}
    for data in records_in(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() - {key for key in row if key.startswith("_")}:
                figures.setdefault(name, []).append([row["_step"], row[name]])
        elif record.WhichOneof("record_type") == "run":
            settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif record.WhichOneof("record_type") == "request" and record.request.HasField("log_artifact"):
            artefacts.append(record.request.log_artifact.artifact.type)
        elif record.WhichOneof("record_type") == "artifact":
            artefacts.append(record.artifact.type)
    return {"figures": figures, "artefacts": sorted(artefacts), "model": settings.get("model.name")}


def records_in(log: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, each with pieces of records behind seven bytes of
    checksum, length and which piece it is (1 whole, 2 first, 3 middle, 4 last). A file begins with seven of its own."""
    at, record = 7, b""
    while at + 7 <= len(log):
        if 2**15 - at % 2**15 < 7:  # too little for another piece
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack("<HB", log[at + 4 : at + 7])
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def read_trackio(folder: Path) -> dict[str, Any]:
    from trackio.sqlite_storage import SQLiteStorage

    figures: dict[str, list[list[float]]] = {}
    for row in SQLiteStorage.get_logs("rlvr", "run"):
        for name, value in row.items():
            if name not in ("step", "timestamp"):
                figures.setdefault(name, []).append([row["step"], value])
    return figures


def main(packages: str, work: str) -> None:
    """All four, in folders below `work`."""
    sys.path.append(packages)
    folder = Path(work, "run")
    folder.mkdir()
    os.environ |= {
        "MLFLOW_TRACKING_URI": Path(work, "mlruns").as_uri(),
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(Path(work, "trackio")),
        "HOME": work,
    }
    said = tell(("tensorboard", "mlflow", "wandb", "trackio"), folder)
    read = (read_tensorboard, read_mlflow, read_wandb, read_trackio)
    found = {reader.__name__.removeprefix("read_"): reader(folder) for reader in read}
    print(json.dumps({"said": said, **found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
