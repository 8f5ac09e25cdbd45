"""Rows of a file, whatever its format: JSON lines, a JSON array, CSV (with commas, semicolons or tabs) or parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestration.errors import DataError

Row = Mapping[str, Any]


def read_rows(path: Path, setting: str) -> list[Row]:
    """All rows of a file, by the ending of its name; cells of a CSV file are texts.

    Args:
        path: ends with .jsonl, .json, .csv, .tsv or .parquet.
        setting: the setting that names it, for the error.

    Raises:
        DataError: the file is missing, of another kind, empty, or broken; names the first broken line.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{setting}={str(path)!r}: its name must end with {', '.join(_READERS)}")
    try:
        rows = list(reader(path))
    except FileNotFoundError as error:
        raise DataError(f"{setting}={str(path)!r} does not exist; name an existing file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{setting}={str(path)!r} is not UTF-8 text: save it as UTF-8") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{setting}={str(path)!r} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if not rows:
        raise DataError(f"{setting}={str(path)!r} holds no rows")
    return rows


def _json_lines(path: Path) -> Iterator[Row]:
    # splitlines would also cut at U+2028 inside a text
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield _object(_parsed(line, number), f"line {number}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")  # programs of Windows put a byte order mark in front


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON ({error})") from error


def _json(path: Path) -> Iterator[Row]:
    text = _text(path)
    if text.lstrip().startswith("{") and "\n{" in text.strip():  # lines under the name of an array
        return _json_lines(path)
    content = json.loads(text)
    if not isinstance(content, list):
        raise ValueError("it is not an array of objects; a file with an object a line is a .jsonl")
    return (_object(row, f"element {number}") for number, row in enumerate(content, 1))


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    return value


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a long text is no mistake
    with path.open(encoding="utf-8-sig", newline="") as file:
        heading = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=max(",;\t", key=heading.count))
        names = reader.fieldnames or ()
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two columns are called {twice!r}: rename one")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"row {row} has not as many cells as the heading has names")
            yield row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    return iter(rows)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


def cell(row: Row, column: str) -> Any:
    """A column of a row.

    Args:
        row: Column → value.
        column: Its name; `a.b` reaches into an object, `a.0` into a list, unless there is a column of that name.

    Raises:
        KeyError: There is none; with the column's name.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        place = int(part) if isinstance(value, list) and part.isdecimal() else part
        try:
            value = value[place]
        except (LookupError, TypeError):
            raise KeyError(column) from None
    return value
