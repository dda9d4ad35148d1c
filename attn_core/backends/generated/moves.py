"""Ops that leave numbers as they are and say where they come from."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from attn_core.backends.generated.formulas import ZERO
from attn_core.backends.generated.index import HEAD, Index, Split, linear
from attn_core.backends.generated.trace import Unsupported, aten

if TYPE_CHECKING:
    from attn_core.backends.generated.emit import Emitter


def axis(node: Node, dim: int) -> int:
    """A dimension of a node, counted from the front."""
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
    given, dim, at = node.args
    dim, size = axis(given, dim), given.meta["val"].shape[dim]  # type: ignore[arg-type]
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
    dim = axis(given, dim)
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
    dim = axis(node, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    limits = [0]
    for part in parts:
        limits.append(limits[-1] + part.meta["val"].shape[dim])
    i = _part(e, index[dim], limits)
    at = linear((index[dim], 1), const=-limits[i])
    return e.value(parts[i], (*index[:dim], at, *index[dim + 1 :]))


def _stack(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    parts: Any = node.args[0]
    dim = axis(node, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
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
    given, _, dim, start, end, step = node.args
    dim = axis(node, dim)  # type: ignore[arg-type]
    at = _inside(e, index[dim], *_slice_of(node, given, dim, start, end, step))
    return ZERO if at is None else e.value(given, (*index[:dim], at, *index[dim + 1 :]))


def _slice_scatter(
    e: Emitter, node: Node, index: tuple[Index, ...], dim: int = 0, start: Any = None,
    end: Any = None, step: int = 1,
) -> str:  # fmt: skip
    base: Any
    given: Any
    base, given = node.args[:2]
    dim = axis(node, dim)
    at = _inside(e, index[dim], *_slice_of(node, given, dim, start, end, step))
    if at is None:
        return e.value(base, index)
    return e.value(given, (*index[:dim], at, *index[dim + 1 :]))


def _select_backward(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any
    given, _, dim, place = node.args
    dim = axis(node, dim)  # type: ignore[arg-type]
    place = place % node.meta["val"].shape[dim]
    at = _inside(e, index[dim], place, place + 1, 1)
    return ZERO if at is None else e.value(given, (*index[:dim], *index[dim + 1 :]))


def _getitem(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    """A part of what was split."""
    of: Any
    of, number = node.args
    given: Any = of.args[0]
    dim = of.args[2] if len(of.args) > 2 else of.kwargs.get("dim", 0)
    if of.target is aten.unbind.int:
        dim = axis(given, of.args[1] if len(of.args) > 1 else of.kwargs.get("dim", 0))
        return e.value(given, (*index[:dim], Index(number), *index[dim:]))  # type: ignore[arg-type]
    dim, sizes = axis(given, dim), of.args[1]
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
    dim = axis(node, node.args[1])  # type: ignore[arg-type]
    return e.value(node.args[0], (*index[:dim], *index[dim + 1 :]))


def _squeeze(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any = node.args[0]
    shape = given.meta["val"].shape
    dims: Any = range(len(shape)) if len(node.args) < 2 else node.args[1]
    gone = {axis(given, d) for d in ([dims] if isinstance(dims, int) else dims)}
    left = iter(index)
    own = (Index() if d in gone and n == 1 else next(left) for d, n in enumerate(shape))
    return e.value(given, tuple(own))


def _permute(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any = node.args[0]
    rank = len(index)
    order: Any = list(range(rank))
    if node.target is aten.permute.default:
        order = [axis(given, d) for d in node.args[1]]  # type: ignore[union-attr,arg-type]
    else:
        a, b = (1, 0) if node.target is aten.t.default else node.args[1:]
        if rank > 1:
            a, b = axis(given, a), axis(given, b)  # type: ignore[arg-type]
            order[a], order[b] = b, a
    own = [Index()] * rank
    for place, d in enumerate(order):
        own[d] = index[place]
    return e.value(given, tuple(own))


def _flip(e: Emitter, node: Node, index: tuple[Index, ...]) -> str:
    given: Any = node.args[0]
    own = list(index)
    for d in node.args[1]:  # type: ignore[union-attr]
        d = axis(given, d)  # type: ignore[arg-type]
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
    return f"as_number({linear((index[0], step), const=start)})"


MOVES: dict[Any, Callable[[Emitter, Node, tuple[Index, ...]], str]] = {
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
