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


class _Streams:
    """How far each host's stream has been read."""

    def __init__(self, logs: Any, job_name: str) -> None:
        require("sagemaker", by="a training job's log", extra="sagemaker")
        self._logs, self._job_name = logs, job_name
        self._positions: dict[str, Any] = {}

    def news(self, *, over: bool = False) -> Iterator[str]:
        """Lines of all hosts in the order of time.

        Raises:
            SubmitError: CloudWatch does not answer.
        """
        from sagemaker.core.logs import Position, multi_stream_iter

        names = self._names()
        positions = {name: self._positions.setdefault(name, Position(timestamp=0, skip=0)) for name in names}
        with explained(f"reading the log of {self._job_name}"):
            for number, event in multi_stream_iter(self._logs, LOG_GROUP, names, positions):
                name, at = names[number], event["timestamp"]
                last = self._positions[name]
                self._positions[name] = Position(timestamp=at, skip=last.skip + 1 if at == last.timestamp else 1)
                yield f"{f'[{_host(name)}] ' if len(names) > 1 else ''}{event['message'].rstrip()}\n"

    def _names(self) -> list[str]:
        pages = self._logs.get_paginator("describe_log_streams").paginate(
            logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self._job_name}/"
        )
        with explained(f"looking for the logs of {self._job_name}"):
            try:
                return list(pages.search("logStreams[].logStreamName"))
            except self._logs.exceptions.ResourceNotFoundException:  # no training job has logged here yet
                return []


def logs_of(
    logs: Any, job_name: str, *, ended: Callable[[], bool] | None = None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Lines so far, or as they come until the job has ended. Raises SubmitError when CloudWatch does not answer.

    Args:
        logs: boto3's client of CloudWatch Logs.
        job_name: the training job's.
        ended: asked between looks; None: look once.
        sleep: waits so many seconds.
    """
    news = _Streams(logs, job_name).news
    return news() if ended is None else follow(ended, news, last_rounds=_LAST_ROUNDS, sleep=sleep)


def _host(stream: str) -> str:
    """`algo-2` of `JOB/algo-2-1732201234`."""
    return stream.rpartition("/")[2].rpartition("-")[0]
