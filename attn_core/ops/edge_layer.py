"""Attention over edges with what a graph layer does around it, as one step of autograd.

On a small graph nothing takes as long as to go from one torch operator to the next. So where nobody
watches, GAT's scores of nodes, the attention, the merging of heads and the bias are one step, whose
gradients are another. What is not served here takes the steps one by one, to the same result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_core import compiled
from attn_core.backends.cpu import KINDS
from attn_core.backends.problem import Problem
from attn_core.dropout import draw_seed
from attn_core.graph.listing import Listing
from attn_core.ops.edge_attention import plainly
from attn_core.ops.twice import differentiated
from attn_core.scores import Formula
from attn_core.supports.edges import Edges, PendingEdges
from attn_core.transforms import is_autocast, nobody_watches

_DTYPES = torch.float32, torch.float64
_Tensors = tuple[Tensor | None, ...]


class _Setting(NamedTuple):
    """What is no tensor with gradients."""

    edges: Edges
    self_loops: bool
    kind: str
    constant: float
    dropout: float
    concat: bool

    def arguments(self, seed: Tensor | None) -> tuple[Any, ...]:
        """What the kernels are told."""
        drawn = 0 if seed is None else int(seed)
        threads = torch.get_num_threads()
        return KINDS[self.kind], self.constant, self.dropout, drawn, self.concat, threads


def attend(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    formula: Formula,
    support: Edges | PendingEdges,
    *,
    ends: tuple[Tensor, Tensor] | None = None,
    pair_key: Tensor | None = None,
    pair_value: Tensor | None = None,
    dropout: float = 0.0,
    add: Tensor | None = None,
    concat: bool = True,
) -> Tensor | None:
    """The output of `attn_core.attend` with its heads merged, plus `add`; None where not served.

    Args:
        query, key, value, pair_key, pair_value, dropout, support: as in `attn_core.attend`, with as
            many heads each.
        formula: what kernels know of the score.
        ends: in place of query and key, the vectors `[1, H, D]` whose products with the channels of
            `value` are the query and the key.
        add: `[W]` or `[Nq, W]`, where W is the width of the result.
        concat: heads side by side, `[Nq, H * D]`; False: their mean, `[Nq, D]`.
    """
    dtype, (of_query, of_key) = value.dtype, ends or (None, None)
    if torch.compiler.is_compiling() or not compiled.is_on():  # first: no guard on what follows
        return None
    if dtype not in _DTYPES or is_autocast("cpu"):
        return None
    tensors = query, key, value, formula.vector, of_query, of_key, pair_key, pair_value
    grad = False
    for x in (add, *tensors):
        if x is not None:
            if x.dtype is not dtype or not x.is_contiguous() or not x.is_cpu:
                return None
            grad = grad or x.requires_grad
    pending = isinstance(support, PendingEdges)
    edge_index = support.plain() if isinstance(support, PendingEdges) else None
    if not nobody_watches(add, edge_index, *tensors):
        return None
    edges = support.resolve() if isinstance(support, PendingEdges) else support
    self_loops = isinstance(support, PendingEdges) and support.self_loops
    listing = edges.listing if type(edges) is Edges else None
    if listing is None or not _serves(listing, query, key, value):
        return None
    if not (pending or pair_key is None or listing.num_pairs == listing.num_places):
        return None  # a row for each pair, of which some were left out
    seed = draw_seed(value.device) if dropout > 0 else None
    setting = _Setting(edges, self_loops, *formula[:2], dropout, concat)
    if grad and torch.is_grad_enabled():
        found: Tensor = _Layer.apply(setting, seed, edge_index, add, *tensors)
        return found
    return _forward(setting, seed, add, tensors, False)[0]


def _serves(listing: Listing, query: Tensor | None, key: Tensor | None, value: Tensor) -> bool:
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
    setting: _Setting, seed: Tensor | None, add: Tensor | None, tensors: _Tensors, grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result; the output of each head and further numbers, as backward wants them."""
    value: Any = tensors[2]
    listing: Any = setting.edges.listing
    num_queries, (num_keys, heads, width) = listing.sizes[1], value.shape
    output = value.new_empty(num_queries, heads * width)
    ends = num_queries + num_keys if tensors[4] is not None else 0
    numbers = value.new_empty(3 * num_queries * heads + ends * heads)
    merged = None
    if not setting.concat or (grad and add is not None):
        merged = value.new_empty(num_queries, heads * width if setting.concat else width)
    compiled.call(
        "layer_forward", listing.handle, *tensors, *setting.arguments(seed),
        output, numbers, add, merged,
    )  # fmt: skip
    if merged is None:
        # What is saved must not be what the caller may edit
        merged = output._lazy_clone() if grad else output
    return merged, output, numbers


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        setting: _Setting,
        seed: Tensor | None,
        edge_index: Tensor | None,
        add: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        merged, output, numbers = _forward(setting, seed, add, tensors, True)
        # The caller's edge_index, for torch to say so if it is edited
        ctx.save_for_backward(seed, edge_index, add, *tensors, output, numbers)
        ctx.setting = setting
        return merged

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        given: Any
        seed, _, add, *given, output, numbers = ctx.saved_tensors
        grad, setting, needs = grads[0], ctx.setting, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() or not nobody_watches(grad):
            return None, None, None, *_again(setting, seed, (add, *given), needs, grad)
        need_add, *needed = needs
        of_ends = given[4] is not None
        if of_ends:
            needed[2] = needed[4] = needed[2] or needed[4] or needed[5]
            needed[5] = False
        rows = setting.edges.listing.num_pairs < setting.edges.listing.num_places
        of: list[Any] = [
            None if x is None or not need else x.new_zeros(x.shape) if rows and i > 5
            else x.new_empty((2, *x.shape) if i == 4 else x.shape)
            for i, (x, need) in enumerate(zip(given, needed, strict=True))
        ]  # fmt: skip
        of_add = None
        if need_add:
            of_add = grad if add.dim() == 2 else add.new_empty(add.shape)
        compiled.call(
            "layer_backward", setting.edges.listing.turned(), *given, *setting.arguments(seed),
            output, numbers, grad.contiguous(), *of[:5], *of[6:],
            None if of_add is grad else of_add,
        )  # fmt: skip
        if of_ends and of[4] is not None:
            of[4:6] = of[4].unbind()
            if not ctx.needs_input_grad[6]:
                of[2] = None
        return None, None, None, of_add, *of


def _by_formula(
    setting: _Setting, seed: Tensor | None, add: Tensor | None, *tensors: Any
) -> Tensor:
    """The same in plain torch, which can be differentiated any number of times."""
    query, key, value, vector, of_query, of_key, pair_key, pair_value = tensors
    edges: Any = setting.edges
    no_pairs: Any = None  # which the Edges have
    if of_query is not None:
        query, key = ((value * x).sum(-1, keepdim=True) for x in (of_query, of_key))
    p = Problem(
        query, key, value, vector, None, pair_key, pair_value, no_pairs,
        edges.num_keys, edges.num_queries, *setting[1:5], seed, None,
    )  # fmt: skip
    p.edges = edges
    output = plainly(p)[0]
    merged = output.flatten(1) if setting.concat else output.mean(1)
    return merged if add is None else merged + add


def _again(
    setting: _Setting, seed: Tensor | None, tensors: _Tensors, needs: Any, grad: Tensor
) -> list[Tensor | None]:
    """Gradients by the formula: of a gradient of a gradient, or for what torch batches."""

    def formula(*given: Any) -> Tensor:
        return _by_formula(setting, seed, *given)

    needed = [bool(need) and x is not None for need, x in zip(needs, tensors, strict=True)]
    with torch.enable_grad():
        return differentiated(formula, tensors, (grad,), needed)
