"""Run beside the installed lm-eval: its own Hugging Face model, with an adapter, answers prompts that are given.

lm_eval_model.py MODEL ADAPTER FILE     FILE: a JSON object of `prompts`, `until` and `max_gen_toks`; prints the texts
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def main(model: str, adapter: str, file: str) -> None:
    asked = json.loads(Path(file).read_text())
    kwargs = {"until": asked["until"], "max_gen_toks": asked["max_gen_toks"], "do_sample": False}
    lm = HFLM(pretrained=model, peft=adapter, device="cpu", dtype=torch.float32, batch_size=16, add_bos_token=False)
    instances = [Instance("generate_until", {}, (prompt, kwargs), 0) for prompt in asked["prompts"]]
    print(json.dumps(lm.generate_until(instances)))


if __name__ == "__main__":
    main(*sys.argv[1:])
