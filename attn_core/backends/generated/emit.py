"""The code of the graph of a score; here C++, scalar expressions in loops, which become vectors.

A number is asked for by its node and its index, which leads back to the numbers that it is made of;
an index is an affine sum of loop variables. Views, slices and joins are so nothing but other
indices; a range in which a join changes from one part to the next is cut there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from attn_core.backends.generated.formulas import FORMULAS, ZERO, number
from attn_core.backends.generated.index import HEAD, Index, Split, linear
from attn_core.backends.generated.moves import MOVES, axis
from attn_core.backends.generated.trace import Sizes, Traced, Unsupported, aten

_MOST = 2**14  # numbers per head that one gradient may have
_SHORT = re.compile(r"\w+|\w+\[[^][]*\]|T\([^()]*\)")  # what needs no name


class MixedHeads(Exception):
    """Something of another head was asked for."""


class Scope:
    """What stands in one loop: its statements, and the numbers that they name."""

    def __init__(self, *variables: str) -> None:
        self.variables = set(variables)
        self.lines: list[str] = []
        self.named: dict[Any, str] = {}


class Emitter:
    """Writes the code of some numbers of a graph; `q`, `k`, `p` and `g` are those of the head."""

    def __init__(self, traced: Traced, sizes: Sizes) -> None:
        self.traced, self.sizes = traced, sizes
        self.extents = {HEAD: sizes.heads}
        self.scopes = [Scope()]
        self.count = 0
        self.fixed = False  # whether an output is of the head at hand alone, see `root`
        self.offsets: list[int] = []
        at = 0
        for shape in sizes.parameters:
            self.offsets.append(at)
            at += math.prod(shape)
        # What depends on the gradient is linear in it: there a sum over heads is of one head alone,
        # if each head's share is added up in turn
        self.of_gradient: set[Node] = set()
        for node in traced.graph.nodes:
            if traced.inputs.get(node) == "grad" or self.of_gradient & set(node.all_input_nodes):
                self.of_gradient.add(node)

    # --- Loops ---

    def fresh(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def depth(self, index: tuple[Index, ...]) -> int:
        """The innermost loop that an index depends on."""
        variables = {v for one in index for v, _ in one.terms}
        return max(i for i, s in enumerate(self.scopes) if i == 0 or s.variables & variables)

    def named(self, key: Any) -> str | None:
        for scope in self.scopes:
            if key in scope.named:
                return scope.named[key]
        return None

    def trial(self, run: Callable[[Emitter], object]) -> None:
        """Do it without leaving a trace; raises what it raises."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, extents=dict(self.extents))
        other.scopes = []
        for scope in self.scopes:
            other.scopes.append(alike := copy(scope))
            alike.lines, alike.named = [], dict(scope.named)
        run(other)

    def over(
        self, extents: list[int], run: Callable[[Emitter, list[Index]], str], pragma: str = ""
    ) -> None:
        """Loop over all of these, in parts that are cut where they must be."""
        names = [self.fresh("i") for _ in extents]
        parts = [[(0, 1, n) for n in extents]]
        done: list[list[tuple[int, int, int]]] = []
        while parts:
            part = parts.pop(0)
            try:
                self.trial(lambda other, part=part: other._loops(names, part, run, pragma))  # type: ignore[misc]
            except Split as split:
                if split.variable not in names:
                    raise
                place = names.index(split.variable)
                offset, step, n = part[place]
                if split.remainders:
                    m = split.remainders
                    pieces = [
                        (offset + step * j, step * m, (n - j + m - 1) // m)
                        for j in range(min(m, n))
                    ]
                else:
                    at = split.at
                    if not 0 < at < n:
                        raise Unsupported("joins its channels in a way that is not known") from None
                    pieces = [(offset, step, at), (offset + step * at, step, n - at)]
                parts = [[*part[:place], piece, *part[place + 1 :]] for piece in pieces] + parts
                if len(parts) + len(done) > 256:
                    raise Unsupported("joins too many pieces") from None
            else:
                done.append(part)
        for part in done:
            self._loops(names, part, run, pragma)

    def _loops(
        self,
        names: list[str],
        part: list[tuple[int, int, int]],
        run: Callable[[Emitter, list[Index]], str],
        pragma: str,
    ) -> None:
        """One nest of loops, written where its innermost one ends."""
        parent = len(self.scopes)
        index: list[Index] = []
        opened: list[tuple[str, int]] = []
        for name, (offset, step, n) in zip(names, part, strict=True):
            if n == 1:
                index.append(Index(offset))
                continue
            self.extents[name] = n
            index.append(linear((Index(0, ((name, 1),)), step), const=offset))
            self.scopes.append(Scope(name))
            opened.append((name, n))
        statement = run(self, index)
        self.scopes[-1].lines.append(statement)
        while len(self.scopes) > parent:
            scope = self.scopes.pop()
            self.scopes[-1].lines += self.loop(*opened.pop(), scope.lines, pragma)

    @contextmanager
    def outside(self, depth: int) -> Iterator[None]:
        """Write outside of all deeper loops."""
        inner = self.scopes[depth + 1 :]
        del self.scopes[depth + 1 :]
        try:
            yield
        finally:
            self.scopes[depth + 1 :] = inner

    def bounds(self, index: Index) -> tuple[int, int]:
        """The smallest and the largest value of an index."""
        low = high = index.const
        for variable, coefficient in index.terms:
            last = coefficient * (self.extents[variable] - 1)
            low, high = low + min(last, 0), high + max(last, 0)
        return low, high

    # --- Numbers ---

    def value(self, node: Any, index: tuple[Index, ...]) -> str:
        """An expression for one number of a node."""
        if not isinstance(node, Node):
            return number(node)
        shape = tuple(node.meta["val"].shape)
        index = tuple(Index() if n == 1 else i for i, n in zip(index, shape, strict=True))
        if node.op == "placeholder":
            return self.leaf(node, index, shape)
        if node.op != "call_function":
            raise Unsupported(f"uses {node.target}")
        rule = MOVES.get(node.target)
        if rule is not None:
            return rule(self, node, index)
        key = node, index
        found = self.named(key)
        if found is not None:
            return found
        scope = self.depth(index)
        reduction = _REDUCTIONS.get(node.target)
        if reduction is not None:
            with self.outside(scope), self.reducing(index):
                made = reduction(self, node, index)
        else:
            made = self.formula(node, index, shape)
            if _SHORT.fullmatch(made):
                return made
            made = self.name(made, scope, node.meta["val"].dtype == torch.bool)
        self.scopes[scope].named[key] = made
        return made

    def leaf(self, node: Node, index: tuple[Index, ...], shape: tuple[int, ...]) -> str:
        given = self.traced.inputs[node]
        if isinstance(given, int):
            at, step = Index(self.offsets[given]), 1
            for one, n in zip(reversed(index), reversed(shape), strict=True):
                at, step = linear((at, 1), (one, step)), step * n
            return self.read("par", at)
        if self.sizes.heads > 1 and index[1] != Index(0, ((HEAD, 1),)):
            raise MixedHeads
        if given == "grad":
            return "g"
        return self.read(given[0], index[2])

    def formula(self, node: Node, index: tuple[Index, ...], shape: tuple[int, ...]) -> str:
        rule = FORMULAS.get(node.target)
        if rule is None:
            raise Unsupported(f"uses {node.target}")

        def of(x: Any) -> str:
            if not isinstance(x, Node):
                return number(x)
            own = len(x.meta["val"].shape)
            return self.value(x, index[len(index) - own :])

        return rule(of, *node.args, **node.kwargs)

    # --- What it looks like ---

    def loop(self, name: str, n: int, lines: list[str], pragma: str) -> list[str]:
        """A loop around statements."""
        plain = not any(line.lstrip().startswith(("for", "#")) for line in lines)
        before = [pragma] if pragma and plain and n >= 4 else []
        head = f"for (int {name} = 0; {name} < {n}; {name}++) {{"
        body = ["  " + line for text in lines for line in text.split("\n")]
        return [*before, "\n".join([head, *body, "}"])]

    def name(self, value: str, scope: int, truth: bool = False) -> str:
        """A name for a number, which stands in one of the scopes."""
        name = self.fresh("x")
        self.scopes[scope].lines.append(f"const {'bool' if truth else 'T'} {name} = {value};")
        return name

    def read(self, of: str, at: Index) -> str:
        """A number of memory."""
        return f"{of}[{at}]"

    def reducing(self, index: tuple[Index, ...]) -> AbstractContextManager[Any]:
        """What a reduction for a number at this index is made in."""
        return nullcontext()

    def sum_from(self, name: str) -> str:
        """A statement that begins a sum."""
        return f"T {name} = 0;"

    def sum_on(self, name: str, value: str) -> str:
        """A statement that adds to it."""
        return f"{name} += {value};"


# --- Reductions ---


def _summed(
    e: Emitter, node: Node, extents: list[int], term: Callable[[Emitter, list[Index]], str]
) -> str:
    """A sum over these, of the head at hand alone where the gradient's own heads are summed."""
    heads = [d for d, n in enumerate(extents) if n == e.sizes.heads > 1]
    for head in (None, *heads):
        inner = [n for d, n in enumerate(extents) if d != head]

        def run(other: Emitter, loops: list[Index], total: str, head: int | None = head) -> str:
            index = list(loops)
            if head is not None:
                index.insert(head, Index(0, ((HEAD, 1),)))
            return other.sum_on(total, term(other, index))

        def attempt(other: Emitter, run: Any = run, inner: Any = inner) -> None:
            other.over(inner, lambda o, i: run(o, i, "none"))

        try:
            e.trial(attempt)
        except MixedHeads:
            continue
        if head is not None and node not in e.of_gradient:
            raise Unsupported(f"mixes heads, in {node.target}")
        if head is not None and e.fixed:  # nothing would add the shares of the others
            raise MixedHeads
        total = e.fresh("s")
        e.scopes[-1].lines.append(e.sum_from(total))
        e.over(
            inner,
            lambda o, i, run=run, total=total: run(o, i, total),  # type: ignore[misc]
            f"#pragma omp simd reduction(+ : {total})",
        )
        return total
    raise MixedHeads


def _sum(e: Emitter, node: Node, index: tuple[Index, ...], mean: bool = False) -> str:
    given: Any = node.args[0]
    shape = tuple(given.meta["val"].shape)
    dims: Any = node.args[1] if len(node.args) > 1 else None
    keep = len(node.args) > 2 and bool(node.args[2])
    gone = sorted({axis(given, d) for d in dims} if dims else range(len(shape)))
    left = iter(index)
    outer: list[Index | None] = []
    for d in range(len(shape)):
        if d in gone:
            outer.append(None)
            if keep:
                next(left)
        else:
            outer.append(next(left))

    def term(other: Emitter, loops: list[Index]) -> str:
        inner = iter(loops)
        return other.value(given, tuple(next(inner) if i is None else i for i in outer))

    total = _summed(e, node, [shape[d] for d in gone], term)
    if not mean:
        return total
    number_of = max(math.prod(shape[d] for d in gone), 1)
    return e.name(f"{total} / {number(number_of)}", -1)


def _product(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    """A product of matrices, or of many side by side."""
    a, b = node.args[:2]
    *batch, row, column = index

    def term(other: Emitter, loops: list[Index]) -> str:
        x = other.value(a, (*batch, row, loops[0]))
        y = other.value(b, (*batch, loops[0], column))
        return f"{x} * {y}"

    return _summed(e, node, [a.meta["val"].shape[-1]], term)  # type: ignore[union-attr]


_REDUCTIONS: dict[Any, Callable[[Emitter, Node, tuple[Index, ...]], str]] = {
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: lambda e, n, i: _sum(e, n, i, mean=True),
    aten.mean.dim: lambda e, n, i: _sum(e, n, i, mean=True),
    aten.mm.default: _product,
    aten.bmm.default: _product,
}


# --- Whole functions ---


class Code(NamedTuple):
    """Lines before the loop over a head's pairs, in it, and after it."""

    before: list[str]
    each: list[str]
    after: list[str]


def sums(traced: Traced, sizes: Sizes, wanted: dict[str | int, str]) -> Code:
    """Sums over pairs of these outputs, which are added to what the C++ names so."""
    e = Emitter(traced, sizes)
    code = Code([], [], [])
    for place, (key, target) in enumerate(wanted.items()):
        node = traced.outputs[key]
        shape = tuple(node.meta["val"].shape)
        head, inner = root(e, node, shape)
        size = math.prod(inner)
        if size > _MOST:
            raise Unsupported(f"has {size} numbers per head in one gradient")
        name = f"a{place}"
        e.over(inner, _adding(node, head, name, inner), "#pragma omp simd")
        code.before.append(f"T {name}[{max(size, 1)}] = {{}};")
        code.after.extend(_stored(name, shape, head, size, target))
    code.each.extend(e.scopes[0].lines)
    return code


def per_pair(traced: Traced, sizes: Sizes, key: str, target: str) -> list[str]:
    """An output of each pair and head, added to what the C++ names so."""
    e = Emitter(traced, sizes)
    node = traced.outputs[key]
    shape = tuple(node.meta["val"].shape)
    head, inner = root(e, node, shape)
    e.over(inner, _adding(node, head, target, inner), "#pragma omp simd")
    return e.scopes[0].lines


def _adding(
    node: Node, head: int | None, name: str, inner: list[int]
) -> Callable[[Emitter, list[Index]], str]:
    """A statement that adds one number of an output."""
    steps = [math.prod(inner[d + 1 :]) for d in range(len(inner))]

    def statement(e: Emitter, index: list[Index]) -> str:
        value = e.value(node, with_head(index, head))
        at = linear(*zip(index, steps, strict=True))
        return ";" if value == ZERO else f"{name}[{at}] += {value};"

    return statement


def with_head(index: list[Index], head: int | None) -> tuple[Index, ...]:
    if head is None:
        return tuple(index)
    return (*index[:head], Index(0, ((HEAD, 1),)), *index[head:])


def _stored(
    name: str, shape: tuple[int, ...], head: int | None, size: int, target: str
) -> list[str]:
    """Lines that add the sums of a head to their place among those of all."""
    if head is None:
        return [f"for (int i = 0; i < {size}; i++) {target}[i] += {name}[i];"]
    last, rows = math.prod(shape[head + 1 :]), math.prod(shape[:head])
    at = f"r * {last * shape[head]} + h * {last} + i"
    return [
        f"for (int r = 0; r < {rows}; r++)",
        f"  for (int i = 0; i < {last}; i++) {target}[{at}] += {name}[r * {last} + i];",
    ]


def root(e: Emitter, node: Node, shape: tuple[int, ...]) -> tuple[int | None, list[int]]:
    """Which dimension of an output is that of heads, and the extents of the others.

    Tried are all that are as long; one that is not that of heads is not known to be so before.
    """
    heads = [d for d, n in enumerate(shape) if n == e.sizes.heads > 1]
    reason = Unsupported("mixes heads")
    for head in (*heads, None):
        inner = [n for d, n in enumerate(shape) if d != head]

        def attempt(other: Emitter, head: int | None = head, inner: list[int] = inner) -> None:
            other.fixed = head is not None
            other.over(inner, lambda o, i: o.value(node, with_head(i, head)))

        try:
            e.trial(attempt)
        except MixedHeads:
            continue
        except Unsupported as error:
            reason = error
            continue
        return head, inner
    raise reason
