"""Every setting of every room is named in a test: one that no test names may be one that does nothing.

Not covered: whether the test that names a setting sees what it does. Of fields with common names (`name`, `url`) it
says little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from orchestration.settings.config import RunConfig
from orchestration.settings.submit import SubmitConfig
from reward_service.settings import ServiceSettings

TESTS = Path(__file__).parent

# name=, name: and "name", .name: a word in a sentence is not a use.
USES = re.compile(r"""(?:\.|["'])(\w+)\b|\b(\w+)["']?\s*[=:]""")


def sections(kind: Any) -> Iterator[type[BaseModel]]:
    """The groups of settings that a type holds, at any depth: in unions, tuples and optional values too."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from sections(field.annotation)
    for inner in get_args(kind):
        yield from sections(inner)


def unnamed(fields: set[tuple[str, str]], sources: str) -> list[str]:
    named = {word for pair in USES.findall(sources) for word in pair}
    return sorted(f"{section}.{field}" for section, field in fields if field not in named)


def all_fields() -> set[tuple[str, str]]:
    kinds = {kind for root in (RunConfig, SubmitConfig, ServiceSettings) for kind in sections(root)}
    return {(kind.__name__, field) for kind in kinds for field in kind.model_fields}


def test_every_setting_is_named_in_a_test() -> None:
    sources = "\n".join(path.read_text() for path in TESTS.rglob("*.py") if path != Path(__file__))
    assert unnamed(all_fields(), sources) == []


def test_all_rooms_are_looked_at() -> None:
    fields = all_fields()
    assert {("LossSettings", "beta"), ("RolloutConfig", "top_k"), ("JudgeSettings", "model")} <= fields
    assert {("InstanceGroup", "instance_count"), ("ActorDeployment", "num_cpus")} <= fields
    assert len(fields) > 250


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("LearnerConfig(weight_decay=0.1)", True),
        ('{"weight_decay": 0.1}', True),
        ('["learner.weight_decay=0.1"]', True),
        ("assert config.weight_decay", True),
        ("# the weight_decay is another matter", False),
        ("weight_decay_of_another = 1", False),
    ],
)
def test_a_use_is_told_from_a_mention(source: str, named: bool) -> None:
    assert unnamed({("LearnerConfig", "weight_decay")}, source) == ([] if named else ["LearnerConfig.weight_decay"])
