"""Attention over edges with what a graph layer does around it, as one step of autograd.

On a small graph nothing takes as long as to go from one torch operator to the next. So where
nobody watches, the layer's linear maps, GAT's scores of nodes, the attention, the merging of heads
and what is added are one step, whose gradients are another. What is not served here takes the steps
one by one, to the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core import compiled
from attn_core.backends.cpu import KINDS
from attn_core.backends.problem import Problem
from attn_core.dropout import draw_seed
from attn_core.graph.listing import Listing
from attn_core.linear import linear
from attn_core.ops.edge_attention import plainly
from attn_core.ops.twice import differentiated
from attn_core.scores import Formula
from attn_core.supports.edges import Edges, PendingEdges
from attn_core.transforms import is_autocast, nobody_watches

_DTYPES = torch.float32, torch.float64
# What the compiled module is given, in its order; of the key's map are what has none of its own
_NAMES = (
    "query", "key", "value", "vector", "of_query", "of_key", "pair_key", "pair_value", "add",
    "x", "x_query", "weight_query", "bias_query", "weight_key", "bias_key", "weight_value",
    "bias_value", "weight_add", "bias_add",
)  # fmt: skip
_PLACES = {name: place for place, name in enumerate(_NAMES)}
_PER_PAIR = _PLACES["pair_key"], _PLACES["pair_value"]
_ADD = _PLACES["add"]
_NOTHING = (None, None)

# Whether torch.func has left its wrapper around a tensor
is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor


class Mapped(NamedTuple):
    """What a linear map makes of each row of x, yet to be computed: `x Wᵀ + b` as `[N, H, D]`."""

    x: Tensor  # [N, K]
    weight: Tensor  # [H * D, K]
    bias: Tensor | None  # [H * D]
    heads: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.x.shape[0], self.heads, self.weight.shape[0] // self.heads

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        return self.x.device

    def made(self) -> Tensor:
        """It, computed."""
        return linear(self.x, self.weight, self.bias).view(self.shape)


class _Setting(NamedTuple):
    """What is no tensor with gradients."""

    edges: Edges
    places: tuple[int, ...]  # among _NAMES, of the tensors that are there
    self_loops: bool
    kind: str
    constant: float
    dropout: float
    concat: bool
    heads: int
    width: int  # channels of a value's head
    hidden: int  # how many numbers the linear maps make

    def arguments(self, seed: Tensor | None) -> tuple[Any, ...]:
        """What the kernels are told."""
        kind, constant, dropout, concat, heads = KINDS[self.kind], *self[4:8]
        seen = 0 if seed is None else int(seed)
        return kind, constant, dropout, seen, concat, heads, torch.get_num_threads()

    def capsules(self, tensors: Iterable[Tensor | None]) -> list[Any]:
        """Tensors of these places as the compiled module takes them."""
        given: list[Any] = [None] * len(_NAMES)
        for place, x in zip(self.places, tensors, strict=True):
            if x is not None:
                given[place] = compiled.capsule(x)
        return given

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return _PLACES[name] in self.places


def attend(
    query: Tensor | Mapped | None,
    key: Tensor | Mapped | None,
    value: Tensor | Mapped,
    formula: Formula,
    support: Edges | PendingEdges,
    *,
    ends: tuple[Tensor, Tensor] | None = None,
    pair_key: Tensor | None = None,
    pair_value: Tensor | None = None,
    dropout: float = 0.0,
    add: Tensor | Mapped | None = None,
    concat: bool = True,
) -> Tensor | None:
    """The output of `attn_core.attend` with its heads merged, plus `add`; None where not served.

    Args:
        query, key, value, pair_key, pair_value, dropout, support: as in `attn_core.attend`, with as
            many heads each. Query, key and value are Mapped all or none; key and value of one x.
        formula: what kernels know of the score.
        ends: in place of query and key, the vectors `[1, H, D]` whose products with the channels of
            `value` are the query and the key.
        add: `[W]` or `[Nq, W]`, where W is the width of the result; Mapped like query, of its x.
        concat: heads side by side, `[Nq, H * D]`; False: their mean, `[Nq, D]`.
    """
    # First: no guard on what follows
    if torch.compiler.is_compiling() or not compiled.is_on():
        return None
    dtype = value.dtype
    if dtype not in _DTYPES or is_autocast("cpu"):
        return None
    of_query, of_key = ends or (None, None)
    known: list[Any] = [formula.vector, of_query, of_key, pair_key, pair_value]
    hidden = 0
    if type(value) is Mapped:
        hidden, maps = _flat(query, key, value, add)
        known = [None, None, None, *known, None if type(add) is Mapped else add, *maps]
    else:
        known = [query, key, value, *known, add]
    places, given, grad = [], [], False
    for place, x in enumerate(known):
        if x is not None:
            if x.dtype is not dtype or not x.is_cpu or not x.is_contiguous() or is_wrapped(x):
                return None
            grad = grad or x.requires_grad
            places.append(place)
            given.append(x)
    pending = isinstance(support, PendingEdges)
    edge_index = support.plain() if isinstance(support, PendingEdges) else None
    if not nobody_watches(edge_index, *given):
        return None
    edges = support.resolve() if isinstance(support, PendingEdges) else support
    self_loops = isinstance(support, PendingEdges) and support.self_loops
    listing = edges.listing if type(edges) is Edges else None
    if listing is None or not _serves(listing, query, key, value):
        return None
    if not (pending or pair_key is None or listing.num_pairs == listing.num_places):
        return None  # a row for each pair, of which some were left out
    seed = draw_seed(torch.device("cpu")) if dropout > 0 else None
    _, heads, width = value.shape
    setting = _Setting(  # the kernels take no whole numbers for others
        edges,
        tuple(places),
        self_loops,
        formula.kind,
        float(formula.constant),
        float(dropout),
        concat,
        heads,
        width,
        hidden,
    )
    if grad and torch.is_grad_enabled():
        # Without what Function.apply does for torch.func, which is not at work, as was asked above
        found: Tensor = _apply(setting, seed, edge_index, *given)
        return found
    return _forward(setting, seed, given, False)[0]


def _flat(query: Any, key: Any, value: Mapped, add: Any) -> tuple[int, list[Tensor | None]]:
    """How many numbers the maps make, and their tensors, from x on in the order of _NAMES."""
    of_query = add if type(add) is Mapped else query
    others = of_query is not None and of_query is not key and of_query.x is not value.x
    numbers, tensors = 0, [value.x, of_query.x if others else None]
    for one in (None if query is key else query, key, None if value is key else value):
        if one is None:
            tensors += _NOTHING
        else:
            x, weight, bias, _ = one
            numbers += x.shape[0] * weight.shape[0]
            tensors += weight, bias
    if type(add) is Mapped:
        tensors += add.weight, add.bias
    return numbers, tensors


def _serves(listing: Listing, query: Any, key: Any, value: Any) -> bool:
    """Whether the kernels compute this, and the tensors fit each other: who asks says why not."""
    (num_keys, num_queries), (nodes, heads, width) = listing.sizes, value.shape
    if nodes != num_keys or heads == 0 or width == 0 or width % 4:
        return False
    if key is None:
        return query is None and num_keys == num_queries
    size = key.shape[2]
    return (
        query is not None
        and key.shape == (nodes, heads, size)
        and query.shape == (num_queries, heads, size)
        and size > 0
        and size % 4 == 0
    )


def _forward(
    setting: _Setting, seed: Tensor | None, given: Sequence[Tensor], grad: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The result; what the maps made, the output of each head and further numbers, for backward."""
    heads, width, like = setting.heads, setting.width, given[0]
    listing: Any = setting.edges.listing
    num_keys, num_queries = listing.sizes
    ends = num_queries + num_keys if setting.has("of_query") else 0
    numbers = compiled.empty(like, (3 * num_queries + ends) * heads)
    hidden = compiled.empty(like, setting.hidden) if setting.has("x") else None
    merged = None
    if not setting.concat:
        merged = like.new_empty((num_queries, width))
    elif grad and (setting.has("add") or setting.has("weight_add")):
        merged = like.new_empty((num_queries, heads * width))
    if merged is None:  # what is handed out is torch's own memory
        output = like.new_empty((num_queries, heads * width))
    else:
        output = compiled.empty(like, num_queries, heads * width)
    compiled.module.layer_forward(
        listing.handle, setting.capsules(given), *setting.arguments(seed),
        *_capsules(hidden, output, numbers, merged),
    )  # fmt: skip
    if merged is None:
        # What is saved must not be what the caller may edit
        merged = output._lazy_clone() if grad else output
    return merged, hidden, output, numbers


def _capsules(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else compiled.capsule(x) for x in tensors]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        setting: _Setting,
        seed: Tensor | None,
        edge_index: Tensor | None,
        *given: Tensor,
    ) -> Tensor:
        merged, *made = _forward(setting, seed, given, True)
        # The caller's edge_index, for torch to say so if it is edited
        ctx.save_for_backward(seed, edge_index, *given, *made)
        ctx.setting = setting
        return merged

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        seed, _, *given, hidden, output, numbers = ctx.saved_tensors
        grad, setting, needs = grads[0], ctx.setting, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() or not nobody_watches(grad):
            return None, None, None, *_again(setting, seed, given, needs, grad)
        listing, added = setting.edges.listing, None
        found: list[Tensor | None] = []
        for place, x, need in zip(setting.places, given, needs, strict=True):
            if not need:
                found.append(None)
            elif place == _ADD and x.dim() == 2:
                added = len(found)
                found.append(None)
            elif place in _PER_PAIR and listing.num_pairs < listing.num_places:
                found.append(torch.zeros_like(x))  # with rows that nobody reads
            else:
                found.append(compiled.empty_like(x))
        compiled.module.layer_backward(
            listing.turned(), setting.capsules(given), *setting.arguments(seed),
            *_capsules(hidden, output, numbers, grad.contiguous()), setting.capsules(found),
        )  # fmt: skip
        if added is not None:
            found[added] = grad
        return None, None, None, *found


_apply: Any = super(torch.autograd.Function, _Layer).apply


def _by_formula(setting: _Setting, seed: Tensor | None, *given: Any) -> Tensor:
    """The same in plain torch, which can be differentiated any number of times."""
    known: list[Any] = [None] * len(_NAMES)
    for place, x in zip(setting.places, given, strict=True):
        known[place] = x
    query, key, value, vector, of_query, of_key, pair_key, pair_value, add, x, *maps = known
    if x is not None:
        query, key, value, add = _mapped(setting, of_query is not None, add, x, *maps)
    edges: Any = setting.edges
    no_pairs: Any = None  # which the Edges have
    if of_query is not None:
        query, key = ((value * of).sum(-1, keepdim=True) for of in (of_query, of_key))
    if vector is not None:
        vector = vector.flatten(0, -2)
    p = Problem(
        query, key, value, vector, None, pair_key, pair_value, no_pairs,
        edges.num_keys, edges.num_queries, *setting[2:6], seed, None,
    )  # fmt: skip
    p.edges = edges
    output = plainly(p)[0]
    merged = output.flatten(1) if setting.concat else output.mean(1)
    return merged if add is None else merged + add


def _mapped(setting: _Setting, by_ends: bool, add: Any, x: Any, x_query: Any, *maps: Any) -> Any:
    """Query, key, value and what is added, of the maps whose tensors these are."""
    x_query = x if x_query is None else x_query
    query, key, value, of_add = (
        None if weight is None else F.linear(nodes, weight, bias)
        for nodes, weight, bias in zip((x_query, x, x, x_query), maps[::2], maps[1::2], strict=True)
    )
    value = key if value is None else value
    query = key if query is None and not by_ends else query
    query, key, value = (
        None if one is None else one.unflatten(1, (setting.heads, -1))
        for one in (query, key, value)
    )
    return query, key, value, add if of_add is None else of_add


def _again(
    setting: _Setting, seed: Tensor | None, given: Sequence[Tensor], needs: Any, grad: Tensor
) -> list[Tensor | None]:
    """Gradients by the formula: of a gradient of a gradient, or for what torch batches."""

    def formula(*again: Any) -> Tensor:
        return _by_formula(setting, seed, *again)

    with torch.enable_grad():
        return differentiated(formula, given, (grad,), needs)
