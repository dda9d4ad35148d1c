"""The FX graph of a score and of its derivatives, over one pair."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from attn_core.score_functions import known

aten = torch.ops.aten


class Unsupported(Exception):
    """What cannot be compiled, in words that end a sentence."""


class Sizes(NamedTuple):
    """All sizes of one kernel, which are constants of it.

    Attributes:
        heads: H.
        query, key, value: channels per head.
        pair: channels of a pair's own vector; 0: pairs have none.
        pair_heads: heads of that vector, 1 or H.
        parameters: the shape of each parameter.
    """

    heads: int
    query: int
    key: int
    value: int
    pair: int
    pair_heads: int
    parameters: tuple[tuple[int, ...], ...]


class Traced(NamedTuple):
    """A graph and what it returns.

    Attributes:
        graph: its placeholders are query, key, (pair,) the gradient of the logits and the
            parameters, the first of these `[1, H, D]`; it returns the logits `[1, H]` and the
            gradient of each.
        inputs: the names of the placeholders in turn; a parameter is known by its number.
        outputs: what is returned, of "logits" and of each input.
    """

    graph: torch.fx.Graph
    inputs: dict[torch.fx.Node, str | int]
    outputs: dict[str | int, Any]


# What torch itself says in simpler terms
_NAMES = """
    addcdiv addcmul celu elu elu_backward frac gelu gelu_backward hardsigmoid hardsigmoid_backward
    hardswish hardswish_backward hardtanh hardtanh_backward huber_loss hypot leaky_relu
    leaky_relu_backward lerp linalg_vector_norm log_sigmoid_backward log_sigmoid_forward logit
    masked_fill mish new_ones new_zeros norm ones_like prelu relu6 rsub sgn sigmoid_backward silu
    silu_backward sinc softplus softplus_backward square std std_mean tanh_backward threshold
    threshold_backward var var_mean xlogy zeros_like
"""
_SIMPLER: Any = get_decompositions([getattr(aten, name) for name in _NAMES.split()])


def trace(name: str, sizes: Sizes, dtype: torch.dtype) -> Traced:
    """Trace a score.

    Raises:
        Unsupported: it asks for numbers, takes tensors from around it, or fails for one pair.
    """
    h = sizes.heads
    shapes: dict[str | int, tuple[int, ...]] = {
        "query": (1, h, sizes.query),
        "key": (1, h, sizes.key),
    }
    if sizes.pair:
        shapes["pair"] = 1, h, sizes.pair  # one head for all is read by each
    tokens = len(shapes)
    shapes["grad"] = 1, h
    shapes.update(enumerate(sizes.parameters))

    def joint(*given: Tensor) -> tuple[Any, ...]:
        grad, tensors = given[tokens], (*given[:tokens], *given[tokens + 1 :])

        def logits(*tensors: Tensor) -> Tensor:
            query, key, *pair = tensors[:tokens]
            score = known(name).score(tensors[tokens:])
            of_pairs = score.of_pairs(query, key, pair[0] if pair else None)
            if of_pairs.shape != (1, h):
                raise Unsupported(
                    f"returns {list(of_pairs.shape)} for one pair of {h} heads, not {[1, h]}"
                )
            return of_pairs

        of_logits: Any = torch.func.vjp(logits, *tensors)
        return of_logits[0], *of_logits[1](grad)

    given = [torch.zeros(shape, dtype=dtype) for shape in shapes.values()]
    try:
        pure = torch.func.functionalize(joint)
        made: Any = make_fx(pure, decomposition_table=_SIMPLER, tracing_mode="fake")(*given)
    except Unsupported:
        raise
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise Unsupported(f"cannot be traced ({words[0][:200]})") from error
    graph: torch.fx.Graph = made.graph
    graph.eliminate_dead_code()
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    results = next(node for node in graph.nodes if node.op == "output").args[0]
    outputs = ["logits", *(key for key in shapes if key != "grad")]
    if any(node.op == "get_attr" for node in graph.nodes):
        raise Unsupported("takes a tensor from around it: make it an argument of the function")
    return Traced(
        graph, dict(zip(nodes, shapes, strict=True)), dict(zip(outputs, results, strict=True))
    )
