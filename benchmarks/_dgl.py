"""DGL's attention layers, in the environment where DGL is: this library need not be there.

`DotGatConv` has one projection, which makes queries, keys and values, where `TransformerConv` has
four; so it does less, and its numbers are its own.

An environment for it: `pip install dgl==2.1.0 torch==2.2.1 torchdata==0.7.1 "numpy<2" "pandas<2.3"
pydantic pyyaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._worker import Contender, of_layers

# The class that corresponds to each layer, and what its parameters are called in torch_geometric
LAYERS: dict[str, tuple[str, dict[str, str]]] = {
    "GATConv": (
        "GATConv",
        {
            "fc.weight": "lin.weight",
            "attn_l": "att_src",
            "attn_r": "att_dst",
            "bias": "bias",
        },
    ),
    "GATv2Conv": (
        "GATv2Conv",
        {
            "fc_src.weight": "lin_l.weight",
            "fc_src.bias": "lin_l.bias",
            "fc_dst.weight": "lin_r.weight",
            "fc_dst.bias": "lin_r.bias",
            "attn": "att",
        },
    ),
    "TransformerConv": ("DotGatConv", {"fc.weight": "lin_value.weight"}),
}


def layers(inputs: str) -> Contender:
    """The layers, with the inputs that `benchmarks._contenders.save_inputs` wrote."""
    dgl: Any = __import__("dgl.nn")
    given = torch.load(inputs, weights_only=True)
    features, width, heads = given["size"]
    x: Tensor = given["x"]
    graphs: list[Any] = []

    def make_graph() -> None:
        graphs[:] = [dgl.graph(tuple(given["edge_index"]), num_nodes=len(x))]

    make_graph()
    made = {}
    for name, (theirs, keys) in LAYERS.items():
        layer = getattr(dgl.nn, theirs)(features, width, heads, allow_zero_in_degree=True)
        parameters: Mapping[str, Tensor] = given["parameters"][name]
        layer.load_state_dict({key: parameters[ours] for key, ours in keys.items()})
        made[name] = layer

    def call(layer: Callable[..., Tensor], x: Tensor) -> Tensor:
        return layer(graphs[0], x).flatten(1)

    calls = {name: partial(call, layer) for name, layer in made.items()}
    contender = of_layers(calls, made, x, forget=make_graph)  # a new one is not sorted yet
    everything = contender.results

    def results() -> dict[str, Tensor]:
        return {name: x for name, x in everything().items() if "TransformerConv" not in name}

    contender.results = results
    contender.facts = {"DGL": dgl.__version__, "torch": torch.__version__}
    return contender
