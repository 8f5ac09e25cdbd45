"""A submission's files on S3: put where nobody else writes. And what an earlier job has left there."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from orchestration.errors import ConfigError
from orchestration.run.ledger.names import CHECKPOINTS_FOLDER, RECORDS_FOLDER, SUMMARY_FILE
from orchestration.settings.names import nearest
from orchestration.storage.aws import explained, transfers
from orchestration.storage.s3 import encryption, parse
from orchestration.submit.common.job import Say
from orchestration.submit.sagemaker.container import Layout, Upload

_TOKEN_BYTES = 32


def put_all(s3: Any, layout: Layout, uploads: Sequence[Upload], *, kms_key: str | None, say: Say) -> None:
    """Put the cluster's token, made now, and then everything else.

    The token is put where there is none: so it holds the place, below which nobody else writes.

    Args:
        kms_key: encrypts all of it; None: as the bucket does by itself.

    Raises SubmitError when S3 refuses, or when there is something already.
    """
    encrypted, token = encryption(kms_key), secrets.token_hex(_TOKEN_BYTES).encode()
    place = parse(layout.token)
    with explained(f"uploading to {layout.token}"):  # first: what is wrong shows at one file
        s3.put_object(Bucket=place.bucket, Key=place.key, Body=token, IfNoneMatch="*", **encrypted)
    for upload in uploads:
        say(f"uploading {upload.describe()} to {upload.uri}")
    files = [(source, parse(uri)) for upload in uploads for source, uri in upload.files()]
    with explained(f"uploading to {layout.output}"), transfers(s3) as manager:
        begun = [
            manager.upload(
                io.BytesIO(source) if isinstance(source, bytes) else str(source),
                to.bucket,
                to.key,
                extra_args=encrypted,
            )
            for source, to in files
        ]
        for upload_under_way in begun:
            upload_under_way.result()


def resumers(s3: Any, layout: Layout, job: str) -> list[str]:
    """Jobs that have gone on from an earlier one, in its folder: each has left an upload there that says so."""
    return [name.rstrip("/") for name in _below(s3, layout.resumed_by(job))]


def check_resumable(s3: Any, layout: Layout, job: str) -> None:
    """Whether an earlier job left something to go on from.

    Args:
        s3: A client.
        layout: Where jobs put their things.
        job: The earlier job's name.

    Raises:
        ConfigError: It left nothing (with the names of those that did), or its run is finished.
    """
    folder = f"{layout.run_folder(job)}/"
    if not {f"{CHECKPOINTS_FOLDER}/", f"{RECORDS_FOLDER}/"} & _below(s3, folder):
        jobs = sorted(name.rstrip("/") for name in _below(s3, f"{layout.output}/") if name.endswith("/"))
        named = nearest(job, jobs) or (f"; there are {', '.join(jobs[-5:])}" if jobs else "; no job has left any there")
        raise ConfigError(f"sagemaker.resume={job!r}: {folder} has no checkpoint and no record to go on from{named}")
    summary = _summary(s3, f"{folder}{SUMMARY_FILE}")
    if summary.get("status") == "finished":
        raise ConfigError(
            f"sagemaker.resume={job!r}: its run is finished, after {summary.get('steps')} steps, and does not go "
            f"on; its adapter is in {folder}adapter, and a new run is submitted without sagemaker.resume"
        )


def _below(s3: Any, folder: str) -> set[str]:
    """Names of folders, with their slash, and of objects right below a folder."""
    place = parse(folder)
    with explained(f"looking into {folder}"):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=place.key, Delimiter="/")
        names = pages.search("[CommonPrefixes[].Prefix, Contents[].Key][]")
        return {name.removeprefix(place.key) for name in names if name is not None}


def _summary(s3: Any, uri: str) -> dict[str, Any]:
    """Of a run that has ended; empty while there is none."""
    place = parse(uri)
    with explained(f"reading {uri}"), suppress(s3.exceptions.NoSuchKey, ValueError, TypeError):
        return dict(json.loads(s3.get_object(Bucket=place.bucket, Key=place.key)["Body"].read()))
    return {}
