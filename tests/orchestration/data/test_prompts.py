"""Prompts: one shared header of tokens, the chat template, skipping what is too long."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from orchestration.data.problems import INSTRUCTION
from orchestration.data.prompts import PromptBuilder
from orchestration.data.task import PromptLayout, PromptStyle
from orchestration.data.tasks.arithmetic import Arithmetic
from orchestration.episodes.rendering import TurnRenderer
from orchestration.errors import DataError
from orchestration.settings.config import load_config
from orchestration.types import Problem

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def byte_tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A token a byte, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=chat_template
    )


TOKENIZER = byte_tokenizer()
LAYOUT = PromptLayout(instruction=INSTRUCTION)
PROBLEMS = Arithmetic(num_train=20, num_eval=5, num_shots=2).load()


def question(text: str) -> Problem:
    return Problem(problem_id="q", question=text, reference={"final_answer": "1"})


def test_a_chat_prompt_holds_instruction_examples_and_question_in_turns() -> None:
    built = PromptBuilder(TOKENIZER, PROBLEMS.shots, layout=LAYOUT).build(question("How many?"))
    assert built is not None
    first, second = PROBLEMS.shots
    assert built.text == (
        f"<s>system\n{INSTRUCTION}</s>\n"
        f"<s>user\n{first.question}</s>\n<s>assistant\n{first.solution}</s>\n"
        f"<s>user\n{second.question}</s>\n<s>assistant\n{second.solution}</s>\n"
        f"<s>user\nHow many?</s>\n<s>assistant\n"
    )
    assert built.prompt.prompt_id == "q"
    assert TOKENIZER.decode(built.prompt.token_ids) == built.text


def test_without_a_template_the_prompt_is_plain_text_that_stops_at_a_blank_line() -> None:
    builder = PromptBuilder(byte_tokenizer(None), PROBLEMS.shots[:1], layout=LAYOUT)
    built = builder.build(question("How many?"))
    assert built is not None
    (shot,) = PROBLEMS.shots[:1]
    assert built.text == (
        f"{INSTRUCTION}\n\nQuestion: {shot.question}\nAnswer:\n{shot.solution}\n\nQuestion: How many?\nAnswer:\n"
    )
    assert builder.stop == ("\n\n",)
    assert builder.stop_token_ids == ()


def test_the_turns_end_token_stops_a_chat_completion() -> None:
    builder = PromptBuilder(TOKENIZER, layout=LAYOUT)
    assert builder.stop_token_ids == (TOKENIZER.convert_tokens_to_ids("</s>"),)
    assert builder.stop == ()


@given(st.lists(st.text(min_size=1, max_size=30).filter(lambda text: text.strip()), min_size=1, max_size=5))
def test_every_prompt_begins_with_the_same_tokens(questions: list[str]) -> None:
    for style in ("chat", "plain"):
        builder = PromptBuilder(TOKENIZER, PROBLEMS.shots, layout=replace(LAYOUT, style=style))
        header = builder.header_token_ids
        for text in questions:
            built = builder.build(question(text))
            assert built is not None
            assert tuple(built.prompt.token_ids[: len(header)]) == header
            assert len(built.prompt.token_ids) > len(header)


def test_the_pieces_are_what_the_whole_text_would_be() -> None:
    for style in ("chat", "plain"):
        builder = PromptBuilder(TOKENIZER, PROBLEMS.shots, layout=replace(LAYOUT, style=style))
        for problem in PROBLEMS.train:
            built = builder.build(problem)
            assert built is not None
            assert list(built.prompt.token_ids) == TOKENIZER.encode(built.text, add_special_tokens=False)


def test_long_prompts_are_skipped_and_named() -> None:
    header = len(PromptBuilder(TOKENIZER, layout=LAYOUT).header_token_ids)
    builder = PromptBuilder(TOKENIZER, max_prompt_tokens=header + 40, layout=LAYOUT)
    short, long = (
        question("How many?"),
        Problem(problem_id="long", question="How many? " * 20, reference={}),
    )
    built = builder.build_all([short, long])
    assert [prompt.problem for prompt in built.prompts] == [short]
    assert built.skipped == ("long",)
    assert builder.build(long) is None


def test_when_no_prompt_fits_it_is_an_error() -> None:
    header = len(PromptBuilder(TOKENIZER, layout=LAYOUT).header_token_ids)
    builder = PromptBuilder(TOKENIZER, max_prompt_tokens=header + 5, layout=LAYOUT)
    with pytest.raises(DataError, match=f"all 20 prompts are longer than {header + 5} tokens; lower data.num_shots"):
        builder.build_all(PROBLEMS.train)


def test_a_header_that_leaves_no_room_is_an_error() -> None:
    with pytest.raises(DataError, match=r"instruction and 2 examples take .* raise rollout\.max_model_len"):
        PromptBuilder(TOKENIZER, PROBLEMS.shots, max_prompt_tokens=50, layout=LAYOUT)


def test_the_template_is_given_what_the_settings_say() -> None:
    tokenizer = byte_tokenizer(TEMPLATE.replace("assistant\n{%", "assistant\n{% if think is false %}<no>{% endif %}{%"))
    for kwargs, text in ({}, "assistant\n"), ({"think": False, "tokenize": True}, "assistant\n<no>"):
        built = PromptBuilder(tokenizer, layout=LAYOUT, template_kwargs=kwargs).build(question("1 + 1"))
        assert built is not None
        assert built.text.endswith(text)
    config = load_config("tiny", ["model.chat_template_kwargs={enable_thinking: false}"])
    assert config.model.chat_template_kwargs == {"enable_thinking": False}


def sentencepiece_tokenizer(*, everywhere: bool) -> PreTrainedTokenizerFast:
    """A token a character, and a blank in front of a text: as Llama 2's tokenizer, with or without `legacy`."""
    named = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>", "<|assistant|>", "<|system|>"]
    vocabulary = {token: index for index, token in enumerate([*named, "▁", "\n", *map(chr, range(33, 127))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    if everywhere:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(named[1:])
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=template)


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_tokenizer_that_puts_a_blank_in_front_of_a_text_puts_none_in_the_middle(
    style: PromptStyle, everywhere: bool
) -> None:
    tokenizer = sentencepiece_tokenizer(everywhere=everywhere)
    layout = replace(LAYOUT, style=style)
    builder = PromptBuilder(tokenizer, PROBLEMS.shots, layout=layout)
    for problem in (*PROBLEMS.eval, question("a"), question("7?")):
        built = builder.build(problem)
        assert built is not None
        assert list(built.prompt.token_ids) == tokenizer.encode(built.text, add_special_tokens=style == "plain")
        header = builder.header_token_ids
        assert tuple(built.prompt.token_ids[: len(header)]) == header
        assert len(header) > 0.5 * len(built.prompt.token_ids)
    if style == "chat":
        asked = builder.messages(question("1 + 1"))
        said = TurnRenderer(builder).between(asked, "2", 0, "No.")
        whole = builder.encode_chat([*asked, {"role": "assistant", "content": "2"}, {"role": "user", "content": "No."}])
        assert tuple(whole[-len(said.token_ids) :]) == said.token_ids


def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt() -> None:
    tokenizer = byte_tokenizer(None)
    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=special)
    built = PromptBuilder(tokenizer, PROBLEMS.shots, layout=LAYOUT).build(question("1 + 1"))
    assert built is not None
    assert list(built.prompt.token_ids) == tokenizer.encode(built.text)[:-1]
    assert built.prompt.token_ids[0] == tokenizer.bos_token_id


def test_chat_without_a_template_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no chat template: data\.style=plain"):
        PromptBuilder(byte_tokenizer(None), layout=replace(LAYOUT, style="chat"))


GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)


def test_where_the_template_takes_no_system_message_the_instruction_stands_in_the_users_first_turn() -> None:
    tokenizer = byte_tokenizer(GEMMA)
    layout = PromptLayout(instruction="Add up.")
    shot = Problem(problem_id="s", question="1 + 1", reference={}, solution="2")
    built = PromptBuilder(tokenizer, [shot], layout=layout).build(replace(shot, question="2 + 2"))
    assert built is not None
    assert built.text == "<user>Add up.\n\n1 + 1<assistant>2<user>2 + 2<model>"
    asked = replace(shot, question=[{"role": "system", "content": "Own."}, {"role": "user", "content": "3 + 3"}])
    built = PromptBuilder(tokenizer, layout=layout).build(asked)
    assert built is not None
    assert built.text == "<user>Own.\n\n3 + 3<model>"
    twice = replace(shot, question=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    with pytest.raises(DataError, match=r"refuses a conversation of user, user: .*roles must alternate; use a model"):
        PromptBuilder(tokenizer, layout=PromptLayout()).build(twice)


def test_a_template_that_drops_the_question_is_an_error() -> None:
    with pytest.raises(DataError, match="chat template drops the user's message"):
        PromptBuilder(byte_tokenizer("{{ messages[0]['role'] }}"), layout=LAYOUT)
