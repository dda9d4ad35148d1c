"""The attention networks of a benchmark of heterophilous graphs: GAT-sep, GT, GT-sep."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from attn_core import Edges, PendingEdges, ScaledDot, Separable, attend, linear
from attn_core.graph.read import is_sparse
from attn_core.supports.edges import edges_of
from gat.checks import check_probability
from gat.sparse import Linear

KINDS = ("GAT", "GAT-sep", "GT", "GT-sep")
NORMS = {"layer_norm": nn.LayerNorm, "batch_norm": nn.BatchNorm1d, None: nn.Identity}


class ResidualAttention(nn.Module):
    r"""Attention in residual blocks, in which a node may be kept apart from its neighbours.

    .. math::
        h \leftarrow h + \mathrm{block}(\mathrm{norm}(h))

    A block of "GAT" is a linear map, GAT's attention (whose scores look at all channels), and a
    feed-forward network; in "GAT-sep", without self-loops, that network sees the node itself beside
    what attention brings, so that the two do not blur where neighbours differ. "GT" and "GT-sep"
    have a Transformer's attention with an output projection, which in "GT-sep" sees the node
    itself too, and a feed-forward network as a block of its own. Before all blocks comes a linear
    map with dropout and GELU, after them a normalisation and a linear map.

    Platonov, Kuznedelev, Diskin, Babenko, Prokhorenkova, "A Critical Look at the Evaluation of GNNs
    under Heterophily: Are We Really Making Progress?", ICLR 2023.

    Args:
        in_channels: features per node.
        hidden_channels: of all heads together.
        num_layers: how many times a node attends.
        out_channels: what comes out per node.
        kind: "GAT", "GAT-sep" (default), "GT" or "GT-sep".
        heads: H. Default 8.
        dropout: of hidden numbers, in training. Default 0.2.
        norm: "layer_norm" (default), "batch_norm" or None.
        feed_forward: hidden width of the networks, as a multiple of hidden_channels. Default 1.

    Raises:
        ValueError: a kind or norm that is not known, hidden_channels that are no multiple of
            heads, a dropout that is no probability.

    >>> model = ResidualAttention(4, 8, 2, 3, kind="GT-sep", heads=2)
    >>> model(torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        *,
        kind: Literal["GAT", "GAT-sep", "GT", "GT-sep"] = "GAT-sep",
        heads: int = 8,
        dropout: float = 0.2,
        norm: Literal["layer_norm", "batch_norm"] | None = "layer_norm",
        feed_forward: int = 1,
    ) -> None:
        super().__init__()
        for name, given, known in (("kind", kind, KINDS), ("norm", norm, tuple(NORMS))):
            if given not in known:
                raise ValueError(
                    f"{name} is {given!r}; expected one of {', '.join(map(repr, known))}"
                )
        check_probability("dropout", dropout)
        if hidden_channels % heads:
            raise ValueError(
                f"hidden_channels is {hidden_channels}, which {heads} heads cannot share: give a "
                f"multiple of {heads}"
            )
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "out_channels": out_channels,
            "kind": kind,
            "heads": heads,
            "dropout": dropout,
            "norm": norm,
            "feed_forward": feed_forward,
        }
        self.kind = kind
        self.input = nn.Sequential(
            Linear(in_channels, hidden_channels), nn.Dropout(dropout), nn.GELU()
        )
        width, sep = hidden_channels, kind.endswith("-sep")
        blocks: list[nn.Module] = []
        for _ in range(num_layers):
            if kind.startswith("GAT"):
                blocks.append(_Additive(width, heads, dropout, feed_forward, sep))
            else:
                blocks += [
                    _Transformer(width, heads, dropout, sep),
                    _network(width, feed_forward * width, width, dropout),
                ]
        self.blocks = nn.ModuleList(blocks)
        self.norms = nn.ModuleList(NORMS[norm](width) for _ in blocks)
        self.output = nn.Sequential(NORMS[norm](width), nn.Linear(width, out_channels))

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        """The output of each node, `[N, out_channels]`.

        Args:
            x: `[N, in_channels]`, dense or `torch.sparse_csr`.
            edge_index: int64 `[2, E]` (sources, targets), another form of it, or
                `attn_core.Edges`. "GAT" and "GT" add self-loops.
        """
        support = _support(edge_index, x.shape[0], self_loops=not self.kind.endswith("-sep"))
        x = self.input(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            attends = isinstance(block, (_Additive, _Transformer))
            x = x + (block(norm(x), support) if attends else block(norm(x)))
        out: Tensor = self.output(x)
        return out


class _Additive(nn.Module):
    """GAT's attention, then a network that may see the node itself as well."""

    def __init__(
        self, width: int, heads: int, dropout: float, feed_forward: int, sep: bool
    ) -> None:
        super().__init__()
        self.heads, self.sep = heads, sep
        self.lin = nn.Linear(width, width)
        self.of_key = nn.Linear(width, heads)
        self.of_query = nn.Linear(width, heads, bias=False)
        self.network = _network(width * (1 + sep), feed_forward * width, width, dropout)

    def forward(self, x: Tensor, support: Edges | PendingEdges) -> Tensor:
        x = linear.apply(self.lin, x)
        query, key = self.of_query(x).unsqueeze(-1), self.of_key(x).unsqueeze(-1)  # [N, H, 1]
        value = x.unflatten(-1, (self.heads, -1))
        out = attend(query, key, value, score=Separable(), support=support).output.flatten(1)
        found: Tensor = self.network(torch.cat([x, out], dim=-1) if self.sep else out)
        return found


class _Transformer(nn.Module):
    """Scaled dot products, then a map that may see the node itself as well."""

    def __init__(self, width: int, heads: int, dropout: float, sep: bool) -> None:
        super().__init__()
        self.heads, self.sep = heads, sep
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.lin = nn.Linear(width * (1 + sep), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, support: Edges | PendingEdges) -> Tensor:
        query, key, value = (
            linear.apply(lin, x).unflatten(-1, (self.heads, -1))
            for lin in (self.query, self.key, self.value)
        )
        out = attend(query, key, value, score=ScaledDot(), support=support).output.flatten(1)
        out = torch.cat([x, out], dim=-1) if self.sep else out
        found: Tensor = self.dropout(linear.apply(self.lin, out))
        return found


def _support(edge_index: Any, nodes: int, self_loops: bool) -> Edges | PendingEdges:
    if isinstance(edge_index, Edges):
        return edge_index.with_self_loops() if self_loops else edge_index
    if is_sparse(edge_index):
        return edges_of(edge_index, nodes, nodes, self_loops)
    return PendingEdges(edge_index, nodes, nodes, self_loops)


def _network(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.Dropout(dropout), nn.GELU(), nn.Linear(hidden, outputs),
        nn.Dropout(dropout),
    )  # fmt: skip
