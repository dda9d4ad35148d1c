"""One call of `attend`: its arguments, their checks, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_core.compat import replace
from attn_core.dropout import draw_seed
from attn_core.normalizers import Normalizer
from attn_core.scores import Score
from attn_core.supports.base import Support, broadcasts_to
from attn_core.supports.dense import Dense
from attn_core.supports.edges import Edges, PendingEdges
from attn_core.supports.pairs import Pairs, TracedPairs
from attn_core.supports.window import Window

_TOKENS = "query", "key", "value"
_PER_PAIR = "bias", "pair_key", "pair_value"


class Attended(NamedTuple):
    """What `attend` returns.

    Attributes:
        output: the weighted sums of the values, `[..., Tq, H, Dv]`, in the dtype of the values
            (under autocast, in its dtype).
        weights: `[..., H, Tq, Tk]` over dense supports, `[E, H]` over edges, before dropout; None
            unless asked for.
        log_sum_exp: the logarithm of the softmax's divisor, `[..., H, Tq]` or `[Nq, H]`, at least
            float32; `weights` turns it back into the weights of chosen pairs. None for other
            normalisers, and where it was not asked for and would cost something.
    """

    output: Tensor
    weights: Tensor | None
    log_sum_exp: Tensor | None


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of `attend`; see there."""

    score: Score
    normalizer: Normalizer
    support: Support
    query: Tensor | None
    key: Tensor
    value: Tensor
    bias: Tensor | None = None
    pair_key: Tensor | None = None
    pair_value: Tensor | None = None
    dropout: float = 0.0
    need_weights: bool = False
    need_log_sum_exp: bool = False
    seed: Tensor | None = None  # of the dropout over edges

    def check(self) -> None:
        """Raise if an argument does not fit the others."""
        self._check_kinds()
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is {self.dropout}; a probability lies between 0 and 1")
        device = self.key.device
        for name in (*_TOKENS, *_PER_PAIR):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if not tensor.is_floating_point():
                raise TypeError(
                    f"{name} has dtype {tensor.dtype}; attention needs floating point: convert it "
                    "with .float()"
                )
            if tensor.device != device:
                raise ValueError(
                    f"{name} is on {tensor.device}, but key is on {device}: move one of them "
                    "with .to()"
                )
        self.support.check(self.query, self.key, self.value)

    def _check_kinds(self) -> None:
        for name, kind, example in (
            ("score", Score, "ScaledDot()"),
            ("normalizer", Normalizer, "Softmax()"),
            ("support", Support, "Dense(), Window(radius=8) or Edges.from_edge_index(edge_index)"),
        ):
            given = getattr(self, name)
            if not isinstance(given, kind):
                is_class = isinstance(given, type) and issubclass(given, kind)
                what = f"the class {given.__name__}" if is_class else _described(given)
                raise TypeError(f"{name} is {what}; expected an instance, such as {example}")

    def prepared(self) -> Call:
        """The work of each token done, and all tensors checked and given their heads and batch."""
        prepared = self.score.prepare(self.query, self.key, self.pair_key)
        full: dict[str, Any] = dict(zip(prepared._fields, prepared, strict=True))
        call = replace(self, **full) if self._differs(full) else self
        batch, heads = call._batch(), call._heads()
        full = {}
        for name in _TOKENS:
            x = getattr(call, name)
            if x is not None and (x.shape[-2] != heads or x.shape[:-3] != batch):
                own = heads if x.shape[-2] == 1 else x.shape[-2]
                full[name] = x.expand(*batch, x.shape[-3], own, x.shape[-1])
        support = self.support
        if isinstance(support, (Pairs, PendingEdges)):
            full.update(call._edge_pairs(support, heads))
            if self.dropout > 0:
                full["seed"] = draw_seed(self.value.device)
        elif isinstance(support, (Dense, Window)):
            call._check_dense_pairs(support, batch, heads)
        return replace(call, **full) if full else call

    def ungrouped(self) -> Call:
        """The same call with the heads of keys and values once for each query head they serve."""
        heads = self._heads()
        full: dict[str, Any] = {
            name: x.repeat_interleave(heads // x.shape[-2], dim=-2)
            for name in ("key", "value")
            if (x := getattr(self, name)).shape[-2] != heads
        }
        return replace(self, **full) if full else self

    def _differs(self, full: dict[str, Any]) -> bool:
        return any(getattr(self, name) is not value for name, value in full.items())

    @property
    def num_keys(self) -> int:
        """Tk, or the number of source nodes."""
        return self.key.shape[-3]

    @property
    def is_plain(self) -> bool:
        """Whether nothing is given per pair but a bias."""
        return self.pair_key is None and self.pair_value is None

    def _batch(self) -> tuple[int, ...]:
        """The batch dimensions of all tensors, broadcast."""
        batch = self.key.shape[:-3]
        tokens = [x for x in (self.query, self.value) if x is not None]
        if all(x.shape[:-3] == batch for x in tokens):
            return tuple(batch)
        try:
            return tuple(torch.broadcast_shapes(batch, *(x.shape[:-3] for x in tokens)))
        except RuntimeError as error:
            shapes = ", ".join(str(list(x.shape)) for x in (*tokens[:-1], self.key, tokens[-1]))
            raise ValueError(
                f"query, key and value have the shapes {shapes}, whose batch dimensions (all but "
                "the last three) do not broadcast"
            ) from error

    def _heads(self) -> int:
        """The number of heads, which that of every tensor divides."""
        heads = {"the score": self.score.heads} if self.score.heads != 1 else {}
        for name in _TOKENS:
            if (x := getattr(self, name)) is not None:
                heads[name] = x.shape[-2]
        most = max(heads.values())
        for name, number in heads.items():
            grouped = name in ("key", "value") and number > 0 and most % number == 0
            if number not in (1, most) and not grouped:
                other = next(name for name, number in heads.items() if number == most)
                raise ValueError(
                    f"{name} has {number} heads, but {other} has {most}: give them the same "
                    "number, or one head for all (keys and values may have a number that divides "
                    "that of the queries: consecutive heads then share one)"
                )
        return most

    def _check_dense_pairs(
        self, support: Dense | Window, batch: tuple[int, ...], heads: int
    ) -> None:
        if self.bias is None and self.is_plain:
            return
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

    def _edge_pairs(self, support: Pairs | PendingEdges, heads: int) -> dict[str, Any]:
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
            for name in (*_TOKENS, *_PER_PAIR)
            if (tensor := getattr(self, name)) is not None
        }
        dtype = torch.float32
        for tensor in tensors.values():
            dtype = torch.promote_types(dtype, tensor.dtype)
        cast: dict[str, Any] = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return replace(self, score=self.score.to(dtype), **cast)

    def on_resolved_support(self) -> Call:
        """The same call over pairs that are known, where the support was pending."""
        if not isinstance(self.support, PendingEdges):
            return self
        if not torch.compiler.is_compiling():
            edges: Edges | TracedPairs = self.support.resolve()
        else:  # how many weights there are depends on the data, which an output does not need
            edges = self.support.traced(exact=self.need_weights)
            if not (self.need_weights and self.support.self_loops):
                return replace(self, support=edges)
        return replace(self, support=edges, **self._given(edges.source_id))

    def of_queries(self, queries: Tensor) -> tuple[Call, Tensor]:
        """The same call over the pairs of some queries alone, and where these stand among all."""
        call = self.on_resolved_support()
        if not isinstance(call.support, (Edges, TracedPairs)):
            raise TypeError(
                f"queries are chosen over Edges, but support is {type(call.support).__name__}: "
                "index the query tensor, or the weights"
            )
        edges, positions = call.support.of_queries(queries)
        return replace(call, support=edges, **call._given(positions)), positions

    def _given(self, rows: Tensor) -> dict[str, Any]:
        """Some rows of what is given per pair."""
        return {
            name: tensor.index_select(0, rows)
            for name in _PER_PAIR
            if (tensor := getattr(self, name)) is not None
        }


def _described(given: Any) -> str:
    """A value in few words: a tensor by its shape."""
    if isinstance(given, Tensor):
        return f"a tensor of shape {list(given.shape)}"
    return repr(given) if isinstance(given, (str, int, float)) else f"a {type(given).__name__}"
