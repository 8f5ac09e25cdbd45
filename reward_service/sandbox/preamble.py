"""What stands around solutions on programming sites: imports before them, an instance of `Solution` behind them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence

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


def with_methods(code: str, names: Sequence[str]) -> str:
    """A solution whose `class Solution` alone has some of these names, with functions that call an instance's."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Solution"]
    if not classes:
        return code
    methods = {node.name for node in classes[-1].body if isinstance(node, ast.FunctionDef)}
    bound = set(map(_bound, (inner for node in tree.body if node is not classes[-1] for inner in ast.walk(node))))
    return code + "".join(
        f"\n\ndef {name}(*args, **kwargs):\n    return Solution().{name}(*args, **kwargs)\n"
        for name in names
        if name in methods - bound
    )


def _bound(node: ast.AST) -> str | None:
    """The name that a part of a program binds, if any."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.alias):
        return node.asname or node.name
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
