"""From the data settings to problems."""

from __future__ import annotations

from orchestration.data.arithmetic import make_arithmetic
from orchestration.data.copying import make_copy_task
from orchestration.data.gsm8k import read_gsm8k
from orchestration.data.problems import Problems
from orchestration.settings.config import ArithmeticData, DataConfig, Gsm8kData


def load_problems(config: DataConfig) -> Problems:
    """Make or read the problems that the settings name; the same settings give the same problems.

    Raises:
        DataError: a file is missing or broken, or there are too few problems.
        ConfigError: a setting is out of range.
    """
    if isinstance(config, ArithmeticData):
        return make_arithmetic(config)
    if isinstance(config, Gsm8kData):
        return read_gsm8k(config)
    return make_copy_task(config)
