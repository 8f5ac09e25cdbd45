r"""From tokens to expressions: a grammar of precedence for LaTeX and one-line mathematics together.

Numbers are exact (`0.1` is 1/10). A product needs no sign (`2x`, `x y`, `3(x+1)`), letters are variables of their own,
`e`, `i` and `\pi` the constants. What follows a function without brackets is its argument up to the next sign of sum,
quotient or function: `\sin 2x`. Sizes are limited before sympy works.
"""

from __future__ import annotations

import re
from typing import Any, Final

from reward_service.text.expressions import ExpressionError
from reward_service.text.latex.forms.operators import OPERATORS, read_operator
from reward_service.text.latex.operations import (
    apply,
    binomial,
    bounded,
    factorial,
    multifactorial,
    number,
    power,
    quotient,
    remainder,
    repeating,
)
from reward_service.text.latex.tokens import CURRENCIES, FUNCTIONS, SCALES, Token

MAX_DEPTH: Final = 40

SUM, PRODUCT, NEGATION, POWER, POSTFIX = range(1, 6)  # what binds tighter is greater
_CLOSING: Final = {"(": ")", "[": "]", "{": "}", "\\lbrace": "\\rbrace", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_BARS: Final = {"|": "|", "\\lvert": "\\rvert"}
_TIMES: Final = ("*", "\\times", "\\cdot", "\\ast", "\\bullet")
_MARKED: Final = tuple(
    f"\\{mark}" for mark in ("vec", "hat", "overline", "bar", "tilde", "overrightarrow", "angle", "triangle", "mathbb")
)
_OPENERS: Final = (  # what a product may go on with where its sign is left out
    *("(", "{", "letter", "name", "function", "\\frac", "\\sqrt", "\\pi", "\\binom", "\\dbinom", "\\tbinom"),
    *("\\lfloor", "\\lceil", "\\infty", "\\lvert", *_MARKED, *OPERATORS),
)


class Reader:
    """Reads an expression from a position on; what it leaves is for who called it."""

    def __init__(self, tokens: list[Token], log_base: int | None = None) -> None:
        """`log_base`: of a `\\log` that names none; None: e."""
        self.tokens = tokens
        self.log_base = log_base
        self.at = 0
        self.bars = 0
        """How many are open, so that the next one may be their end."""
        self.degrees = 0
        """Degree signs outside of functions' arguments."""
        self.currency = ""
        """What a sign before a number says."""
        self.signs: list[Any] = []
        """Symbols that stand for 1 or -1, of each plus-or-minus."""
        self.raised = 0
        """Where the last power ended."""

    @property
    def kind(self) -> str:
        return self.tokens[self.at].kind if self.at < len(self.tokens) else "end"

    @property
    def text(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else "the end"

    def peek(self, offset: int = 1) -> Token:
        at = self.at + offset
        return self.tokens[at] if at < len(self.tokens) else Token("end", "the end")

    def advance(self) -> Token:
        token = self.peek(0)
        self.at += 1
        return token

    def expect(self, kind: str) -> None:
        if self.kind != kind:
            raise ExpressionError(f"{kind!r} is missing before {self.text!r:.30}")
        self.advance()

    def read(self, binding: int = 0, depth: int = 0) -> Any:
        """An expression of what binds tighter than `binding`."""
        if depth > MAX_DEPTH:
            raise ExpressionError(f"it is nested deeper than {MAX_DEPTH}")
        left = self._operand(depth)
        while (following := self._continued(left, binding, depth)) is not None:
            left = following
        return left

    def _continued(self, left: Any, binding: int, depth: int) -> Any:
        """`left` with the next operator and its right side; None where nothing binds tighter than `binding`."""
        kind = self.kind
        if kind in ("!", "%", "\\degree", "'", "scale") and binding < POSTFIX:
            return self._postfix(left)
        if kind in ("^", "**") and binding < POWER:
            self.advance()
            raised = power(left, self._script(depth))
            self.raised = self.at
            return raised
        if kind in ("\\bmod", "\\mod") and binding < PRODUCT:
            self.advance()
            return remainder(left, self.read(PRODUCT, depth + 1))
        if kind in (*_TIMES, "/", "\\div") and binding < PRODUCT:
            self.advance()
            right = self.read(PRODUCT, depth + 1)
            return bounded(left * right) if kind in _TIMES else quotient(left, right)
        if binding < PRODUCT and self._at_factor():
            return bounded(left * self.read(PRODUCT, depth + 1))
        if kind in ("+", "-", "\\pm", "\\mp") and binding < SUM:
            self.advance()
            sign = self._sign(kind)
            return bounded(left + sign * self.read(SUM, depth + 1))
        return None

    def _at_factor(self) -> bool:
        """Whether a product goes on with no sign. A bar may be an end, and so may `[`, of an interval."""
        kind = self.kind
        if kind == "[":
            return self.peek().kind in (*_OPENERS, "number", "-")
        if kind == "number":  # `5!3`, `2^x3^y`; `10^2 3` says nothing
            raised = self.raised == self.at and self.peek(-1).kind != "number" and self.peek().kind in ("^", "**")
            return raised or self.peek(-1).kind == "!"
        return kind in _OPENERS or (kind == "|" and not self.bars)

    def _sign(self, kind: str) -> Any:
        import sympy

        if kind in ("+", "-"):
            return sympy.Integer(1 if kind == "+" else -1)
        if kind == "\\mp" and self.signs:
            return -self.signs[0]
        symbol = sympy.Dummy(f"sign{len(self.signs)}")
        self.signs.append(symbol)
        if len(self.signs) > 4:
            raise ExpressionError("it has more than 4 signs of plus or minus")
        return symbol if kind == "\\pm" else -symbol

    def _postfix(self, left: Any) -> Any:
        import sympy

        kind, text = self.peek(0)[:2]
        self.advance()
        if kind == "scale":
            return left * SCALES[text]
        if kind == "!":
            step = 1
            while self.kind == "!":
                self.advance()
                step += 1
            return factorial(left) if step == 1 else multifactorial(left, step)
        if kind == "%":
            return left / 100
        if kind == "'":
            if isinstance(left, sympy.Symbol):
                return sympy.Symbol(f"{left.name}'", real=True)
            raise ExpressionError("a prime stands behind a name only")
        self.degrees += 1
        return left * sympy.pi / 180

    def _script(self, depth: int) -> Any:
        """What is raised or lowered: a group, or one operand with its sign."""
        if self.kind in ("{", "("):
            return self._group(depth)
        if self.kind in ("+", "-"):
            sign = -1 if self.advance().kind == "-" else 1
            return sign * self._script(depth + 1)
        raised = number(self.advance().text) if self.kind == "number" else self._operand(depth + 1)
        if self.kind in ("^", "**"):  # 2^3^2 is 2^9
            self.advance()
            return power(raised, self._script(depth + 1))
        return raised

    def _group(self, depth: int) -> Any:
        closing = _CLOSING[self.advance().kind]
        inner = self.read(0, depth + 1)
        self.expect(closing)
        return inner

    def _argument(self, depth: int) -> Any:
        """What a command of LaTeX takes: a group, or one token."""
        if self.kind == "{":
            return self._group(depth)
        return number(self.advance().text) if self.kind == "number" else self._operand(depth + 1)

    def _operand(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"it is nested deeper than {MAX_DEPTH}")
        token = self.advance()
        kind, text = token.kind, token.text
        if kind in ("number", "repeating"):
            return self._number(token)
        if kind in ("+", "-", "\\pm", "\\mp"):
            return self._sign(kind) * self.read(NEGATION, depth + 1)
        if kind in CURRENCIES:
            self.currency = CURRENCIES[kind]
            return self._operand(depth + 1)
        if kind in _CLOSING or kind in _BARS:
            return self._delimited(kind, depth)
        if kind in ("letter", "name"):
            return self._named(text, depth)
        if kind == "function":
            return self._call(text, depth)
        if kind in _MARKED:
            return self._marked(kind)
        return self._command(kind, text, depth)

    def _delimited(self, opening: str, depth: int) -> Any:
        import sympy

        self.bars += opening == "|"
        inner = self.read(0, depth + 1)
        self.bars -= opening == "|"
        self.expect(_CLOSING.get(opening) or _BARS[opening])
        if opening in _BARS:
            return sympy.Abs(inner)
        if opening in ("\\lfloor", "\\lceil"):
            return sympy.floor(inner) if opening == "\\lfloor" else sympy.ceiling(inner)
        return inner

    def _command(self, kind: str, text: str, depth: int) -> Any:
        import sympy

        if kind in ("\\pi", "\\infty"):
            return sympy.pi if kind == "\\pi" else sympy.oo
        if kind == "\\frac":
            above = self._argument(depth)
            return quotient(above, self._argument(depth))
        if kind == "\\sqrt":
            return self._root(depth)
        if kind in ("\\binom", "\\dbinom", "\\tbinom"):
            above = self._argument(depth)
            return binomial(above, self._argument(depth))
        if kind in OPERATORS:
            return read_operator(self, kind, depth)
        raise ExpressionError(f"{text!r:.30} is not expected here")

    def _number(self, token: Token) -> Any:
        import sympy

        value = repeating(token.text) if token.kind == "repeating" else number(token.text)
        following, whole = self.peek(0), token.text.isdigit()
        if whole and following.kind == "_":
            return self._in_base(token.text)
        if whole and following.kind == "number":  # 1 1/2
            parts = [self.peek(offset) for offset in range(3)]
            if (
                parts[1].kind == "/"
                and parts[2].kind == "number"
                and parts[0].text.isdigit()
                and parts[2].text.isdigit()
            ):
                self.at += 3
                return value + quotient(number(parts[0].text), number(parts[2].text))
            raise ExpressionError("two numbers stand side by side")
        if whole and following.kind == "\\frac" and (part := self._plain_fraction()) is not None:
            return value + part
        assert isinstance(value, sympy.Rational)
        return value

    def _plain_fraction(self) -> Any:
        """A fraction of two whole numbers that comes next, which makes `1\\frac12` a mixed number; else None."""
        written = "".join(token.text for token in self.tokens[self.at + 1 : self.at + 7])
        match = re.match(r"\{(\d+)\}\{(\d+)\}|(\d)(\d)(?!\d)|\{(\d+)\}(\d)(?!\d)|(\d)\{(\d+)\}", written)
        if match is None:
            return None
        above, below = (int(digits) for digits in match.groups() if digits is not None)
        if above >= below:
            return None
        self.advance()
        return quotient(self._argument(0), self._argument(0))

    def _in_base(self, digits: str) -> Any:
        import sympy

        self.advance()
        base = self._script(0)
        if not (base.is_Integer and 2 <= base <= 36):
            raise ExpressionError("a number has an index that is no base")
        try:
            return sympy.Integer(int(digits, int(base)))
        except ValueError:
            raise ExpressionError(f"{digits} has digits that base {base} has not") from None

    def _named(self, text: str, depth: int) -> Any:
        """A letter with its index, or a constant."""
        import sympy

        if self.kind == "_":
            text = f"{text}_{self._index()}"
        elif text == "e":
            return sympy.E
        elif text == "i":
            return sympy.I
        probability = text == "P" and self.peek(2).kind == ")"  # P(1 + r) is a product, and mg(1 - x) too
        if text == "C" and self._takes_several():
            return binomial(*self._several(depth))
        function = text in ("f", "g", "h", "F", "G") and not (text == "g" and self.peek(-2).text == "m")
        if self.kind == "(" and (function or probability or self._takes_several()):
            return self._applied(text, depth)
        return sympy.Symbol(text, real=True)

    def _takes_several(self) -> bool:
        """Whether a comma stands in the bracket that comes next: `u(x, t)` is no product."""
        depth = 0
        for token in self.tokens[self.at :]:
            depth += (token.kind in ("(", "{")) - (token.kind in (")", "}"))
            if depth == 0 or (depth == 1 and token.kind == ","):
                return depth == 1
        return False

    def _applied(self, name: str, depth: int) -> Any:
        import sympy

        return sympy.Function(name, real=True)(*self._several(depth))

    def _several(self, depth: int) -> list[Any]:
        """Arguments in brackets."""
        closing = _CLOSING[self.advance().kind]
        arguments = [self.read(0, depth + 1)]
        while self.kind == ",":
            self.advance()
            arguments.append(self.read(0, depth + 1))
        self.expect(closing)
        return arguments

    def _index(self) -> str:
        self.advance()
        if self.kind != "{":
            return self.advance().text
        self.advance()
        parts = []
        while self.kind not in ("}", "end"):
            parts.append(self.advance().text)
        self.expect("}")
        return "".join(parts)

    def _marked(self, kind: str) -> Any:
        """`\\vec{v}`, `\\angle ABC`: a name, whatever it holds."""
        import sympy

        parts = []
        if self.kind == "{":
            self.advance()
            while self.kind not in ("}", "end"):
                parts.append(self.advance().text)
            self.expect("}")
        else:
            while self.kind in ("letter", "name"):
                parts.append(self.advance().text)
        if not parts:
            raise ExpressionError(f"{kind} marks nothing")
        return sympy.Symbol(f"{kind}{{{''.join(parts)}}}", real=True)

    def _root(self, depth: int) -> Any:
        import sympy

        degree: Any = 2
        if self.kind == "[":
            degree = self._group(depth)
        radicand = self._group(depth) if self.kind == "(" else self._argument(depth)
        if degree == 3 and radicand.is_real and radicand.is_negative:
            return -power(-radicand, sympy.Rational(1, 3))
        return power(radicand, sympy.Integer(1) / degree)

    def _call(self, name: str, depth: int) -> Any:
        exponent = base = None
        while self.kind in ("^", "_"):
            if self.advance().kind == "^":
                exponent = self._script(depth)
            else:
                base = self._script(depth)
        outside = self.degrees
        arguments = self._arguments(name, depth)
        self.degrees = outside
        if exponent is not None and exponent == -1 and f"a{name}" in FUNCTIONS:
            return apply(f"a{name}", arguments, base)
        if name == "log" and base is None and len(arguments) == 1:
            base = self.log_base
        value = apply(name, arguments, base)
        return value if exponent is None else power(value, exponent)

    def _arguments(self, name: str, depth: int) -> list[Any]:
        if self.kind in ("(", "[", "\\lbrace") or (self.kind == "{" and name != "sqrt"):
            return self._several(depth)
        value = self.read(POWER - 1, depth + 1)
        while self.kind in _OPENERS and self.kind not in ("function", "("):
            value = value * self.read(POWER - 1, depth + 1)
        return [value]
