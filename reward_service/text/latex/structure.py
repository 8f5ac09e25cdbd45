r"""From an answer to a value: lists, tuples, sets, intervals, matrices, equations, inequalities, units, words.

An answer is read as a whole or not at all: what is left over behind an expression makes it unreadable.
"""

from __future__ import annotations

import re
from typing import Any, Final

from reward_service.text.expressions import ExpressionError
from reward_service.text.latex.forms.amounts import ratio
from reward_service.text.latex.forms.bases import in_base
from reward_service.text.latex.forms.congruences import reduced, without_modulus
from reward_service.text.latex.forms.words import named_set, read_words
from reward_service.text.latex.matrices import added, inverted, scaled, transposed
from reward_service.text.latex.read import SUM, Reader
from reward_service.text.latex.regions import as_region, variables
from reward_service.text.latex.shapes import (
    BRACKETS,
    both_signs,
    combined,
    determinant,
    enclosed,
    listed,
    named_region,
    piecewise,
    positive_part,
    significant_digits,
    with_greek_unit,
)
from reward_service.text.latex.surface import surface
from reward_service.text.latex.tokens import CURRENCIES, RELATIONS, Token, tokens
from reward_service.text.latex.units import folded, unit_name
from reward_service.text.latex.values import Chain, Matrix, Quantity, Region, Relation, Sequence, Value, Words

MAX_TOKENS: Final = 600
MAX_ITEMS: Final = 200

_SET_SIGNS: Final = ("\\cup", "\\cap", "\\setminus", "\\backslash")
_CONNECTORS: Final = {"and": "and", "or": "or", "and/or": "or"}


def read_answer(text: str, log_base: int | None = None) -> Value:
    """The value of an answer as a whole; ExpressionError says why there is none.

    Logarithms that name no base are of base `log_base`, natural ones if it is None.
    """
    smooth = surface(text)
    if (words := read_words(smooth)) is not None:
        return words
    if (number := in_base(smooth)) is not None:
        return number
    if (congruence := without_modulus(smooth)) is not None:
        return reduced(read_answer(congruence[0], log_base), congruence[1])
    if ";" in smooth and all("=" in part and "," in part for part in smooth.split(";")):  # p=5, q=2; p=7, q=2
        smooth = ",".join(f"({part})" for part in smooth.split(";"))
    reader = _Structure(tokens(smooth, MAX_TOKENS), log_base)
    value = reader.top()
    if reader.kind != "end":
        raise ExpressionError(f"{reader.text!r:.30} is not expected here")
    return value


class _Structure(Reader):
    """The levels above expressions: list, relation, union, item."""

    names_set = False
    """Whether what is read is the variable of a set, before its colon."""

    def top(self) -> Value:
        """Everything: items with commas, `and` or `or` between them."""
        if (value := self._scaled_tuple()) is not None:
            return value
        items, connector = self._items(("end",))
        return items[0] if len(items) == 1 else listed(items, connector)

    def _scaled_tuple(self) -> Value | None:
        r"""`\frac15(3, 4)` and `-(1, 2)`; None where no number stands before one bracket with a comma in it."""
        kinds = [token.kind for token in self.tokens]
        if kinds[-1:] != [")"] or kinds.count("(") != 1 or "," not in kinds[(start := kinds.index("(")) :]:
            return None
        if start == 0 or {"letter", "name", "function", ",", "text", *_SET_SIGNS, *RELATIONS} & set(kinds[:start]):
            return None
        end = start - (kinds[start - 1] in ("\\cdot", "*"))
        before = [*self.tokens[:end], Token("number", "1")] if kinds[:end] == ["-"] else self.tokens[:end]
        factor, items = _Structure(before).top(), _Structure(self.tokens[start:]).top()
        if not isinstance(items, Sequence) or items.kind != "tuple":
            return None
        self.at = len(self.tokens)
        return Sequence("tuple", scaled(factor, Matrix((items.items,))).rows[0])

    def _items(self, ends: tuple[str, ...]) -> tuple[list[Value], str]:
        items = [self._relation()]
        connector = ","
        while self.kind not in ends:
            word = self._separator() or connector
            if "," not in (word, connector) and word != connector:
                raise ExpressionError("`and` and `or` stand in one list")
            connector = word
            items.append(self._relation())
            if len(items) > MAX_ITEMS:
                raise ExpressionError(f"it has more than {MAX_ITEMS} items")
        return items, connector

    def _separator(self) -> str:
        """The word between two items, empty for a comma alone."""
        word = ""
        if self.kind in (",", ";"):
            self.advance()
        elif not self._at_connector():
            raise ExpressionError(f"{self.text!r:.30} is not expected here")
        if self._at_connector():
            word = _CONNECTORS[self.advance().text.lower().strip(" ,")]
        return word

    def _at_connector(self) -> bool:
        return self.kind == "text" and self.text.lower().strip(" ,") in _CONNECTORS

    def _relation(self) -> Value:
        if self.kind in RELATIONS and RELATIONS[self.kind] in ("~", "="):
            self.advance()
        sides = [self._side()]
        signs: list[str] = []
        while self.kind in RELATIONS:
            signs.append(RELATIONS[self.advance().kind])
            sides.append(self._side())
        if not signs:
            return sides[0]
        relations = tuple(Relation(*parts) for parts in zip(sides, signs, sides[1:], strict=False))
        return relations[0] if len(relations) == 1 else Chain(relations)

    def _side(self) -> Value:
        left = self._item()
        while isinstance(left, Matrix) and self.kind in ("+", "-"):
            factor = 1 if self.advance().kind == "+" else -1
            right = self._item()
            if not isinstance(right, Matrix):
                raise ExpressionError("a matrix and what is none are added")
            left = added(left, right, factor)
        while self.kind in _SET_SIGNS or (self.kind == "-" and isinstance(left, Region)):
            sign = self.advance().kind
            left = combined(left, sign, self._item())
        return left

    def _item(self) -> Value:
        if (value := self._special()) is not None:
            return value
        if (point := self._point()) is not None:
            return point
        start = self.at
        if self.kind in (*BRACKETS, "]", "environment"):
            try:
                value = self._bracketed()
            except ExpressionError:
                if self.tokens[start].kind in ("]", "\\lbrace", "\\langle"):
                    raise
                value = None
            if value is not None and (self._at_end() or (isinstance(value, Matrix) and self.kind in ("+", "-"))):
                return value
            self.at, self.degrees, self.signs, self.bars = start, 0, [], 0
        return self._multiple()

    def _point(self) -> Value | None:
        """`A(1, 2)`, a point with its name: the tuple, if that is all there is."""
        if self.at > 0 or self.kind != "letter" or not self.text.isupper() or self.peek().kind != "(":
            return None
        self.advance()
        try:
            value = self._bracketed()
        except ExpressionError:
            value = None
        numbers = isinstance(value, Sequence) and all(
            isinstance(item, Quantity) and item.expression.is_number for item in value.items
        )
        if numbers and self.kind == "end":
            return value
        self.at = 0
        return None

    def _multiple(self) -> Value:
        """An expression, or the matrix that it is a factor of."""
        negative = self.kind == "-" and self.peek().kind == "environment"
        if negative:
            self.advance()
        left: Value = Quantity(-1 if negative else 1) if self.kind == "environment" else self._quantity()
        if self.kind in ("\\cdot", "*") and self.peek().kind == "environment":
            self.advance()
        if self.kind != "environment" or "\\begin" not in self.text:
            return left
        matrix = self._matrix()
        if not isinstance(matrix, Matrix):
            raise ExpressionError("something else than a matrix stands behind a factor")
        return scaled(left, matrix)

    def _at_end(self) -> bool:
        return (
            self.kind
            in ("end", ",", ";", ")", "]", "\\rbrace", "\\rangle", "}", *_SET_SIGNS, *RELATIONS, "|", "\\mid", "&", ":")
            or self.kind in ("\\newline", "environment")
            or self._at_connector()
        )

    def _special(self) -> Value | None:
        """What is neither bracketed nor an expression: words, the empty set, the real numbers."""
        import sympy

        if self.kind == "text" and not self._at_connector() and self.text not in ("e", "i", "j"):
            return self._words_item()
        if self.kind in ("\\emptyset", "\\varnothing"):
            self.advance()
            return Region(sympy.S.EmptySet)
        if self.kind in ("\\ldots", "\\dots", "\\cdots", "\\dotsc"):
            self.advance()
            return Words("…")
        if self.kind == "\\mathbb":
            sets = {"R": sympy.S.Reals, "Z": sympy.S.Integers, "N": sympy.S.Naturals, "Q": sympy.S.Rationals}
            letters = [self.peek(offset).text for offset in (1, 2)]
            name = letters[1] if letters[0] == "{" else letters[0]
            if name in sets:
                self.at += 4 if letters[0] == "{" else 2
                return Region(positive_part(sets[name]) if self._is_positive() else sets[name])
        return None

    def _is_positive(self) -> bool:
        r"""Passes over `^+`, `^*`, `_{>0}` behind a set of numbers; whether there was one."""
        ahead = "".join(self.peek(offset).text for offset in range(5))
        mark = re.match(r"\^\{?[+*]\}?|_\{?\+\}?|_\{>0\}", ahead)
        self.at += 0 if mark is None else len(mark.group())
        return mark is not None

    def _words_item(self) -> Value:
        words = [self.advance().text]
        while self.kind in ("text", "unit") and not self._at_connector():
            words.append(self.advance().text)
        if self._at_end():
            return named_set(folded(" ".join(words)))
        raise ExpressionError("words stand before an expression")

    def _bracketed(self) -> Value | None:
        if self.kind == "environment":
            return self._matrix()
        opening = self.advance().kind
        if opening == "\\lbrace" and self.kind == "\\rbrace":
            self.advance()
            return named_region("EmptySet")
        self.names_set = opening == "\\lbrace"
        self.bars = int(self.names_set)
        items, connector = self._items((")", "]", "[", "\\rbrace", "\\rangle", "}", "|", ":"))
        self.names_set, self.bars = False, 0
        if self.kind in ("|", ":"):
            if opening == "\\lbrace":
                return self._set_builder(items)
            raise ExpressionError("a bar stands in brackets")
        closing = self.advance().kind
        return enclosed(opening, items, closing, connector)

    def _set_builder(self, names: list[Value]) -> Value:
        self.advance()
        conditions, connector = self._items(("\\rbrace",))
        self.expect("\\rbrace")
        condition = conditions[0] if len(conditions) == 1 else listed(conditions, connector)
        if len(names) != 1:
            raise ExpressionError("a set of more than one variable is not read")
        name = names[0].left if isinstance(names[0], Relation) and names[0].sign == "in" else names[0]
        region = as_region(condition)
        if region is None or not isinstance(name, Quantity) or name.expression not in variables(condition):
            raise ExpressionError("the condition of a set is not read")
        return Region(region)

    def _matrix(self) -> Value:
        begin = re.sub(r"[\\ ]|\{[lcr| ]*\}$", "", self.advance().text)
        if not re.search(r"matrix|array|cases", begin) or "begin" not in begin:
            raise ExpressionError(f"the environment {begin:.30} is not read")
        rows: list[tuple[Value, ...]] = []
        row: list[Value] = []
        while True:
            if self.kind == "environment":
                break
            if self.kind == "\\hline":
                self.advance()
                continue
            row.append(self._condition() if row and "cases" in begin else self._relation())
            if self.kind == "," and self.peek().kind in ("&", "\\newline", "environment"):
                self.advance()
            if self.kind == "&":
                self.advance()
            elif self.kind == "\\newline":
                self.advance()
                rows.append(tuple(row))
                row = []
            elif self.kind != "environment":
                raise ExpressionError(f"{self.text!r:.30} stands in a matrix")
        self.advance()
        if row:
            rows.append(tuple(row))
        if not rows or len({len(one) for one in rows}) != 1:
            raise ExpressionError("the rows of a matrix are not of one length")
        if "cases" in begin:
            if len(rows[0]) > 1:
                return piecewise(rows)
            return Sequence("list", tuple(row[0] for row in rows), "and")
        if "vmatrix" in begin:
            return determinant(rows)
        return self._transposed(Matrix(tuple(rows)))

    def _condition(self) -> Value:
        """`x > 0`, `\\text{if } x > 0`, `\\text{otherwise}`."""
        if self.kind == "text" and self.text.lower().strip(" ,") in ("if", "for", "when", "where", "and"):
            self.advance()
        items, connector = self._items(("\\newline", "environment", "&", ","))
        return items[0] if len(items) == 1 else listed(items, connector)

    def _transposed(self, matrix: Matrix) -> Matrix:
        if self.kind == "^" and self.peek().text in ("T", "\\top"):
            self.at += 2
            return transposed(matrix)
        if self.kind == "^" and "".join(self.peek(offset).text for offset in range(1, 5)) == "{-1}":
            self.at += 5
            return inverted(matrix)
        return matrix

    def _quantity(self) -> Value:
        import sympy

        start = self.at
        self.degrees, self.signs = 0, []
        self.currency = ""
        expression = self.read()
        written = self.tokens[start : self.at]
        percent = bool(written) and written[-1].kind == "%"
        if percent:
            expression = expression * 100
        degrees = self.degrees == 1 and written[-1].kind == "\\degree"
        if degrees:
            expression = expression * 180 / sympy.pi
        unit = self._unit() or self.currency
        expression, unit = with_greek_unit(expression, unit)
        whole, unit = self._with_smaller(expression, unit)
        compound, expression = whole is not expression, whole
        if self.kind == ":" and not self.names_set:
            return self._ratio(Quantity(expression))
        digits = None if compound else significant_digits(written)
        quantity = Quantity(expression, digits, unit, percent, degrees, compound=compound)
        return both_signs(quantity, self.signs) if self.signs else quantity

    def _with_smaller(self, expression: Any, unit: str) -> tuple[Any, str]:
        """`1 hour and 30 minutes` as one amount, in the smallest unit that it names: of less than one of the larger."""
        while ratio(unit, unit) is not None:
            start = self.at
            if self.kind == "," or (self._at_connector() and self.text.lower() != "or"):
                self.advance()
            if self.kind != "number":
                self.at = start
                break
            amount = self.read(SUM)
            smaller = self._unit()
            factor = ratio(unit, smaller)
            if factor is None or factor <= 1 or not amount.is_number or not 0 <= amount < factor.numerator:
                self.at = start
                break
            expression, unit = expression * factor.numerator + amount, smaller
        return expression, unit

    def _ratio(self, first: Quantity) -> Value:
        parts: list[Value] = [first]
        while self.kind == ":":
            self.advance()
            if self.kind in ("\\ldots", "\\dots", "\\cdots"):
                self.advance()
                parts.append(Words("…"))
            else:
                parts.append(Quantity(self.read()))
        return Sequence("ratio", tuple(parts))

    def _unit(self) -> str:
        """Unit words, powers and slashes behind an expression, in one spelling; empty if there are none."""
        parts: list[str] = []
        while True:
            if self.kind in ("text", "unit") and not self._at_connector():
                parts.append(self.advance().text)
            elif self.kind in CURRENCIES and not parts:
                parts.append(CURRENCIES[self.advance().kind])
            elif parts and self.kind == "^":
                self.advance()
                parts.append(f"^{self._script(0)}")
            elif parts and self.kind == "/" and self.peek().kind in ("text", "unit", "letter"):
                self.advance()
                parts.append(f"/ {self.advance().text}")
            elif parts and self.kind == "letter" and parts[-1] == "per":
                parts.append(self.advance().text)
            elif parts and self.kind in ("\\cdot", "\\times") and self.peek().kind in ("text", "unit"):
                self.advance()
            else:
                return unit_name(" ".join(parts))
