"""C++ of the graph of a score: scalar expressions in loops, which the compiler makes vectors of.

A number is asked for by its node and its index, which leads back to the numbers that it is made of;
an index is an affine sum of loop variables. Views, slices and joins are so nothing but other
indices; a range in which a join changes from one part to the next is cut there.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from attn_core.backends.generated.trace import Sizes, Traced, Unsupported, aten

ZERO = "T(0)"
HEAD = "h"
_MOST = 2**14  # numbers per head that one gradient may have
_SHORT = re.compile(r"\w+|\w+\[[^][]*\]|T\([^()]*\)")  # what needs no name


class Index(NamedTuple):
    """`const + Σ coefficient · variable`."""

    const: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        terms = [v if c == 1 else f"{c} * {v}" for v, c in self.terms]
        return " + ".join([*terms, *([str(self.const)] if self.const or not terms else [])])


class Split(Exception):
    """A loop must be cut: at an iteration, or into those of each remainder."""

    def __init__(self, variable: str, at: int = 0, remainders: int = 0) -> None:
        super().__init__(variable)
        self.variable, self.at, self.remainders = variable, at, remainders


class MixedHeads(Exception):
    """Something of another head was asked for."""


class Scope:
    """What stands in one loop: its statements, and the numbers that they name."""

    def __init__(self, variable: str | None) -> None:
        self.variable = variable
        self.lines: list[str] = []
        self.named: dict[Any, str] = {}


def linear(*parts: tuple[Index, int], const: int = 0) -> Index:
    """The sum of multiples of indices."""
    terms: dict[str, int] = {}
    for index, factor in parts:
        const += index.const * factor
        for variable, coefficient in index.terms:
            terms[variable] = terms.get(variable, 0) + coefficient * factor
    return Index(const, tuple(sorted((v, c) for v, c in terms.items() if c)))


def number(x: Any) -> str:
    """A Python number in C++."""
    if isinstance(x, bool):
        return "true" if x else "false"
    if x == 0:
        return ZERO
    if math.isinf(x):
        return "T(__builtin_inf())" if x > 0 else "T(-__builtin_inf())"
    return 'T(__builtin_nan(""))' if math.isnan(x) else f"T({float(x)!r})"


class Emitter:
    """Writes the code of some numbers of a graph; `q`, `k`, `p` and `g` are those of the head."""

    def __init__(self, traced: Traced, sizes: Sizes) -> None:
        self.traced, self.sizes = traced, sizes
        self.extents = {HEAD: sizes.heads}
        self.scopes = [Scope(None)]
        self.count = 0
        self.offsets: list[int] = []
        at = 0
        for shape in sizes.parameters:
            self.offsets.append(at)
            at += math.prod(shape)
        # What depends on the gradient is linear in it: there a sum over heads is of one head alone,
        # since each head's share is added up in turn
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
        return max(i for i, s in enumerate(self.scopes) if i == 0 or s.variable in variables)

    def named(self, key: Any) -> str | None:
        for scope in self.scopes:
            if key in scope.named:
                return scope.named[key]
        return None

    def trial(self, run: Callable[[Emitter], object]) -> None:
        """Do it without leaving a trace; raises what it raises."""
        other = object.__new__(Emitter)
        other.__dict__.update(self.__dict__, extents=dict(self.extents))
        other.scopes = []
        for scope in self.scopes:
            copy = Scope(scope.variable)
            copy.named = dict(scope.named)
            other.scopes.append(copy)
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
            name, n = opened.pop()
            plain = not any(line.lstrip().startswith(("for", "#")) for line in scope.lines)
            if pragma and plain and n >= 4:
                self.scopes[-1].lines.append(pragma)
            head = f"for (int {name} = 0; {name} < {n}; {name}++) {{"
            body = ["  " + line for text in scope.lines for line in text.split("\n")]
            self.scopes[-1].lines.append("\n".join([head, *body, "}"]))

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
        rule = _MOVES.get(node.target)
        if rule is not None:
            return rule(self, node, index)
        key = node, index
        found = self.named(key)
        if found is not None:
            return found
        scope = self.depth(index)
        reduction = _REDUCTIONS.get(node.target)
        if reduction is not None:
            with self.outside(scope):
                made = reduction(self, node, index)
        else:
            made = self.formula(node, index, shape)
            if _SHORT.fullmatch(made):
                return made
            name = self.fresh("x")
            kind = "bool" if node.meta["val"].dtype == torch.bool else "T"
            self.scopes[scope].lines.append(f"const {kind} {name} = {made};")
            made = name
        self.scopes[scope].named[key] = made
        return made

    def leaf(self, node: Node, index: tuple[Index, ...], shape: tuple[int, ...]) -> str:
        given = self.traced.inputs[node]
        if isinstance(given, int):
            at, step = Index(self.offsets[given]), 1
            for one, n in zip(reversed(index), reversed(shape), strict=True):
                at, step = linear((at, 1), (one, step)), step * n
            return f"par[{at}]"
        if self.sizes.heads > 1 and index[1] != Index(0, ((HEAD, 1),)):
            raise MixedHeads
        if given == "grad":
            return "g"
        return f"{given[0]}[{index[2]}]"

    def formula(self, node: Node, index: tuple[Index, ...], shape: tuple[int, ...]) -> str:
        rule = _FORMULAS.get(node.target)
        if rule is None:
            raise Unsupported(f"uses {node.target}")

        def of(x: Any) -> str:
            if not isinstance(x, Node):
                return number(x)
            own = len(x.meta["val"].shape)
            return self.value(x, index[len(index) - own :])

        return rule(of, *node.args, **node.kwargs)


# --- Formulas: what is made of numbers at the same place ---


def _add(of: Any, x: Any, y: Any, *, alpha: Any = 1) -> str:
    a, b = of(x), of(y)
    if b == ZERO:
        return str(a)
    b = b if alpha == 1 else f"{number(alpha)} * {b}"
    return b if a == ZERO else f"{a} + {b}"


def _sub(of: Any, x: Any, y: Any, *, alpha: Any = 1) -> str:
    a, b = of(x), of(y)
    if b == ZERO:
        return str(a)
    b = b if alpha == 1 else f"{number(alpha)} * {b}"
    return f"-{b}" if a == ZERO else f"{a} - {b}"


def _mul(of: Any, x: Any, y: Any) -> str:
    a, b = of(x), of(y)
    if ZERO in (a, b):
        return ZERO
    return a if b == "T(1.0)" else b if a == "T(1.0)" else f"{a} * {b}"


def _pow(of: Any, x: Any, y: Any) -> str:
    a = of(x)
    if isinstance(y, Node):
        return f"power({a}, {of(y)})"
    if y == 0:
        return "T(1.0)"
    if y in (1, 2, 3):
        return " * ".join([a] * int(y))
    short = {0.5: f"root({a})", -0.5: f"T(1) / root({a})", -1: f"T(1) / {a}"}
    return short.get(y, f"power({a}, {number(y)})")


def _call(name: str) -> Callable[..., str]:
    return lambda of, *xs, **_: f"{name}({', '.join(of(x) for x in xs)})"


def _between(sign: str) -> Callable[..., str]:
    return lambda of, x, y: f"{of(x)} {sign} {of(y)}"


def _where(of: Any, condition: Any, x: Any, y: Any) -> str:
    a, b = of(x), of(y)
    return a if a == b else f"({of(condition)} ? {a} : {b})"


def _clamp(of: Any, x: Any, low: Any = None, high: Any = None, **named: Any) -> str:
    a, low, high = of(x), named.get("min", low), named.get("max", high)
    a = a if low is None else f"larger({a}, {of(low)})"
    return a if high is None else f"smaller({a}, {of(high)})"


def _same(of: Any, x: Any, *_: Any, **__: Any) -> str:
    return f"T({of(x)})" if x.meta["val"].dtype == torch.bool else str(of(x))


def _minus(of: Any, x: Any) -> str:
    a = of(x)
    return a if a == ZERO else f"-{a}"


_FORMULAS: dict[Any, Callable[..., str]] = {
    aten.neg.default: _minus,
    aten.relu.default: lambda of, x: f"larger({of(x)}, {ZERO})",
    aten.reciprocal.default: lambda of, x: f"T(1) / {of(x)}",
    aten.rsqrt.default: lambda of, x: f"T(1) / root({of(x)})",
    aten.sigmoid.default: lambda of, x: f"T(1) / (T(1) + exponential(-{of(x)}))",
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_min.Tensor: _clamp,
    aten.clamp_max.default: lambda of, x, high: _clamp(of, x, None, high),
    aten.clamp_max.Tensor: lambda of, x, high: _clamp(of, x, None, high),
    aten.maximum.default: _call("larger"),
    aten.minimum.default: _call("smaller"),
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: lambda of, x, where, y: _where(of, where, y, x),
    aten.masked_fill.Tensor: lambda of, x, where, y: _where(of, where, y, x),
    aten.full.default: lambda of, _, x, **__: number(x),
    aten.full_like.default: lambda of, _, x, **__: number(x),
    aten.scalar_tensor.default: lambda of, x, **_: number(x),
    aten.zeros.default: lambda of, *_, **__: ZERO,
    aten.zeros_like.default: lambda of, *_, **__: ZERO,
    aten.new_zeros.default: lambda of, *_, **__: ZERO,
    aten.ones.default: lambda of, *_, **__: number(1),
    aten.ones_like.default: lambda of, *_, **__: number(1),
    aten._to_copy.default: _same,
    aten.clone.default: _same,
    aten.logical_not.default: lambda of, x: f"!{of(x)}",
    aten.logical_and.default: _between("&&"),
    aten.logical_or.default: _between("||"),
    aten.bitwise_and.Tensor: _between("&"),
    aten.bitwise_or.Tensor: _between("|"),
    aten.bitwise_not.default: lambda of, x: f"!{of(x)}",
}
for _name, _rule in {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _between("/"),
    "gt": _between(">"),
    "ge": _between(">="),
    "lt": _between("<"),
    "le": _between("<="),
    "eq": _between("=="),
    "ne": _between("!="),
}.items():
    for _kind in ("Tensor", "Scalar"):
        _FORMULAS[getattr(getattr(aten, _name), _kind)] = _rule
for _kind in ("Tensor_Scalar", "Tensor_Tensor", "Scalar"):
    _FORMULAS[getattr(aten.pow, _kind)] = _pow
for _name, _cpp in {
    "exp": "exponential",
    "tanh": "hyperbolic",
    "log": "logarithm",
    "sqrt": "root",
    "abs": "size",
    "sign": "sign",
    "sgn": "sign",
    "sin": "sine",
    "cos": "cosine",
    "expm1": "__builtin_expm1",
    "log1p": "__builtin_log1p",
    "log2": "__builtin_log2",
    "erf": "__builtin_erf",
    "atan": "__builtin_atan",
    "floor": "__builtin_floor",
}.items():
    _FORMULAS[getattr(aten, _name).default] = _call(_cpp)


# --- Moves: the same numbers at other places ---


def _dim(node: Node, dim: int) -> int:
    rank = len(node.meta["val"].shape)
    return dim % rank if rank else 0


def _view(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any = node.args[0]
    shape, to = node.meta["val"].shape, tuple(given.meta["val"].shape)
    at, step = Index(), 1
    for one, n in zip(reversed(index), reversed(tuple(shape)), strict=True):
        at, step = linear((at, 1), (one, step)), step * n
    found: list[Index] = []
    for n in reversed(to):
        at, rest = _divided(e, at, n)
        found.append(rest)
    return e.value(given, tuple(reversed(found)))


def _divided(e: Emitter, at: Index, n: int) -> tuple[Index, Index]:
    """An index by a number, and what is left."""
    if n == 1:
        return at, Index()
    own = [(v, c) for v, c in at.terms if c % n]
    const = at.const % n
    rest = Index(const, tuple(own))
    low, high = e.bounds(rest)
    if low >= 0 and high < n:
        others = tuple((v, c // n) for v, c in at.terms if c % n == 0)
        return Index((at.const - const) // n, others), rest
    loops = [(v, c) for v, c in own if v != HEAD]
    if not loops or low < 0:
        raise Unsupported("reorders its channels in a way that is not known")
    variable, coefficient = max(loops, key=lambda term: term[1])
    extent = e.extents[variable]
    remainders = n // math.gcd(n, coefficient)
    ranges = -(-(coefficient * extent) // n)
    if remainders <= ranges:
        raise Split(variable, remainders=remainders)
    raise Split(variable, at=-(-(n - const) // coefficient))


def _select(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any
    given, dim, at = node.args  # type: ignore[misc]
    dim, size = _dim(given, dim), given.meta["val"].shape[dim]  # type: ignore[arg-type]
    return e.value(given, (*index[:dim], Index(at % size), *index[dim:]))


def _slice_of(node: Node, given: Node, dim: Any, start: Any, end: Any, step: Any) -> Any:
    size = node.meta["val"].shape[dim]
    start = 0 if start is None else start
    start = max(0, min(start + size if start < 0 else start, size))
    end = size if end is None else end
    end = max(start, min(end + size if end < 0 else end, size))
    return start, end, step


def _slice(
    e: Emitter, node: Node, index: tuple[Index, ...], dim: int = 0, start: Any = None,
    end: Any = None, step: int = 1,
) -> str:  # fmt: skip
    given: Any = node.args[0]
    dim = _dim(given, dim)
    start, *_ = _slice_of(given, given, dim, start, end, step)
    at = linear((index[dim], step), const=start)
    return e.value(given, (*index[:dim], at, *index[dim + 1 :]))


def _part(e: Emitter, at: Index, limits: list[int]) -> int:
    """Between which limits an index lies."""
    low, high = e.bounds(at)
    for i, limit in enumerate(limits[1:]):
        if high < limit:
            if low >= limits[i]:
                return i
            break
    limit = next(limit for limit in limits if low < limit <= high)
    loops = [(v, c) for v, c in at.terms if v != HEAD and c > 0]
    if not loops:
        raise Unsupported("joins heads")
    variable, coefficient = max(loops, key=lambda term: term[1])
    raise Split(variable, at=-(-(limit - at.const) // coefficient))


def _cat(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    parts: Any = node.args[0]
    dim = _dim(node, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    limits = [0]
    for part in parts:
        limits.append(limits[-1] + part.meta["val"].shape[dim])
    i = _part(e, index[dim], limits)
    at = linear((index[dim], 1), const=-limits[i])
    return e.value(parts[i], (*index[:dim], at, *index[dim + 1 :]))


def _stack(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    parts: Any = node.args[0]
    dim = _dim(node, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    i = _part(e, index[dim], list(range(len(parts) + 1)))
    return e.value(parts[i], (*index[:dim], *index[dim + 1 :]))


def _inside(e: Emitter, at: Index, start: int, end: int, step: int) -> Index | None:
    """Where in a slice an index lies; None outside of it."""
    if step > 1:
        own = [(v, c) for v, c in at.terms if c % step]
        if own:
            raise Split(own[0][0], remainders=step)
        if (at.const - start) % step:
            return None
    low, high = e.bounds(at)
    if high < start or low >= end:
        return None
    if low < start or high >= end:
        _part(e, at, [-(2**60), start, end, 2**60])
    low = at.const - start
    return Index(low // step, tuple((v, c // step) for v, c in at.terms))


def _slice_backward(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any
    given, _, dim, start, end, step = node.args  # type: ignore[misc]
    dim = _dim(node, dim)  # type: ignore[arg-type]
    at = _inside(e, index[dim], *_slice_of(node, given, dim, start, end, step))
    return ZERO if at is None else e.value(given, (*index[:dim], at, *index[dim + 1 :]))


def _slice_scatter(
    e: Emitter, node: Node, index: tuple[Index, ...], dim: int = 0, start: Any = None,
    end: Any = None, step: int = 1,
) -> str:  # fmt: skip
    base: Any
    given: Any
    base, given = node.args[:2]
    dim = _dim(node, dim)
    at = _inside(e, index[dim], *_slice_of(node, given, dim, start, end, step))
    if at is None:
        return e.value(base, index)
    return e.value(given, (*index[:dim], at, *index[dim + 1 :]))


def _select_backward(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any
    given, _, dim, place = node.args  # type: ignore[misc]
    dim = _dim(node, dim)  # type: ignore[arg-type]
    place = place % node.meta["val"].shape[dim]
    at = _inside(e, index[dim], place, place + 1, 1)
    return ZERO if at is None else e.value(given, (*index[:dim], *index[dim + 1 :]))


def _getitem(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    """A part of what was split."""
    of: Any
    of, number = node.args  # type: ignore[misc]
    given: Any = of.args[0]
    dim = of.args[2] if len(of.args) > 2 else of.kwargs.get("dim", 0)
    if of.target is aten.unbind.int:
        dim = _dim(given, of.args[1] if len(of.args) > 1 else of.kwargs.get("dim", 0))
        return e.value(given, (*index[:dim], Index(number), *index[dim:]))  # type: ignore[arg-type]
    dim, sizes = _dim(given, dim), of.args[1]
    if of.target is aten.split.Tensor:
        start = number * sizes
    elif of.target is aten.split_with_sizes.default:
        start = sum(sizes[:number])
    else:
        raise Unsupported(f"uses {of.target}")
    at = linear((index[dim], 1), const=start)
    return e.value(given, (*index[:dim], at, *index[dim + 1 :]))


def _expand(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any = node.args[0]
    return e.value(given, index[len(index) - given.meta["val"].dim() :])


def _unsqueeze(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    dim = _dim(node, node.args[1])  # type: ignore[arg-type]
    return e.value(node.args[0], (*index[:dim], *index[dim + 1 :]))


def _squeeze(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any = node.args[0]
    shape = given.meta["val"].shape
    dims: Any = range(len(shape)) if len(node.args) < 2 else node.args[1]
    gone = {_dim(given, d) for d in ([dims] if isinstance(dims, int) else dims)}
    left = iter(index)
    own = (Index() if d in gone and n == 1 else next(left) for d, n in enumerate(shape))
    return e.value(given, tuple(own))


def _permute(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any = node.args[0]
    rank = len(index)
    order: Any = list(range(rank))
    if node.target is aten.permute.default:
        order = [_dim(given, d) for d in node.args[1]]  # type: ignore[union-attr,arg-type]
    else:
        a, b = (1, 0) if node.target is aten.t.default else node.args[1:]  # type: ignore[misc]
        if rank > 1:
            a, b = _dim(given, a), _dim(given, b)  # type: ignore[arg-type]
            order[a], order[b] = b, a
    own = [Index()] * rank
    for place, d in enumerate(order):
        own[d] = index[place]
    return e.value(given, tuple(own))


def _flip(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any = node.args[0]
    own = list(index)
    for d in node.args[1]:  # type: ignore[union-attr]
        d = _dim(given, d)  # type: ignore[arg-type]
        own[d] = linear((own[d], -1), const=given.meta["val"].shape[d] - 1)
    return e.value(given, tuple(own))


def _alike(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    return e.value(node.args[0], index)


def _arange(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    numbers = [x for x in node.args if isinstance(x, (int, float))]
    start, step = 0, 1
    if node.target is not aten.arange.default:
        start = numbers[0]  # type: ignore[assignment]
        step = numbers[2] if len(numbers) > 2 else 1  # type: ignore[assignment]
    if not isinstance(start, int) or not isinstance(step, int):
        raise Unsupported("uses arange of broken numbers")
    return f"T({linear((index[0], step), const=start)})"


_MOVES: dict[Any, Callable[[Emitter, Node, tuple[Index, ...]], str]] = {
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.reshape.default: _view,
    aten.select.int: _select,
    aten.slice.Tensor: lambda e, n, i: _slice(e, n, i, *n.args[1:], **n.kwargs),  # type: ignore[arg-type]
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.slice_backward.default: _slice_backward,
    aten.slice_scatter.default: lambda e, n, i: _slice_scatter(e, n, i, *n.args[2:], **n.kwargs),  # type: ignore[arg-type]
    aten.select_backward.default: _select_backward,
    operator.getitem: _getitem,
    aten.expand.default: _expand,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.permute.default: _permute,
    aten.transpose.int: _permute,
    aten.t.default: _permute,
    aten.flip.default: _flip,
    aten.alias.default: _alike,
    aten.detach.default: _alike,
    aten.lift_fresh_copy.default: _alike,
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
}


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
            return f"{total} += {term(other, index)};"

        def attempt(other: Emitter, run: Any = run, inner: Any = inner) -> None:
            other.over(inner, lambda o, i: run(o, i, "none"))

        try:
            e.trial(attempt)
        except MixedHeads:
            continue
        if head is not None and node not in e.of_gradient:
            break
        total = e.fresh("s")
        e.scopes[-1].lines.append(f"T {total} = 0;")
        e.over(
            inner,
            lambda o, i, run=run, total=total: run(o, i, total),  # type: ignore[misc]
            f"#pragma omp simd reduction(+ : {total})",
        )
        return total
    raise Unsupported(f"mixes heads, in {node.target}")


def _sum(e: Emitter, node: Node, index: tuple[Index, ...], mean: bool = False) -> str:
    given: Any = node.args[0]
    shape = tuple(given.meta["val"].shape)
    dims: Any = node.args[1] if len(node.args) > 1 else None
    keep = len(node.args) > 2 and bool(node.args[2])
    gone = sorted({_dim(given, d) for d in dims} if dims else range(len(shape)))
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
    name = e.fresh("x")
    e.scopes[-1].lines.append(
        f"const T {name} = {total} / {number(max(math.prod(shape[d] for d in gone), 1))};"
    )
    return name


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
    for number, (key, target) in enumerate(wanted.items()):
        node = traced.outputs[key]
        shape = tuple(node.meta["val"].shape)
        head, inner = _root(e, node, shape)
        size = math.prod(inner)
        if size > _MOST:
            raise Unsupported(f"has {size} numbers per head in one gradient")
        name = f"a{number}"
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
    head, inner = _root(e, node, shape)
    e.over(inner, _adding(node, head, target, inner), "#pragma omp simd")
    return e.scopes[0].lines


def _adding(
    node: Node, head: int | None, name: str, inner: list[int]
) -> Callable[[Emitter, list[Index]], str]:
    """A statement that adds one number of an output."""
    steps = [math.prod(inner[d + 1 :]) for d in range(len(inner))]

    def statement(e: Emitter, index: list[Index]) -> str:
        value = e.value(node, _with_head(index, head))
        at = linear(*zip(index, steps, strict=True))
        return ";" if value == ZERO else f"{name}[{at}] += {value};"

    return statement


def _with_head(index: list[Index], head: int | None) -> tuple[Index, ...]:
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


def _root(e: Emitter, node: Node, shape: tuple[int, ...]) -> tuple[int | None, list[int]]:
    """Which dimension of an output is that of heads, and the extents of the others."""
    heads = [d for d, n in enumerate(shape) if n == e.sizes.heads > 1]
    for head in (*heads, None):
        inner = [n for d, n in enumerate(shape) if d != head]
        try:
            e.trial(lambda other, head=head, inner=inner: other.over(  # type: ignore[misc]
                inner, lambda o, i: o.value(node, _with_head(i, head))
            ))  # fmt: skip
        except MixedHeads:
            continue
        return head, inner
    raise Unsupported("mixes heads")
