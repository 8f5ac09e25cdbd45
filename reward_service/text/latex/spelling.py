r"""Rarer spellings in the common one, once the kinds of `\text` and `\frac` are one.

Bases, ratios and currencies in words, aligned equations, combinations by indices, quotients of units, marks that say
nothing. Pure functions from text to text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from reward_service.text.latex.forms.counters import counter_spelled

_NUMBERS: Final = "two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen|[0-9]{1,2}"
_IN_BASE: Final = re.compile(
    rf"(?<=[0-9A-F)])(?: *_ *\{{)? *\\text *\{{ *\(? *(?:in )?base[- ]?(?: *\}} *)?({_NUMBERS}) *\)? *\}}? *\}}?$"
)
_CURRENCIES: Final = {
    **{"rs": "₹", "inr": "₹", "usd": r"\$", "us": r"\$", "eur": "€", "gbp": "£", "jpy": "¥", "rmb": "元", "cny": "元"},
    **{"krw": "₩", "rub": "₽", "php": "₱", "vnd": "₫", "\\textdollar": r"\$", "\\mathdollar": r"\$", "\\pounds": "£"},
    **{"\\euro": "€", "\\texteuro": "€", "\\yen": "¥", "\\textyen": "¥", "\\textsterling": "£"},
}
_SIGNS: Final = r"\\(?:textdollar|mathdollar|pounds|textsterling|euro|texteuro|yen|textyen)"
_CURRENCY: Final = re.compile(
    rf"^(?:\\text *\{{ *)?(Rs|INR|USD|US|EUR|GBP|JPY|RMB|CNY|KRW|RUB|PHP|VND|{_SIGNS})\.?"
    r"(?: *\\?\$)?[ ~\\,]*(?:\} *)?(?=\{?[0-9])",
    re.IGNORECASE,
)
_RATIO: Final = re.compile(r"(?<=[0-9]) *(?:\\text *\{ *to *\}| to ) *(?=[0-9])")
_COMBINATIONS: Final = re.compile(
    r"(?:\{ *\} *[_^] *|(?<![\w}])[_^] *)\{? *([0-9]{1,3}) *\}? *C *_ *\{? *([0-9]{1,3}) *\}?|"
    r"(?<![A-Za-z\\{])C *_ *(?:\{ *([0-9]{2,3}) *\}|([3-9])) *\^ *(?:\{ *([0-9]{1,3}) *\}|([0-9]))"
)
_UNIT_QUOTIENT: Final = re.compile(
    r"\\frac *\{ *\\text *\{([A-Za-z ]+)\} *\} *\{ *\\text *\{([A-Za-z ]+)\} *(\^ *\{?[0-9]\}?)? *\}"
)
_ALIGNED: Final = re.compile(
    r"\\begin *\{(aligned|align|alignedat|gather|gathered|split|equation)(\*?)\}(.*)\\end *\{\1\2\}", re.DOTALL
)
_CELL: Final = re.compile(r"\\begin *\{array\} *\{[lcr]\}([^&\\]*)\\end *\{array\}")
_ARROWS: Final = re.compile(r"\\(?:overrightarrow|mathvec)(?![A-Za-z])")
_SHORT_BARS: Final = re.compile(r"\\(?:bar|overbar)(?![A-Za-z])")
_OVER: Final = re.compile(r"([^{}\\]+)\\over(?![A-Za-z])([^{}\\]+)")
_UNSEEN: Final = re.compile(
    r"\\(?:[hv]?phantom|[hv]space\*?) *\{[^{}]*\}|\\(?:math)?strut(?![A-Za-z])|\\hskip *-?[0-9.]+ *[a-z]{2}"
)
_ROOT_OF: Final = re.compile(r"\\root *\{?([0-9]+)\}? *\\of(?![A-Za-z])")
_TEXT: Final = re.compile(r"\\text *\{((?:[^{}]|[_^] ?\{[^{}]*\})*)\}")
_CHEMICAL: Final = re.compile(r"\\ce *\{([^{}]*)\}")
_WRITTEN_SET: Final = re.compile(r"\\[Ss]et *\{([^{}]*)\}")
_COLUMN: Final = re.compile(r"(?:\[([^\[\]]+)\]|\(([^()]+,[^()]+)\)) *\^ *\{? *(?:T|\\top|\\text\{T\}) *\}?")
_DETERMINANT: Final = re.compile(
    r"(?:\\det *\(? *|^\| *)\\begin\{([pb]?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\} *[|)]?", re.DOTALL
)
_BARE_DOLLAR: Final = re.compile(r"\$ ?(?=[0-9.][^$]*$)")
_NEGATIVE: Final = re.compile(
    r"(?:\\text *\{ *)?(?:minus|negative)\b *(?:\} *)?(?=[0-9.]|\\(?:frac|sqrt|\$))", re.IGNORECASE
)
_AND_A_PART: Final = re.compile(r"([0-9]+) +and +(?:a|one) +(half|third|quarter)")


def _event(match: re.Match[str]) -> str:
    r"""`P(X \le 2) =` as `P_{Xle2} =`."""
    condition = re.sub(r"(\\[lg]e)q(?:slant)?(?![a-z])", r"\1", match[1])
    return f"P_{{{re.sub('[^A-Za-z0-9<>]', '', condition)}}} "


_COMMON: Final[tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = tuple(
    (re.compile(pattern), common)
    for pattern, common in (
        (r"\+ ?/ ?-", r"\\pm "),
        (r"(?<=[-+])( ?)i ?([0-9]+(?:\.[0-9]+)?)$", r"\1\2i"),  # 3 + i4
        (r"^([A-Za-z]) ?(?::|\\colon) ?([a-z]) ?\\(?:mapsto|to) ?", r"\1(\2) = "),
        (r"^([xy]) ?\( ?[a-z] ?\) ?(?==)", r"\1"),
        (r"^(?:P|Pr|\\Pr|\\mathbb\{P\}) ?[(\[]([^()\[\]]*[<>=|\\][^()\[\]]*)[)\]] ?(?==)", _event),
        (r"(\\in ?)\{?([RZNQ])\}?(?![A-Za-z(_^])", r"\1\\mathbb{\2}"),
        (
            r"^(?:\\text *\{ *)?all (?:real numbers|reals) except(?: for)? *(?:\} *)?([^{}]+?) *\}?$",
            r"\\mathbb{R}\\setminus\\{\1\\}",
        ),
        (r"^R ?\\?\$ ?([0-9.,]+)$", r"\1\\text{ real}"),
        (r"^([0-9]{1,3}) ?C ?([0-9]{1,2})$", r"C_{\1}^{\2}"),
        (r"(?<![A-Za-z\\{])C *(\^ *(?:\{ *[0-9]+ *\}|[0-9])) *(_ *(?:\{ *[0-9]+ *\}|[0-9]))", r"C\2\1"),
    )
)
_BELOW: Final = {"half": 2, "third": 3, "quarter": 4}
_COMMANDS: Final = {
    **{"lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "varepsilon": r"\epsilon ", "varphi": r"\phi "},
    **{"flatfrac": r"\frac", "surd": r"\sqrt ", "cr": r"\\ ", "minus": "-", "bigcup": r"\cup", "bigcap": r"\cap"},
    **{"lor": r"\text{ or }", "vee": r"\text{ or }", "land": r"\text{ and }", "wedge": r"\text{ and }"},
    **{name: rf"\mathbb{{{name[0]}}}" for name in ("R", "Reals", "reals", "N", "Z", "Q")},
    **dict.fromkeys(("bold", "mathop", "mathbin", "mathord"), ""),
}
_COMMANDS["reals"] = _COMMANDS["R"]
_COMMAND: Final = re.compile(rf"\\({'|'.join(_COMMANDS)})(?![A-Za-z])")
_RARE: Final = re.compile(
    rf"\\(?:{'|'.join(_COMMANDS)}|[hv]?phantom|[hv]space|hskip|(?:math)?strut|root|[Ss]et|over)(?![A-Za-z])"
)
_MARKS: Final = re.compile(r"\\checkmark(?![A-Za-z])|&nbsp;|\\square$|\\blacksquare$|\\qed$")


def respelled(text: str) -> str:
    """`text` with the common spelling of what is rarer."""
    text = _MARKS.sub(" ", text).strip()
    if "\\" in text:
        text = _CHEMICAL.sub(_formula, text)
        text = _ARROWS.sub(r"\\vec", _SHORT_BARS.sub(r"\\overline", text))
    if _RARE.search(text) is not None:
        text = _COMMAND.sub(lambda match: _COMMANDS[match[1]], _UNSEEN.sub(" ", text))
        text = _WRITTEN_SET.sub(r"\\{\1\\}", _ROOT_OF.sub(r"\\sqrt[\1]", text))
        if (over := _OVER.fullmatch(text)) is not None:
            text = rf"\frac{{{over[1]}}}{{{over[2]}}}"
    if "\\text" in text:
        text = _TEXT.sub(_in_text, text)
    if "\\begin" in text:
        text = _DETERMINANT.sub(r"\\begin{vmatrix}\2\\end{vmatrix}", text)
    if "^" in text and (column := _COLUMN.fullmatch(text)) is not None:
        text = f"({column[1] or column[2]})"
    if "and" in text and (part := _AND_A_PART.match(text)) is not None:
        text = rf"{part[1]}\frac{{1}}{{{_BELOW[part[2]]}}}{text[part.end() :]}"
    text = _prefixed(_BARE_DOLLAR, r"\$", _prefixed(_NEGATIVE, "-", text))
    text = _CURRENCY.sub(lambda match: _CURRENCIES[match[1].lower()], text)
    for pattern, common in _COMMON:
        text = pattern.sub(common, text)
    if "\\in" in text or "integer" in text:
        text = counter_spelled(text)
    text = _CELL.sub(r"\1", _ALIGNED.sub(_rows, text))
    text = _UNIT_QUOTIENT.sub(r"\\text{\1}/\\text{\2}\3", text)
    text = _COMBINATIONS.sub(_combinations, text)
    return _RATIO.sub(":", _IN_BASE.sub(r"_{\1}", text))


def _prefixed(pattern: re.Pattern[str], sign: str, text: str) -> str:
    return text if (match := pattern.match(text)) is None else sign + text[match.end() :]


def _in_text(match: re.Match[str]) -> str:
    r"""`\text{J\cdot mol^{-1}}` as `\text{J mol^-1}`, and `\text{H_{2}O}`, which is no text, without its frame."""
    inner = re.sub(r" *\\(?:cdot|times)(?![A-Za-z]) *", " ", re.sub(r"\^ ?\{ ?(-?[0-9]) ?\}", r"^\1", match[1]))
    inner = re.sub(r"/ ?\(([A-Za-z0-9^ -]+)\)", r"/\1", inner)
    return inner if re.search(r"[_^] ?\{", inner) else rf"\text{{{inner}}}"


def _formula(match: re.Match[str]) -> str:
    r"""`\ce{SO4^2-}` as `SO_{4}^{2-}`."""
    return re.sub(r"(?<=[A-Za-z)])([0-9]+)", r"_{\1}", re.sub(r"\^([0-9]*[-+])", r"^{\1}", match[1]))


def _rows(match: re.Match[str]) -> str:
    """Aligned rows as a chain where each goes on with a sign of equality, else as a list."""
    rows = [row.replace("&", " ").strip(" ,;") for row in re.split(r"\\\\", match[3])]
    rows = [row for row in rows if row]
    goes_on = all(row.startswith("=") for row in rows[1:])
    return (" " if goes_on else ", ").join(rows)


def _combinations(match: re.Match[str]) -> str:
    r"""`C_{10}^3` and `{}_{10}C_3` as a binomial; `C_1^2`, which is none, as it is."""
    above, below = (part for part in match.groups() if part is not None)
    return f"\\binom{{{above}}}{{{below}}}" if int(below) <= int(above) else match.group()
