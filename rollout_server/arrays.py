"""Rows of numbers as they cross doors: one buffer of 32 bits a number, and no Python object for each.

`TokenIds` and `Logprobs` are frozen sequences: what a tuple can do they can, `numpy.asarray` reads them without a copy,
and pickles hold their buffer, which protocol 5 may carry beside the pickle. Standard library only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pickle import PickleBuffer
from typing import Any, ClassVar, Self, TypeVar, cast, overload

Number = TypeVar("Number", int, float)


class Packed(Sequence[Number]):
    """Numbers of one C type in one buffer that is never written to.

    Two are equal if their bits are: a NaN is equal to itself. Raises OverflowError for a number that has no place.
    """

    __slots__ = ("_view",)
    code: ClassVar[str]
    """The C type, as `array` calls it."""

    def __init__(self, values: Iterable[Number] = ()) -> None:
        if isinstance(values, type(self)):
            self._view: Any = values._view
        else:
            self._view = memoryview(array(cast(Any, self.code), values)).toreadonly()

    @classmethod
    def of_bytes(cls, content: Any) -> Self:
        """From whatever has a contiguous buffer of these numbers, which is kept and not copied."""
        made, code, view = cls.__new__(cls), cast(Any, cls.code), memoryview(content)
        made._view = (view.cast("B").cast(code) if view.nbytes else memoryview(array(code))).toreadonly()
        return made

    def tobytes(self) -> bytes:
        """The numbers as they lie in memory."""
        return bytes(self._view)

    def tolist(self) -> list[Number]:
        """The same as Python numbers."""
        numbers: list[Number] = self._view.tolist()
        return numbers

    def __len__(self) -> int:
        return len(self._view)

    @overload
    def __getitem__(self, index: int) -> Number: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Number | Self:
        if isinstance(index, slice):
            return self.of_bytes(self._view[index].tobytes())
        number: Number = self._view[index]
        return number

    def __iter__(self) -> Iterator[Number]:
        return iter(self.tolist())

    def __add__(self, other: Self) -> Self:
        return self.of_bytes(self.tobytes() + other.tobytes()) if isinstance(other, type(self)) else NotImplemented

    def __eq__(self, other: object) -> bool:
        return self.tobytes() == other.tobytes() if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.tobytes())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tolist()})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        return np.array(self._view, dtype=dtype, copy=copy)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _restored, (type(self), PickleBuffer(self._view) if protocol >= 5 else self.tobytes())


def _restored(kind: type[Packed[Any]], content: Any) -> Packed[Any]:
    return kind.of_bytes(content)


class TokenIds(Packed[int]):
    """Token ids, 32 bits each.

    >>> TokenIds((5, 6, 7))[1:]
    TokenIds([6, 7])
    """

    __slots__ = ()
    code = "i"


class Logprobs(Packed[float]):
    """Natural logarithms of probabilities in single precision, which is what a sampler computes them in."""

    __slots__ = ()
    code = "f"
