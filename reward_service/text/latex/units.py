"""Units and words in one spelling."""

from __future__ import annotations

import re
from typing import Final

from reward_service.text.expressions import ExpressionError

_SYNONYMS: Final = {
    **dict.fromkeys(("centimeter", "centimetre"), "cm"),
    **dict.fromkeys(("millimeter", "millimetre"), "mm"),
    **dict.fromkeys(("kilometer", "kilometre"), "km"),
    **dict.fromkeys(("meter", "metre"), "m"),
    **dict.fromkeys(("feet", "foot"), "ft"),
    **dict.fromkeys(("inche", "inches", "in"), "inch"),
    **dict.fromkeys(("yard",), "yd"),
    **dict.fromkeys(("mile",), "mi"),
    **dict.fromkeys(("gram",), "g"),
    **dict.fromkeys(("kilogram", "kilo"), "kg"),
    **dict.fromkeys(("pound", "lbs"), "lb"),
    **dict.fromkeys(("ounce",), "oz"),
    **dict.fromkeys(("second", "sec"), "s"),
    **dict.fromkeys(("minute",), "min"),
    **dict.fromkeys(("hour", "hr", "hrs"), "h"),
    **dict.fromkeys(("year",), "yr"),
    **dict.fromkeys(("liter", "litre", "l"), "L"),
    **dict.fromkeys(("milliliter", "millilitre", "ml"), "mL"),
    **dict.fromkeys(("usd", "USD"), "dollar"),
    **dict.fromkeys(("EUR", "eur"), "euro"),
    **dict.fromkeys(("GBP", "gbp", "quid"), "pound sterling"),
    **dict.fromkeys(("pence", "pennie"), "penny"),
    **dict.fromkeys(("JPY", "yens"), "yen"),
    **dict.fromkeys(("RMB", "CNY", "renminbi"), "yuan"),
    **dict.fromkeys(("INR", "Rs"), "rupee"),
    **dict.fromkeys(("reais", "BRL"), "real"),
    **dict.fromkeys(("RUB",), "ruble"),
    **dict.fromkeys(("KRW",), "won"),
    **dict.fromkeys(("CHF",), "franc"),
    **dict.fromkeys(("min", "mins"), "min"),
    **dict.fromkeys(("centurie",), "century"),
    **dict.fromkeys(("radian",), "rad"),
    **dict.fromkeys(("volt", "Volt"), "V"),
    **dict.fromkeys(("ampere", "amp", "Ampere"), "A"),
    **dict.fromkeys(("newton", "Newton"), "N"),
    **dict.fromkeys(("pascal", "Pascal"), "Pa"),
    **dict.fromkeys(("kelvin", "Kelvin"), "K"),
    **dict.fromkeys(("mole",), "mol"),
    **dict.fromkeys(("women",), "woman"),
    **dict.fromkeys(("men",), "man"),
    **dict.fromkeys(("children",), "child"),
    **dict.fromkeys(("mph",), "mi/h"),
    **dict.fromkeys(("kph", "kmph", "kmh"), "km/h"),
}
_EMPTY_UNITS: Final = frozenset(("unit", "", "degree"))


_SAY_SOMETHING: Final = re.compile(  # of the number before them, and so are no units
    r"\b(?:is|isn't|are|not?|nor|or|and|but|if|else|more|less|fewer|than|to|at|least|most|about|around|approximately"
    r"|wrong|incorrect|false|right|correct|maybe|perhaps|possibly|except|without|between|over|under|above|below|only"
    r"|both|either|neither|none|any|all|plus|minus|times|divided|with|unless|otherwise|answer)\b"
)
_MAX_WORDS: Final = 5


def unit_name(words: str) -> str:
    """A unit in one spelling: `square centimeters`, `cm^2` and `sq cm` are `cm^2`.

    ExpressionError if the words may say something of the number, as `or more` and `is wrong` do.
    """
    if len(re.findall(r"[A-Za-z]+", words)) > _MAX_WORDS or _SAY_SOMETHING.search(words.lower()):
        raise ExpressionError(f"{words:.30} is no unit")
    words = re.sub(r"\bper\b", "/", words.strip(" ."))
    words = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", words)
    words = re.sub(r"\b(?:square|sq)\.? (\w+)", r"\1 ^2", words)
    words = re.sub(r"\bcubic (\w+)", r"\1 ^3", words)
    words = re.sub(r"\b(\w+) (squared|cubed)\b", lambda m: f"{m[1]} ^{2 if m[2] == 'squared' else 3}", words)
    words = re.sub(r"\b([a-z]{1,2})([23])\b", r"\1 ^\2", words)
    parts = [_one_unit(part) for part in re.findall(r"[A-Za-z°µ]+|\^-?\d+|/", words)]
    name = _product(parts) if any("/" in part or part[0] == "^" for part in parts) else " ".join(parts)
    return "" if name in _EMPTY_UNITS else re.sub(r"^unit(\^\d)$", "", name)


def _product(parts: list[str]) -> str:
    """`m s ^-2` and `m / s ^2` as `m/s^2`: what is multiplied, then what is divided by."""
    powers: dict[str, int] = {}
    sign, last = 1, ""
    for part in (piece for one in parts for piece in re.split(r"(/)", one) if piece):
        if part == "/":
            sign = -1
        elif part[0] == "^" and last:
            powers[last] += (int(part[1:]) - 1) * (1 if powers[last] > 0 else -1)
        elif part[0] != "^":
            powers[part] = powers.get(part, 0) + sign
            last = part
    above, below = ([one for one in powers.items() if one[1] * side > 0] for side in (1, -1))
    return "/".join(["·".join(map(_power, above)), *map(_power, below)])


def _power(unit: tuple[str, int]) -> str:
    name, exponent = unit
    return name if abs(exponent) == 1 else f"{name}^{abs(exponent)}"


def _one_unit(part: str) -> str:
    singular = part if len(part) < 4 or part.endswith("ss") else part.removesuffix("s")
    return _SYNONYMS.get(part, _SYNONYMS.get(singular, singular))


def denies(words: str) -> bool:
    """Whether words say that what follows is not so."""
    return re.search(r"\b(?:not?|isn't|never|wrong|incorrect|false|except|unless)\b", words.lower()) is not None


def folded(words: str) -> str:
    """Words in lower case, single blanks, no punctuation at their ends and no article."""
    words = re.sub(r"^(?:the|an?) (?=\w)", "", " ".join(words.lower().replace("-", " ").split()).strip(" .,'\""))
    words = re.sub(r"^(?:there (?:is|are)|limit) (?=no |does not)", "", words)
    return {"dne": "does not exist"}.get(words, words)
