"""`rlvr settings`: the reference is read from the fields, and names from elsewhere lead to ours."""

from __future__ import annotations

import json

import pytest

from orchestration.cli import main
from orchestration.settings.config import flat_keys, load_config
from orchestration.settings.names import KNOWN_ELSEWHERE, here_it_is
from orchestration.settings.reference import all_settings


def test_every_setting_is_listed_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in listed} == set(flat_keys())
    kinds = [one for one in listed if one["name"].endswith(".kind")]
    assert all(one["description"] for one in listed if one not in kinds)
    (beta,) = (one for one in listed if one["name"] == "learner.loss.beta")
    assert (beta["type"], beta["default"]) == ("float", "0.0")


def test_a_section_and_one_setting_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "learner.lora"]) == 0
    said = capsys.readouterr().out
    assert "learner.lora.r = 16   (int)" in said
    assert "learner.loss" not in said
    assert main(["settings", "data.num_eval"]) == 0
    assert "[gsm8k]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "here"),
    [("lora_r", "learner.lora.r"), ("epsilon_high", "learner.loss.epsilon_high"), ("output_dir", "run_dir")],
)
def test_names_of_other_trainers_are_found(name: str, here: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", name]) == 0
    assert capsys.readouterr().out.startswith(f"here it is {here}\n{here} = ")
    assert main(["train", f"{name}=1"]) == 2
    assert f"here it is '{here}'" in capsys.readouterr().err


def test_every_name_from_elsewhere_leads_to_a_setting_that_there_is() -> None:
    keys = flat_keys()
    assert set(KNOWN_ELSEWHERE.values()) <= set(keys)
    assert here_it_is("no_such_thing", keys) is None


def test_the_names_of_trls_configuration_that_mean_the_same_are_found() -> None:
    trl = pytest.importorskip("trl")
    fields = trl.GRPOConfig.__dataclass_fields__
    keys = flat_keys()
    found = {name for name in fields if here_it_is(name, keys)}
    ours = {one.name.rpartition(".")[2] for one in all_settings()}
    assert found >= {name for name in fields if name in ours}
    assert len(found) >= 50


def test_what_is_nowhere_is_said_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "learner.los"]) == 2
    assert "nothing is called 'learner.los'; did you mean 'learner.loss" in capsys.readouterr().err
    assert load_config("tiny").seed == 0
