"""Run by test_callers_lm_eval.py beside the installed lm-eval: its own task file, stop strings, filters and metric.

lm_eval_calls.py FILE     a JSON list of [completion, answer column]; prints filter → 1 or 0 for each
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import exact_match_fn
from lm_eval.filters import build_filter_ensemble
from lm_eval.models.utils import postprocess_generated_text


def main(file: str) -> None:
    pairs = json.loads(Path(file).read_text())
    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    (metric,) = task["metric_list"]
    rules = {name: metric[name] for name in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    instances = [
        Instance("generate_until", {"answer": answer}, ("",), 0, resps=[_cut(text, task)]) for text, answer in pairs
    ]
    found: dict[str, Any] = {}
    for one in task["filter_list"]:
        name = one["name"]
        steps = [(step["function"], {k: v for k, v in step.items() if k != "function"}) for step in one["filter"]]
        build_filter_ensemble(name, steps).apply(instances)
        found[name] = [
            float(
                exact_match_fn(predictions=[each.filtered_resps[name]], references=[each.doc["answer"]], **rules)[
                    "exact_match"
                ]
            )
            for each in instances
        ]
    print(json.dumps(found))


def _cut(text: str, task: dict[str, Any]) -> str:
    return postprocess_generated_text(text, task["generation_kwargs"]["until"], None)


if __name__ == "__main__":
    main(*sys.argv[1:])
