"""A completion's own seed on CPUs: each of its tokens is drawn by that seed and the token's place, by nothing else.

vLLM gives a request with a seed a generator of its own, which is rewound where a draw is thrown away, as at every part
of a prompt that is prefilled in parts; generators on CPUs cannot be rewound, and the engine dies. Here a generator is
set anew before each draw, so that there is nothing to rewind, and a request that was preempted draws what it would
have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_MASK = (1 << 64) - 1
_INSTALLED = "_rlvr_seeds"


class PlacedGenerator(torch.Generator):
    """The generator of one request; `place` sets it for the token that is drawn next."""

    seed_of_request: int
    drawn: Sequence[int]

    def place(self) -> None:
        """Set it by the request's seed and the number of tokens that it has."""
        self.manual_seed(mixed(self.seed_of_request, len(self.drawn)))

    def get_offset(self) -> int:
        """Never moves: see the module."""
        return 0

    def set_offset(self, offset: int) -> PlacedGenerator:
        """Has nothing to do."""
        return self


def mixed(seed: int, place: int) -> int:
    """A seed out of two numbers (SplitMix64): neighbours give numbers that have nothing to do with each other."""
    value = (seed + (place + 1) * 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return (value ^ (value >> 31)) >> 1


def install(batch_class: Any, sampler_class: Any) -> None:
    """Give vLLM's batch of requests such generators, and have them placed before its sampler draws; once."""
    if _INSTALLED in vars(batch_class):
        return
    setattr(batch_class, _INSTALLED, True)
    stock_add, stock_draw = batch_class.add_request, sampler_class.forward_cpu

    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if request.generator is not None and not isinstance(request.generator, PlacedGenerator):
            generator = PlacedGenerator()
            generator.seed_of_request = request.sampling_params.seed
            generator.drawn = request.output_token_ids
            request.generator = generator
        return stock_add(self, request, *args, **kwargs)

    def forward_cpu(self: Any, logits: Any, generators: Any, *args: Any, **kwargs: Any) -> Any:
        for generator in generators.values():
            if isinstance(generator, PlacedGenerator):
                generator.place()
        return stock_draw(self, logits, generators, *args, **kwargs)

    batch_class.add_request, sampler_class.forward_cpu = add_request, forward_cpu
