r"""Tokens of an answer whose surface has been smoothed (`reward_service.text.latex.surface`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from reward_service.text.expressions import ExpressionError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS: Final = {
    **{name: name for name in ("exp", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth")},
    **{f"{prefix}{name}": f"a{name}" for prefix in ("a", "arc") for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{f"{prefix}{name}": f"a{name}" for prefix in ("a", "ar", "arc") for name in ("sinh", "cosh", "tanh")},
    **{"ln": "ln", "log": "log", "lg": "lg", "tg": "tan", "ctg": "cot", "cosec": "csc", "abs": "Abs", "cbrt": "cbrt"},
    **{
        "floor": "floor",
        "ceil": "ceiling",
        "ceiling": "ceiling",
        "arctg": "atan",
        "Re": "re",
        "Im": "im",
        "arg": "arg",
        "cis": "cis",
    },
    **{"gcd": "gcd", "lcm": "lcm", "max": "Max", "min": "Min"},
}
WORDS: Final = {
    "sqrt": "sqrt",
    "pi": "pi",
    "infinity": "infty",
    "Infinity": "infty",
    "infty": "infty",
    "inf": "infty",
    "oo": "infty",
}
GREEK: Final = _words(
    """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar
    """
)
CURRENCIES: Final = {
    **{"\\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yuan yen", "₹": "rupee", "元": "yuan", "円": "yen"},
    **{"₩": "won", "₽": "ruble", "₺": "lira", "₫": "dong", "₪": "shekel", "₱": "peso", "฿": "baht", "¢": "cent"},
}
SCALES: Final = {
    **{"dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7},
    **{"billion": 10**9, "trillion": 10**12},
}
RELATIONS: Final = {
    **{"=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "==": "=", "!=": "!=", "=<": "<=", "=>": ">="},
    **{"\\le": "<=", "\\leq": "<=", "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=", "\\lt": "<"},
    **{"\\gt": ">", "\\ne": "!=", "\\neq": "!=", "\\in": "in", "\\approx": "~", "\\simeq": "~", "\\sim": "~"},
    **{"\\equiv": "=", "~=": "~", "\\coloneqq": "=", ":=": "="},
}
UNITS: Final = _words(
    """
    mm cm dm km nm ft feet foot inch inches yd yard yards mile miles mi meter meters metre metres centimeter
    centimeters centimetre centimetres millimeter millimeters kilometer kilometers kilometre kilometres mg kg
    gram grams kilogram kilograms pound pounds lb lbs oz ounce ounces ton tons tonne tonnes sec secs second
    seconds min mins minute minutes hr hrs hour hours day days week weeks month months year years yr yrs dollar
    dollars cent cents euro euros rupee rupees mph kph kmh kmph ml mL liter liters litre litres gallon gallons
    unit units square sq cubic cm2 radians rad degrees Hz kHz MHz kJ kW kWh kPa Pa mol eV people students apples
    men women ways points times per joule joules watt watts newton newtons volt volts ohm ohms amp amps kelvin
    usd USD EUR yen yuan won
    """
)

_TOKEN: Final = re.compile(
    r" *(?:(?P<repeating>(?:[0-9]+)?\.[0-9]*(?:\\(?:overline|bar|overbar) ?(?:\{ ?[0-9]+ ?\}|[0-9])|\([0-9]+\)"
    r"|\\dot ?(?:\{ ?[0-9] ?\}|[0-9])(?:[0-9]*\\dot ?(?:\{ ?[0-9] ?\}|[0-9]))?))"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+(?![0-9.]))?)"
    r"|\\text ?\{(?P<text>[^{}]*)\}"
    r"|(?P<environment>\\(?:begin|end) ?\{[a-zA-Z*]+\}(?:\{[lcr| ]*\})?)"
    r"|(?P<command>\\[A-Za-z]+)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<sign>\*\*|<=|>=|==|!=|~=|:=|=<|=>|[-+*/^!(),=<>|\[\]{}:;_&%'$€£¥₹元円₩₽₺₫₪₱฿¢]|\\[$&#_]))"
)
_NOUN: Final = re.compile(r"(?=[a-z]*[aeiou])[a-z]{4,}")  # behind a blank hardly a product of variables
_RAISED_UNITS: Final = re.compile(
    r"(?=.*(?:[A-Za-z]{2}|\^-))[A-Za-z]+(?:\^-?[0-9])?(?:(?: +|(?<=[0-9]))[A-Za-z]+(?:\^-?[0-9])?)+"
)


class Token(NamedTuple):
    """`kind` is number, repeating, text, letter, name, function, unit, scale, or the sign or command itself."""

    kind: str
    text: str
    spaced: bool = False
    """A blank stands before it."""


def tokens(text: str, max_tokens: int) -> list[Token]:
    """The tokens of a whole answer; ExpressionError if there is something that is none, or too many."""
    found = list(_with_letters(list(_single_digits(_tokens(text)))))
    if len(found) > max_tokens:
        raise ExpressionError(f"it has more than {max_tokens} tokens")
    return found


def _single_digits(found: Iterator[Token]) -> Iterator[Token]:
    """As TeX has it, `\\frac12` takes two single digits."""
    before = ""
    for token in found:
        if before in ("\\frac", "\\binom", "\\dbinom", "\\tbinom") and token.text.isdigit() and len(token.text) > 1:
            yield from (Token("number", digit) for digit in token.text[:2])
            if rest := token.text[2:]:
                yield Token("number", rest)
        else:
            yield token
        before = token.kind


_BEFORE_LETTERS: Final = ("", "{", "(", "+", "-", "*", "\\cdot", "\\times", *RELATIONS)
_BEHIND_LETTERS: Final = ("}", "+", "-", "(", "letter", "name", "function", "\\frac", "\\sqrt", "\\pi")
_BEHIND_SPACED_LETTERS: Final = ("function", "\\frac", "\\sqrt")
_BELOW_UNITS: Final = ("h", "s", "L", "l", "m", "d")


def _with_letters(found: list[Token]) -> Iterator[Token]:
    r"""`mg` as m times g, except in `3 mg`; `cm` where no number is before it or a formula goes on: `2cm\sin x`."""
    for index, token in enumerate(found):
        before = found[index - 1].kind if index else ""
        after = [*(found[index + 1 : index + 3]), Token("end", ""), Token("end", "")]
        goes_on = after[0].kind in (_BEHIND_SPACED_LETTERS if token.spaced else _BEHIND_LETTERS) or (
            after[0].kind == "/" and after[1].kind in ("number", "letter") and after[1].text not in _BELOW_UNITS
        )
        weight = token.text == "mg" and not (token.spaced and before in ("number", "repeating", "scale"))
        if token.kind == "unit" and len(token.text) == 2 and (weight or before in _BEFORE_LETTERS or goes_on):
            yield from (Token("letter", letter, token.spaced and not at) for at, letter in enumerate(token.text))
        else:
            yield token


def _tokens(text: str) -> Iterator[Token]:
    position = 0
    while position < len(text.rstrip(" ")):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"{text[position]!r} is not part of an answer")
        kind = str(match.lastgroup)
        spaced = match.group().startswith(" ")
        written = match[kind]
        position = match.end()
        if kind == "text":
            yield from _of_text(written)
        elif kind == "letters":
            yield from _of_letters(written, spaced)
        elif kind == "command":
            yield _of_command(written, spaced)
        elif kind in ("number", "repeating"):
            yield Token(kind, written, spaced)
        elif written not in ("$", "\\&", "\\#"):
            yield Token("environment" if kind == "environment" else written, written, spaced)


def _of_text(written: str) -> Iterator[Token]:
    bare = written.strip(" .")
    if not bare:
        return
    if bare in FUNCTIONS or bare in WORDS:
        yield from _of_letters(bare, True)
    elif bare.partition(" ")[0] in SCALES:
        yield Token("scale", bare.partition(" ")[0], True)
        yield from _of_text(bare.partition(" ")[2])
    elif bare in ("e", "i"):
        yield Token("letter", bare, True)
    elif re.fullmatch(r"[A-Za-z][A-Za-z '\-.,]*", bare):
        yield Token("text", bare, True)
    elif _RAISED_UNITS.fullmatch(bare):
        yield Token("unit", bare, True)
    else:
        pieces = re.split(r"([A-Za-z][A-Za-z']*(?:[ ]+[A-Za-z']+)*)", bare)
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                yield from _tokens(piece)
            elif len(piece) == 1 and "/" not in (pieces[index - 1][-1:], pieces[index + 1][:1]):
                yield Token("letter", piece, True)
            else:
                yield Token("text", piece, True)


def _of_letters(written: str, spaced: bool) -> Iterator[Token]:
    if written in FUNCTIONS:
        yield Token("function", FUNCTIONS[written], spaced)
    elif written in WORDS:
        yield Token(f"\\{WORDS[written]}", written, spaced)
    elif written in SCALES:
        yield Token("scale", written, spaced)
    elif written.lower() in ("and", "or"):
        yield Token("text", written.lower(), spaced)
    elif written in UNITS:
        yield Token("unit", written, spaced)
    elif written in GREEK:
        yield Token("name", written, spaced)
    elif spaced and _NOUN.fullmatch(written):
        yield Token("unit", written, spaced)
    else:
        for name in ("sqrt", "arcsin", "arccos", "arctan", "sin", "cos", "tan", "log", "ln", "pi"):
            before, found, behind = written.partition(name)
            if found and len(before) <= 2 and len(behind) <= 1 and len(written) < len(name) + 3:
                yield from (Token("letter", letter, spaced) for letter in before)
                yield from _of_letters(name, False)
                yield from (Token("letter", letter) for letter in behind)
                return
        for index, letter in enumerate(written):
            yield Token("letter", letter, spaced and not index)


def _of_command(written: str, spaced: bool) -> Token:
    name = written[1:]
    if name in FUNCTIONS:
        return Token("function", FUNCTIONS[name], spaced)
    if name in GREEK:
        return Token("name", name, spaced)
    if name in ("imath", "jmath"):
        return Token("letter", name[0], spaced)
    return Token(written, written, spaced)
