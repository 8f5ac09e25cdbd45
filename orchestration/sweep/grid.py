"""Words into the runs of a sweep. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestration.errors import ConfigError

CONTROL = "reward.control"
NO_CONTROL = "none"
SEED = "seed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One run of a sweep."""

    values: Mapping[str, str]
    """By setting, those that differ between runs; the seed among them, the control aside."""
    control: str
    """`none`, or what the rewards are replaced by."""

    @property
    def name(self) -> str:
        """For its folders: `num_shots=2,seed=0,control=random`."""
        parts = [f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items()]
        if self.control != NO_CONTROL:
            parts.append(f"control={self.control}")
        return ",".join(parts).replace("/", "_") or "run"

    @property
    def overrides(self) -> list[str]:
        """For `rlvr train`."""
        control = [] if self.control == NO_CONTROL else [f"{CONTROL}={self.control}"]
        return [*(f"{key}={value}" for key, value in self.values.items()), *control]

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """What runs that differ by seed and control alone have in common."""
        return tuple((key, value) for key, value in self.values.items() if key != SEED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What a sweep is asked for."""

    recipe: str
    fixed: tuple[str, ...]
    """Overrides of every run."""
    points: tuple[Point, ...]


def read_grid(words: Sequence[str], *, recipe: str = "arithmetic") -> Grid:
    """A recipe's name, settings, and settings of which several values are tried.

    `reward.control=random` adds to every run its control; a value in brackets, such as `[1, 2]`, is one value.

    Raises ConfigError.

    >>> [point.name for point in read_grid(["tiny", "data.num_shots=0,2", "reward.control=random"]).points]
    ['num_shots=0', 'num_shots=0,control=random', 'num_shots=2', 'num_shots=2,control=random']
    """
    axes: dict[str, list[str]] = {}
    fixed = []
    controls = [NO_CONTROL]
    named = [word for word in words if "=" not in word]
    if len(named) > 1:
        raise ConfigError(f"a sweep is of one recipe, not of {' and '.join(map(repr, named))}")
    for word in (word for word in words if "=" in word):
        key, _, text = word.partition("=")
        values = split_values(text)
        if len(set(values)) < len(values):
            raise ConfigError(f"{word!r} names a value twice")
        if "" in values and len(values) > 1:
            raise ConfigError(f"{word!r} has an empty value; write {key}=1,2")
        if key == "run_dir":
            raise ConfigError("a sweep gives every run its own run_dir, in --out")
        if key == CONTROL:
            controls = list(dict.fromkeys([NO_CONTROL, *values]))
        elif len(values) > 1 or key == SEED:
            axes[key] = values
        else:
            fixed.append(word)
    points = [
        Point(values=dict(zip(axes, chosen, strict=True)), control=control)
        for chosen in itertools.product(*axes.values())
        for control in controls
    ]
    if len({key.rpartition(".")[2] for key in axes}) < len(axes):
        raise ConfigError(f"two settings of the sweep end alike, and their runs would share a name: {', '.join(axes)}")
    return Grid(recipe=named[0] if named else recipe, fixed=tuple(fixed), points=tuple(points))


def split_values(text: str) -> list[str]:
    """At commas that stand in no brackets or quotes.

    >>> split_values("[1, 2],3")
    ['[1, 2]', '3']
    """
    values, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        depth += (char in "[{(") - (char in ")}]") if not quote else 0
        if char == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += char
    return [value.strip() for value in values]
