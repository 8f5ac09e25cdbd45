"""Data sets of the Hugging Face hub."""

from __future__ import annotations

from orchestration.data.rows import Row
from orchestration.errors import DataError
from orchestration.extras import require


def hub_rows(dataset: str, subset: str | None, part: str | None, *, setting: str = "data.dataset") -> list[Row]:
    """All rows of a split.

    Raises:
        ConfigError: the package `datasets` is not installed.
        DataError: the data set or the split cannot be had.
    """
    require("datasets", by=f"{setting}={dataset!r}", extra="hub")
    import datasets

    try:
        return list(datasets.load_dataset(dataset, subset, split=part))
    except Exception as error:  # the library raises whatever its file systems raise
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{setting}={dataset!r}, split {part!r} cannot be had: {reason}; check its name, data.subset and the "
            f"splits, or name a file instead"
        ) from error
