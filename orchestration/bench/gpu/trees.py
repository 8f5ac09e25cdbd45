"""Batches of known shape as prefix trees: a header with questions with completions, of random tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from learner.tree.prefix_tree import PrefixTree, TokenSequence, build_tree
from rollout_server.arrays import TokenIds


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeShape:
    """Tokens of each piece, and how many there are."""

    header: int
    num_questions: int
    question: int
    num_completions: int
    completion: int

    def __str__(self) -> str:
        questions = f"{self.num_questions} questions of {self.question}"
        return f"header of {self.header}, {questions}, {self.num_completions} completions of {self.completion} each"

    def prompts(self, *, vocabulary: int) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
        """Each prompt with its completions; neighbours begin differently, so that they share what they are to share."""
        random = np.random.default_rng(0)

        def tokens(count: int, first: int) -> tuple[int, ...]:
            return first, *random.integers(1, vocabulary, count - 1).tolist()

        header = tokens(self.header, 0)
        for number in range(self.num_questions):
            prompt = header + tokens(self.question, number)
            yield prompt, [tokens(self.completion, index) for index in range(self.num_completions)]

    def tree(self, *, vocabulary: int = 1000) -> PrefixTree:
        """Packed; the last token of a completion predicts nothing and is left out."""
        return build_tree(
            [
                TokenSequence(prompt_token_ids=TokenIds(prompt), completion_token_ids=TokenIds(completion))
                for prompt, completions in self.prompts(vocabulary=vocabulary)
                for completion in completions
            ]
        )


LARGE = TreeShape(header=700, num_questions=16, question=60, num_completions=8, completion=150)
"""A batch of GSM8K behind a header of worked examples: 20,732 distinct tokens."""
LARGE_ON_CPU = TreeShape(header=70, num_questions=3, question=12, num_completions=3, completion=16)
