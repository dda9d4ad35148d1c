"""RGATConv: attention over the relations of a graph."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor

from attn_core import Edges, Identity, PendingEdges, scatter_softmax
from attn_core.graph.known import known
from gat.checks import check_probability
from gat.conv.base import AttentionConv, check_features, trusted
from gat.conv.drop_in import attend_by, check_choice, listed, plain_index
from gat.edge_attention import EdgeAttention
from gat.sparse import linear

_MECHANISMS = "across-relation", "within-relation"
_MODES = "additive-self-attention", "multiplicative-self-attention"
_MODS = None, "additive", "scaled", "f-additive", "f-scaled"


@trusted
class RGATConv(AttentionConv, torch_geometric.nn.RGATConv):
    r"""Graph attention in which each relation has a linear map of its own.

    .. math::
        x'_i = \sum_{(j, r) \in N(i)} \alpha^{(r)}_{ij} W_r x_j, \qquad
        \alpha^{(r)}_{ij} = \mathrm{softmax}\, e^{(r)}_{ij}

    with :math:`e = \mathrm{LeakyReLU}(q_i + k_j + u_{ij})` ("additive-self-attention") or
    :math:`e = q_i k_j u_{ij}` ("multiplicative-self-attention"), where :math:`q_i = W_r x_i Q`,
    :math:`k_j = W_r x_j K` and u is made of the features of the edge. The softmax is over all edges
    of a node ("across-relation") or over those of one relation ("within-relation").

    Busbridge, Sherburn, Cavallo, Hammerla, "Relational Graph Attention Networks", 2019; `mod` from
    Zhang, Xie, "Improving Attention Mechanism in Graph Neural Networks via Cardinality
    Preservation", IJCAI 2020. A drop-in for `torch_geometric.nn.RGATConv`: the same arguments,
    parameters, `state_dict` and numbers. Where theirs multiplies a matrix per edge, a row per node
    and relation is made here, once.

    Args:
        in_channels: features per node.
        out_channels: features per node and head that come out.
        num_relations: R, how many relations there are.
        num_bases: make the maps of the relations out of so many. Default None: each is free.
        num_blocks: give the maps so many blocks on the diagonal, and zeros elsewhere. Default None.
        mod: how the number of edges gets into the output: "additive", "scaled", "f-additive",
            "f-scaled", or None (default).
        attention_mechanism: "across-relation" (default) or "within-relation".
        attention_mode: "additive-self-attention" (default) or "multiplicative-self-attention".
        heads: H, how many attentions run side by side. Default 1.
        dim: how many numbers q and k are, of which each has a softmax; more than one in the
            multiplicative mode alone. Default 1.
        concat: concatenate the heads (True, default) or average them.
        negative_slope: of LeakyReLU. Default 0.2.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        edge_dim: features per edge. Default None: edges have none.
        bias: learn an additive bias. Default True.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `aggr` or `flow`.

    Raises:
        ValueError: a mechanism, mode or mod that is not known; a dropout that is no probability;
            arguments that exclude each other (as in torch_geometric).

    >>> conv = RGATConv(4, 8, num_relations=2, heads=2)
    >>> edge_index, edge_type = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0, 1, 1])
    >>> conv(torch.randn(3, 4), edge_index, edge_type).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_relations: int,
        num_bases: int | None = None,
        num_blocks: int | None = None,
        mod: str | None = None,
        attention_mechanism: str = "across-relation",
        attention_mode: str = "additive-self-attention",
        heads: int = 1,
        dim: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        check_choice("attention_mechanism", attention_mechanism, _MECHANISMS)
        check_choice("attention_mode", attention_mode, _MODES)
        check_choice("mod", mod, _MODS)
        check_probability("dropout", dropout)
        channels = {"in_channels": in_channels, "heads * out_channels": heads * out_channels}
        for name, number in channels.items():
            if num_blocks is not None and number % num_blocks:
                raise ValueError(
                    f"{name} is {number}, which num_blocks={num_blocks} does not divide"
                )
        super().__init__(
            in_channels, out_channels, num_relations, num_bases, num_blocks, mod,
            attention_mechanism, attention_mode, heads, dim, concat, negative_slope, dropout,
            edge_dim, bias, **kwargs,
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Draw all parameters anew; torch_geometric leaves `l2`, of mod="scaled", as memory was."""
        super().reset_parameters()
        torch.nn.init.constant_(self.l2, 1 / self.out_channels)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_type: Tensor | None = None,
        edge_attr: Tensor | None = None,
        size: Any = None,
        return_attention_weights: bool | Tensor | None = None,
    ) -> Any:
        """Attend over the edges.

        Args:
            x: `[N, in_channels]`, or a pair of source and target features.
            edge_index: int64 `[2, E]` (sources, targets) or `attn_core.Edges`; a sparse matrix, in
                which torch_geometric keeps the relations, is served by its own steps.
            edge_type: integers `[E]`, the relation of each edge, 0 to R - 1.
            edge_attr: `[E, edge_dim]` or `[E]`.
            size: the numbers of sources and targets, checked against x. Default None.
            return_attention_weights: also return the weights, with their edges, of all edges (True,
                and, as in torch_geometric, False), or of those into some targets. Default None.

        Returns:
            `[N, heads * dim * out_channels]` (`[N, dim * out_channels]` where heads are averaged);
            with return_attention_weights, that and `EdgeAttention(edge_index [2, E], weights
            [E, heads * dim])`.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        asked = self.weights_for(return_attention_weights)
        dense = isinstance(edge_index, Edges) or (
            isinstance(edge_index, Tensor) and edge_index.layout == torch.strided
        )
        x_src, x_dst = (x, x) if isinstance(x, Tensor) else x
        for side in (x_src, x_dst):
            check_features(type(self).__name__, "x", side)
            if side.shape[1] != self.in_channels:
                raise ValueError(
                    f"x has shape {list(side.shape)}, but RGATConv was built with in_channels="
                    f"{self.in_channels}: give each node {self.in_channels} features"
                )
        x, first = self._sources(x, edge_index)
        if isinstance(x, Tensor):
            x_src, x_dst = x, x if first is None else x[:first]
        if not (self._is_fused() and dense):
            # propagate_type: (x: Tensor, edge_type: Tensor | None, edge_attr: Tensor | None)
            given = (
                x if first is None else (x_src, x_dst),
                plain_index(edge_index),
                edge_type,
                edge_attr,
                size,
            )
            if asked is False:
                return super().forward(*given)
            out, attention = super().forward(*given, True)
            if isinstance(asked, Tensor) and isinstance(attention, tuple):
                support = self._support(edge_index, x_src, x_dst.shape[0], False)
                pairs, alpha = attention
                attention = self._chosen(pairs, alpha, support, asked)
            return out, EdgeAttention(*attention) if isinstance(attention, tuple) else attention

        support = self._support(edge_index, x_src, x_dst.shape[0], self_loops=False)
        self._check(support, edge_type, edge_attr, size)
        assert edge_type is not None
        pairs, weight = listed(support), self._weight()
        scores = self._scores(x_src, x_dst, pairs, edge_type, edge_attr, weight)
        groups, num = pairs.query_index, pairs.num_queries
        if self.attention_mechanism == "within-relation":
            groups, num = edge_type * num + groups, num * self.num_relations
        value, of_relations = self._values(x_src, support, edge_type, weight)
        simple = self.attention_mechanism == "across-relation" and self.mod != "f-additive"
        dropout = self.dropout if self.training else 0.0
        alpha = None if simple and asked is False else scatter_softmax(scores, groups, num)
        if simple:
            out = attend_by(scores, value, of_relations, dropout=dropout).output
        else:
            assert alpha is not None
            shares = torch.where(alpha > 0, alpha + 1, alpha) if self.mod == "f-additive" else alpha
            out = attend_by(shares, value, of_relations, Identity(), dropout=dropout).output
        out = self._preserve_cardinality(out, value, of_relations, pairs, scores)
        out = out.unflatten(1, (self.heads, self.dim))
        out = out.flatten(1) if self.concat else out.mean(dim=1).flatten(1)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        if asked is False:
            return out
        assert alpha is not None
        return out, EdgeAttention(*self._chosen(pairs.pairs.clone(), alpha, support, asked))

    def weights_for(self, asked: bool | Tensor | None) -> bool | Tensor:
        """As in torch_geometric, forward returns a tuple for False too in this layer."""
        return isinstance(asked, bool) or super().weights_for(asked)

    def _check(self, support: Any, edge_type: Any, edge_attr: Tensor | None, size: Any) -> None:
        edges, sizes = support.num_rows, (support.num_keys, support.num_queries)
        if size is not None and tuple(size) != sizes:
            raise ValueError(f"size is {tuple(size)}, but x has {sizes} sources and targets")
        if not isinstance(edge_type, Tensor) or edge_type.shape != (edges,):
            given = edge_type if edge_type is None else list(edge_type.shape)
            raise ValueError(
                f"edge_type is {given}; expected integers [{edges}], the relation of each edge"
            )
        if edge_type.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"edge_type has dtype {edge_type.dtype}; convert it with .long()")
        if not torch.compiler.is_compiling() and edges:
            low, high = (int(x) for x in torch.aminmax(edge_type))
            if low < 0 or high >= self.num_relations:
                raise IndexError(
                    f"edge_type has the entry {low if low < 0 else high}; expected 0 to "
                    f"{self.num_relations - 1}, as num_relations is {self.num_relations}"
                )
        if edge_attr is not None and (self.lin_edge is None or edge_attr.shape[0] != edges):
            raise ValueError(
                f"edge_attr has shape {list(edge_attr.shape)}, for {edges} edges, and RGATConv was "
                f"built with edge_dim={self.edge_dim}: build it with the features per edge, and "
                "give each edge a row"
            )

    def _weight(self) -> Tensor:
        """The linear maps of all relations, `[R, in_channels, H C]`."""
        if self.num_bases is not None:
            return torch.einsum("rb,bio->rio", self.att, self.basis)
        if self.num_blocks is not None:
            blocks = self.weight.permute(0, 2, 3, 1)  # [R, i, o, blocks]
            return torch.diag_embed(blocks, dim1=1, dim2=3).reshape(
                self.num_relations, self.in_channels, -1
            )
        weight: Tensor = self.weight
        return weight

    def _scores(
        self,
        x_src: Tensor,
        x_dst: Tensor,
        pairs: Any,
        edge_type: Tensor,
        edge_attr: Tensor | None,
        weight: Tensor,
    ) -> Tensor:
        """The logits `[E, H dim]`, of one number for each node, relation and head."""

        def of_edges(x: Tensor, vectors: Tensor, nodes: Tensor) -> Tensor:
            numbers = x @ (weight @ vectors)  # [R, N, H dim]
            return numbers.flatten(0, 1).index_select(0, edge_type * x.shape[0] + nodes)

        query = of_edges(x_dst, self.q, pairs.query_index)
        key = of_edges(x_src, self.k, pairs.key_index)
        of_edge = None
        if edge_attr is not None:
            edge_attr = edge_attr.unsqueeze(1) if edge_attr.dim() == 1 else edge_attr
            of_edge = linear(edge_attr, self.e.t() @ self.lin_edge.weight)
        if self.attention_mode == "additive-self-attention":
            scores = query + key if of_edge is None else query + key + of_edge
            return F.leaky_relu(scores, self.negative_slope)
        return query * key if of_edge is None else query * key * of_edge

    def _values(
        self, x: Tensor, support: Edges | PendingEdges, edge_type: Tensor, weight: Tensor
    ) -> tuple[Tensor, Edges | PendingEdges]:
        """What the sources hand on, a row `[H, C]` for each relation, and the pairs of these rows.

        Of all relations of a node, or of those alone that occur, whichever are fewer.
        """
        shape, nodes = (-1, self.heads, self.out_channels), x.shape[0]
        if torch.compiler.is_compiling():
            assert isinstance(support, PendingEdges)
            source, target = support.plain()
            pairs = torch.stack([edge_type * nodes + source, target])
            num_rows = self.num_relations * nodes
            return (x @ weight).view(shape), PendingEdges(pairs, num_rows, support.num_queries)
        edges = support if isinstance(support, Edges) else support.resolve()
        made: weakref.WeakKeyDictionary[Edges, tuple[Edges, list[Tensor] | None]]
        made = known(edge_type, ("of relations", nodes), weakref.WeakKeyDictionary)
        if edges not in made:
            made[edges] = _with_relations(edges, edge_type, self.num_relations)
        rows, used = made[edges]
        if used is None:
            return (x @ weight).view(shape), rows
        parts = [x.index_select(0, nodes) @ weight[r] for r, nodes in enumerate(used) if len(nodes)]
        return torch.cat([x[:0] @ weight[0], *parts]).view(shape), rows

    def _preserve_cardinality(
        self, out: Tensor, value: Tensor, support: Any, pairs: Any, scores: Tensor
    ) -> Tensor:
        """What `mod` makes of the output, beside "f-additive"."""
        if self.mod == "additive":
            ones = torch.ones_like(scores)
            return out + self.w * attend_by(ones, value, support, Identity()).output
        if self.mod in ("scaled", "f-scaled"):
            zeros = out.new_zeros(pairs.num_queries)
            degree = zeros.index_add(0, pairs.query_index, zeros.new_ones(scores.shape[0]))[:, None]
            if self.mod == "scaled":
                hidden = self.activation(degree @ self.l1 + self.b1)
                degree = hidden @ self.l2 + self.b2
            return out * degree.unsqueeze(1)
        return out


def _with_relations(
    edges: Edges, edge_type: Tensor, num_relations: int
) -> tuple[Edges, list[Tensor] | None]:
    """The pairs whose keys are nodes in relations, and which nodes are in each; None: all are."""
    nodes = edges.num_keys
    row = edge_type * nodes + edges.key_index
    if num_relations * nodes <= 2 * edges.num_edges:
        return edges.from_keys(row, num_relations * nodes), None
    used, row = torch.unique(row, return_inverse=True)
    relation = torch.arange(num_relations + 1, device=row.device) * nodes
    limits = torch.searchsorted(used, relation).diff().tolist()
    return edges.from_keys(row, len(used)), list((used % nodes).split(limits))
