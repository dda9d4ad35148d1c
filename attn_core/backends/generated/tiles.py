"""Triton of the graph of a score: the same walk as for C++, with tiles in place of scalars.

What is written are functions that the kernels of `attn_core.backends.triton` call with the
addresses of queries, keys and what pairs have of their own. Every value is a tile `[R, H, C]` of
rows, heads and one loop over channels, or broadcasts to it; a loop within that one runs.
"""

from __future__ import annotations

import hashlib
import importlib
import linecache
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_core.backends.generated.emit import Emitter, Scope, root, with_head
from attn_core.backends.generated.formulas import ZERO
from attn_core.backends.generated.index import HEAD, Index, linear
from attn_core.backends.generated.trace import Sizes, Traced, Unsupported, aten

_MOST = 4096  # numbers per head in a tile
_TYPES = {torch.float32: "tl.float32", torch.float64: "tl.float64"}
_WORDS = """
    binary_logarithm choose cosine error_function exp_minus_1 exponential hyperbolic inverse larger
    log_plus_1 logarithm power root rounded_down sign sine size smaller total
"""
_ARGUMENTS = "q, k, p, par, g, head, there, ROWS, BLOCK"
_TYPED = "q, k, p, par, g, head, there, ROWS: tl.constexpr, BLOCK: tl.constexpr"
_PRELUDE = """\
import triton
import triton.language as tl
from attn_core.backends.triton.functions import {words}

ACC = tl.constexpr({dtype})
INFINITE = tl.constexpr(float("inf"))
NOT_A_NUMBER = tl.constexpr(float("nan"))


@triton.jit
def T(x: tl.constexpr):
    return tl.full([1, 1, 1], x, ACC)


@triton.jit
def truth(x: tl.constexpr):
    return tl.full([1, 1, 1], x, tl.int1)


@triton.jit
def as_number(x):
    return (tl.zeros([1, 1, 1], tl.int32) + x).to(ACC)
"""


class Function(NamedTuple):
    """A score that kernels call, and what the host must know of it.

    Attributes:
        score: the Triton function.
        widest: channels of the widest of its tiles, but those of parameters.
        width: numbers per head that the gradients of all parameters have.
        parameters: the dimension of heads of each, None where they share it; its shape.
        heads: of the score.
    """

    score: Any
    widest: int
    width: int
    parameters: tuple[tuple[int | None, tuple[int, ...]], ...]
    heads: int

    def gradient(self, parts: Tensor) -> Tensor:
        """That of all parameters in a row, of what programs sum for each head `[..., H, W]`."""
        summed, at = parts.view(-1, self.heads, self.width).sum(0), 0
        found: list[Tensor] = []
        for head, shape in self.parameters:
            size = math.prod(shape[:head] + shape[head + 1 :] if head is not None else shape)
            of_heads, at = summed[:, at : at + size], at + size
            if head is None:
                found.append(of_heads.sum(0))
            else:
                rows = of_heads.view(self.heads, math.prod(shape[:head]), -1)
                found.append(rows.transpose(0, 1).flatten())
        return torch.cat(found)


class Tile(Scope):
    """The numbers of one loop side by side: a name for which of them there are, and their room."""

    def __init__(self, variables: list[str], mask: str | None, room: int) -> None:
        super().__init__(*variables)
        self.mask, self.room = mask, room


class Tiles(Emitter):
    """Writes functions; `mode` says what a loop is at hand: "root", a sum's tile, or a "loop"."""

    def __init__(self, traced: Traced, sizes: Sizes, room: int) -> None:
        super().__init__(traced, sizes)
        self.mode, self.room = "root", room
        self.first, self.shape = 0, list[int]()
        self.rooms = {room}

    # --- Loops ---

    def of(self, variables: set[str]) -> Tile | None:
        """The tile that one of these belongs to."""
        tiles = (x for x in self.scopes if isinstance(x, Tile) and x.variables & variables)
        return next(tiles, None)

    @contextmanager
    def reducing(self, index: tuple[Index, ...]) -> Iterator[None]:
        before = self.mode, self.room
        tile = self.of({v for one in index for v, _ in one.terms})
        self.mode, self.room = ("tile", 1) if tile is None else ("loop", tile.room)
        try:
            yield
        finally:
            self.mode, self.room = before

    def _loops(
        self,
        names: list[str],
        part: list[tuple[int, int, int]],
        run: Callable[[Emitter, list[Index]], str],
        pragma: str,
    ) -> None:
        if self.mode == "loop":
            return super()._loops(names, part, run, pragma)
        index, inner = [], {}
        for name, (offset, step, n) in zip(names, part, strict=True):
            if n == 1:
                index.append(Index(offset))
            else:
                self.extents[name] = inner[name] = n
                index.append(linear((Index(0, ((name, 1),)), step), const=offset))
        tile = self._placed(names, part, inner) if self.mode == "root" else self._fresh(inner)
        self.scopes.append(tile)
        statement = run(self, index)  # where heads are mixed, there will be another tile
        if statement:
            tile.lines.append(statement)
        if tile.room > _MOST:
            raise Unsupported(f"has more than {_MOST} numbers per head in one sum or gradient")
        self.rooms.add(tile.room)
        self.scopes.pop()
        self.scopes[-1].lines += tile.lines

    def _fresh(self, inner: dict[str, int]) -> Tile:
        """A tile for the numbers of these loops."""
        count = math.prod(inner.values())
        room = _room(count)
        axis = self.fresh("c")
        mask = self.fresh("m") if room != count else None
        tile = Tile(list(inner), mask, room)
        tile.lines.append(f"{axis} = tl.arange(0, {room})[None, None, :]")
        if mask is not None:
            tile.lines.append(f"{mask} = {axis} < {count}")
        places = _places(axis, list(inner.values()))
        tile.lines += [f"{name} = {place}" for name, place in zip(inner, places, strict=True)]
        return tile

    def _placed(
        self, names: list[str], part: list[tuple[int, int, int]], inner: dict[str, int]
    ) -> Tile:
        """The tile of a result, of which these loops are a part."""
        first, last = self.first, self.first + math.prod(self.shape)
        there = [f"(c >= {first})"] if first else []
        if last != self.room:
            there.append(f"(c < {last})")
        lines = []
        places = _places(f"(c - {first})" if first else "c", self.shape)
        for name, (offset, step, n), most, place in zip(
            names, part, self.shape, places, strict=True
        ):
            inside = f"({place} - {offset})" if offset else place
            if name in inner:
                lines.append(f"{name} = {inside} // {step}" if step > 1 else f"{name} = {inside}")
            if (offset, step, n) != (0, 1, most):
                there.append(f"({inside} >= 0) & ({inside} < {step * n})")
                there += [f"({inside} % {step} == 0)"] if step > 1 else []
        mask = self.fresh("m") if there else None
        tile = Tile(list(inner), mask, self.room)
        tile.lines = lines if mask is None else [*lines, f"{mask} = {' & '.join(there)}"]
        return tile

    # --- What it looks like ---

    def loop(self, name: str, n: int, lines: list[str], pragma: str) -> list[str]:
        return [f"for {name} in range({n}):", *("    " + line for line in lines)]

    def name(self, value: str, scope: int, truth: bool = False) -> str:
        name = self.fresh("x")
        self.scopes[scope].lines.append(f"{name} = {value}")
        return name

    def read(self, of: str, at: Index) -> str:
        key = of, at
        found = self.named(key)
        if found is None:
            scope = self.depth((at,))
            tile = self.of({v for v, _ in at.terms})
            masks = ["there"] if of != "par" else []
            if tile is not None and tile.mask is not None:
                masks.append(tile.mask)
            mask = f", mask={' & '.join(masks)}, other=0.0" if masks else ""
            found = self.name(f"tl.load({of} + ({at}){mask}).to(ACC)", scope)
            self.scopes[scope].named[key] = found
        return found

    def sum_from(self, name: str) -> str:
        return f"{name} = tl.zeros([ROWS, BLOCK, {self.room}], ACC)"

    def sum_on(self, name: str, value: str) -> str:
        if self.mode == "loop":
            return f"{name} += {value}"
        tile = self.scopes[-1]
        assert isinstance(tile, Tile)
        return f"{name} += total({value}, {tile.mask}, {tile.room})"

    # --- Whole functions ---

    def shape_of(self, key: str | int) -> tuple[int | None, list[int]]:
        """Which dimension of an output is that of heads, and the extents of the others."""
        node = self.traced.outputs[key]
        self.mode = "tile"
        return root(self, node, tuple(node.meta["val"].shape))

    def put(self, key: str | int, first: int = 0) -> None:
        """Write what puts an output of each pair and head into `found`, from a channel on."""
        head, self.shape = self.shape_of(key)
        self.mode, self.first = "root", first
        node = self.traced.outputs[key]

        def statement(e: Emitter, index: list[Index]) -> str:
            tile, value = e.scopes[-1], e.value(node, with_head(index, head))
            if value == ZERO:
                return ""
            assert isinstance(tile, Tile)
            if tile.mask is None:
                return f"found += {value}"
            return f"found = tl.where({tile.mask}, {value}, found)"

        if math.prod(self.shape):
            self.over(self.shape, statement)

    def function(self, name: str) -> str:
        """The whole of it."""
        lines = [
            f"{HEAD} = head % {self.sizes.heads}",
            *["par = par + tl.zeros([1, 1, 1], tl.int32)"][: len(self.sizes.parameters)],
            f"c = tl.arange(0, {self.room})[None, None, :]",
            f"found = tl.zeros([ROWS, BLOCK, {self.room}], ACC)",
            *self.scopes[0].lines,
            "return found",
        ]
        return "\n".join(["@triton.jit", f"def {name}({_TYPED}):", *(f"    {x}" for x in lines)])


def _places(at: str, shape: list[int]) -> list[str]:
    """Where in each dimension of a shape a number lies."""
    found = []
    for d, n in enumerate(shape):
        step = math.prod(shape[d + 1 :])
        place = f"{at} // {step}" if step > 1 else at
        found.append(f"({place} % {n})" if any(m > 1 for m in shape[:d]) else f"({place})")
    return found


def _room(count: int) -> int:
    """The next power of two."""
    return 1 << max(0, count - 1).bit_length()


def function(traced: Traced, sizes: Sizes, dtype: torch.dtype) -> Function:
    """The Triton function of a score.

    Raises:
        Unsupported: an op, or a way to move numbers, that has no Triton; an older Triton.
    """
    release = importlib.import_module("triton").__version__
    if tuple(int(n) for n in release.split(".")[:2]) < (3, 3):  # which take no functions
        raise Unsupported(f"needs Triton 3.3 on a GPU, and {release} is installed")
    if any(node.target is aten.atan.default for node in traced.graph.nodes):
        raise Unsupported("uses aten.atan.default")
    if sizes.query != sizes.key:
        raise Unsupported("has queries and keys of different widths")
    of_parameters = [Tiles(traced, sizes, 1).shape_of(i) for i in range(len(sizes.parameters))]
    ends = list(accumulate((math.prod(inner) for _, inner in of_parameters), initial=0))
    outputs: dict[str, tuple[int, dict[str | int, int]]] = {
        "logits": (1, {"logits": 0}),
        "query": (sizes.query, {"query": 0}),
        "key": (sizes.key, {"key": 0}),
        **({"pair": (sizes.pair, {"pair": 0})} if sizes.pair else {}),
        "parameters": (ends[-1], dict(enumerate(ends[:-1]))),
    }
    texts, widest = [], 1
    for name, (width, places) in outputs.items():
        tiles = Tiles(traced, sizes, _room(width))
        for key, first in places.items():
            tiles.put(key, first)
        texts.append(tiles.function(f"of_{name}"))
        if name != "parameters":
            widest = max(widest, *tiles.rooms)
    choice = "\n    el".join(
        f"{'se' if name == 'parameters' else f'if WHAT == {name!r}'}:\n"
        f"        return of_{name}({_ARGUMENTS})"
        for name in outputs
    )
    prelude = _PRELUDE.format(words=", ".join(_WORDS.split()), dtype=_TYPES[dtype])
    asked = f"@triton.jit\ndef score(WHAT: tl.constexpr, {_TYPED}):\n    {choice}"
    text = "\n\n\n".join([prelude.strip(), *texts, asked]) + "\n"
    heads = (head for head, _ in of_parameters)
    parameters = tuple(zip(heads, sizes.parameters, strict=True))
    return Function(_loaded(text), widest, ends[-1], parameters, sizes.heads)


def _loaded(text: str) -> Any:
    """The function `score` of a module's text, which Triton reads where tracebacks do."""
    name = f"attn_core.generated_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    lines = text.splitlines(keepends=True)
    linecache.cache[f"<{name}>"] = len(text), None, lines, f"<{name}>"
    module: dict[str, Any] = {"__name__": name}
    exec(compile(text, f"<{name}>", "exec"), module)
    return module["score"]
