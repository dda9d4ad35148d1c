"""One call of `attend`, as an object that its implementations pass around."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attn_core.normalizers import Normalizer
from attn_core.scores import Additive, Location, Score
from attn_core.supports import Dense, Edges, PendingEdges, Support, broadcasts_to
from attn_core.window import Window


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of `attend`; see there."""

    score: Score
    normalizer: Normalizer
    support: Support | PendingEdges
    query: Tensor | None
    key: Tensor
    value: Tensor
    bias: Tensor | None
    pair_key: Tensor | None
    pair_value: Tensor | None
    dropout: float

    def check(self) -> None:
        """Raise if an argument does not fit the others."""
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is {self.dropout}; a probability lies between 0 and 1")
        for name in ("query", "key", "value", "bias", "pair_key", "pair_value"):
            tensor = getattr(self, name)
            if tensor is not None and not tensor.is_floating_point():
                raise TypeError(
                    f"{name} has dtype {tensor.dtype}; attention needs floating point: convert it "
                    "with .float()"
                )
        self.support.check(self.query, self.key, self.value)
        for name in ("query", "value", "bias", "pair_key", "pair_value"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.device != self.key.device:
                raise ValueError(
                    f"{name} is on {tensor.device}, but key is on {self.key.device}: move one of "
                    "them with .to()"
                )

    def prepared(self) -> Call:
        """The work of each token done, and all tensors checked and given their heads and batch."""
        score, query, key, pair_key = self.score.prepare(self.query, self.key, self.pair_key)
        call = dataclasses.replace(self, score=score, query=query, key=key, pair_key=pair_key)
        batch, heads, support = call._batch(), call._heads(), call.support
        full: dict[str, Any] = {
            name: x.expand(shape)
            for name in ("query", "key", "value")
            if (x := getattr(call, name)) is not None
            and x.shape != (shape := (*batch, x.shape[-3], heads, x.shape[-1]))
        }
        if isinstance(support, Edges | PendingEdges):
            full |= call._edge_pairs(support, heads)
        call = dataclasses.replace(call, **full)
        if isinstance(support, Dense | Window):
            call._check_dense_pairs(support, batch, heads)
        return call

    @property
    def num_keys(self) -> int:
        """Tk, or the number of source nodes."""
        return self.key.shape[-3]

    def _batch(self) -> tuple[int, ...]:
        """The batch dimensions of all tensors, broadcast."""
        tokens = [x for x in (self.query, self.key, self.value) if x is not None]
        batches = [x.shape[:-3] for x in tokens]
        if all(batch == batches[0] for batch in batches[1:]):
            return tuple(batches[0])
        try:
            return tuple(torch.broadcast_shapes(*batches))
        except RuntimeError as error:
            shapes = ", ".join(str(list(x.shape)) for x in tokens)
            raise ValueError(
                f"query, key and value have the shapes {shapes}, whose batch dimensions (all but "
                "the last three) do not broadcast"
            ) from error

    def _heads(self) -> int:
        """The number of heads, which every tensor has, unless it has one for all."""
        heads = {
            name: x.shape[-2]
            for name in ("query", "key", "value")
            if (x := getattr(self, name)) is not None
        }
        if isinstance(self.score, Additive) and self.score.vector is not None:
            heads["the vector of the score"] = self.score.vector.shape[0]
        if isinstance(self.score, Location):
            heads["the weight of the score"] = self.score.weight.shape[0]
        most = max(heads.values())
        for name, number in heads.items():
            if number not in (1, most):
                other = next(name for name, number in heads.items() if number == most)
                raise ValueError(
                    f"{name} has {number} heads, but {other} has {most}: give them the same "
                    "number, or one head for all"
                )
        return most

    def _check_dense_pairs(
        self, support: Dense | Window, batch: tuple[int, ...], heads: int
    ) -> None:
        queries = support.num_queries(self.query, self.num_keys)
        pairs = queries, support.columns(self.num_keys)
        shapes = {
            "bias": (*batch, heads, *pairs),
            "pair_key": (*batch, *pairs, heads, self.key.shape[-1]),
            "pair_value": (*batch, *pairs, heads, self.value.shape[-1]),
        }
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is not None and not broadcasts_to(tensor.shape, shape):
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}; expected {list(shape)}, or what "
                    "broadcasts to it"
                )

    def _edge_pairs(self, support: Edges | PendingEdges, heads: int) -> dict[str, Any]:
        """What is given for each pair, checked and given its heads."""
        rows, loops = support.num_rows, isinstance(support, PendingEdges) and support.self_loops
        full: dict[str, Any] = {}
        for name, width in (
            ("bias", ()),
            ("pair_key", (self.key.shape[-1],)),
            ("pair_value", (self.value.shape[-1],)),
        ):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            shaped = tensor.unsqueeze(1) if name == "bias" and tensor.dim() == 1 else tensor
            if shaped.shape not in ((rows, 1, *width), (rows, heads, *width)):
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}; expected {[rows, heads, *width]}, or "
                    f"1 in place of {heads} heads: one row for each edge"
                    + (", then one for each self-loop" if loops else "")
                )
            full[name] = shaped.expand(rows, heads, *width)
        return full

    def in_full_precision(self) -> Call:
        """All tensors in one dtype, float32 at least."""
        tensors = {
            name: tensor
            for name in ("query", "key", "value", "bias", "pair_key", "pair_value")
            if (tensor := getattr(self, name)) is not None
        }
        dtype = compute_dtype(*tensors.values())
        cast: dict[str, Any] = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return dataclasses.replace(self, score=self.score.to(dtype), **cast)

    def on_resolved_support(self) -> tuple[Call, Support]:
        """The same call over `Edges` where the support was pending, and that support."""
        if not isinstance(self.support, PendingEdges):
            return self, self.support
        edges = self.support.resolve()
        given: dict[str, Any] = {
            name: tensor.index_select(0, edges.source_id)
            for name in ("bias", "pair_key", "pair_value")
            if (tensor := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, support=edges, **given), edges

    def of_queries(self, queries: Tensor) -> tuple[Call, Tensor]:
        """The same call over the pairs of some queries alone, and where these stand among all."""
        call, support = self.on_resolved_support()
        if not isinstance(support, Edges):
            raise TypeError(
                f"queries are chosen over Edges, but support is {type(support).__name__}: "
                "index the query tensor, or the weights"
            )
        edges, positions = support.of_queries(queries)
        given: dict[str, Any] = {
            name: tensor.index_select(0, positions)
            for name in ("bias", "pair_key", "pair_value")
            if (tensor := getattr(call, name)) is not None
        }
        return dataclasses.replace(call, support=edges, **given), positions

    def scores(self, support: Support) -> Tensor:
        """The logits of all pairs of the resolved support, bias included."""
        scores = support.scores(self.score, self.query, self.key, self.pair_key)
        return scores if self.bias is None else scores + self.bias


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in: the widest that was given, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
