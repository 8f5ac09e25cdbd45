"""A job that is followed: over connections that close, are cut or are not let through, to the job's own exit code.
And what is sent on the way goes to nobody else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.cli import main
from orchestration.errors import SubmitError, UnreachableError
from orchestration.submit.common.book import JobBook, JobRecord
from orchestration.submit.common.follow import follow
from orchestration.submit.ray import jobs as ray_jobs
from orchestration.submit.ray.jobs import Endpoint, RayJobs
from tests.orchestration.submit.dashboards import JOB, TOKEN, Dashboard, dashboard
from tests.proxies import RecordingProxy, recording_proxy


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestration.submit.common.follow.POLL_S", 0.0)
    monkeypatch.setattr(follow, "__kwdefaults__", {**(follow.__kwdefaults__ or {}), "poll_s": 0.01})
    monkeypatch.setenv("RLVR_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    """In the environment of this process."""
    with recording_proxy() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def jobs_of(made: Dashboard) -> RayJobs:
    return RayJobs(Endpoint(address=made.address, token=TOKEN, timeout_s=20))


def recorded(made: Dashboard, tmp_path: Path) -> JobRecord:
    """A job in the book, as `rlvr submit --to ray` leaves it."""
    (tmp_path / "token").write_text(TOKEN)
    record = JobRecord(
        name=JOB,
        place="ray",
        recipe="tiny",
        submitted_at="2026-11-26T08:00:00Z",
        reference={"address": made.address, "job_id": JOB, "adapter": "/runs/a-job/adapter"},
        settings={"token_file": str(tmp_path / "token")},
        evaluate="rlvr eval --model tiny --adapter /runs/a-job/adapter --data tiny",
    )
    JobBook().write(record)
    return record


@pytest.mark.parametrize(
    "streams",
    [
        pytest.param(["close", "end"], id="a stream that closes while the job runs"),
        pytest.param(["cut", "cut", "end"], id="streams that are cut"),
        pytest.param(["refuse"], id="a proxy without WebSocket"),
        pytest.param(["close", "refuse", "cut", "end"], id="all of it"),
    ],
)
def test_every_line_comes_once_until_the_job_has_ended(streams: list[str]) -> None:
    with dashboard(streams=streams, ends_after=12) as made:
        assert "".join(jobs_of(made).logs(JOB, follow=True)) == made.log
        assert made.status == "SUCCEEDED"


def test_a_gateway_that_answers_for_the_dashboard_is_waited_for() -> None:
    with dashboard(streams=["end"], answers={"job": 3}) as made:
        assert "".join(jobs_of(made).logs(JOB, follow=True)) == made.log
        assert made.answers == {"job": 0}


@pytest.mark.parametrize(("status", "own", "exit_code"), [("FAILED", 7, 7), ("FAILED", None, 1), ("SUCCEEDED", 0, 0)])
def test_following_ends_as_the_job_did(
    status: str, own: int | None, exit_code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with dashboard(streams=["end"], status=status, exit_code=own) as made:
        recorded(made, tmp_path)
        assert main(["jobs", "logs", "-f", JOB]) == exit_code
        assert main(["jobs", "status", JOB]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(made.log)
    for text in (out, err):  # of the state, and of the end of the log
        assert ("adapter: /runs/a-job/adapter\n" in text) is (status == "SUCCEEDED")
        assert ("rlvr eval --model tiny --adapter /runs/a-job/adapter --data tiny" in text) is (status == "SUCCEEDED")


def test_what_cannot_be_followed_has_an_exit_code_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with dashboard(streams=["cut"]) as made:
        recorded(made, tmp_path)
        made.answers["job"] = 10**6
        defaults = {**Endpoint.__init__.__kwdefaults__, "give_up_s": 0.05}
        monkeypatch.setattr(Endpoint.__init__, "__kwdefaults__", defaults)
        assert main(["jobs", "logs", "-f", JOB]) == 3
    assert f"broke off: Request failed with status code 502: .; the job may go on: rlvr jobs status {JOB}" in (
        capsys.readouterr().err
    )


def test_a_log_that_cannot_be_read_of_a_job_that_has_ended_is_said_and_ends_as_the_job_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: RayJobs, name: str, *, follow: bool) -> Iterator[str]:
        raise SubmitError("the log is not to be read")

    monkeypatch.setattr(RayJobs, "logs", refused)
    for status, exit_code in (("SUCCEEDED", 0), ("FAILED", 1), ("RUNNING", 3)):
        with dashboard(status=status) as made:
            recorded(made, tmp_path)
            assert main(["jobs", "logs", "-f", JOB]) == exit_code
        assert ("the job may go on" in capsys.readouterr().err) is (status == "RUNNING")


def test_a_reader_who_goes_away_does_not_pass_for_a_failed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with dashboard(streams=["end"], status="SUCCEEDED") as made, os.fdopen(writing, "w") as closed:
        recorded(made, tmp_path)
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["jobs", "logs", "-f", JOB]) == 3


def test_a_silent_stream_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_SILENT_S", 0.2)

    class Silent:
        """A client whose first stream brings a line and then nothing."""

        streams = 0

        async def tail_job_logs(self, name: str):  # type: ignore[no-untyped-def]
            self.streams += 1
            yield "one\n"
            if self.streams == 1:
                import asyncio

                await asyncio.sleep(60)
            yield "two\n"

    with dashboard(streams=["end"]) as made:
        jobs = jobs_of(made)
        jobs._client, client = Silent(), jobs._client
        began = time.monotonic()
        assert list(jobs.stream(JOB)) == ["one\n"]
        assert list(jobs.stream(JOB)) == ["one\n", "two\n"]
        assert time.monotonic() - began < 60
        jobs._client = client


def test_a_look_after_the_end_brings_what_came_late() -> None:
    rounds = iter([["a"], UnreachableError("cut"), ["b"], ["c"], ["d"]])
    ended = iter([False, False, False, True, True])

    def news(*, over: bool) -> Iterator[str]:
        lines = next(rounds)
        if isinstance(lines, UnreachableError):
            raise lines
        yield from lines

    assert list(follow(lambda: next(ended), news, last_rounds=2, sleep=lambda seconds: None)) == ["a", "b", "c", "d"]


# --- who gets to see the token


def test_no_call_goes_to_the_proxy_of_the_environment(
    proxy: RecordingProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Submitting, following, and what is asked afterwards."""
    (tmp_path / "token").write_text(TOKEN)
    with dashboard(streams=["refuse"], ends_after=4) as made:
        words = [f"ray.address={made.address}", f"ray.token_file={tmp_path}/token", f"job.name={JOB}"]
        assert main(["submit", "tiny", "--to", "ray", *words, "--follow"]) == 0, capsys.readouterr().err
        assert main(["jobs", "list"]) == main(["jobs", "status", JOB]) == main(["jobs", "logs", JOB]) == 0
        made.status = "RUNNING"
        made.ends_after = 10**6
        assert main(["jobs", "stop", JOB]) == 0
    assert len(made.submitted) == 1
    assert f"POST /api/jobs/{JOB}/stop" in made.seen
    assert proxy.seen == []


def test_a_proxy_is_gone_through_when_it_is_asked_for(proxy: RecordingProxy) -> None:
    with dashboard() as made, pytest.raises(SubmitError):
        RayJobs(Endpoint(address=made.address, token=TOKEN, use_proxy=True)).connect()
    assert proxy.seen
    assert made.seen == []


def test_the_password_file_of_this_machine_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password mine\n")
    with dashboard(streams=["end"]) as made:
        assert jobs_of(made).status(JOB).state == "running"  # else another Authorization would have been sent


def test_the_token_goes_to_no_host_that_is_named_on_the_way() -> None:
    with dashboard(streams=["end"]) as other, dashboard(streams=["end"]) as made:
        jobs = jobs_of(made)
        made.location = other.address.replace("127.0.0.1", "localhost")
        for call in (jobs.status, jobs.log, jobs.stop):
            with pytest.raises(SubmitError, match=r"sends on to http://localhost:\d+"):
                call(JOB)
        with pytest.raises(SubmitError):
            list(jobs.stream(JOB))
        assert other.tokens == []
