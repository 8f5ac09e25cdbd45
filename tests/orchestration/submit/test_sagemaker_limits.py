"""botocore's service model as a judge of values: what it says of a good request, and of mutated ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from botocore.session import Session

from orchestration.submit.sagemaker.limits import breaches

EXPECTED = sorted((Path(__file__).parent / "expected").glob("*.json"))


@pytest.fixture(scope="module")
def shape() -> Any:
    return Session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem)
def test_what_is_expected_of_us_keeps_the_limits(path: Path, shape: Any) -> None:
    assert list(breaches(json.loads(path.read_text()), shape)) == []


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["TrainingJobName"], "a" * 64, "TrainingJobName has 64 characters, at most 63 are taken"),
        (["TrainingJobName"], "under_score", "TrainingJobName='under_score' does not match"),
        (["RoleArn"], "arn:aws:iam::1:role/x", "RoleArn='arn:aws:iam::1:role/x' does not match"),
        (["ResourceConfig", "InstanceType"], "ml.p9.48xlarge", "InstanceType='ml.p9.48xlarge' is not known"),
        (["ResourceConfig", "KeepAlivePeriodInSeconds"], 99999, "KeepAlivePeriodInSeconds=99999, at most 21600"),
        (["StoppingCondition", "MaxRuntimeInSeconds"], 0, "MaxRuntimeInSeconds=0, at least 1"),
        (["InputDataConfig", 0, "ChannelName"], "a channel", "InputDataConfig[0].ChannelName='a channel' does not"),
        (["InputDataConfig", 0, "InputMode"], "Fast", "which is none of Pipe, File, FastFile"),
        (["Environment"], {"A": "x" * 513}, "Environment.A has 513 characters, at most 512 are taken"),
        (["Environment"], {"1A": ""}, "Environment: the name '1A'='1A' does not match"),
        (["Environment"], {f"A{i}": "" for i in range(101)}, "Environment has 101 entries, at most 100 are taken"),
        (["Tags"], [{"Key": "k", "Value": "a;b"}], "Tags[0].Value='a;b' does not match"),
        (["AlgorithmSpecification", "MetricDefinitions"], [{"Name": "n", "Regex": "r"}] * 41, "has 41 entries"),
    ],
)
def test_a_mutated_request_is_seen(path: list[str | int], value: object, says: str, shape: Any) -> None:
    request = copy.deepcopy(json.loads(EXPECTED[0].read_text()))
    *parents, leaf = path
    node: Any = request
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    assert any(says in breach for breach in breaches(request, shape)), list(breaches(request, shape))


def test_letters_of_all_languages_are_letters(shape: Any) -> None:
    assert list(breaches([{"Key": "équipe", "Value": "Zürich 8+"}], shape.members["Tags"])) == []
