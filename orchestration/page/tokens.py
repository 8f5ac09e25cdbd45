"""A completion cut into its tokens, each with the probability that the sampler gave it and the learner's over it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from orchestration.run.ledger.names import ADAPTER_FOLDER
from rollout_server.types import ADAPTER_CONFIG

MOST_TOKENS: Final = 1_000_000
"""Of all completions on a page; beyond them none is cut."""
_BINS: Final = 10

Pieces = Callable[[Sequence[int]], list[str]]


def pieces_of(run_dir: Path) -> Pieces | None:
    """Token ids → the text of each, by the tokenizer that lies beside the run's adapter, while the run is under way by
    that of its base model; None where there is none."""
    path = run_dir / ADAPTER_FOLDER / "tokenizer.json"
    if not path.is_file():
        path = _base_of(run_dir / ADAPTER_FOLDER / ADAPTER_CONFIG) / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # of its own, without a common ancestor: a page without colours is a page
        return None
    return pieces_by(tokenizer)


def _base_of(adapter_config: Path) -> Path:
    """The base model's folder on this machine; at the end of a run a name for other machines stands there."""
    try:
        return Path(json.loads(adapter_config.read_bytes())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return adapter_config.parent


def pieces_by(tokenizer: Any) -> Pieces:
    """As `pieces_of`. Each token is decoded behind another: some tokenizers drop the blank that a text begins with."""
    anchor = tokenizer.encode("a", add_special_tokens=False).ids[-1:] if tokenizer.decoder else []
    before = len(tokenizer.decode(anchor))
    piece = cache(lambda token: str(tokenizer.decode([*anchor, token]))[before:])
    return lambda token_ids: [piece(token) for token in token_ids]


def cut(
    text: str,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    log_ratios: Sequence[float] | None,
    pieces: Pieces,
) -> dict[str, Any]:
    """What a page needs to colour a text by its tokens. Empty where the tokens one by one do not make the text, as with
    characters of several tokens.

    Args:
        text: of a completion, or of a turn of one.
        token_ids: of this text.
        logprobs: the sampler's, nats; NaN where it could not say.
        log_ratios: learner's - sampler's, nats; NaN where there is none, None where there is none of any.
        pieces: gives the tokens' texts.

    Returns:
        `l`, the lengths of the tokens in characters; `k`, a digit for each: its probability in tenths, rounded down;
        `-`: not known; and where any token has a ratio `o`, its logarithm in hundredths, None: none.
    """
    found = pieces(token_ids)
    if found and found[0][:1] == " " and "".join(found) == f" {text}":
        found[0] = found[0][1:]
    if "".join(found) != text or len(found) != len(logprobs):
        return {}
    shown = {"l": [len(piece) for piece in found], "k": "".join(map(_tenths, logprobs))}
    ratios = [None if math.isnan(one) else round(100 * one) for one in log_ratios or ()]
    return shown | ({"o": ratios} if any(one is not None for one in ratios) else {})


def _tenths(logprob: float) -> str:
    """NaN: the sampler could not say."""
    return "-" if math.isnan(logprob) else str(min(_BINS - 1, int(_BINS * math.exp(min(0.0, logprob)))))
