"""The logits of edges, their gradients, and sums over edges, where more than softmax needs them.

A sum over edges is the gradient of a product at edges, and both kernels for gradients serve it.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from attn_core.backends.problem import Problem
from attn_core.backends.triton.pieces import (
    head_vectors,
    kernel,
    logits,
    put_numbers,
    query_vectors,
    vectors,
    work,
)
from attn_core.backends.triton.plan import side_of
from attn_core.backends.triton.run import Laid, differentiate, grads_of

_NOT_READ = dict.fromkeys(("grad_output", "maximum", "total", "mean", "rest"))


@kernel
def score_rows(
    items, num_items, other, place, query, key, vector, pair_key, found,
    QUERY_ROW, QUERY_HEAD, KEY_ROW, KEY_HEAD, PAIR_KEY_ROW, PAIR_KEY_HEAD,
    KIND, CONSTANT, HEADS, WIDTH, ACC, ROWS, BLOCK, PAD,
):  # fmt: skip
    """The logits `[E, H]` of the pairs of ROWS items."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, item_ok, start, length, _ = work(items, num_items, first, ROWS)
    q = query_vectors(query, row, item_ok, QUERY_ROW, QUERY_HEAD, HEADS, BLOCK, WIDTH, PAD, ROWS,
                      ACC)  # fmt: skip
    v = head_vectors(vector, HEADS, BLOCK, WIDTH, PAD, ACC)
    following = tl.load(other + start, mask=length > 0, other=0)  # read one pair ahead
    for step in range(tl.max(length, 0)):
        ok = step < length
        node = following.to(tl.int64)
        following = tl.load(other + start + step + 1, mask=step + 1 < length, other=0)
        pair = tl.load(place + start + step, mask=ok, other=0).to(tl.int64)
        k = vectors(key, node, ok, KEY_ROW, KEY_HEAD, HEADS, BLOCK, WIDTH, PAD, ACC)
        if pair_key is not None:
            k += vectors(pair_key, pair, ok, PAIR_KEY_ROW, PAIR_KEY_HEAD, HEADS, BLOCK, WIDTH, PAD,
                         ACC)  # fmt: skip
        put_numbers(found, pair, ok, HEADS, BLOCK, logits(q, k, v, KIND, CONSTANT, ACC))


def forward(problem: Problem) -> Tensor:
    """The logits `[E, H]`, in the order of the pairs."""
    p = Laid.of(problem)
    found = p.key.new_empty(p.edges.num_edges, p.heads, dtype=p.dtype)
    if not found.numel():
        return found
    with torch.cuda.device_of(found):  # Triton launches on the current device
        items = side_of(p.edges, "query")
        given = p.of_pairs(items, "query", scored=True)
        names = set(score_rows.arg_names) | {"num_warps"}
        given = {name: x for name, x in given.items() if name in names}
        score_rows[p.grid(items)](**given, found=found)
    return found


def backward(problem: Problem, grad: Tensor, needed: list[bool]) -> list[Tensor | None]:
    """Gradients of what the fused kernels have gradients of, where needed and where it counts."""
    p = Laid.of(problem)
    grads = grads_of(p, needed, torch.empty if grad.numel() else torch.zeros)
    assert grads[2] is None and grads[4] is None  # logits do not depend on values and the bias
    if grad.numel():
        with torch.cuda.device_of(grad):
            differentiate(p, grads, grad_score=grad.contiguous(), **_NOT_READ)
    return grads


def weighted_sums(problem: Problem, weights: Tensor, to_keys: bool) -> Tensor:
    """`Σ_e weight_e (key_j + pair_key_e)` of each query; or of each key, of the queries' vectors.

    Both are gradients of the product of queries and keys at edges, whose gradient is the weights.
    """
    p = Laid.of(problem)
    rows = p.edges.num_keys if to_keys else p.edges.num_queries
    out = p.key.new_zeros if not weights.numel() else p.key.new_empty
    found = out(rows, *p.key.shape[1:])
    if weights.numel():
        grads = [None, found, *[None] * 5] if to_keys else [found, *[None] * 6]
        with torch.cuda.device_of(found):
            differentiate(p, grads, grad_score=weights.contiguous(), **_NOT_READ)
    return found
