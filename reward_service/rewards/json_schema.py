"""1.0 if the completion is a JSON document that a schema accepts, `parse_credit` if it only is JSON.

The schema's draft is the one that its `$schema` names, 2020-12 without one.

The document is the whole text, or with `document_in = "fenced"` what stands in its only fenced block (``` or
```json), or with `auto` the block if there is a fence and else the whole text. Two blocks are two documents: 0.
JSON is taken at its word: duplicate keys, NaN, Infinity and numbers beyond a double's range score 0, as do documents
of more than `max_chars` characters or nested deeper than `max_depth`. Numbers are decimals: 19.99 is 1999 times 0.01.

The schema is the parameter `schema`, or else the reference's `schema`. A `$ref` leads to places in the schema itself
and to the drafts' own meta-schemas; nothing is ever fetched, and a schema that refers elsewhere is an invalid
reference. `format` is an annotation, as the draft has it, and not checked; `dependencies`, gone from the later drafts,
still are. Patterns are JavaScript's, as the drafts say: their `$` is the very end, their `\\d` and `\\w` are of ASCII,
their `\\s` is any blank of Unicode. `\\p{…}` is not known, and makes an invalid reference.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field

from reward_service.rewards.base import InvalidReferenceError, Reference, Reward, RewardParams
from reward_service.types import ReferenceKeys, RewardScore

MAX_SCHEMA_CHARS: Final = 100_000

_MAX_NUMBER_CHARS: Final = 309  # a double's range, and what Fraction works on in no time

_DATA: Final = ("const", "default", "enum", "examples")
_PIECE: Final = re.compile(r"\\c[A-Za-z]|\\.|\[(?:\\.|[^\]\\])*\]|\$", re.DOTALL)
"""What JavaScript may read in another way: an escaped character, a class, an end sign."""
_SPACES: Final = r"\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"

_FENCE: Final = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)$", re.MULTILINE)


class Params(RewardParams):
    """Parameters of `json_schema`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: dict[str, Any] | bool | None = Field(None, alias="schema", description="None: the reference's `schema`.")
    document_in: Literal["auto", "whole", "fenced"] = Field(
        "auto", description="auto: the fenced block if there is one."
    )
    parse_credit: float = Field(0.0, ge=0.0, le=1.0, description="For a document that the schema does not accept.")
    max_chars: int = Field(100_000, ge=1, le=10_000_000, description="A longer document scores 0.")
    max_depth: int = Field(64, ge=1, le=200, description="A document nested deeper scores 0.")


class _RefusedError(ValueError):
    """The text is not a JSON document by the rules above."""


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """1.0, `parse_credit` or 0.0; `details["why"]` says where the document first breaks the schema."""
    validator = _validator(reference, params)
    try:
        document = parse_json(_document(completion, params), params.max_chars, params.max_depth)
    except _RefusedError as error:
        return RewardScore(score=0.0, details={"why": str(error)})
    from referencing.exceptions import Unresolvable

    try:
        finding = next(validator.iter_errors(document), None)
    except Unresolvable as error:
        raise InvalidReferenceError(f"the schema refers to what is not in it: {error!s:.100}") from None
    except RecursionError:
        raise InvalidReferenceError("the schema refers to itself without end, or too deep for this document") from None
    if finding is None:
        return RewardScore(score=1.0)
    why = f"{finding.json_path}: {finding.message}"
    return RewardScore(score=params.parse_credit, details={"why": why if len(why) <= 200 else f"{why[:200]}…"})


def reference_keys(params: Params) -> ReferenceKeys:
    """The schema, unless the parameters have it."""
    return ReferenceKeys(required=("schema",) if params.schema_ is None else ())


def _document(completion: str, params: Params) -> str:
    fences = [] if params.document_in == "whole" else list(_FENCE.finditer(completion))
    if not fences and params.document_in != "fenced":
        return completion
    if len(fences) != 2 or fences[0][1] != fences[1][1] or fences[1][2].strip():
        raise _RefusedError("there is not exactly one fenced block")
    if fences[0][2].strip().lower() not in ("", "json"):
        raise _RefusedError("the fenced block is not marked as JSON")
    return completion[fences[0].end() : fences[1].start()]


def parse_json(text: str, max_chars: int, max_depth: int) -> Any:
    """`text` as JSON by the letter: one value for each key, finite numbers, at most `max_depth` levels."""
    if len(text) > max_chars:
        raise _RefusedError(f"the document has more than {max_chars} characters")
    try:
        document = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_decimal, parse_int=_finite_int
        )
    except RecursionError:
        raise _RefusedError(f"the document is nested deeper than {max_depth}") from None
    except _RefusedError:
        raise
    except ValueError as error:
        raise _RefusedError(f"the document is not JSON: {error!s:.100}") from None
    if not _is_within(document, max_depth):
        raise _RefusedError(f"the document is nested deeper than {max_depth}")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _RefusedError("the document has a key twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise _RefusedError(f"{name} is not JSON")


class _Number(Decimal):
    """A decimal that shows as it is written, in messages."""

    def __repr__(self) -> str:
        return str(self)


def _decimal(text: str) -> Decimal:
    value = _Number(text)
    if len(text) > _MAX_NUMBER_CHARS or not math.isfinite(float(text)) or (value and value.adjusted() <= -308):
        raise _RefusedError(f"the number {text:.20} is too large, too small or too long")
    return value


def _finite_int(text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARS:
        raise _RefusedError(f"the number {text:.20} is too large")
    return int(text)


def _is_within(document: Any, max_depth: int) -> bool:
    level = [document]
    for _ in range(max_depth + 1):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return True
    return False


def _validator(reference: Reference, params: Params) -> Any:
    schema = params.schema_ if params.schema_ is not None else (reference or {}).get("schema")
    if not isinstance(schema, dict | bool):
        raise InvalidReferenceError('neither the params nor the reference have a "schema"')
    try:
        text = json.dumps(schema, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidReferenceError(f"the schema is not JSON: {error!s:.100}") from None
    if len(text) > MAX_SCHEMA_CHARS:
        raise InvalidReferenceError(f"the schema has more than {MAX_SCHEMA_CHARS} characters")
    return _make_validator(text)


@lru_cache(maxsize=64)  # checking a schema costs more than validating a small document
def _make_validator(text: str) -> Any:
    from jsonschema import validators
    from jsonschema.exceptions import SchemaError
    from jsonschema_specifications import REGISTRY

    plain = json.loads(text)
    draft = _draft(plain)
    try:
        draft.check_schema(_with_patterns(plain))
        schema = _with_patterns(json.loads(text, parse_float=_decimal))
    except (SchemaError, RecursionError, _RefusedError, re.error) as error:
        named = draft.META_SCHEMA["$schema"]
        raise InvalidReferenceError(f"the schema is not one of {named}: {error!s:.100}") from None
    types = draft.TYPE_CHECKER.redefine("integer", _is_integer)
    rules = {name: _multiple_of for name in ("multipleOf", "divisibleBy") if name in draft.VALIDATORS}
    if "dependencies" not in draft.VALIDATORS:
        rules["dependencies"] = validators.Draft7Validator.VALIDATORS["dependencies"]
    exact = validators.extend(draft, rules, type_checker=types)
    # A registry of its own: the default one fetches what it does not know.
    return exact(schema, registry=REGISTRY)


def _with_patterns(schema: Any) -> Any:
    """A schema whose patterns say to Python what they say to JavaScript; values to compare with stay as they are."""
    if isinstance(schema, list):
        return [_with_patterns(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _pattern(value)
        if key == "pattern" and isinstance(value, str)
        else {_pattern(name): _with_patterns(one) for name, one in value.items()}
        if key == "patternProperties"
        else value
        if key in _DATA
        else _with_patterns(value)
        for key, value in schema.items()
    }


def _pattern(written: str) -> str:
    pattern = f"(?a:{_PIECE.sub(_in_python, written)})"
    re.compile(pattern)
    return pattern


def _in_python(match: re.Match[str]) -> str:
    piece = match.group()
    if piece.startswith("["):
        return re.sub(r"\\(.)", lambda escaped: _SPACES if escaped[1] == "s" else escaped.group(), piece)
    if piece.startswith("\\c") and len(piece) > 2:
        return re.escape(chr(ord(piece[2]) % 32))
    return {"$": r"\Z", r"\s": f"[{_SPACES}]", r"\S": f"[^{_SPACES}]"}.get(piece, piece)


def _draft(schema: Any) -> Any:
    """The rules of the draft that `$schema` names; 2020-12 where none is named."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    named = schema.get("$schema") if isinstance(schema, dict) else None
    draft = validator_for({"$schema": named} if isinstance(named, str) else {}, default=None)
    if draft is None and named is not None:
        raise InvalidReferenceError(f"$schema {named!r:.100} is not the address of a draft")
    return Draft202012Validator if named is None else draft


def _is_integer(_: Any, instance: Any) -> bool:
    if isinstance(instance, Decimal):
        return instance == instance.to_integral_value()
    return isinstance(instance, int) and not isinstance(instance, bool)


def _multiple_of(validator: Any, divisor: Any, instance: Any, _: Any) -> Iterator[Any]:
    """In fractions, which know no rounding."""
    from jsonschema.exceptions import ValidationError

    if validator.is_type(instance, "number") and Fraction(instance) % Fraction(divisor):
        yield ValidationError(f"{instance!r} is not a multiple of {divisor!r}")


REWARD = Reward(
    name="json_schema",
    params=Params,
    score=score,
    keys=reference_keys,
    deadline_s=2.0,
    preload=("jsonschema", "jsonschema_specifications"),
)
