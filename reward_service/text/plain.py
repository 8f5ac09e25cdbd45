"""Expressions in one line of text, `2x^2 + sin(pi/3)`, as sympy objects.

sympy's own readers (`sympify`, `parse_expr`) evaluate Python and must not see text from a model. This is the grammar of
`reward_service.text.latex.read` over numbers, names, a list of functions, operators, brackets and bars, nothing else:

- a number is exact (0.1 is 1/10), scientific notation included (`2e3` is 2000, `2e` is 2 times Euler's number);
- `pi`, `e` and `i` (or `E`, `I`) are the constants; any other name of at most 16 characters is a variable;
- a product may leave out its sign: `2x`, `3(x+1)`, `x y`; `xy` is one variable; `1/2x` is x/2;
- `-x^2` is -(x^2), `2^3^2` is 2^9, `2^3!` is 2^6, `sin^2(x)` is sin(x)^2;
- `name = expression` is the expression; `−`, `×`, `·`, `÷` and `π` are what they look like.

Sizes are limited before sympy works: characters, tokens, depth, digits, exponents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from reward_service.text.expressions import Assumption, ExpressionError
from reward_service.text.latex.read import NEGATION, Reader
from reward_service.text.latex.tokens import FUNCTIONS, Token

MAX_CHARS: Final = 1000
MAX_TOKENS: Final = 300

_TOKEN: Final = re.compile(
    r"[ \t]*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z][A-Za-z0-9_]*)|(?P<operator>\*\*|[-+*/^!(),=|]))[ \t]*"
)
_LOOKALIKES: Final = str.maketrans({"\u2212": "-", "×": "*", "·": "*", "÷": "/", "π": " pi "})
_FUNCTIONS: Final = {**FUNCTIONS, "Abs": "Abs"}
_CONSTANTS: Final = {"pi": "pi", "e": "E", "E": "E", "i": "I", "I": "I"}


def parse_expression(text: str, assume: Assumption = "real") -> Any:
    """`text` as a sympy expression.

    Args:
        text: At most MAX_CHARS characters and MAX_TOKENS tokens.
        assume: What its variables are: complex, real or positive.

    Raises:
        ExpressionError: What is wrong with it.
    """
    import sympy

    if len(text) > MAX_CHARS:
        raise ExpressionError(f"it has more than {MAX_CHARS} characters")
    tokens = list(_tokens(text.translate(_LOOKALIKES).strip(" \t\r\n")))
    if len(tokens) > MAX_TOKENS:
        raise ExpressionError(f"it has more than {MAX_TOKENS} tokens")
    if [token.kind for token in tokens[:2]] == ["letter", "="] and tokens[0].text not in _CONSTANTS:
        del tokens[:2]
    reader = _Reader(tokens, assume)
    expression = reader.read()
    if reader.kind != "end":
        raise ExpressionError(f"{reader.text!r:.30} is not expected here")
    if expression.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        raise ExpressionError("it has no finite value")
    return expression


def _tokens(text: str) -> Iterator[Token]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"{text[position]!r} is not part of an expression")
        kind = str(match.lastgroup)
        written = match[kind]
        position = match.end()
        if written in _FUNCTIONS:
            yield Token("function", _FUNCTIONS[written])
        elif kind == "name":
            yield Token("\\sqrt" if written == "sqrt" else "letter", written)
        else:
            yield Token("^" if written == "**" else written if kind == "operator" else kind, written)


class _Reader(Reader):
    """Names are whole words, and what is raised may be a power or a factorial."""

    def __init__(self, tokens: list[Token], assume: Assumption) -> None:
        super().__init__(tokens)
        self._assume = assume

    def _named(self, text: str, depth: int) -> Any:
        import sympy

        if text in _CONSTANTS:
            return getattr(sympy, _CONSTANTS[text])
        if self.kind == "(" and len(text) > 1:  # `f(x)` is a product, `foo(x)` is not meant as one
            raise ExpressionError(f"there is no function {text[:20]!r}")
        if len(text) > 16:
            raise ExpressionError(f"the name {text[:20]!r} is too long")
        return sympy.Symbol(text, **{self._assume: True})

    def _script(self, depth: int) -> Any:
        return self.read(NEGATION, depth + 1)

    def _call(self, name: str, depth: int) -> Any:
        if self.kind == "^" and not self.peek().text.isdecimal():  # sin^-1: the arc sine to some, 1/sin to others
            raise ExpressionError(f"between {name} and its bracket only a whole power may stand: {name}^2(x)")
        return super()._call(name, depth)
