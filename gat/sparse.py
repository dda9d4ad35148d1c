"""Sparse node features: linear maps of them, and dropout of what they store."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch_geometric.nn.dense.linear
from torch import Tensor, nn

from attn_core.backends.cpu import pairs
from attn_core.graph.known import keep, known
from attn_core.graph.read import Order, row_pointer
from attn_core.linear import linear as dense_linear
from attn_core.transforms import nobody_watches
from gat.checks import check_probability
from gat.dropout import drop


class Dropout(nn.Dropout):
    r"""`torch.nn.Dropout`, drawn faster on CPUs and for sparse matrices too.

    .. math::
        x'_i = \frac{m_i}{1 - p} x_i, \qquad m_i \sim \mathrm{Bernoulli}(1 - p)

    (Srivastava et al., 2014.) The hash that drops attention weights draws, from a seed that comes
    from torch's generator, and draws again in the backward pass: no mask is kept.
    `gat.replace(model, dropout=True)` puts it in the place of torch's.

    Args:
        p: the probability with which a number is dropped in training. Default 0.5.
        inplace: write the result into x, if that is dense. Default False.

    Raises:
        ValueError: p is not in [0, 1].

    >>> Dropout(p=1.0)(torch.ones(3))
    tensor([0., 0., 0.])
    >>> Dropout(p=1.0)(torch.eye(2).to_sparse_csr()).values()
    tensor([0., 0.])
    """

    rows: Tensor | None = None
    """The numbers of the nodes in a larger graph, where x has some of its rows (`gat.distributed`):
    they are then dropped as they are there."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        check_probability("p", p)
        super().__init__(p, inplace)

    def forward(self, x: Tensor) -> Tensor:
        """x with some of its numbers zero and the others enlarged.

        Args:
            x: dense, of any shape and dtype that `torch.nn.Dropout` takes; or `[N, F]`, sparse in
                any layout of rows and columns.

        Returns:
            As x; of a sparse one a `torch.sparse_csr` matrix that stores zeros where values were
            dropped. Outside training, x itself.

        Raises:
            TypeError: x has blocks.
        """
        if not self.training or self.p == 0:
            return x
        if x.layout != torch.strided:
            return _drop_stored(_as_csr(x), self.p)
        dropped = drop(x, self.p, self.rows)
        return x.copy_(dropped) if self.inplace else dropped


class SparseDropout(Dropout):
    r"""Dropout that draws a number for each stored value of a sparse matrix, not for each entry.

    .. math::
        x'_{nf} = \frac{m_{nf}}{1 - p} x_{nf}, \qquad m_{nf} \sim \mathrm{Bernoulli}(1 - p)

    What is zero stays zero whatever is drawn for it, so this is the dropout of a dense matrix, at
    the cost of the values that are there: in Cora, 1.3 % of the bag of words. It is `Dropout` by
    another name.

    Args:
        p: the probability with which a value is dropped in training. Default 0.5.

    Raises:
        ValueError: p is not in [0, 1].

    >>> x = torch.eye(3).to_sparse_csr()
    >>> SparseDropout(p=1.0)(x).values()
    tensor([0., 0., 0.])
    >>> SparseDropout(p=1.0).eval()(x) is x
    True
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)


@torch.compiler.disable
def _drop_stored(x: Tensor, p: float) -> Tensor:
    out = _csr(x.crow_indices(), x.col_indices(), drop(x.values(), p), x.shape)
    keep(out, ("places",), _places_of(x))  # the same ones are filled
    return out


class Linear(torch_geometric.nn.dense.linear.Linear):
    """torch_geometric's linear map, whose input may be sparse."""

    def reset_parameters(self) -> None:
        """Draw the parameters anew; without features the bias is 0, not what was in memory."""
        super().reset_parameters()
        if self.in_channels == 0 and self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x Wᵀ + b`, see `linear`."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b`, where x may be sparse; it is never made dense.

    The gradient of the weight is the product of xᵀ with that of the output. Which values stand in
    which row of xᵀ is found out once for each x, and holds for what SparseDropout makes of it.

    Args:
        x: `[N, F]`, sparse in any layout (`torch.sparse_csr` needs no conversion), or dense.
        weight: `[O, F]`.
        bias: `[O]`. Default None.

    Returns:
        `[N, O]`, dense; of half types computed in float32.

    Raises:
        TypeError: x has blocks.

    >>> x = torch.tensor([[0.0, 2.0], [1.0, 0.0]]).to_sparse_csr()
    >>> linear(x, torch.tensor([[1.0, 10.0]]))
    tensor([[20.],
            [ 1.]])
    """
    return (dense_linear if x.layout == torch.strided else _sparse_linear)(x, weight, bias)


@torch.compiler.disable
def _sparse_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    device = x.device.type
    dtype = weight.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    # CPUs multiply no sparse matrices of half types
    exact = torch.promote_types(dtype, torch.float32)
    with torch.autocast(device, enabled=False):
        x, dense = _as_csr(x).to(exact), weight.t().to(exact)
        out = x @ dense if x.requires_grad else _Product.apply(x, dense, _places_of(x), False)
        out = out.to(dtype)
        return out if bias is None else out + bias.to(dtype)


class _Product(torch.autograd.Function):
    """A sparse matrix without gradient, or its transpose, times a dense one."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, dense: Tensor, places: _Places, turned: bool) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.save_for_forward(matrix)
        ctx.places, ctx.turned = places, turned
        return _multiply(matrix, dense, places, turned)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (matrix,) = ctx.saved_tensors
        return None, _Product.apply(matrix, grads[0], ctx.places, not ctx.turned), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (matrix,) = ctx.saved_tensors
        return _multiply(matrix, tangents[1], ctx.places, ctx.turned)


def _multiply(matrix: Tensor, dense: Tensor, places: _Places, turned: bool) -> Tensor:
    values = matrix.values()
    if pairs.serves_rows(dense) and dense.shape[1] % 4 == 0 and nobody_watches(values, dense):
        side = places.by_column if turned else places.by_row
        return pairs.product(values, side.order, side.other, dense)
    if not turned:
        return matrix @ dense
    side = places.by_column
    values = values.index_select(0, side.order.permutation)
    return _csr(side.order.pointer, side.other.long(), values, matrix.shape[::-1]) @ dense


class _Side(NamedTuple):
    """The values of a matrix sorted by one of their ends."""

    order: Order
    other: Tensor  # the other end of each, int32


class _Places:
    """Where the values of a CSR matrix stand: its indices, and what is found from them."""

    def __init__(self, crow: Tensor, col: Tensor, shape: tuple[int, ...]) -> None:
        self.crow, self.col, self.shape = crow.clone(), col.clone(), shape

    def belong_to(self, crow: Tensor, col: Tensor) -> bool:
        """Whether these are still the indices."""
        return torch.equal(self.crow, crow) and torch.equal(self.col, col)

    @cached_property
    def by_row(self) -> _Side:
        count = torch.arange(len(self.col), device=self.col.device)
        return _Side(Order(self.crow.long(), count), self.col.int())

    @cached_property
    def by_column(self) -> _Side:
        rows, columns = self.shape
        row = torch.arange(rows, dtype=torch.int32, device=self.col.device)
        row = row.repeat_interleave(self.crow.diff())
        order = torch.argsort(self.col, stable=True)
        return _Side(Order(row_pointer(self.col.long(), columns), order), row[order])


def _places_of(x: Tensor) -> _Places:
    crow, col = x.crow_indices(), x.col_indices()
    found = known(x, ("places",), lambda: _Places(crow, col, x.shape))
    if not found.belong_to(crow, col):  # an edit of the indices does not count as one of the matrix
        found = _Places(crow, col, x.shape)
        keep(x, ("places",), found)
    return found


def _as_csr(x: Tensor) -> Tensor:
    """x with its rows compressed; the very same where they are."""
    if x.layout not in (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo):
        raise TypeError(f"x has layout {x.layout}; give it as torch.sparse_csr, or dense")
    return x.to_sparse_csr()


def _csr(crow: Tensor, col: Tensor, values: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.sparse_csr_tensor(
        crow, col, values, size, device=values.device, check_invariants=False
    )
