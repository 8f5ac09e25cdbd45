r"""From an answer to a value: lists, tuples, sets, intervals, matrices, equations, inequalities, units, words.

An answer is read as a whole or not at all: what is left over behind an expression makes it unreadable.
"""

from __future__ import annotations

import re
from typing import Any, Final

from reward_service.text.expressions import ExpressionError
from reward_service.text.latex.read import CURRENCIES, Reader
from reward_service.text.latex.regions import as_region, variables
from reward_service.text.latex.surface import surface
from reward_service.text.latex.tokens import FUNCTIONS, GREEK, RELATIONS, UNITS, WORDS, Token, tokens
from reward_service.text.latex.units import folded, unit_name
from reward_service.text.latex.values import Chain, Matrix, Quantity, Region, Relation, Sequence, Value, Words

MAX_TOKENS: Final = 600
MAX_ITEMS: Final = 200
_MAX_DETERMINANT: Final = 4

_BRACKETS: Final = {"(": ")", "[": "]", "\\lbrace": "\\rbrace", "\\langle": "\\rangle", "{": "}"}
_SET_SIGNS: Final = ("\\cup", "\\cap", "\\setminus", "\\backslash")
_CONNECTORS: Final = {"and": "and", "or": "or", "and/or": "or"}
_DECIMAL: Final = re.compile(r"[0-9]*\.[0-9]+")
_BASES: Final = {
    **{"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10},
    **{"twelve": 12, "sixteen": 16, "binary": 2, "octal": 8, "hex": 16},
}
_IN_BASE: Final = re.compile(
    r"\(?(?:\\text ?\{)?([0-9A-F]+)\}?\)? ?_ ?\{? ?\(?(?:\\text ?\{ ?)?([0-9]+|[a-z]+)\)?(?: ?\})*"
)
_CLOCK: Final = re.compile(r"[0-9]{1,2} ?: ?[0-9]{2}(?: ?: ?[0-9]{2})?(?: ?(?:\\text ?\{)? ?[apAP]\.?[mM]\.? ?\}?)?")

# Words without \text: one of four letters and more, as the letters of a product would hardly stand like that.
_SENTENCE: Final = re.compile(r"(?:[A-Za-z]+ )*[A-Za-z][a-z]{3,}(?: [A-Za-z]+)*")
_KNOWN_WORDS: Final = frozenset(map(str.lower, {*FUNCTIONS, *WORDS, *GREEK, *UNITS, "and", "or"}))

_NAMED_SETS: Final = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "reals"), "Reals"),
    **dict.fromkeys(("empty set", "no solution", "no solutions", "no real solution", "no real solutions"), "EmptySet"),
}


def read_answer(text: str) -> Value:
    """The value of an answer as a whole; ExpressionError says why there is none."""
    smooth = surface(text)
    if (words := _words(smooth)) is not None:
        return words
    if (based := _IN_BASE.fullmatch(smooth)) is not None and (number := _in_base(based)) is not None:
        return number
    reader = _Structure(tokens(smooth, MAX_TOKENS))
    value = reader.top()
    if reader.kind != "end":
        raise ExpressionError(f"{reader.text!r:.30} is not expected here")
    return value


def _words(smooth: str) -> Value | None:
    if _CLOCK.fullmatch(smooth):
        clock = re.sub(r"\\text|[ {}.]", "", smooth).lower()
        return Words(clock.removeprefix("0") if re.match(r"0[0-9]:", clock) else clock)
    if smooth == "DNE" or (_SENTENCE.fullmatch(smooth) and not set(smooth.lower().split()) & _KNOWN_WORDS):
        return _named_set(folded(smooth))
    return None


def _named_set(words: str) -> Value:
    """What words say, as the set that they name if they name one."""
    return _region(_NAMED_SETS[words]) if words in _NAMED_SETS else Words(words)


def _in_base(match: re.Match[str]) -> Quantity | None:
    import sympy

    base = int(match[2]) if match[2].isdigit() else _BASES.get(match[2], 0)
    if not 2 <= base <= 36 or not (match[1][0].isdigit() or base > 10):
        return None
    try:
        return Quantity(sympy.Integer(int(match[1], base)), base=base)
    except ValueError:
        raise ExpressionError(f"{match[1]:.30} has digits that base {base} has not") from None


class _Structure(Reader):
    """The levels above expressions: list, relation, union, item."""

    names_set = False
    """Whether what is read is the variable of a set, before its colon."""

    def top(self) -> Value:
        """Everything: items with commas, `and` or `or` between them."""
        items, connector = self._items(("end",))
        return items[0] if len(items) == 1 else _listed(items, connector)

    def _items(self, ends: tuple[str, ...]) -> tuple[list[Value], str]:
        items = [self._relation()]
        connector = ","
        while self.kind not in ends:
            connector = self._separator() or connector
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
        while self.kind in _SET_SIGNS or (self.kind == "-" and isinstance(left, Region)):
            sign = self.advance().kind
            left = _combined(left, sign, self._item())
        return left

    def _item(self) -> Value:
        if (value := self._special()) is not None:
            return value
        start = self.at
        if self.kind in (*_BRACKETS, "]", "environment"):
            try:
                value = self._bracketed()
            except ExpressionError:
                if self.tokens[start].kind in ("]", "\\lbrace", "\\langle"):
                    raise
                value = None
            if value is not None and self._at_end():
                return value
            self.at, self.degrees, self.signs = start, 0, []
        return self._quantity()

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
                return Region(sets[name])
        return None

    def _words_item(self) -> Value:
        words = [self.advance().text]
        while self.kind in ("text", "unit") and not self._at_connector():
            words.append(self.advance().text)
        if self._at_end():
            return _named_set(folded(" ".join(words)))
        raise ExpressionError("words stand before an expression")

    def _bracketed(self) -> Value | None:
        if self.kind == "environment":
            return self._matrix()
        opening = self.advance().kind
        if opening == "\\lbrace" and self.kind == "\\rbrace":
            self.advance()
            return _region("EmptySet")
        self.names_set = opening == "\\lbrace"
        items, connector = self._items((")", "]", "[", "\\rbrace", "\\rangle", "}", "|", ":"))
        self.names_set = False
        if self.kind in ("|", ":"):
            if opening == "\\lbrace":
                return self._set_builder(items)
            raise ExpressionError("a bar stands in brackets")
        closing = self.advance().kind
        return _enclosed(opening, items, closing, connector)

    def _set_builder(self, names: list[Value]) -> Value:
        self.advance()
        conditions, connector = self._items(("\\rbrace",))
        self.expect("\\rbrace")
        condition = conditions[0] if len(conditions) == 1 else _listed(conditions, connector)
        if len(names) != 1:
            raise ExpressionError("a set of more than one variable is not read")
        name = names[0].left if isinstance(names[0], Relation) and names[0].sign == "in" else names[0]
        region = as_region(condition)
        if region is None or not isinstance(name, Quantity) or name.expression not in variables(condition):
            raise ExpressionError("the condition of a set is not read")
        return Region(region)

    def _matrix(self) -> Value:
        begin = re.sub(r"[\\ ]|\{[lcr| ]*\}$", "", self.advance().text)
        if not re.search(r"matrix|array", begin) or "begin" not in begin:
            raise ExpressionError(f"the environment {begin:.30} is not read")
        rows: list[tuple[Value, ...]] = []
        row: list[Value] = []
        while True:
            if self.kind == "environment":
                break
            if self.kind == "\\hline":
                self.advance()
                continue
            row.append(self._relation())
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
        return _determinant(rows) if "vmatrix" in begin else Matrix(tuple(rows))

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
        if self.kind == ":" and not self.names_set:
            return self._ratio(Quantity(expression))
        quantity = Quantity(expression, significant_digits(written), unit, percent, degrees)
        return _both_signs(quantity, self.signs) if self.signs else quantity

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
            elif parts and self.kind in ("\\cdot",) and self.peek().kind in ("text", "unit"):
                self.advance()
            else:
                return unit_name(" ".join(parts))


def _listed(items: list[Value], connector: str) -> Value:
    """`n = 2, 3, 4` gives one name three values; otherwise a list of what there is."""
    first = items[0]
    if (
        isinstance(first, Relation)
        and first.sign == "="
        and not any(isinstance(one, Relation | Chain) for one in items[1:])
    ):
        return Relation(first.left, "=", Sequence("list", (first.right, *items[1:]), connector))
    return Sequence("list", tuple(items), connector)


def _enclosed(opening: str, items: list[Value], closing: str, connector: str) -> Value | None:
    if connector != ",":
        raise ExpressionError("words stand in brackets")
    if opening == "\\lbrace" and closing == "\\rbrace":
        return Sequence("set", tuple(items))
    if opening == "{" and closing == "}":  # which LaTeX does not show
        return None if len(items) == 1 else Sequence("list", tuple(items))
    if opening == "\\langle" and closing == "\\rangle":
        return Sequence("tuple", tuple(items))
    if len(items) == 1:
        if isinstance(items[0], Quantity) and opening in ("(", "[") and closing == _BRACKETS[opening]:
            return None
        if (opening == "(" and closing == ")") or isinstance(items[0], Matrix):
            return items[0]
        raise ExpressionError("brackets that are not read")
    if len(items) == 2 and (opening, closing) != ("(", ")"):
        return _interval(opening, items, closing)
    kinds = {("(", ")"): "tuple", ("[", "]"): "square"}
    if (opening, closing) not in kinds:
        raise ExpressionError(f"{opening} does not fit {closing}")
    return Sequence(kinds[opening, closing], tuple(items))  # type: ignore[arg-type]


def _interval(opening: str, items: list[Value], closing: str) -> Value:
    import sympy

    low, high = items
    if not isinstance(low, Quantity) or not isinstance(high, Quantity):
        if (opening, closing) == ("[", "]"):
            return Sequence("square", tuple(items))
        raise ExpressionError("an interval is of two numbers")
    try:
        shape = sympy.Interval(low.expression, high.expression, opening in ("(", "]"), closing in (")", "["))
    except (TypeError, ValueError):
        raise ExpressionError("an interval is of two real numbers") from None
    if shape.is_empty:
        raise ExpressionError("an interval ends before it begins")
    return Region(shape)


def _determinant(rows: list[tuple[Value, ...]]) -> Value:
    import sympy

    entries = [[one.expression for one in row if isinstance(one, Quantity)] for row in rows]
    if not all(len(row) == len(rows) <= _MAX_DETERMINANT for row in entries):
        raise ExpressionError("a determinant is of a small square of expressions")
    return Quantity(sympy.Matrix(entries).det())


def _region(name: str) -> Region:
    import sympy

    return Region(getattr(sympy.S, name))


def _combined(left: Value, sign: str, right: Value) -> Value:
    """Union, intersection or difference of two sets."""
    one, other = as_region(left), as_region(right)
    if one is None or other is None:
        raise ExpressionError(f"{sign} stands between what are not sets")
    if sign == "\\cup":
        return Region(one.union(other))
    return Region(one.intersect(other) if sign == "\\cap" else one - other)


def _both_signs(quantity: Quantity, signs: list[Any]) -> Value:
    """`\\pm 2` as the list of 2 and -2."""
    expressions = [quantity.expression]
    for sign in signs:
        expressions = [one.subs(sign, value) for one in expressions for value in (1, -1)]
    items = tuple(Quantity(one, quantity.digits, quantity.unit, quantity.percent) for one in dict.fromkeys(expressions))
    return items[0] if len(items) == 1 else Sequence("list", items, ",")


def significant_digits(written: list[Token]) -> int | None:
    """How many significant digits a decimal has, alone or times a power of ten; None if there is no decimal, 0 if there
    is one within a term."""
    passed_over = ("%", "\\degree", "(", ")", "{", "}", "scale", *CURRENCIES)
    kinds = [token.kind for token in written if token.kind not in passed_over]
    while kinds[:1] in (["-"], ["+"]):
        kinds = kinds[1:]
    texts = [token.text for token in written if token.kind == "number"]
    if not any("." in text for text in texts):
        return None
    mantissa = texts[0].lower().partition("e")[0]
    alone = kinds == ["number"]
    scientific = (
        len(kinds) > 3 and kinds[1] in ("\\times", "\\cdot", "*") and texts[1:2] == ["10"] and kinds[3] in ("^", "**")
    )
    if not (alone or scientific) or _DECIMAL.fullmatch(mantissa) is None:
        return 0
    return len(mantissa.replace(".", "").lstrip("0")) or 1
