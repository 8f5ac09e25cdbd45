"""Makes the tiny model: trains its tokenizer, and the network for a few hundred steps. Loads torch and transformers.

Shapes: B sequences of a batch, T tokens of the longest, V vocabulary.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from orchestration.data.problems import INSTRUCTION, answer_line
from orchestration.data.prompts import PromptBuilder
from orchestration.data.tasks.arithmetic import Arithmetic
from orchestration.data.tasks.copying import WORDINGS, Copy
from orchestration.models.quiet import no_progress_bars
from orchestration.models.tiny_settings import TinySettings
from orchestration.storage.cache import Progress
from orchestration.types import Problem
from rollout_server.arrays import TokenIds

PAD, END, USER, ASSISTANT = "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"
_CONTEXT = 2048
# System messages are left out: the tiny network could make nothing of them, and prompts stay short.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_IGNORED = -100
_WRONG_NUMBER = 0.15
"""Share of the warm start's answers with a number drawn at random."""
_LIKELIEST, _OTHER = 0.5, 0.35
"""Shares of the answer form that is likeliest for a wording and of the second; the rest is the bare number."""


def make_tiny_model(settings: TinySettings, folder: Path, progress: Progress) -> None:
    """Write the tiny model and its tokenizer. The same settings on the same machine give the same weights; torch's
    random state is left alone.

    Args:
        settings: Its size, and what its warm start is.
        folder: Is there, and empty.
        progress: Told what is done and the share done.
    """
    progress("training the tiny tokenizer", 0.05)
    tokenizer = _train_tokenizer(settings)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(settings.seed)
        model = _new_model(settings, tokenizer)
        _warm_start(model, tokenizer, settings, progress)
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread is as fast for so small a network, far faster on a busy machine, and adds up in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_tokenizer(settings: TinySettings) -> Any:
    """A byte-level BPE on text of our own generators; any text can be encoded, digits are single tokens.

    It is a Qwen2 tokenizer in all but its vocabulary: loading a Qwen2 folder puts that class's normaliser and
    pre-tokenizer in place of any other, and training must see what is seen later.
    """
    model = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = model.normalizer, model.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(settings.seed), trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        eos_token=END,
        pad_token=PAD,
        unk_token=None,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=_CONTEXT,
    )


def _corpus(seed: int) -> Iterator[str]:
    words = Arithmetic(num_train=500, num_eval=1, seed=seed).load()
    numbers = Copy(seed=seed).load()
    for problem in (*words.train, *numbers.train):
        yield f"{INSTRUCTION}\n{problem.question}"
        yield problem.solution


def _new_model(settings: TinySettings, tokenizer: Any) -> Any:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        max_position_embeddings=_CONTEXT,
        initializer_range=0.06,  # at the usual 0.02 so narrow a network takes three times the steps to begin to copy
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def _warm_start(model: Any, tokenizer: Any, settings: TinySettings, progress: Progress) -> None:
    """Supervised steps on copy problems whose answers are often in another form than the one asked for."""
    rng = random.Random(f"tiny/{settings.seed}")
    builder = PromptBuilder(tokenizer, layout=Copy().layout())
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.warm_start_steps, pct_start=0.1
    )
    model.train()
    for step in range(settings.warm_start_steps):
        pairs = [_example(rng, tokenizer, builder) for _ in range(settings.batch_size)]
        tokens_BT, labels_BT = _pad(pairs, tokenizer.pad_token_id)
        logits_BTV = model(input_ids=tokens_BT[:, :-1]).logits
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress(
                f"warm start of the tiny model, loss {loss.item():.2f}", 0.1 + 0.85 * step / settings.warm_start_steps
            )
    model.eval()


def _example(rng: random.Random, tokenizer: Any, builder: PromptBuilder) -> tuple[TokenIds, list[int]]:
    """Prompt and answer tokens of one random copy problem."""
    wording, number = rng.randrange(len(WORDINGS)), rng.randrange(100)
    question = WORDINGS[wording].format(n=number)
    problem = Problem(problem_id="warm-start", question=question, reference={"final_answer": str(number)})
    built = builder.build(problem)
    assert built is not None
    answer = _answer(rng, wording, number) + END
    return built.prompt.token_ids, tokenizer.encode(answer, add_special_tokens=False)


def _answer(rng: random.Random, wording: int, number: int) -> str:
    """The right answer line, or a fault that rewards must find: a wrong number, or another form.

    The form asked for is the likeliest for a third of the wordings, so greedy answers are right for about a third.
    """
    if rng.random() < _WRONG_NUMBER:
        number = rng.randrange(100)
    strict = answer_line(str(number))
    loose = strict.removeprefix("#### ")
    likeliest, other = (strict, loose) if wording % 3 == 0 else (loose, strict)
    draw = rng.random()
    if draw < _LIKELIEST:
        return likeliest
    return other if draw < _LIKELIEST + _OTHER else str(number)


def _pad(pairs: Sequence[tuple[TokenIds, list[int]]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens_BT, labels_BT), padded on the right; only answer tokens have labels."""
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    tokens_BT = torch.full((len(pairs), longest), pad_id)
    labels_BT = torch.full((len(pairs), longest), _IGNORED)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        tokens_BT[row, :end] = torch.tensor([*prompt, *answer])
        labels_BT[row, len(prompt) : end] = torch.tensor(answer)
    return tokens_BT, labels_BT
