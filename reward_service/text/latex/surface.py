r"""The surface of a mathematical answer: what looks different and is the same is written in one way.

Spaces of LaTeX, `\left` and `\right`, kinds of `\frac`, dollars, thousands separators, ordinals, percent and degree
signs, Unicode look-alikes. Pure functions from text to text; what a text means is `reward_service.text.latex.read`'s.
"""

from __future__ import annotations

import re
from typing import Final

from reward_service.text.latex.forms.amounts import amounts_spelled
from reward_service.text.latex.spelling import respelled

_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR: Final = {
    **{"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5)},
    **{"⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8)},
}
_GREEK: Final = (
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda rho sigma tau phi chi psi omega"
    " Gamma Delta Sigma Phi Psi"
)
_LOOKALIKES: Final = {
    **{"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "∗": "*", "π": r"\pi "},
    **{"∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup "},
    **{"∩": r"\cap ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "±": r"\pm ", "∓": r"\mp "},
    **{"√": r"\sqrt ", "°": r"\degree ", "º": r"\degree ", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"'},
    **{vulgar: rf"\frac{{{above}}}{{{below}}}" for vulgar, (above, below) in _VULGAR.items()},
    **{
        "…": r"\ldots ",
        "⁄": "/",
        **dict.fromkeys("✓✔", " "),
        "∠": r"\angle ",
        "\u00a0": " ",
        "\u202f": " ",
        "\u2009": " ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
    },
    **{"∣": "|", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil "},
    **{
        "⌉": r"\rceil ",
        "（": "(",
        "）": ")",
        "，": ", ",
        "﹣": "-",
        "－": "-",
        "＋": "+",
        "＝": "=",
        "〈": r"\langle ",
    },
    **{"〉": r"\rangle ", "℃": r"\degree C", "℉": r"\degree F", "∧": r"\wedge ", "∨": r"\vee ", "∖": r"\setminus "},
    **dict.fromkeys("≦⩽", r"\le "),
    **dict.fromkeys("≧⩾", r"\ge "),
    **{letter: rf"\{name} " for letter, name in zip("αβγδεζηθκλρστφχψωΓΔΣΦΨ", _GREEK.split(), strict=True)},
}
_TRANSLATION: Final = str.maketrans(_LOOKALIKES)

_STYLES: Final = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|bf|it|rm|sf|tt|em|large|Large|normalsize|small|boldmath|"
    r"[bB]ig[lrm]?|[bB]igg[lrm]?|left|right|middle)(?![A-Za-z])"
)
_NULL_DELIMITER: Final = re.compile(r"\\(?:left|right)\s*\.")
_WRAPPERS: Final = re.compile(
    r"\\(?:math(?:bf|it|sf|tt|normal|cal|scr|frak)|boldsymbol|bm|pmb|underline|ensuremath|textcolor\{[a-z]*\}|color\{[a-z]*\})(?![A-Za-z])\s*"
)
_TEXTS: Final = re.compile(
    r"\\(?:text(?:normal|bf|it|rm|sf|tt|sc|up|md)?|mathrm|mbox|hbox|emph|operatorname\*?)\s*(?=\{)"
)
_FRACTIONS: Final = re.compile(r"\\[dtc]frac(?![A-Za-z])|\\(?:over|nice)frac(?![A-Za-z])|\\sfrac(?![A-Za-z])")
_INFIX: Final = re.compile(r"\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}")
_SPACES: Final = re.compile(
    r"\\(?:[,;:>! ]|quad|qquad|thinspace|negthinspace|enspace|hfill)(?![A-Za-z])|\\[,;:>! ]|~|\s+"
)
_ROW_GAP: Final = re.compile(r"\\\\\*?\s*\[\s*-?[0-9.]+\s*(?:pt|em|ex|mm|cm|in)\s*\]")
_BRACED_ARRAY: Final = re.compile(
    r"\\left\s*\\\{\s*\\begin\s*\{array\}(.*?)\\end\s*\{array\}\s*\\right\s*(?:\.|$)", re.DOTALL
)
_ANGLES: Final = re.compile(r"(?:\\left *|^\s*)<([^<>]*,[^<>]*?)(?:\\right *)?>(?=\s*$|\s*[=+])")
_SIGNS_IN_BRACES: Final = re.compile(r"(?<![A-Za-z^_])\{\s*([-+=<>])\s*\}")
_PREFIXED: Final = {"over": "frac", "choose": "binom"}
_DEGREES: Final = re.compile(
    r"(?:\{\s*\}\s*)?\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\(?:textdegree|degree|deg)(?![A-Za-z])|\\text\s*\{\s*(?:degrees?|°)\s*\}"
    r"|(?<=\d)\s*(?:degrees?\b|\^\s*(?:o(?![A-Za-z])|\{\s*o\s*\}|\{?\s*\\text\s*\{\s*o\s*\}\s*\}?))"
    r"|\\text\s*\{\s*degrees?\s*(?=(?:[CF]|[Cc]elsius|[Ff]ahrenheit)\s*\})"
)
_TEMPERATURE: Final = re.compile(
    r"\\degree *(?:\\text ?\{ ?)?(c|f)(?:elsius|ahrenheit)?(?![A-Za-z])(?: ?\})?", re.IGNORECASE
)
# 0.333... and 0.1212... repeat; what repeats from further on (2.718281828...) may do so by chance
_GOES_ON: Final = re.compile(
    r"(?<![0-9])([0-9]*\.(?:[0-9]*?(?=([0-9])\2\2)|))([0-9]{1,6}?)\3+ ?\\(?:ldots|dots|cdots)(?![A-Za-z])"
)
_DECIMAL_DOTS: Final = re.compile(r"(?<=\.)([0-9]{4,}) ?\\(?:ldots|dots|cdots)(?![A-Za-z])")
_UNION: Final = re.compile(r"(?<=[)\]}]) ?U ?(?=[(\[\\])")
_TIMES_TEN: Final = re.compile(r"(?<=[0-9]) ?(?:x|\\text ?\{ ?x ?\}) ?(?=10 ?(?:\^|\*\*))")
_ORDINAL: Final = re.compile(
    r"(?<=\d)\s*(?:\^\s*\{?\s*|)(?:\\text\s*\{\s*)?(?:st|nd|rd|th)(?:\s*\})?(?:\s*\})?(?![A-Za-z])", re.IGNORECASE
)
_PERCENT: Final = re.compile(
    r"\\%|\\text\s*\{\s*(?:%|\\%|per ?cent|percentage|pct)\s*\}|(?:per ?cent|percentage|pct)\b|\\percent\b"
)

# Thousands: groups of three that a comma (or one in braces), a thin space, a blank, an apostrophe or a full stop parts.
_THIN: Final = r"(?:\\[,;:! ]|~|\\ )"
_SEPARATOR: Final = rf"(?: ?\{{ ?, ?\}} ?|{_THIN}*,{_THIN}+ ?|{_THIN}+,{_THIN}*|{_THIN}+ ?)"
_GROUPS: Final = re.compile(rf"(?<![0-9.,])([0-9]{{1,3}})((?:{_SEPARATOR}[0-9]{{3}}(?![0-9]))+)")
_COMMA_GROUPS: Final = re.compile(
    r"(?<![0-9.,_])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])"
    r"|(?<![0-9.,_])[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?!,?[0-9])"
)
_BLANK_GROUPS: Final = re.compile(r"(?<![0-9.,] )(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9/]| [0-9]+(?![0-9/]))")
_BLANK_GROUPS_ABOVE: Final = re.compile(r"(?<![0-9.,])([0-9]{1,3}(?: [0-9]{3})*?) ([0-9]{3})(?=/([0-9]+))")
_MARKED_GROUPS: Final = re.compile(  # an index of three digits would be no base
    r"(?<![0-9.,])[0-9]{1,3}(?:(?:'[0-9]{3})+|(?:\\?_[0-9]{3})+)(?![0-9'_])"
)
_EUROPEAN: Final = re.compile(
    r"(?<![0-9.,])[0-9]{1,3}(?:\.[0-9]{3}){2,}(?:(?:,|\{,\})[0-9]+)?(?![0-9.,])|"
    r"(?<![0-9.,])[0-9]{1,3}\.[0-9]{3}(?:,|\{,\})[0-9]{1,2}(?![0-9.,])|"
    r"(?<![0-9.,])(?<![0-9] )[0-9]{1,3}(?: [0-9]{3})+(?:,|\{,\})[0-9]{1,2}(?![0-9.,])"
)
_DECIMAL_COMMA: Final = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])")

_PREFIX: Final = re.compile(
    r"(?:(?:the|my|so|thus|hence)?,?\s*)?(?:(?:final|correct)\s+)?answer\s*(?:is|:|=)+\s*|(?:therefore|thus|hence|so),?\s+",
    re.IGNORECASE,
)
_TEXT_PREFIX: Final = re.compile(rf"\\text\s*\{{\s*(?:{_PREFIX.pattern})\}}\s*", re.IGNORECASE)


def surface(text: str) -> str:
    """`text` with one spelling for what has several; blanks are single."""
    text = text.translate(_TRANSLATION)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda match: "^{" + match.group().translate(_SUPERSCRIPTS) + "}", text)
    text = text.replace("...", "\\ldots ").replace("\\\\%", "%")
    if "\\begin" not in text:  # where nothing has rows, a command behind two backslashes was escaped twice
        text = re.sub(r"\\\\(?=[A-Za-z{}])", r"\\", text)
    text = _SIGNS_IN_BRACES.sub(r"\1", _ANGLES.sub(r"\\langle \1\\rangle ", text))
    text = _BRACED_ARRAY.sub(r"\\begin{cases}\1\\end{cases}", text)
    text = _NULL_DELIMITER.sub(" ", text)
    text = _STYLES.sub(" ", _ROW_GAP.sub(r"\\\\ ", text))
    text = _INFIX.sub(lambda match: f"\\{_PREFIXED[match[2]]}{{{match[1]}}}{{{match[3]}}}", text)
    text = _WRAPPERS.sub("", text)
    text = _TEXTS.sub(r"\\text", text)
    text = _FRACTIONS.sub(r"\\frac", text)
    text = respelled(_prefix_off(text.strip()))
    text = numbers_joined(text)
    text = _DECIMAL_DOTS.sub(r"\1", _GOES_ON.sub(r"\1\\overline{\3}", text))
    text = _TIMES_TEN.sub(r"\\times ", _UNION.sub(r"\\cup ", text))
    text = _TEMPERATURE.sub(lambda match: rf"\text{{degree {match[1].upper()}}}", _DEGREES.sub(r"\\degree ", text))
    text = _ORDINAL.sub(" ", text)
    text = _PERCENT.sub("%", text)
    text = text.replace("\\{", "\\lbrace ").replace("\\}", "\\rbrace ").replace("\\|", "|")
    text = re.sub(r"\\(?:mid|vert)(?![A-Za-z])", "|", re.sub(r"\\colon(?![A-Za-z])|\{:\}", ":", text))
    text = amounts_spelled(_SPACES.sub(" ", text.replace("\\\\", "\\newline ")).strip())
    text = re.sub(r"\s+", " ", text).strip(" ")
    while text[-1:] in (".", ",", ";", ":", "\\") and text and not text.endswith(".."):
        text = text[:-1].rstrip(" ")
    return text.removesuffix("\\newline").rstrip(" ")


def _prefix_off(text: str) -> str:
    match = _TEXT_PREFIX.match(text) or _PREFIX.match(text)
    return text[match.end() :] if match is not None and match.end() < len(text) else text


def numbers_joined(text: str) -> str:
    """`text` with its thousands separators out of the numbers; a comma only where no list can be meant."""
    text = _EUROPEAN.sub(lambda match: re.sub(r"\{?,\}?", ".", re.sub(r"[. ]", "", match.group())), text)
    text = _GROUPS.sub(lambda match: match[1] + re.sub(r"[^0-9]", "", match[2]), text)
    text = _MARKED_GROUPS.sub(lambda match: re.sub(r"[^0-9]", "", match.group()), text)
    text = _BLANK_GROUPS_ABOVE.sub(_above_a_line, text)
    text = _BLANK_GROUPS.sub(lambda match: match.group().replace(" ", ""), text)
    text = _DECIMAL_COMMA.sub(".", text)
    return _COMMA_GROUPS.sub(lambda match: _comma_group(match, text), text)


def _above_a_line(match: re.Match[str]) -> str:
    """`270 146/165` is a mixed number, `1 000/3` the third of a thousand."""
    whole = match[1].replace(" ", "")
    is_mixed = not match[2].startswith("0") and int(match[2]) < int(match[3])
    return f"{whole} {match[2]}" if is_mixed else whole + match[2]


def _comma_group(match: re.Match[str], text: str) -> str:
    """In brackets `1,234` are two numbers, unless the brackets part theirs in another way: `(10,000, 20,000)`."""
    before = text[: match.start()]
    depth = sum(before.count(opening) for opening in ("(", "[", "\\{", "\\lbrace", "\\langle"))
    depth -= sum(before.count(closing) for closing in (")", "]", "\\}", "\\rbrace", "\\rangle"))
    if depth > 0 and re.search(r",[ \\\\]|;", text) is None:
        return match.group()
    return match.group().replace(",", "")


def plain(text: str) -> str:
    """`text` for comparison letter by letter: its surface without blanks and without the marks of text."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", surface(text)).strip(" ")
    text = re.sub(r"\{ ?(\w) ?\}", r" \1", _COUNTED_ON.sub(r"\1", text))
    return re.sub(r"(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9])|\"", "", text)


def same_text(one: str, other: str) -> bool:
    """Whether two answers are the same text, the case of words aside."""
    left, right = plain(one), plain(other)
    if left == right:
        return bool(left)
    if not (_WORDS.fullmatch(left) and _WORDS.fullmatch(right)) or left.lower() != right.lower():
        return False
    # Case is part of a name in mathematics: AB is not ab. Of a word it is not, and \\text says that it is one.
    short = left.lower() in _SHORT_WORDS or (len(left) == 3 and {left, right} == {left.lower(), left.capitalize()})
    return len(left) > 3 or short or ("\\text" in one and "\\text" in other)


_WORDS: Final = re.compile(r"[A-Za-z][A-Za-z \\-]*")
_COUNTED_ON: Final = re.compile(r"\b(days?|weeks?|years?|hours?|minutes?|dollars?|feet|pounds?),? +and +(?=[0-9])")
_SHORT_WORDS: Final = frozenset(("yes", "no", "odd", "one", "two", "six", "ten", "mon", "tue", "dne"))
