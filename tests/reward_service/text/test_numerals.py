"""Which texts are numbers, and that nothing else is."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_service.text.numerals import MAX_NUMBER_CHARS, close, last_number, parse_number

NUMBERS = [
    ("72", "72"),
    (" 72 ", "72"),
    ("007", "7"),
    ("72.", "72"),
    ("0.5", "0.5"),
    (".5", "0.5"),
    ("-3", "-3"),
    ("+3", "3"),
    ("\u22123", "-3"),  # minus sign
    ("1,234,567.89", "1234567.89"),
    ("1234567", "1234567"),
    ("$5", "5"),
    ("$ 1,000.", "1000"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("£5.50", "5.5"),
    ("5 €", "5"),
    ("$5$", "5"),
    ("50%", "50"),
    ("50 %", "50"),
    ("50 percent", "50"),
    ("12 eggs", "12"),
    ("12kg", "12"),
    ("60 km/h", "60"),
    ("60 miles per hour", "60"),
    ("9 m²", "9"),
    ("9 square feet", "9"),
    ("20 °C", "20"),
    ("$18 dollars.", "18"),
    ("1e3", "1000"),
    ("1.5E-2", "0.015"),
    ("1.5 x 10^3", "1500"),
    ("2×10^{-2}", "0.02"),
    ("3/4", "0.75"),
    ("-3/4 cups", "-0.75"),
    ("1 1/2", "1.5"),
    ("-1 1/2", "-1.5"),
    ("5 million", "5000000"),
    ("$2.5 million dollars", "2500000"),
    ("10k", "10000"),
    ("10 km", "10"),
    ("100 hundredths", "1"),
    ("2 thousandths", "0.002"),
    ("3 ten-thousandths", "0.0003"),
    ("2 fifths", "0.4"),
    ("5 and a half", "5.5"),
    ("3 quarters", "3"),  # coins
    ("300 K", "300"),  # kelvin
    ("300K", "300"),
    ("$300K", "300000"),
    ("300K people", "300000"),
    ("$2.5M", "2500000"),
    ("5 M", "5"),
    ("10^-7", "0.0000001"),
    ("10^{-7}", "0.0000001"),
    ("-10^2", "-100"),
    ("2**10", "1024"),
    ("1.5 \\times 10^{3}", "1500"),
    ("72 cm^2", "72"),
    ("72 m^2", "72"),
    ("9" * MAX_NUMBER_CHARS, "9" * MAX_NUMBER_CHARS),
    ("1 000", "1000"),
    ("1 000 000", "1000000"),
    ("12 345 000 people", "12345000"),
    ("1\u202f234.5", "1234.5"),
    ("1\u00a0234\u00a0567", "1234567"),
    ("7²", "49"),
    ("10⁻²", "0.01"),
    ("18 m²", "18"),
    ("½", "0.5"),
    ("1½", "1.5"),
]

NOT_NUMBERS = [
    "1 234",
    "0 000",
    "1 0000",
    "1 000.5",
    "1\u00a02345",
    "",
    ".",
    "-",
    "$",
    "eggs",
    "nan",
    "NaN",
    "inf",
    "-Infinity",
    "1e999",
    "-1e999",
    "1e99999",
    "10^1000",
    "9 x 10^400",
    "1/0",
    "1 1/0",
    "0/0",
    "5 or 6",
    "5 or six",
    "5, 6",
    "5-6",
    "5 6",
    "5 = 6",
    "5 (not 6)",
    "1,23",
    "12,34",
    "1,2345",
    "1.2.3",
    "1_000",
    "0x1F",
    "--5",
    "- 5",
    "-$-5",
    "5..",
    "72!",
    "**72**",
    "<72>",
    "x = 72",
    "7\u200b2",  # zero-width space
    "\u200b72",
    "72\ufeff",
    "7\u00a02",
    "٧٢",  # Arabic-Indic
    "７２",  # full-width
    "७२",  # Devanagari
    "𝟕𝟐",  # mathematical
    "7٢",
    "Ⅶ",
    "5 x^2",
    "2^3^2",
    "72\n73",
    "1" * (MAX_NUMBER_CHARS + 1),
    "1 " + "a" * 17,
    "1 dollar and change",
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_numbers(text: str, value: str) -> None:
    assert parse_number(text) == Decimal(value)


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_not_numbers(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "value", "written"),
    [
        ("48 + 24 = 72", "72", "72"),
        ("so $1,234.50 in all.", "1234.5", "$1,234.50"),
        ("it is -5.", "-5", "-5"),
        ("pages 10-12", "12", "12"),  # a range, not a negative number
        ("3 (-4)", "-4", "-4"),
        ("take 3/4 of it", "0.75", "3/4"),
        ("5 million people", "5000000", "5 million"),
        ("72kg", "72", "72"),
        ("50% off", "50", "50"),
        ("72 then ٧٣", "72", "72"),
        ("72 then 7٣", "72", "72"),  # a number that touches another script's digit is none
        ("\u200b72\u200b", "72", "72"),
        ("it is 10^-7", "0.0000001", "10^-7"),
        ("an area of 72 cm^2", "72", "72"),
        ("so 5 x^{2}", "5", "5"),
        ("about 2 thousandths of it", "0.002", "2 thousandths"),
        ("at 300 K it melts", "300", "300 K"),
        ("the value is **72**", "72", "72"),
        ("2 * x**3", "2", "2"),
        ("5 times x_2", "5", "5"),
    ],
)
def test_last_number(text: str, value: str, written: str) -> None:
    assert last_number(text) == (Decimal(value), written)


@pytest.mark.parametrize("text", ["", "none", "٧٢", "nan inf", "." * 1000])
def test_no_last_number(text: str) -> None:
    assert last_number(text) == (None, None)


@pytest.mark.parametrize(
    "text", ["72 1e999", "72 or 1/0", "72 " + "1" * 5000, "72, v1.2.3", "72 at 3:30", "72 on 2024-01-05"]
)
def test_a_last_number_without_value_hides_no_earlier_one(text: str) -> None:
    value, written = last_number(text)
    assert value is None
    assert written is not None


def test_large_integers_that_differ_by_one_differ() -> None:
    left, right = parse_number("10000000000000000001"), parse_number("10000000000000000000")
    assert left is not None
    assert right is not None
    assert float(left) == float(right)
    assert not close(left, right)


def test_tolerance_is_one_thousandth_inclusive() -> None:
    assert close(Decimal("72.001"), Decimal(72))
    assert not close(Decimal("72.0011"), Decimal(72))
    assert close(Decimal("0.333"), Decimal(1) / 3)
    assert not close(Decimal("0.003"), Decimal("0.002"))
    assert not close(Decimal("0.0000001"), Decimal(0))


@settings(deadline=None)
@given(st.text())
def test_never_raises(text: str) -> None:
    value = parse_number(text)
    assert value is None or value.is_finite()
    value, _ = last_number(text)
    assert value is None or value.is_finite()


@settings(deadline=None)
@given(st.text(alphabet="0123456789.,-+$%eE/x^10 {}kmilonperµ", max_size=120))
def test_never_raises_on_nearly_numbers(text: str) -> None:
    for value in (parse_number(text), last_number(text)[0]):
        assert value is None or abs(float(value)) < float("inf")


@settings(deadline=None)
@given(
    st.decimals(min_value=-(10**12), max_value=10**12, places=3),
    st.sampled_from(["{}", "{:,}", " {:,}. ", "{} apples", "{:,}%", "{:E}"]),
)
def test_formatted_numbers_read_back(value: Decimal, form: str) -> None:
    assert parse_number(form.format(value)) == value


FORMS = {  # how a number is written, and what the last digit of its value then counts
    "{} thousand": 1000,
    "${}K": 1000,
    "{}K people": 1000,
    "{} million": 10**6,
    "{} tenths": Decimal("0.1"),
    "{} hundredths": Decimal("0.01"),
    "{} thousandths": Decimal("0.001"),
    "{} millionths": Decimal("0.000001"),
    "{} x 10^3": 1000,
    r"{} \times 10^{{-3}}": Decimal("0.001"),
    "{}e-3": Decimal("0.001"),
    "{}/8": Decimal("0.125"),
    "{} K": 1,
    "{} cm^2": 1,
    "${}/hour": 1,
    "{}%": 1,
}


@settings(deadline=None)
@pytest.mark.parametrize("form", FORMS)
@given(st.integers(1, 10**6))
def test_every_form_is_read_back_and_wrong_with_another_last_digit(form: str, value: int) -> None:
    expected = Decimal(value) * FORMS[form]
    read, next_read = (parse_number(form.format(number)) for number in (value, value + 1))
    assert read is not None
    assert next_read is not None
    assert abs(read - expected) <= abs(expected) * Decimal("1e-40")
    assert next_read - read == FORMS[form]
    assert last_number(f"so it is {form.format(value)}.")[0] == read


@settings(deadline=None)
@given(st.integers(2, 99), st.integers(-9, 9))
def test_powers_are_read_back(base: int, exponent: int) -> None:
    for form in ("{}^{}", "{}^{{{}}}", "{}**{}", "{}^({})"):
        text = form.format(base, exponent)
        assert parse_number(text) == last_number(f"so {text}")[0]
        read = parse_number(text)
        assert read is not None
        assert abs(read * Decimal(base) ** -exponent - 1) < Decimal("1e-20")


@settings(deadline=None)
@given(st.integers(-(10**15), 10**15), st.text(alphabet=st.characters(exclude_categories=["N"])).map(" {}".format))
def test_last_number_is_found_behind_anything(value: int, text: str) -> None:
    found, _ = last_number(f"{text}: {value}")
    assert found == value


@pytest.mark.parametrize("unit", ["9", "1,", "1.", "-", "1/", "1 1/2 ", "1e", "$", "1 x 10^", "1٢"])
def test_time_is_linear_on_a_megabyte(unit: str) -> None:
    text = unit * (2**20 // len(unit))
    start = time.process_time()
    parse_number(text)
    last_number(text)
    assert time.process_time() - start < 0.5
