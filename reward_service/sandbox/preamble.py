"""Names that solutions use as if they were there: what programming sites import before them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_MODULES = (
    "abc bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions functools heapq"
    " io itertools json math operator os random re statistics string sys textwrap time types typing unittest"
)
MODULES = frozenset(_MODULES.split())
OTHER_MODULES: Mapping[str, str] = {"np": "numpy", "numpy": "numpy", "pd": "pandas", "pytest": "pytest"}
"""Names that mean modules outside of the standard library."""
_FROM = {
    "abc": "ABC abstractmethod",
    "bisect": "bisect_left bisect_right insort insort_left insort_right",
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
    "contextlib": "contextmanager suppress",
    "copy": "deepcopy",
    "dataclasses": "dataclass field",
    "datetime": "date timedelta",
    "decimal": "Decimal",
    "enum": "Enum IntEnum",
    "fractions": "Fraction",
    "functools": "cache cached_property cmp_to_key lru_cache partial reduce total_ordering wraps",
    "heapq": "heapify heappop heappush heappushpop heapreplace nlargest nsmallest",
    "io": "StringIO",
    "itertools": "accumulate chain combinations combinations_with_replacement compress count cycle dropwhile groupby"
    " islice pairwise permutations product repeat starmap takewhile tee zip_longest",
    "math": "ceil comb cos dist e exp factorial floor gcd hypot inf isclose isfinite isinf isnan isqrt lcm log log10"
    " log2 nan perm pi prod sin sqrt tan trunc",
    "operator": "attrgetter itemgetter mul xor",
    "statistics": "mean median mode stdev",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits punctuation",
    "typing": "Any Callable DefaultDict Deque Dict FrozenSet Generator Generic Iterable Iterator List Literal Mapping"
    " NamedTuple Optional Protocol Sequence Set Tuple Type TypeVar Union",
}
USUAL: Mapping[str, str] = {name: module for module, names in _FROM.items() for name in names.split()}
"""Name to the module of the standard library that it is known from."""

_WORD = re.compile(r"[A-Za-z_]\w*")
_LEETCODE = {
    "ListNode": "class ListNode:\n    def __init__(self, val=0, next=None):\n        self.val, self.next = val, next\n",
    "TreeNode": "class TreeNode:\n    def __init__(self, val=0, left=None, right=None):\n"
    "        self.val, self.left, self.right = val, left, right\n",
}


def imports(names: Iterable[str]) -> str:
    """Statements that import these names, which are modules or known here."""
    lines = []
    for name in sorted(set(names)):
        if name in USUAL:
            lines.append(f"from {USUAL[name]} import {name}\n")
        elif name in OTHER_MODULES:
            lines.append(f"import {OTHER_MODULES[name]} as {name}\n")
        else:
            lines.append(f"import {name}\n")
    return "".join(lines)


def preamble_for(code: str) -> str:
    """What goes before a solution: imports of the usual names that occur in it, LeetCode's nodes if it names them."""
    words = set(_WORD.findall(code))
    return imports(words & (USUAL.keys() | MODULES)) + "".join(
        text for name, text in _LEETCODE.items() if name in words
    )
