"""The stories of the arithmetic task: what is told, which numbers occur, how it is worked out.

A story's text holds `{a}`, `{b}` … for its numbers, `{name}` and `{other}` for two different people and `{things}`
for what they count. Its steps are equations over the numbers and earlier results; the last result is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

PEOPLE = (
    "Ann",
    "Ben",
    "Cara",
    "Dan",
    "Emma",
    "Finn",
    "Gina",
    "Hugo",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Mia",
    "Nick",
    "Olga",
)
THINGS = ("apples", "books", "coins", "cards", "eggs", "pens", "shells", "stamps", "stones", "toys", "pears", "balls")
MAX_GRADE = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """One story in general form."""

    name: str
    grade: int
    """1 (one step, small numbers) to 5 (four steps and more)."""
    text: str
    ranges: dict[str, tuple[int, int]]
    """Number → smallest and largest value, both included."""
    steps: tuple[str, ...]
    """`result = left operator right`, each word a number's name, an earlier result or a literal."""


_Range = tuple[int, int]


def _one_step(name: str, grade: int, text: str, calculation: str, a: _Range, b: _Range) -> Template:
    return Template(name=name, grade=grade, text=text, ranges={"a": a, "b": b}, steps=(f"r = {calculation}",))


_STORIES_1 = (
    ("more", "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?", "a + b"),
    ("gives", "{name} has {a} {things} and gives away {b}. How many {things} are left?", "a - b"),
    ("together", "{name} finds {a} {things} and {other} finds {b}. How many {things} do they find together?", "a + b"),
    ("bus", "There are {a} people on a bus. {b} get off. How many are still on it?", "a - b"),
    ("pages", "{name} reads {a} pages on Monday and {b} on Tuesday. How many pages is that?", "a + b"),
    ("compare", "{name} has {a} {things}. {other} has {b}. How many more {things} does {name} have?", "a - b"),
    ("age", "{name} is {a} years old. How old will {name} be in {b} years?", "a + b"),
    ("missing", "{name} needs {a} dollars and has {b}. How many dollars are missing?", "a - b"),
    ("box", "A box holds {a} {things}. {name} puts in {b} more. How many {things} are in the box?", "a + b"),
    ("lost", "{name} had {a} {things} but lost {b}. How many {things} remain?", "a - b"),
)
_SMALL: dict[str, tuple[_Range, _Range]] = {"a + b": ((2, 9), (2, 9)), "a - b": ((4, 15), (2, 9))}
# With larger numbers a 135M model fails at the sums themselves and finds too few right answers to learn from.

_GRADE_1 = tuple(_one_step(name, 1, text, step, *_SMALL[step]) for name, text, step in _STORIES_1)

_STORIES_2: tuple[tuple[str, str, str, _Range, _Range], ...] = (
    (
        "shop",
        "A shop has {a} {things} in front and {b} in the back. How many {things} is that?",
        "a + b",
        (21, 99),
        (21, 99),
    ),
    ("tree", "A wall is {a} cm high. A tree is {b} cm higher. How high is the tree?", "a + b", (21, 99), (21, 99)),
    (
        "sold",
        "{name} had {a} {things} to sell and sold {b}. How many {things} are unsold?",
        "a - b",
        (40, 99),
        (11, 80),
    ),
    ("bags", "{name} has {a} bags with {b} {things} in each. How many {things} is that?", "a * b", (2, 12), (2, 12)),
    ("rows", "A hall has {a} rows of {b} chairs. How many chairs are in the hall?", "a * b", (2, 12), (2, 12)),
    (
        "share",
        "{name} shares {a} {things} among {b} friends. How many {things} does each get?",
        "a / b",
        (12, 96),
        (2, 9),
    ),
)

_GRADE_2 = tuple(_one_step(name, 2, text, step, a, b) for name, text, step, a, b in _STORIES_2)

_GRADE_3 = (
    Template(
        name="in-and-out",
        grade=3,
        text="{name} has {a} {things}, gets {b} more and then gives {c} to {other}. How many {things} does {name} have left?",
        ranges={"a": (5, 40), "b": (5, 40), "c": (2, 30)},
        steps=("s = a + b", "r = s - c"),
    ),
    Template(
        name="boxes-and-loose",
        grade=3,
        text="{name} has {a} boxes with {b} {things} in each and {c} loose {things}. How many {things} is that?",
        ranges={"a": (2, 9), "b": (2, 12), "c": (2, 20)},
        steps=("s = a * b", "r = s + c"),
    ),
    Template(
        name="change",
        grade=3,
        text="{name} buys {a} {things} for {b} dollars each and pays with {c} dollars. How many dollars does {name} get back?",
        ranges={"a": (2, 9), "b": (2, 9), "c": (20, 100)},
        steps=("s = a * b", "r = c - s"),
    ),
    Template(
        name="twice",
        grade=3,
        text="{name} has {a} {things}. {other} has twice as many. How many {things} do they have together?",
        ranges={"a": (3, 60)},
        steps=("s = 2 * a", "r = a + s"),
    ),
    Template(
        name="split-rest",
        grade=3,
        text="{name} has {a} {things}, keeps {b} and shares the rest among {c} friends. How many {things} does each friend get?",
        ranges={"a": (12, 80), "b": (2, 20), "c": (2, 8)},
        steps=("s = a - b", "r = s / c"),
    ),
)

_GRADE_4 = (
    Template(
        name="two-kinds",
        grade=4,
        text="{name} buys {a} {things} for {b} dollars each and {c} cups for {d} dollars each. How many dollars does {name} pay?",
        ranges={"a": (2, 12), "b": (2, 12), "c": (2, 12), "d": (2, 12)},
        steps=("s = a * b", "t = c * d", "r = s + t"),
    ),
    Template(
        name="week",
        grade=4,
        text="{name} saves {a} dollars a day for {b} days, spends {c} dollars and then earns {d}. How many dollars does {name} "
        "have?",
        ranges={"a": (2, 12), "b": (3, 14), "c": (5, 60), "d": (5, 60)},
        steps=("s = a * b", "t = s - c", "r = t + d"),
    ),
    Template(
        name="crates",
        grade=4,
        text="A truck brings {a} crates with {b} {things} in each. {c} {things} are broken. The others go to {d} shops in equal "
        "parts. How many {things} does each shop get?",
        ranges={"a": (3, 12), "b": (4, 12), "c": (2, 20), "d": (2, 6)},
        steps=("s = a * b", "t = s - c", "r = t / d"),
    ),
    Template(
        name="half",
        grade=4,
        text="{name} has {a} {things}. {other} has half as many and {b} more. How many {things} do they have together?",
        ranges={"a": (8, 90), "b": (2, 30)},
        steps=("s = a / 2", "t = s + b", "r = a + t"),
    ),
)

_GRADE_5 = (
    Template(
        name="market",
        grade=5,
        text="{name} sells {a} {things} for {b} dollars each and {c} cups for {d} dollars each. The stand costs {e} dollars. "
        "{name} and {other} share what remains equally. How many dollars does each get?",
        ranges={"a": (4, 20), "b": (2, 12), "c": (4, 20), "d": (2, 12), "e": (10, 60)},
        steps=("s = a * b", "t = c * d", "u = s + t", "v = u - e", "r = v / 2"),
    ),
    Template(
        name="trip",
        grade=5,
        text="{name} drives {a} km an hour for {b} hours and then {c} km an hour for {d} hours. The whole way is {e} km. How many "
        "km remain?",
        ranges={"a": (30, 90), "b": (2, 6), "c": (30, 90), "d": (2, 6), "e": (300, 999)},
        steps=("s = a * b", "t = c * d", "u = s + t", "r = e - u"),
    ),
    Template(
        name="garden",
        grade=5,
        text="A garden has {a} rows of {b} trees. {c} trees die and {name} plants {d} new rows of {e} trees. How many trees are in "
        "the garden?",
        ranges={"a": (4, 15), "b": (4, 15), "c": (2, 30), "d": (2, 9), "e": (4, 15)},
        steps=("s = a * b", "t = s - c", "u = d * e", "r = t + u"),
    ),
    Template(
        name="three-people",
        grade=5,
        text="{name} has {a} {things}. {other} has {b} times as many. Their teacher has {c} fewer than both together and gives {d} "
        "away. How many {things} does the teacher have left?",
        ranges={"a": (4, 30), "b": (2, 6), "c": (3, 30), "d": (2, 30)},
        steps=("s = a * b", "t = a + s", "u = t - c", "r = u - d"),
    ),
)

TEMPLATES = (*_GRADE_1, *_GRADE_2, *_GRADE_3, *_GRADE_4, *_GRADE_5)
