"""A training job's log: one CloudWatch stream for each host, read together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from orchestration.storage.aws import error_code, explained

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
POLL_S = 5.0
_LAST_ROUNDS = 2  # CloudWatch is some seconds behind the job


class _Streams:
    """How far each host's stream has been read."""

    def __init__(self, logs: Any, job_name: str) -> None:
        self._logs, self._job_name = logs, job_name
        self._position: dict[str, str | None] = {}

    def news(self) -> tuple[list[str], bool]:
        """A page of each stream, in the order of time, and whether there may be more: a page can be empty before the
        end of a stream, where CloudWatch repeats the position."""
        before = dict(self._position)
        events = [
            (event["timestamp"], stream, event["message"]) for stream in self._names() for event in self._page(stream)
        ]
        events.sort(key=lambda event: event[0])
        several = len(self._position) > 1
        lines = [f"{f'[{_host(stream)}] ' if several else ''}{text.rstrip()}\n" for _, stream, text in events]
        return lines, self._position != before

    def _names(self) -> list[str]:
        from botocore.exceptions import ClientError

        with explained(f"looking for the logs of {self._job_name}"):
            try:
                pages = self._logs.get_paginator("describe_log_streams").paginate(
                    logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self._job_name}/"
                )
                return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
            except ClientError as error:
                if error_code(error) == "ResourceNotFoundException":  # no training job has logged here yet
                    return []
                raise

    def _page(self, stream: str) -> list[dict[str, Any]]:
        position = self._position.setdefault(stream, None)
        after = {} if position is None else {"nextToken": position}
        with explained(f"reading the log {stream}"):
            page = self._logs.get_log_events(logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **after)
        self._position[stream] = page["nextForwardToken"]
        events: list[dict[str, Any]] = page["events"]
        return events


def read_logs(logs: Any, job_name: str) -> Iterator[str]:
    """Lines so far. Raises SubmitError when CloudWatch does not answer.

    Args:
        logs: boto3's client of CloudWatch Logs.
        job_name: the training job's.
    """
    streams, more = _Streams(logs, job_name), True
    while more:
        lines, more = streams.news()
        yield from lines


def follow_logs(
    logs: Any, job_name: str, *, ended: Callable[[], bool], sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Lines as they come, until the job has ended and nothing more arrives. Raises as `read_logs`.

    Args:
        ended: asked between polls; waits for SageMaker's answer.
        sleep: waits so many seconds.
    """
    streams, rounds_left = _Streams(logs, job_name), _LAST_ROUNDS
    while rounds_left:
        over, more = ended(), True  # asked first: what was written before the end is read after it
        while more:
            lines, more = streams.news()
            yield from lines
        if over:
            rounds_left -= 1
        if rounds_left:
            sleep(POLL_S)


def _host(stream: str) -> str:
    """`algo-2` of `JOB/algo-2-1732201234`."""
    return stream.rpartition("/")[2].rpartition("-")[0]
