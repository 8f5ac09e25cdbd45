"""Its tool's server."""

from __future__ import annotations

import verifiers.v1 as vf


class SumsToolset(vf.Toolset[vf.SharedToolsetConfig]):
    TOOL_PREFIX = "sums"

    @vf.tool
    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b


if __name__ == "__main__":
    SumsToolset.run()
