"""DenseGATConv: GATConv on adjacency matrices."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor

from attn_core import Dense, Separable, attend
from gat.checks import check_probability
from gat.conv.drop_in import with_sparse_linears


class DenseGATConv(torch_geometric.nn.DenseGATConv):
    r"""Graph attention over a batch of adjacency matrices: GATConv, computed densely.

    .. math::
        x'_i = \sum_{j: A_{ij} \ne 0} \alpha_{ij} W x_j, \qquad
        \alpha_{ij} = \mathrm{softmax}_j\, \mathrm{LeakyReLU}(a_{src}^T W x_j + a_{dst}^T W x_i)

    Row i of A names whom node i attends to. Veličković et al., "Graph Attention Networks", ICLR
    2018. A drop-in for `torch_geometric.nn.DenseGATConv`: the same arguments, parameters,
    `state_dict` and numbers; a node that attends to nobody gets zeros (plus the bias) where theirs
    gives NaN.

    Args:
        in_channels: features per node; -1 to take it from the first call.
        out_channels: features per node and head that come out.
        heads: H, how many attentions run side by side. Default 1.
        concat: concatenate the heads (True, default) or average them.
        negative_slope: of LeakyReLU. Default 0.2.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        bias: learn an additive bias. Default True.

    Raises:
        ValueError: a dropout that is no probability.

    >>> conv = DenseGATConv(4, 8, heads=2)
    >>> conv(torch.randn(2, 3, 4), torch.ones(2, 3, 3)).shape
    torch.Size([2, 3, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        check_probability("dropout", dropout)
        super().__init__(in_channels, out_channels, heads, concat, negative_slope, dropout, bias)
        with_sparse_linears(self)

    def forward(
        self,
        x: Tensor,
        adj: Tensor,
        mask: Tensor | None = None,
        add_loop: bool = True,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Attend over the matrices.

        Args:
            x: `[B, N, in_channels]`, or `[N, in_channels]` of one graph.
            adj: `[B, N, N]`, or one matrix for all; an entry other than 0 is an edge.
            mask: `[B, N]`, False where a node is padding, whose output is 0. Default: none is.
            add_loop: let each node attend to itself. Default True.
            return_attention_weights: also return the weights. Default None.

        Returns:
            `[B, N, heads * out_channels]` (`[B, N, out_channels]` where heads are averaged); with
            return_attention_weights, that and the weights `[B, H, N, N]`.

        Raises:
            ValueError: an adj that does not fit x.
        """
        x = x.unsqueeze(0) if x.dim() == 2 else x
        adj = adj.unsqueeze(0) if adj.dim() == 2 else adj
        batch, nodes = x.shape[:2]
        if adj.shape[-2:] != (nodes, nodes) or adj.shape[0] not in (1, batch):
            raise ValueError(
                f"adj has shape {list(adj.shape)}; with x of shape {list(x.shape)} expected "
                f"[{batch}, {nodes}, {nodes}]"
            )
        exists = adj != 0
        if add_loop:
            exists = exists | torch.eye(nodes, dtype=torch.bool, device=adj.device)
        h = self.lin(x).view(batch, nodes, self.heads, self.out_channels)
        out, weights, _ = attend(
            (h * self.att_dst).sum(-1, keepdim=True),
            (h * self.att_src).sum(-1, keepdim=True),
            h,
            score=Separable(negative_slope=self.negative_slope),
            support=Dense(mask=exists),
            dropout=self.dropout if self.training else 0.0,
            need_weights=bool(return_attention_weights),
        )
        out = out.flatten(2) if self.concat else out.mean(dim=2)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        if mask is not None:
            out = out * mask.view(-1, nodes, 1).to(out.dtype)
        return out if weights is None else (out, weights)
