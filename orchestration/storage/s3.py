"""Files and folders on S3 as local paths: fetched once for each of their states, and kept in the cache.

Also what a SageMaker channel is: a folder with the one file that was put into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestration.errors import DataError, SubmitError
from orchestration.storage.aws import client, configured_region, explained
from orchestration.storage.cache import Progress, cache_root, cached_folder, ignore_progress, settings_hash

SCHEME = "s3://"
_ANY_REGION = "us-east-1"  # S3 itself says which one a bucket is in


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Place:
    """A bucket and a key or prefix in it."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    def below(self, name: str) -> S3Place:
        return S3Place(bucket=self.bucket, key=f"{self.key.rstrip('/')}/{name}".lstrip("/"))


def parse(uri: str) -> S3Place:
    """A place on S3 from its address.

    Args:
        uri: `s3://BUCKET/KEY`; the key may be empty.

    Raises:
        DataError: It is not of that form.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise DataError(f"{uri!r} is no place on S3; write s3://BUCKET/KEY")
    return S3Place(bucket=bucket, key=key)


def local_file(path: str, setting: str) -> Path:
    """A data file as a path of this machine.

    Args:
        path: A file; a place on S3, which is fetched; or a folder with one file, as SageMaker's channels are.
        setting: That names it, for messages.

    Raises:
        DataError: The folder has none or several files, or S3 does not give it.
    """
    if path.startswith(SCHEME):
        return fetch_file(path, setting)
    place = Path(path).expanduser()
    if not place.is_dir():
        return place
    files = sorted(entry for entry in place.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:5]) or "no file"
        raise DataError(f"{setting}={path!r} is a folder with {names}: name the file in it")
    return files[0]


def fetch_file(uri: str, setting: str, cache_dir: Path | None = None) -> Path:
    """An object as a file in the cache, fetched anew when it has changed.

    Args:
        uri: s3://BUCKET/KEY.
        setting: where it came from, for messages.
        cache_dir: in place of the usual cache.

    Raises:
        DataError: it is not there, AWS refuses, or the cache cannot be written.
    """
    place = parse(uri)
    with _as_data_error(f"{setting}={uri!r}"):
        s3 = _client()
        etag = s3.head_object(Bucket=place.bucket, Key=place.key)["ETag"]
        name = PurePosixPath(place.key).name

        def build(folder: Path) -> None:
            s3.download_file(place.bucket, place.key, str(folder / name))

        return cached_folder(_root(cache_dir) / settings_hash(uri, etag), build) / name


def fetch_folder(uri: str, setting: str, cache_dir: Path | None = None, progress: Progress = ignore_progress) -> Path:
    """All objects below a prefix as a folder in the cache, fetched anew when any has changed.

    Args:
        uri: s3://BUCKET/PREFIX, with or without a slash at its end.
        setting: where it came from, for messages.
        cache_dir: in place of the usual cache.
        progress: told the share of the objects that are here.

    Raises:
        DataError: nothing lies there, AWS refuses, or the cache cannot be written.
    """
    place = parse(uri.rstrip("/") + "/")
    with _as_data_error(f"{setting}={uri!r}"):
        s3 = _client()
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=place.key)
        objects = [entry for page in pages for entry in page.get("Contents", ()) if not entry["Key"].endswith("/")]
        if not objects:
            raise DataError(f"{setting}={uri!r} holds nothing; put the files below it")
        state = sorted((entry["Key"], entry["ETag"]) for entry in objects)

        def build(folder: Path) -> None:
            for done, entry in enumerate(objects):
                progress(f"fetching {uri}", done / len(objects))
                target = _inside(folder, entry["Key"].removeprefix(place.key))
                target.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(place.bucket, entry["Key"], str(target))

        return cached_folder(_root(cache_dir) / settings_hash(uri, state), build, progress=progress)


def upload(path: Path, uri: str, *, kms_key: str | None = None) -> None:
    """Put a file at a place. Raises DataError.

    Args:
        kms_key: as of `encryption`.
    """
    place = parse(uri)
    with _as_data_error(f"putting {path.name} at {uri}"):
        _client().upload_file(str(path), place.bucket, place.key, ExtraArgs=encryption(kms_key))


def encryption(kms_key: str | None) -> dict[str, str]:
    """Arguments of an upload that is encrypted by a KMS key; with None by what the bucket has as its default, which a
    method that is named here would override.

    Args:
        kms_key: A key's id or ARN.
    """
    return {} if kms_key is None else {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key}


def _inside(folder: Path, name: str) -> Path:
    """Keys are other people's: `..` in one must not write elsewhere."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise DataError(f"the object {name!r} would be written outside of the cache; rename it on S3")
    return target


def _client() -> Any:
    return client("s3", configured_region(None) or _ANY_REGION)


def _root(cache_dir: Path | None) -> Path:
    return (cache_dir or cache_root()) / "s3"


@contextmanager
def _as_data_error(doing: str) -> Iterator[None]:
    try:
        with explained(doing):
            yield
    except SubmitError as error:
        raise DataError(str(error)) from error
