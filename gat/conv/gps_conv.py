"""GPSConv: message passing in a graph beside attention between all of its nodes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor, nn
from torch_geometric.utils import to_dense_batch

from attn_core import Dense, ScaledDot, attend
from gat.conv.drop_in import dtype_of


class GPSConv(torch_geometric.nn.GPSConv):
    r"""A layer of message passing, a Transformer's attention over all nodes, and a small network.

    .. math::
        X' = \mathrm{MLP}(X_{local} + X_{global})\ (+\ \text{residual}), \qquad
        X_{local} = \mathrm{Norm}(\mathrm{Conv}(X, E) + X), \qquad
        X_{global} = \mathrm{Norm}(\mathrm{Attention}(X) + X)

    Rampášek, Galkin, Dwivedi, Luu, Wolf, Beaini, "Recipe for a General, Powerful, Scalable Graph
    Transformer", NeurIPS 2022. A drop-in for `torch_geometric.nn.GPSConv`: the same arguments,
    parameters, `state_dict` and numbers. The global part is `attn_core.attend`: over one graph
    without any padding or mask, so that torch's kernel for long sequences serves it. What `attend`
    has no part in (`attn_type="performer"`, extra keys by `attn_kwargs`) is torch_geometric's own.

    Args:
        channels: features per node, which come out too.
        conv: the layer of message passing, one of `gat`'s perhaps; None: there is none.
        heads: H, how many attentions run side by side. Default 1.
        dropout: the probability with which a hidden number is dropped in training. Default 0.
        act, act_kwargs: the activation of the small network. Default "relu".
        norm, norm_kwargs: the normalisation. Default "batch_norm".
        attn_type: "multihead" (default) or "performer".
        attn_kwargs: of `torch.nn.MultiheadAttention`, such as `dropout` of the weights.

    Raises:
        ValueError: an attn_type that is not known.

    >>> import gat, torch
    >>> conv = GPSConv(8, gat.GATConv(8, 8), heads=2)
    >>> conv(torch.randn(3, 8), torch.tensor([[0, 1, 2], [1, 2, 0]])).shape
    torch.Size([3, 8])
    """

    def forward(
        self, x: Tensor, edge_index: Any, batch: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Pass messages, attend to all nodes of the graph, and join the two.

        Args:
            x: `[N, channels]`.
            edge_index: the edges, in any form that `conv` takes.
            batch: `[N]`, the graph of each node, in order; nodes attend inside of their graph.
                Default: all are of one.
            **kwargs: what else `conv` takes.

        Returns:
            `[N, channels]`.
        """
        if not _is_plain(self.attn):
            out: Tensor = super().forward(x, edge_index, batch, **kwargs)
            return out
        hidden = []
        if self.conv is not None:
            local = self._dropped(self.conv(x, edge_index, **kwargs)) + x
            hidden.append(self._normed(self.norm1, local, batch))
        over_all = self._dropped(self._attend(x, batch)) + x
        hidden.append(self._normed(self.norm2, over_all, batch))
        joined = sum(hidden[1:], hidden[0])
        return self._normed(self.norm3, joined + self.mlp(joined), batch)

    def _attend(self, x: Tensor, batch: Tensor | None) -> Tensor:
        """What each node makes of all nodes of its graph, `[N, channels]`."""
        attn, lengths, mask = self.attn, None, None
        if batch is None:
            dense = x.unsqueeze(0)
        else:
            dense, mask = to_dense_batch(x, batch)
            lengths = mask.sum(1)
        projected = F.linear(dense, attn.in_proj_weight, attn.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).unbind(-3)  # [B, T, H, D]
        out = attend(
            query, key, value, score=ScaledDot(), support=Dense(lengths=lengths),
            dropout=attn.dropout if self.training else 0.0,
        ).output  # fmt: skip
        out = out.flatten(-2)
        out = out.squeeze(0) if mask is None else out[mask]
        return attn.out_proj(out.to(dtype_of(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, p=self.dropout, training=self.training)

    def _normed(self, norm: Any, x: Tensor, batch: Tensor | None) -> Tensor:
        if norm is None:
            return x
        normed: Tensor = norm(x, batch=batch) if self.norm_with_batch else norm(x)
        return normed


def _is_plain(attn: Any) -> bool:
    """Whether this is attention that `attend` computes, and nobody watches or replaced it."""
    return (
        type(attn) is nn.MultiheadAttention
        and attn.in_proj_weight is not None
        and attn.bias_k is None
        and not attn.add_zero_attn
        and attn.batch_first
        and not (attn._forward_hooks or attn._forward_pre_hooks)
        and "forward" not in attn.__dict__
    )
