"""Data and models on S3, against moto's S3 in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.cli import main
from orchestration.errors import DataError
from orchestration.models.resolve import resolve_model
from orchestration.settings.config import load_config
from orchestration.storage.s3 import fetch_file, fetch_folder, local_file

LINE = json.dumps({"question": "1 + {}?", "answer": "so\n#### 2"})


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client, and a bucket."""
    import boto3
    from moto import mock_aws

    monkeypatch.setenv("RLVR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield client


def test_a_file_is_fetched_once_and_again_when_it_changes(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="d/train.jsonl", Body=b"one")
    first = fetch_file("s3://bucket/d/train.jsonl", "data.train_file")
    assert (first.name, first.read_text()) == ("train.jsonl", "one")
    assert fetch_file("s3://bucket/d/train.jsonl", "data.train_file") == first
    s3.put_object(Bucket="bucket", Key="d/train.jsonl", Body=b"two")
    assert fetch_file("s3://bucket/d/train.jsonl", "data.train_file").read_text() == "two"


def test_problems_are_read_from_s3(s3: Any) -> None:
    for name, numbers in (("train", range(20)), ("validation", range(20, 25))):
        body = "\n".join(LINE.replace("{}", str(n)) for n in numbers).encode()
        s3.put_object(Bucket="bucket", Key=f"d/{name}.jsonl", Body=body)
    files = ("data.train_file=s3://bucket/d/train.jsonl", "data.eval_file=s3://bucket/d/validation.jsonl")
    problems = load_config("gsm8k", files).data.load()
    assert (len(problems.train), len(problems.shots), len(problems.eval)) == (12, 8, 5)


def test_a_model_folder_is_fetched_whole(s3: Any, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sub/extra.txt"):
        s3.put_object(Bucket="bucket", Key=f"m/{name}", Body=b"{}")
    s3.put_object(Bucket="bucket", Key="m2/config.json", Body=b"{}")  # its name begins alike
    folder = resolve_model("s3://bucket/m")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.json", "model.safetensors", "tokenizer.json", "sub/extra.txt", "checksums.json"
    }  # fmt: skip
    with pytest.raises(DataError, match="no weights"):
        resolve_model("s3://bucket/m2/")


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("s3://bucket/missing", r"data.train_file='s3://bucket/missing': AWS refused with 404"),
        ("s3://nobucket-1/x", r"AWS refused with (404|NoSuchBucket)"),
        ("s3:///x", "write s3://BUCKET/KEY"),
    ],
)
def test_what_is_not_there_is_named(uri: str, what: str, s3: Any) -> None:
    with pytest.raises(DataError, match=what):
        fetch_file(uri, "data.train_file")


def test_an_empty_prefix_is_no_model(s3: Any) -> None:
    with pytest.raises(DataError, match="holds nothing"):
        fetch_folder("s3://bucket/none", "model.name")


def test_a_key_cannot_write_outside_of_the_cache(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="m/../../../evil", Body=b"x")
    with pytest.raises(DataError, match="outside of the cache"):
        fetch_folder("s3://bucket/m", "model.name")


def test_without_credentials_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match=r"aws configure"):
        fetch_file("s3://bucket/x", "data.train_file")


def test_a_channels_folder_is_its_only_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("x")
    assert local_file(str(tmp_path), "data.train_file") == tmp_path / "a.jsonl"
    (tmp_path / "b.jsonl").write_text("x")
    with pytest.raises(DataError, match=r"a\.jsonl, b\.jsonl: name the file"):
        local_file(str(tmp_path), "data.train_file")


@pytest.mark.parametrize("recipe", ["arithmetic", "tiny"])
def test_what_prepare_puts_on_s3_is_read_back(
    recipe: str, s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", recipe, "data.num_train=30", "data.num_eval=5"]
    assert main([*words, "--upload", "s3://bucket/sets/", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.split()
    assert said == [
        "data.kind=gsm8k",
        "data.train_file=s3://bucket/sets/train.jsonl",
        "data.eval_file=s3://bucket/sets/validation.jsonl",
    ]
    before = load_config(recipe, words[2:]).data.load()
    after = load_config("gsm8k", [*said, "data.num_shots=0"]).data.load()
    asked_before, asked_after = ([(p.question, p.reference["final_answer"]) for p in ps.eval] for ps in (before, after))
    assert sorted(asked_before) == sorted(asked_after)  # the file is shuffled again


def test_what_prepare_puts_on_s3_is_encrypted_as_the_bucket_or_the_settings_say(s3: Any) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "of-the-bucket"}}
    s3.put_bucket_encryption(Bucket="bucket", ServerSideEncryptionConfiguration={"Rules": [rule]})
    for words, key in (((), "of-the-bucket"), (("sagemaker.kms_key=of-the-settings",), "of-the-settings")):
        assert (
            main(["prepare", "tiny", "data.num_train=30", "data.num_eval=5", *words, "--upload", "s3://bucket/s"]) == 0
        )
        stored = s3.head_object(Bucket="bucket", Key="s/train.jsonl")
        assert (stored["ServerSideEncryption"], stored["SSEKMSKeyId"].rpartition("/")[2]) == ("aws:kms", key)


def test_an_adapter_on_s3_is_evaluated_from_the_cache(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.put_object(Bucket="bucket", Key="run/adapter/adapter_config.json", Body=b"{}")  # of no rank: told from where
    assert main(["eval", "--model", "tiny", "--adapter", "s3://bucket/run/adapter", "--data", "tiny"]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/cache/s3/" in error
    assert "adapter_config.json is not a LoRA adapter's configuration" in error


def test_prepare_wants_to_know_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "tiny"]) == 2
    assert "--out FOLDER" in capsys.readouterr().err
