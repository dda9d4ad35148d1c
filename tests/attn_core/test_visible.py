"""What is wrong stays visible: NaN and +inf make their whole row NaN, -inf is no pair.

In every normaliser but Identity, which looks at no other score; over dense rows and over edges, by
every backend, and through `attend`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import (
    Additive,
    Dense,
    Dot,
    Edges,
    Entmax,
    Hard,
    Identity,
    Normalizer,
    Softmax,
    Sparsemax,
    attend,
    backend,
    weights,
)
from attn_core.backends import triton as kernels

NAN, INF = math.nan, math.inf
NORMALIZERS: dict[str, Normalizer] = {
    "softmax": Softmax(),
    "softmax, cooled": Softmax(0.5),
    "softmax, learned": Softmax(torch.tensor(0.7)),
    "sparsemax": Sparsemax(),
    "entmax 1.5": Entmax(),
    "entmax 1": Entmax(1),
    "entmax 0.7": Entmax(0.7),
    "entmax 1.3": Entmax(1.3),
    "entmax 3": Entmax(3.0),
    "entmax, learned": Entmax(torch.tensor(1.3)),
    "entmax, learned, 1": Entmax(torch.tensor(1.0)),
    "hard": Hard(),
    "hard, sampled": Hard("sample"),
    "hard, gumbel": Hard("gumbel"),
}
# Kind: the scores of a row of four. A long row has as many others that are finite.
ROWS: dict[str, list[float]] = {
    "NaN": [0.5, NAN, -1.0, -INF],
    "NaN first": [NAN, 2.0, 1.0, 0.0],
    "NaN alone": [NAN, -INF, -INF, -INF],
    "+inf": [0.5, INF, -1.0, -INF],
    "two of +inf": [INF, 0.0, INF, 1.0],
    "+inf and NaN": [INF, NAN, 0.0, 0.0],
    "-inf": [0.5, -INF, -1.0, 0.0],
    "all -inf": [-INF] * 4,
}
each_normalizer = pytest.mark.parametrize("name", NORMALIZERS)
each_kind = pytest.mark.parametrize("kind", ROWS)
each_backend = pytest.mark.parametrize("using", ["auto", "torch", "reference", "triton"])
# Longer than a block of the kernels, and than what one task of theirs reads
each_length = pytest.mark.parametrize("length", [4, 50, 5000])


@contextmanager
def computed_by(using: str) -> Iterator[None]:
    if using == "triton":
        pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")
    on_gpu = kernels.on_cpu() if using == "triton" else nullcontext()
    with on_gpu, backend("auto" if using == "triton" else using):
        yield


def row_of(kind: str, length: int = 4) -> Tensor:
    """A row with what is wrong at its end, where the largest of the others is known already."""
    return torch.cat([torch.linspace(-1, 1, length - 4), torch.tensor(ROWS[kind])])


def assert_rule(found: Tensor, scores: Tensor, limit: float = 1e-5) -> None:
    if scores.isnan().any() or (scores == INF).any():
        assert found.isnan().all()
        return
    assert not found[scores == -INF].any()
    total = 0.0 if (scores == -INF).all() else 1.0
    torch.testing.assert_close(found.sum(), torch.tensor(total).to(found), rtol=0, atol=limit)


@each_normalizer
@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dense_rows(name: str, kind: str, dtype: torch.dtype) -> None:
    scores = torch.stack([row_of(kind), torch.zeros(4)]).to(dtype)
    found = NORMALIZERS[name].dense(scores).double()
    assert_rule(found[0], row_of(kind), limit=max(1e-5, torch.finfo(dtype).eps))
    assert found[1].isfinite().all()  # no other row sees it


@each_normalizer
@each_length
@each_backend
def test_rows_of_edges(name: str, length: int, using: str) -> None:
    """A row of each kind; one without pairs, and two beside them that see nothing of it."""
    if using == "triton" and length > 50:
        pytest.skip("the interpreter is slow")
    rows, kinds = torch.stack([row_of(kind, length) for kind in ROWS]), len(ROWS)
    scores = torch.cat([rows.flatten(), torch.zeros(3)])
    index = torch.arange(kinds).repeat_interleave(length)
    index = torch.cat([index, torch.tensor([kinds, kinds + 2, kinds])])
    shuffled = torch.randperm(len(index))
    with computed_by(using):
        found = NORMALIZERS[name].segment(scores[shuffled, None], index[shuffled], kinds + 3)[:, 0]
    found = torch.empty_like(found).index_copy(0, shuffled, found)
    for row, of_row in zip(rows, found[:-3].view_as(rows), strict=True):
        assert_rule(of_row, row)
    for beside in ([-3, -1], [-2]):
        assert_rule(found[beside], torch.zeros(len(beside)))


@each_kind
def test_identity_looks_at_no_other_score(kind: str) -> None:
    row = row_of(kind)
    expected = torch.where(row == -INF, 0, row)
    torch.testing.assert_close(Identity().dense(row), expected, equal_nan=True)
    found = Identity().segment(row, torch.zeros(4, dtype=torch.int64), 1)
    torch.testing.assert_close(found, expected, equal_nan=True)


@each_normalizer
@each_kind
@pytest.mark.parametrize("using", ["auto", "torch", "reference"])
def test_attention_over_a_dense_support(name: str, kind: str, using: str) -> None:
    x, bias = torch.zeros(4, 1, 2), torch.stack([row_of(kind), torch.zeros(4)])
    given: Any = {"score": Dot(), "normalizer": NORMALIZERS[name], "support": Dense(), "bias": bias}
    with backend(using):
        result = attend(x[:2], x, x + 1, **given, need_weights=True)
        alone = attend(x[:2], x, x + 1, **given)
    assert result.weights is not None
    assert_rule(result.weights[0, 0], bias[0])
    wrong = bool(result.weights[0, 0].isnan().any())
    for output in (result.output, alone.output):
        assert output[0].isnan().all() if wrong else output[0].isfinite().all()
        assert output[1].isfinite().all()


@each_length
@pytest.mark.parametrize("kernel", ["dot", "leaky_relu", "gat"])
@each_backend
def test_the_fused_kernels(kernel: str, length: int, using: str) -> None:
    """Their output, their log-sum-exp, and the gradients of a row of each kind.

    Before them stands a query with two pairs that sees nothing of it, behind them one without.
    """
    if using == "triton" and length > 50:
        pytest.skip("the interpreter is slow")
    width = 1 if kernel == "gat" else 4
    rows, kinds = torch.stack([row_of(kind, length) for kind in ROWS]), len(ROWS)
    targets = torch.cat([torch.arange(kinds).repeat_interleave(length) + 1, torch.zeros(2).long()])
    num = len(targets)
    bias = torch.cat([rows.flatten(), torch.zeros(2)])[:, None].requires_grad_()
    key, query = torch.zeros(num, 1, width), torch.zeros(kinds + 2, 1, width)
    value = torch.ones(num, 1, 4, requires_grad=True)
    score = Dot() if kernel == "dot" else Additive(torch.ones(1, width), "leaky_relu")
    edges = Edges.from_edge_index(torch.stack([torch.arange(num), targets]), (num, kinds + 2))
    with computed_by(using):
        result = attend(
            query, key, value, score=score, support=edges, bias=bias, need_log_sum_exp=True,
            need_weights=True,
        )  # fmt: skip
        of_bias, of_value = torch.autograd.grad(result.output[:, 0, 0].sum(), [bias, value])
        alone = weights(query, key, score=score, support=edges, bias=bias)
    assert result.weights is not None and result.log_sum_exp is not None
    outputs, sums = result.output.detach()[:, 0, 0], result.log_sum_exp.detach()[:, 0]
    assert outputs[[0, -1]].tolist() == [1, 0] and sums[-1] == -INF
    for i, row in enumerate(rows):
        own = slice(i * length, (i + 1) * length)
        for found in (result.weights, alone):
            assert_rule(found.detach()[own, 0], row)
        wrong = bool(row.isnan().any() or (row == INF).any())
        empty = bool((row == -INF).all())
        expected = torch.tensor([NAN, NAN] if wrong else [float(not empty), row.logsumexp(0)])
        of_row = torch.stack([outputs[i + 1], sums[i + 1]])
        torch.testing.assert_close(of_row, expected, equal_nan=True)
        if wrong:
            assert of_bias[own].isnan().all() and of_value[own, 0, 0].isnan().all()
        else:
            torch.testing.assert_close(of_value[own, 0, 0], result.weights.detach()[own, 0])
            assert of_bias[own].isfinite().all()
    assert of_bias[-2:].isfinite().all() and of_value[-2:].isfinite().all()
