"""The line between the tests and the solution, which live in processes of their own.

Each side asks the other for what it has: `["do", operation, arguments, keywords, number, held]`, answered by `["ok",
value, changes, printed, held]` or `["error", exception, …]`, each a line of JSON; an answer may be preceded by
questions in the other direction (a test passed a function). Plain data goes by value, everything else stays where it
is and is reached through a `Remote`. Lists, dicts and sets are told of when they change: `changes` are the new
contents of those that came as arguments, so that a solution may sort in place; `held` those of results of earlier
questions, by their numbers, that the asking side still has, so that a test may append to `stack.items`.

The tests' side trusts nothing: it makes plain data and exceptions of what it is told, no object of the other side's
choosing, and lets the other side do to its own objects no more than call them and use their public attributes.
"""

from __future__ import annotations

from _thread import RLock
from typing import Any

from reward_service.sandbox.inside.contents import Contents, OtherSideGoneError
from reward_service.sandbox.inside.remote import FROM_THERE, OPERATIONS, Remote, get_attribute

_MAX_QUESTIONS = 60
_MAX_HELD = 8


class Peer:
    """One end of the line."""

    trusted = True
    """Whether the other side may do to the objects here whatever it likes."""

    def __init__(self, reader: Any, writer: Any, max_parts: int) -> None:
        import json  # slow, and not needed by tests of other kinds

        self._loads, self._dumps = json.loads, json.dumps
        self._reader, self._writer, self.max_parts = reader, writer, max_parts
        self._lock = RLock()
        self._depth = 0
        self._own: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._remotes: dict[int, Any] = {}
        self._count = 0
        self._held: dict[int, Contents] = {}
        self._answered: dict[int, Contents] = {}
        self.kept: tuple[type, ...] = ()
        """Classes whose instances stay here even if they are plain data too."""

    def ask(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
        """What the other side's `operation` on these arguments gives; raises what it raises there."""
        with self._lock:
            given = Contents(self)
            packed = [given.pack(arg) for arg in args]
            words = {name: given.pack(arg) for name, arg in kwargs.items()}
            given.end_arguments()
            number, self._count = self._count, self._count + 1
            self._send(["do", operation, packed, words, number, self._changed()])
            while True:
                message = self._receive()
                if message[0] == "do":
                    self._answer(*message[1:])
                    continue
                how, value, changes, printed, held = message
                self.hear(printed)
                result = given.unpack(value)
                given.change(changes)
                self._hold(number, given, held)
                if how == "ok":
                    return result
                if isinstance(result, StopIteration) and operation != "next":
                    raise RuntimeError("a function raised StopIteration")  # would end a `map` of the caller, unseen
                raise result if isinstance(result, BaseException) else OtherSideGoneError("raised what is no exception")

    def serve(self) -> None:
        """Answers until the other side has gone."""
        while True:
            self._answer(*self._receive()[1:])

    def _changed(self) -> list[Any]:
        """The changes of what is held; what nobody but this table has is told of once more, and let go."""
        told = [[number, contents.changes(of_arguments=False)] for number, contents in self._held.items()]
        self._held = {number: contents for number, contents in self._held.items() if contents.are_in_use()}
        return told

    def _hold(self, number: int, contents: Contents, told: list[Any]) -> None:
        for other, changes in told:
            if other in self._held:
                self._held[other].change(changes)
        if contents.has_few_results():
            self._held[number] = contents
            if len(self._held) > _MAX_HELD:
                self._held.pop(min(self._held))

    def _answer(self, operation: str, packed: list[Any], keywords: dict[str, Any], number: int, held: Any) -> None:
        got = Contents(self)
        self._depth += 1
        self._answered = {other: self._answered[other] for other, _ in held if other in self._answered}
        try:
            for other, changes in held:
                if other in self._answered:
                    self._answered[other].change(changes)
            if self._depth > _MAX_QUESTIONS:
                raise RecursionError("the tests and the solution ask each other without end")
            args = [got.unpack(arg) for arg in packed]
            kwargs = {name: got.unpack(arg) for name, arg in keywords.items()}
            got.end_arguments()
            answer = ["ok", got.pack(self.perform(operation, args, kwargs))]
        except OtherSideGoneError:
            raise
        except BaseException as error:
            answer = ["error", got.pack_error(error)]
        finally:
            self._depth -= 1
        told = [[other, contents.changes(of_arguments=False)] for other, contents in self._answered.items()]
        self._answered[number] = got
        self._send([*answer, got.changes(of_arguments=True), self.said(), told])

    def perform(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Does what the other side asks for."""
        return OPERATIONS[operation](*args, **kwargs)

    def said(self) -> str:
        """What was printed here since the last answer."""
        return ""

    def hear(self, printed: str) -> None:
        """What was printed there."""

    def _send(self, message: list[Any]) -> None:
        self._writer.write(self._dumps(message, separators=(",", ":")).encode() + b"\n")
        self._writer.flush()

    def _receive(self) -> list[Any]:
        line = self._reader.readline()
        if not line.endswith(b"\n"):
            raise OtherSideGoneError("the other side has ended")
        try:
            message = self._loads(line)
        except (ValueError, RecursionError):
            message = None
        if type(message) is not list or len(message) != (6 if message[:1] == ["do"] else 5):
            raise OtherSideGoneError("the other side sent no message")
        return message

    def number_of(self, value: Any) -> int:
        """The number under which the other side knows an object of this one."""
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._own)
            self._own[number] = value
        return number

    def own(self, number: int) -> Any:
        return self._own[number]

    def is_lent(self, value: Any) -> bool:
        """Whether the other side has been shown this very object."""
        return id(value) in self._numbers

    def remote(self, number: int, classes: list[int]) -> Any:
        """What stands here for an object of the other side, the same each time."""
        if number not in self._remotes:
            self._remotes[number] = Remote(self, number, classes)
        return self._remotes[number]

    def may_operate(self, remote: Any, other: Any) -> bool:
        """Whether an operator between an object of the other side and `other` is for the other side to decide."""
        return True

    def equal(self, remote: Any, other: Any) -> bool:
        return self.ask("eq", remote, other) is True

    def error_class(self, number: int, name: str, base: type[BaseException]) -> type[BaseException]:
        """What stands here for a class of exceptions of the other side."""
        if number not in self._remotes:
            self._remotes[number] = type(name, (base,), {FROM_THERE: (self, number), "__getattr__": get_attribute})
        made = self._remotes[number]
        return made if isinstance(made, type) else base
