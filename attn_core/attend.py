"""Attention in three steps: score, normalise, aggregate.

`attend` is the whole idea of this library: every layer of `sequence_attn` and of `gat` is a few
projections around one call of it. `attn_core.reference` is its definition, on one screen;
`attn_core.ops` computes it by the fastest implementation that serves the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from attn_core import compiled, ops
from attn_core.batched import fold
from attn_core.call import Attended, Call
from attn_core.normalizers import Hard, HardLogProb, Normalizer, Softmax
from attn_core.scores import Score
from attn_core.supports.base import Support
from attn_core.transforms import apart, is_autocast

softmax = Softmax()


def attend(
    query: Tensor | None,
    key: Tensor,
    value: Tensor,
    *,
    score: Score,
    normalizer: Normalizer = softmax,
    support: Support,
    bias: Tensor | None = None,
    pair_key: Tensor | None = None,
    pair_value: Tensor | None = None,
    dropout: float = 0.0,
    need_weights: bool | Tensor = False,
    need_log_sum_exp: bool = False,
) -> Attended:
    """Attend: `output_i = Σ_j weight_ij value_j`, with `weight_i = normalizer(score(q_i, k_j))`.

    One layout serves sequences `[B, T, H, D]` and graphs `[N, H, D]`: `...` stands for any batch
    dimensions, T for positions or nodes, H for heads, D for channels per head. A batch over edges,
    `[B, N, H, D]`, is many states of one graph, which is sorted once.

    Args:
        query: `[..., Tq, H, D]`. None for additive scores of the key alone; over a dense support
            there is then one query.
        key: `[..., Tk, H, D]`.
        value: `[..., Tk, H, Dv]`.
        score: how a query matches a key (`attn_core.scores`).
        normalizer: how scores become weights (`attn_core.normalizers`). Default softmax.
        support: which pairs exist (`attn_core.supports`).
        bias: one number per pair, added to the score: broadcasts to `[..., H, Tq, Tk]`, or is
            `[..., E, H]`, `[..., E, 1]` or `[E]` over edges. Default: none.
        pair_key: one vector per pair, added to the key inside the score: broadcasts to
            `[..., Tq, Tk, H, D]`, or is `[..., E, H, D]` or `[..., E, 1, D]`. Default: none.
        pair_value: one vector per pair, added to the value, likewise. Default: none.
        dropout: the probability with which a weight is dropped, in [0, 1]. Default 0.
        need_weights: return the weights as well, or, over edges, those of some queries alone:
            integers `[n]` or bool `[Nq]`; `support.of_queries` tells of which pairs. Default False.
        need_log_sum_exp: return the log-sum-exp of a softmax even where it costs something.
            Default False.

    Returns:
        Attended(output, weights, log_sum_exp). A query without any pair has zeros for its output
        and weights.

    Raises:
        ValueError, TypeError: an argument that does not fit the others.

    >>> from attn_core import Dense, Edges, ScaledDot
    >>> x = torch.eye(3)[:, None]  # three tokens, one head, three channels
    >>> triangle = Edges.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 0]]))
    >>> attend(x, x, x, score=ScaledDot(), support=triangle).output[1]  # 1 attends to 0
    tensor([[1., 0., 0.]])
    >>> attend(x, x, x, score=ScaledDot(), support=Dense(), need_weights=True).weights.sum(-1)
    tensor([[1.0000, 1.0000, 1.0000]])
    """
    chosen = need_weights if isinstance(need_weights, Tensor) else None
    needed = chosen is not None or bool(need_weights)
    call = Call(
        score, normalizer, support, query, key, value, bias, pair_key, pair_value, dropout, needed,
        need_log_sum_exp,
    )  # fmt: skip
    call.check()
    autocast = is_autocast(key.device.type)
    dtype = _output_dtype(value) if autocast else value.dtype
    if value.dtype not in (dtype, torch.float32):  # kernels would round to that of the values first
        call = replace(call, value=value.float())
    with _without_autocast(key) if autocast else _NOTHING:
        call = call.prepared()
        found: tuple[Tensor | None, ...]
        found = _of_states(call, chosen) if call.batch else _attended(call, chosen)
    output, weights, log_sum_exp = found
    output, weights = (None if x is None else x.to(dtype) for x in (output, weights))
    return Attended(*apart(output, weights, log_sum_exp))


def _of_states(call: Call, chosen: Tensor | None) -> tuple[Tensor | None, ...]:
    """A prepared call for many states of one graph: together, one by one, or as more heads."""
    if not call.goes_by_states:
        each = [_attended(call.folded(), chosen)]
    else:
        stacked = call.stacked()
        if not call.need_weights and (together := ops.attend_states(stacked)) is not None:
            return tuple(x if x is None else x.unflatten(0, call.batch) for x in together)
        each = [_attended(state, chosen) for state in stacked.states()]
    return tuple(call.joined(list(x)) for x in zip(*each, strict=True))


def _attended(call: Call, chosen: Tensor | None) -> Attended:
    """A prepared call by the fastest way, with what was asked for and nothing else."""
    output, weights, log_sum_exp = ops.attend(call)
    if not call.need_weights:
        return Attended(output, None, log_sum_exp)
    if chosen is not None:
        call, positions = call.of_queries(chosen)
        weights = None if weights is None else weights.index_select(0, positions)
    if weights is None:
        weights = ops.weights(call)  # of whole rows, which have their own maximum and sum
    return Attended(output, weights, log_sum_exp)


def weights(
    query: Tensor | None,
    key: Tensor,
    *,
    score: Score,
    normalizer: Normalizer = softmax,
    support: Support,
    bias: Tensor | None = None,
    pair_key: Tensor | None = None,
    log_sum_exp: Tensor | None = None,
    queries: Tensor | None = None,
) -> Tensor:
    """The attention weights alone, without values.

    Args:
        query, key, score, normalizer, support, bias, pair_key: as in `attend`.
        queries: over edges, only the weights of these queries, whose pairs alone are looked at:
            integers `[n]` or bool `[Nq]`. `support.of_queries(queries)` tells which pairs. Default:
            all.
        log_sum_exp: what `attend` returned for the whole support. `support` may then hold any of
            its pairs, and their weights come out as they were among all the others. Softmax only.
            The weights are right to about `ε |log_sum_exp|`, with the ε of its dtype (1e-7 in
            float32), and at most 1: where scores are in the thousands, ask for whole rows instead,
            by `queries`, whose weights are right whatever the scale.

    Returns:
        `[..., H, Tq, Tk]`, or `[..., E, H]` over edges, with gradients.

    Raises:
        ValueError, TypeError, IndexError: an argument that does not fit the others.

    >>> from attn_core import Edges, Separable
    >>> x = torch.zeros(3, 1, 1)
    >>> star = Edges.from_edge_index(torch.tensor([[1, 2], [0, 0]]), size=3)
    >>> result = attend(x, x, x, score=Separable(), support=star)
    >>> one = Edges.from_edge_index(torch.tensor([[1], [0]]), size=3)
    >>> weights(x, x, score=Separable(), support=one, log_sum_exp=result.log_sum_exp)
    tensor([[0.5000]])
    >>> weights(x, x, score=Separable(), support=star, queries=torch.tensor([0]))
    tensor([[0.5000],
            [0.5000]])
    """
    if log_sum_exp is not None and not isinstance(normalizer, Softmax):
        raise ValueError(
            f"log_sum_exp belongs to Softmax, but normalizer is {type(normalizer).__name__}"
        )
    call = Call(score, normalizer, support, query, key, key, bias, pair_key, need_weights=True)
    call.check()
    dtype = _output_dtype(key)
    with _without_autocast(key):
        whole = call.prepared()
        call = whole.folded()
        if queries is not None:
            call, _ = call.of_queries(queries)
        if log_sum_exp is not None and whole.batch:
            log_sum_exp = fold(log_sum_exp, whole.batch)
        found = whole.joined([ops.weights(call, log_sum_exp)])
        assert found is not None
        return apart(found.to(dtype))[0]


def logits(
    query: Tensor | None,
    key: Tensor,
    *,
    score: Score,
    support: Support,
    bias: Tensor | None = None,
    pair_key: Tensor | None = None,
) -> Tensor:
    """The scores of all pairs, before any normaliser.

    What a layer makes of several scores (a gate, an activation of a product) goes back into
    `attend` as its `bias`, beside the score of a key of zeros.

    Args:
        query, key, score, support, bias, pair_key: as in `attend`.

    Returns:
        `[..., H, Tq, Tk]`, or `[..., E, H]` over edges, float32 at least, with gradients; -inf
        where a pair does not exist.

    Raises:
        ValueError, TypeError: an argument that does not fit the others.

    >>> from attn_core import Dot, Edges
    >>> x = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # two nodes, one head
    >>> logits(x, x, score=Dot(), support=Edges(torch.tensor([[0, 1], [1, 1]])))
    tensor([[11.],
            [25.]])
    """
    call = Call(score, softmax, support, query, key, key, bias, pair_key)
    call.check()
    with _without_autocast(key):
        call = call.prepared()
        _, scores, _ = ops.steps().scored(call.folded().ungrouped())
        found = call.joined([scores])
        assert found is not None
        return apart(found)[0]


def hard_log_prob(
    query: Tensor | None,
    key: Tensor,
    drawn: Tensor,
    *,
    score: Score,
    support: Support,
    bias: Tensor | None = None,
    pair_key: Tensor | None = None,
) -> HardLogProb:
    """The log-probability of the choices of hard attention, and their entropy.

    `log p_ij = score(q_i, k_j) - log Σ_j' exp score(q_i, k_j')` for the key j that query i drew:
    what REINFORCE trains the scores with (Williams, 1992; Xu et al., 2015). The scores are computed
    once more, this time with gradients.

    Args:
        query, key, score, support, bias, pair_key: as in the call of `attend` that drew.
        drawn: the weights that it returned, with `normalizer=Hard("sample")` or `Hard("gumbel")`.

    Returns:
        HardLogProb(log_prob, entropy), `[..., H, Tq]` or `[..., Nq, H]`, float32 at least, with
        gradients; both 0 for a query without any pair.

    Raises:
        ValueError, TypeError: an argument that does not fit the others.

    >>> from attn_core import Dense, Hard, ScaledDot
    >>> x = torch.zeros(4, 1, 1)
    >>> given = dict(score=ScaledDot(), support=Dense(causal=True))
    >>> drawn = attend(x, x, x, normalizer=Hard("sample"), need_weights=True, **given).weights
    >>> hard_log_prob(x, x, drawn, **given).log_prob.exp()
    tensor([[1.0000, 0.5000, 0.3333, 0.2500]])
    """
    hard = Hard("sample")
    call = Call(score, hard, support, query, key, key, bias, pair_key)
    call.check()
    with _without_autocast(key):
        call = call.prepared()
        _, scores, rows = ops.steps().scored(call.folded().ungrouped())
        drawn = fold(drawn, call.batch) if call.batch else drawn
        found = (call.joined([x]) for x in hard.log_prob(scores, drawn, rows))
        return HardLogProb(*found)  # type: ignore[arg-type]


def _output_dtype(like: Tensor) -> torch.dtype:
    """The dtype of a tensor, or autocast's, which leaves float64 alone."""
    device = like.device.type
    if is_autocast(device) and like.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return like.dtype


_NOTHING = nullcontext()


def _without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Inside, dtypes are chosen here alone."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if is_autocast(device) else _NOTHING


def scatter_softmax(scores: Tensor, index: Tensor, num: int | None = None) -> Tensor:
    """Softmax over groups: entry e competes with the entries of the same group `index[e]`.

    Args:
        scores: `[E, ...]`.
        index: int64 `[E]`, the group of each entry, in any order.
        num: the number of groups. Default: the largest index plus 1.

    Returns:
        Weights of the shape and dtype of `scores`; entries of -inf get 0, and so does a group
        that has no others.

    Raises:
        ValueError, IndexError: an index of another length, or outside 0 … num - 1.

    >>> scatter_softmax(torch.tensor([0.0, 0.0, 5.0]), torch.tensor([2, 2, 0]))
    tensor([0.5000, 0.5000, 1.0000])
    """
    return softmax.segment(scores, index, num)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the implementation of `attend` inside a `with` block, for the whole process.

    Args:
        name: "auto" takes the fastest one that serves the call, "torch" does without compiled
            kernels, "reference" always takes the definition in plain torch (differentiable any
            number of times).

    Raises:
        ValueError: another name.

    >>> with backend("reference"):
    ...     pass
    """
    before = compiled.choose(name)
    try:
        yield
    finally:
        compiled.choose(before)
