"""Why a node was given its class: three answers, and the measures that judge them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.explain import (
    AttentionExplainer,
    Explainer,
    Explanation,
    GNNExplainer,
    ThresholdConfig,
)
from torch_geometric.explain.algorithm import DummyExplainer, ExplainerAlgorithm
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.explain.metric import fidelity, unfaithfulness
from torch_geometric.utils import k_hop_subgraph

MEASURES = {
    "fidelity_plus": "fidelity+",
    "fidelity_minus": "fidelity-",
    "unfaithfulness": "unfaithfulness",
    "alone": "p alone",
    "without": "p without",
    "seconds": "seconds",
}


class Saliency(ExplainerAlgorithm):
    """How fast the score of the predicted class changes as an edge fades: |∂ score / ∂ mask|.

    Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", 2014, for edges in place of
    pixels.
    """

    def forward(
        self,
        model: nn.Module,
        x: Tensor,
        edge_index: Tensor,
        *,
        target: Tensor,
        index: Tensor,
        **kwargs: Any,
    ) -> Explanation:
        mask = nn.Parameter(torch.ones(edge_index.shape[1], device=x.device))
        set_masks(model, mask, edge_index, apply_sigmoid=False)
        try:
            scores = model(x, edge_index, **kwargs)[index]
            (slope,) = torch.autograd.grad(scores.gather(1, target[index, None]).sum(), mask)
        finally:
            clear_masks(model)
        _, reached = self._get_hard_masks(model, index, edge_index, x.shape[0])
        return Explanation(edge_mask=self._post_process_mask(slope.abs(), reached, False))

    def supports(self) -> bool:
        return True


# The size of a mask costs GNNExplainer more than by default, or every edge stays half in. The last
# one is no explanation, but what the others must beat.
METHODS: dict[str, Callable[[], ExplainerAlgorithm]] = {
    "attention": lambda: AttentionExplainer(reduce="mean"),
    "GNNExplainer": lambda: GNNExplainer(epochs=100, lr=0.2, edge_size=0.05),
    "saliency": Saliency,
    "random edges": DummyExplainer,
}


@dataclass(frozen=True)
class Neighbourhood:
    """All that a prediction for one node depends on.

    Attributes:
        graph: the nodes and edges within as many hops as the model has layers.
        node: its number in that graph.
        names: int64 `[n]`, the number of each node in the whole graph.
    """

    graph: Data
    node: int
    names: Tensor


def neighbourhood(data: Data, node: int, hops: int) -> Neighbourhood:
    """The part of a graph that reaches a node in so many hops.

    Edges to the outermost nodes are left out: what these hear comes too late.

    >>> path = Data(x=torch.eye(4), edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]))
    >>> neighbourhood(path, 3, hops=2).names.tolist()
    [1, 2, 3]
    """
    names, edge_index, place, _ = k_hop_subgraph(
        node, hops, data.edge_index, relabel_nodes=True, num_nodes=data.num_nodes
    )
    inner = k_hop_subgraph(int(place), hops - 1, edge_index, num_nodes=len(names))[0]
    edge_index = edge_index[:, torch.isin(edge_index[1], inner)]
    x = data.x.index_select(0, names)
    return Neighbourhood(Data(x=x, edge_index=edge_index), int(place), names)


class Reason(NamedTuple):
    """Why a node was given its class, in the words of one method.

    Attributes:
        method: one of `METHODS`.
        edges: int64 `[2, K]`, the edges that weigh most, numbered as in the whole graph.
        weights: `[K]`, the share of each in their sum.
        probability: of the predicted class, with the whole graph.
        alone: the same with these edges alone.
        without: the same with all the others.
        fidelity_plus: 1 if the prediction changes without these edges, which it should.
        fidelity_minus: 1 if it changes with them alone, which it should not.
        unfaithfulness: how far the probabilities are from those of the whole graph with these
            edges alone, 0 to 1.
        seconds: that it took.
    """

    method: str
    edges: Tensor
    weights: Tensor
    probability: float
    alone: float
    without: float
    fidelity_plus: float
    fidelity_minus: float
    unfaithfulness: float
    seconds: float


def explain(model: nn.Module, around: Neighbourhood, top: int) -> Iterator[Reason]:
    """Explains the prediction for one node in every way.

    Args:
        model: of node classes, in evaluation mode; its layers are GATConv, GATv2Conv or
            TransformerConv.
        around: what the prediction depends on.
        top: how many edges make an explanation; what does not depend on them counts as removed.
    """
    graph, node = around.graph, torch.tensor([around.node])
    for method, make in METHODS.items():
        explainer = Explainer(
            model,
            make(),
            explanation_type="model",
            edge_mask_type="object",
            model_config={
                "mode": "multiclass_classification", "task_level": "node", "return_type": "raw",
            },
        )  # fmt: skip
        started = time.perf_counter()
        soft = explainer(graph.x, graph.edge_index, index=node)
        seconds = time.perf_counter() - started
        hard = soft.threshold(ThresholdConfig("topk_hard", top))
        mask, whole = hard.edge_mask, soft.prediction
        chosen = mask.nonzero().flatten()
        weights = soft.edge_mask[chosen]
        predicted = int(whole[node].argmax())

        def probability(
            edges: Tensor, explainer: Explainer = explainer, predicted: int = predicted
        ) -> float:
            scores = explainer.get_masked_prediction(graph.x, graph.edge_index, edge_mask=edges)
            return float(scores[node].softmax(dim=1)[0, predicted])

        plus, minus = fidelity(explainer, hard)
        yield Reason(
            method,
            around.names[graph.edge_index[:, chosen]],
            weights / weights.sum().clamp(min=1e-12),
            float(whole[node].softmax(dim=1)[0, predicted]),
            probability(mask),
            probability(1 - mask),
            plus,
            minus,
            unfaithfulness(explainer, hard),
            seconds,
        )
