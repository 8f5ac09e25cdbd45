"""A training job's log: one CloudWatch stream for each host, read together by the SageMaker SDK."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from orchestration.extras import require
from orchestration.storage.aws import explained
from orchestration.submit.common.follow import follow

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_LAST_ROUNDS = 2  # CloudWatch is some seconds behind the job


def logs_of(
    logs: Any, job_name: str, *, ended: Callable[[], bool] | None = None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Lines of all hosts in the order of time, so far or as they come until the job has ended.

    Args:
        logs: boto3's client of CloudWatch Logs.
        job_name: the training job's.
        ended: asked between looks; None: look once.
        sleep: waits so many seconds.

    Raises:
        SubmitError: CloudWatch does not answer.
    """
    require("sagemaker", by="a training job's log", extra="sagemaker")
    from sagemaker.core.logs import Position, multi_stream_iter

    read: dict[str, Any] = {}  # how far each host's stream has been

    def news(*, over: bool) -> Iterator[str]:
        names = _streams(logs, job_name)
        positions = {name: read.setdefault(name, Position(timestamp=0, skip=0)) for name in names}
        with explained(f"reading the log of {job_name}"):
            for number, event in multi_stream_iter(logs, LOG_GROUP, names, positions):
                name, at = names[number], event["timestamp"]
                read[name] = Position(timestamp=at, skip=read[name].skip + 1 if at == read[name].timestamp else 1)
                yield f"{f'[{_host(name)}] ' if len(names) > 1 else ''}{event['message'].rstrip()}\n"

    return news(over=True) if ended is None else follow(ended, news, last_rounds=_LAST_ROUNDS, sleep=sleep)


def _streams(logs: Any, job_name: str) -> list[str]:
    pages = logs.get_paginator("describe_log_streams").paginate(
        logGroupName=LOG_GROUP, logStreamNamePrefix=f"{job_name}/"
    )
    with explained(f"looking for the logs of {job_name}"):
        try:
            return list(pages.search("logStreams[].logStreamName"))
        except logs.exceptions.ResourceNotFoundException:  # no training job has logged here yet
            return []


def _host(stream: str) -> str:
    """`algo-2` of `JOB/algo-2-1732201234`."""
    return stream.rpartition("/")[2].rpartition("-")[0]
