r"""Residues: `x \equiv 10 \pmod 7` says what `3 \pmod 7` says."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from reward_service.text.expressions import ExpressionError
from reward_service.text.latex.values import Chain, Quantity, Relation, Sequence, Value

_MODULUS: Final = re.compile(
    r",? ?(?:\( ?)?\\(p?mod|bmod|pod) ?(?:\{ ?([0-9]{1,9}) ?\}|([0-9]{1,9})) ?(?:\))?"
    r"|,? ?\( ?(?:\\text ?\{ ?)?mod(?:ulo)? ?(?:\} ?)?([0-9]{1,9}) ?(?:\} ?)?\)"
)


def without_modulus(text: str) -> tuple[str, int] | None:
    """A congruence as an equation, and its modulus; None for what is none (`17 \\bmod 6` is a number)."""
    found = list(_MODULUS.finditer(text)) if "mod" in text else []
    if not found or (found[0][1] in ("bmod", "mod") and "\\equiv" not in text):
        return None
    moduli = {int(next(filter(None, match.groups()[1:]))) for match in found}
    if len(moduli) > 1 or 0 in moduli:
        raise ExpressionError("congruences of several moduli are not read")
    return _MODULUS.sub(" ", text).strip(), moduli.pop()


def reduced(value: Value, modulus: int) -> Value:
    """Whole numbers as their residues, each with its modulus as a unit."""
    if isinstance(value, Quantity):
        remainder = value.expression % modulus if value.expression.is_Integer else value.expression
        return replace(value, expression=remainder, unit=f"mod {modulus}")
    if isinstance(value, Sequence):
        return replace(value, items=tuple(reduced(item, modulus) for item in value.items))
    if isinstance(value, Relation) and value.sign == "=":
        return replace(value, right=reduced(value.right, modulus))
    if isinstance(value, Chain):
        return replace(value, relations=(*value.relations[:-1], reduced(value.relations[-1], modulus)))  # type: ignore[arg-type]
    raise ExpressionError("a congruence is of whole numbers")
