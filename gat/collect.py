"""The attention of every layer of a model, in one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attn_core.graph.read import as_plain, is_sparse, read_edge_index
from gat.conv.agnn_conv import AGNNConv
from gat.conv.base import AttentionConv, of_targets
from gat.conv.han_conv import HANConv
from gat.conv.hgt_conv import HGTConv
from gat.conv.hypergraph_conv import HypergraphConv
from gat.edge_attention import EdgeAttention, TopEdges

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """What one layer attended to, in one call of it.

    Attributes:
        name: the layer's name in the model, as `named_modules` has it; "" for the model itself.
        edge_index: int64 `[2, E']`, row 0 whom it attends to, row 1 who attends: the edges that the
            layer was given, then the self-loops that it added.
        weights: `[E', H]`, before dropout, with gradients.
        size: the numbers of sources and targets.
        edge_type: of a layer over several types of edges (HGTConv, HANConv), the type of these;
            else None.
    """

    name: str
    edge_index: Tensor
    weights: Tensor
    size: tuple[int, int]
    edge_type: tuple[str, str, str] | None = None

    def to_dense(self) -> Tensor:
        """The weights as matrices `[H, targets, sources]`; see `EdgeAttention.to_dense`."""
        return self._attention.to_dense(self.size)

    def to_networkx(self, *, head: int | None = None, bipartite: bool = False) -> nx.MultiDiGraph:
        """A networkx graph with all nodes of the layer; see `EdgeAttention.to_networkx`."""
        return self._attention.to_networkx(self.size, head=head, bipartite=bipartite)

    def top_k(self, node: int, k: int = 5, *, head: int | None = None) -> TopEdges:
        """The k edges over which a node attends most; see `EdgeAttention.top_k`."""
        if node >= self.size[1]:
            raise IndexError(f"node is {node}; layer {self.name!r} has {self.size[1]} targets")
        return self._attention.top_k(node, k, head=head)

    @property
    def _attention(self) -> EdgeAttention:
        return EdgeAttention(self.edge_index, self.weights)

    def __repr__(self) -> str:
        edges, heads = self.weights.shape
        of_type = "" if self.edge_type is None else f", edge_type={self.edge_type}"
        return (
            f"LayerAttention({self.name!r}, edges={edges}, heads={heads}, size={self.size}"
            f"{of_type})"
        )


def attention_weights(
    model: nn.Module, *args: Any, nodes: Tensor | None = None, **kwargs: Any
) -> list[LayerAttention]:
    """Call a model and return what each of its layers attended to.

    The model need not know how to return weights: one of `gat`'s, a `BasicGNN` or `Sequential` of
    torch_geometric, a module of your own. It runs once, in the mode and with the gradients that the
    caller has chosen, compiled code as if it were not; nothing is left behind in it. (Where a
    checkpoint computes a layer again, the weights can be read but not differentiated. Where the
    model itself asks a layer for the weights of some targets, there are no others.)

    Args:
        model: a module with attention layers of `gat` in it, or one such layer; those of
            torch_geometric become such by `gat.replace(model)`.
        args, kwargs: what the model is called with.
        nodes: only what these targets attended to, of every layer: integers `[n]`, or bool `[N]`.
            The weights of no other edges are computed. Default: all. Of a layer over several types
            of nodes, all are returned in any case.

    Returns:
        One LayerAttention for each call of a layer (HGTConv, HANConv: and type of edges), in the
        order of the calls.

    Raises:
        ValueError: the model has no attention layer.
        IndexError: a layer has no such node.
        TypeError: it has a subclass of one whose forward cannot be asked for weights.

    >>> import gat
    >>> model = gat.GAT(4, 8, num_layers=2, out_channels=3, heads=2, out_heads=1).eval()
    >>> x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    >>> for layer in attention_weights(model, x, edge_index):
    ...     print(layer)
    LayerAttention('convs.0', edges=9, heads=2, size=(5, 5))
    LayerAttention('convs.1', edges=9, heads=1, size=(5, 5))
    >>> attention_weights(model, x, edge_index, nodes=torch.tensor([3]))[0].edge_index
    tensor([[2, 3],
            [3, 3]])
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, AttentionConv)}
    if not layers:
        raise ValueError(
            f"model is a {type(model).__name__} without attention layers of gat: "
            "gat.replace(model) puts them in the place of torch_geometric's"
        )
    found: list[LayerAttention] = []
    handles: list[Any] = []
    try:
        for name, layer in layers.items():
            watch = _watch
            if isinstance(layer, (AGNNConv, HANConv, HGTConv)):
                watch = _watch_agnn if isinstance(layer, AGNNConv) else _watch_types
            handles += watch(name, layer, nodes, found.append)
        with torch.compiler.set_stance("force_eager"):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


_Report = Callable[[LayerAttention], None]


def _watch(name: str, layer: AttentionConv, nodes: Tensor | None, report: _Report) -> list[Any]:
    """Have every call of a layer return its weights, and take them off before its caller sees."""
    signature = inspect.signature(layer.forward)
    if "return_attention_weights" not in signature.parameters:
        raise TypeError(
            f"layer {name!r} is a {type(layer).__name__}, whose forward takes no "
            "return_attention_weights: let it take that argument and pass it on"
        )
    calls: list[tuple[Any, Any]] = []  # a layer may be called while it is being called

    def ask(_: nn.Module, args: Any, kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        asked = layer.weights_for(given.arguments.get("return_attention_weights"))
        calls.append((given.arguments, asked))
        wanted = True if nodes is None else nodes
        given.arguments["return_attention_weights"] = wanted if asked is False else asked
        return given.args, given.kwargs

    def take(_: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        given, asked = calls.pop()
        out, attention = result
        of_nodes = None if asked is False else nodes
        size = _size(layer, given, out)
        report(_layer_attention(name, layer, size, attention, of_nodes))
        return out if asked is False else result

    # Outside what else is hooked in, which should see nothing of this
    return [
        layer.register_forward_pre_hook(ask, with_kwargs=True),
        layer.register_forward_hook(take, with_kwargs=True, prepend=True),
    ]


def _watch_types(
    name: str, layer: HANConv | HGTConv, nodes: Tensor | None, report: _Report
) -> list[Any]:
    """Have a layer over several types of edges return the weights of each."""
    signature = inspect.signature(layer.forward)
    calls: list[tuple[Any, Any]] = []

    def ask(_: nn.Module, args: Any, kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        calls.append((given.arguments["x_dict"], given.arguments.get("return_attention_weights")))
        given.arguments["return_attention_weights"] = True
        return given.args, given.kwargs

    def take(_: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        x, asked = calls.pop()
        *out, attention = result
        for edge_type, (pairs, weights) in attention.items():
            size = x[edge_type[0]].shape[0], x[edge_type[-1]].shape[0]
            report(LayerAttention(name, pairs, weights, size, edge_type))
        if asked:
            return result
        return out[0] if len(out) == 1 else tuple(out)

    return [
        layer.register_forward_pre_hook(ask, with_kwargs=True),
        layer.register_forward_hook(take, with_kwargs=True, prepend=True),
    ]


def _watch_agnn(name: str, layer: AGNNConv, nodes: Tensor | None, report: _Report) -> list[Any]:
    """AGNNConv returns no weights, but tells what they are."""
    signature = inspect.signature(layer.forward)

    def take(_: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
        given = signature.bind(*args, **kwargs).arguments
        x, edge_index = given["x"], given["edge_index"]
        attention = layer.attention(x, edge_index, nodes)
        report(_layer_attention(name, layer, _size(layer, given, out), attention, None))

    return [layer.register_forward_hook(take, with_kwargs=True, prepend=True)]


def _size(layer: AttentionConv, given: dict[str, Any], out: Tensor) -> tuple[int, int]:
    """How many are attended to, and how many attend."""
    if isinstance(layer, HypergraphConv):
        size = out.shape[0], given["hyperedge_attr"].shape[0]
        return size if layer.attention_mode == "node" else size[::-1]
    x = given["x"]
    return x.shape[0] if isinstance(x, Tensor) else x[0].shape[0], out.shape[0]


def _layer_attention(
    name: str,
    layer: AttentionConv,
    size: tuple[int, int],
    attention: Any,
    nodes: Tensor | None,
) -> LayerAttention:
    """Weights in any of the forms that torch_geometric returns, as pairs and their numbers."""
    if isinstance(attention, tuple):
        pairs, weights = attention
        if isinstance(pairs, Tensor) and is_sparse(pairs):  # and the weights of its entries
            pairs = read_edge_index(pairs, None).pairs
        pairs = as_plain(pairs)
    else:  # a torch_sparse.SparseTensor, which holds the weights
        pairs, weights = read_edge_index(attention, None).pairs, attention.coo()[2]
    if layer.flow == "target_to_source":
        pairs = pairs.flip(0)
    weights = weights.unsqueeze(1) if weights.dim() == 1 else weights  # FAConv's
    if nodes is not None:
        pairs, weights = of_targets(pairs, weights, size, nodes)
    return LayerAttention(name, pairs, weights, size)
