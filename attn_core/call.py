"""One call of `attend`: its arguments, their checks, and what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_core.batched import Repeated, fold, repeated, unfold
from attn_core.compat import replaced
from attn_core.dropout import draw_seed
from attn_core.gpu import DTYPES
from attn_core.normalizers import Normalizer, Softmax, scaled
from attn_core.scores import Additive, Formula, Score
from attn_core.supports.base import Support, broadcasts_to
from attn_core.supports.dense import Dense
from attn_core.supports.edges import Edges, PendingEdges
from attn_core.supports.pairs import Pairs, TracedPairs
from attn_core.supports.window import Window

_TOKENS = "query", "key", "value"
_PER_PAIR = "bias", "pair_key", "pair_value"
_TENSORS = *_TOKENS, *_PER_PAIR
_ENOUGH = 2**20  # numbers in the pairs × heads × channels of one state of a batch over edges


class Attended(NamedTuple):
    """What `attend` returns.

    Attributes:
        output: the weighted sums of the values, `[..., Tq, H, Dv]`, in the dtype of the values
            (under autocast, in its dtype).
        weights: `[..., H, Tq, Tk]` over dense supports, `[..., E, H]` over edges, before dropout;
            None unless asked for.
        log_sum_exp: the logarithm of the softmax's divisor, `[..., H, Tq]` or `[..., Nq, H]`, at
            least float32; `weights` turns it back into the weights of chosen pairs. None for other
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
    # Of a prepared call: the seed of dropout over edges, what kernels know of its score, its heads
    # and, over edges, its batch dimensions
    seed: Tensor | None = None
    formula: Formula | None = None
    heads: int = 1
    batch: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise if an argument does not fit the others."""
        for name, given, kind, example in (
            ("score", self.score, Score, "ScaledDot()"),
            ("normalizer", self.normalizer, Normalizer, "Softmax()"),
            ("support", self.support, Support, "Dense() or Edges.from_edge_index(edge_index)"),
        ):
            if not isinstance(given, kind):
                raise TypeError(f"{name} is {_described(given)}; expected one such as {example}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is {self.dropout}; a probability lies between 0 and 1")
        device = self.key.device
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tensor.dtype not in DTYPES:
                raise TypeError(
                    f"{name} has dtype {tensor.dtype}; attention needs floating point of 16 bits "
                    "or more: convert it with .float()"
                )
            if tensor.device != device:
                raise ValueError(
                    f"{name} is on {tensor.device}, but key is on {device}: move one of them "
                    "with .to()"
                )
        self.support.check(self.query, self.key, self.value)

    def prepared(self) -> Call:
        """The work of each token done, and all tensors checked and given their heads and batch."""
        score, query, key, pair_key = self.score.prepare(self.query, self.key, self.pair_key)
        call = self._with(
            score=score, query=query, key=key, pair_key=pair_key, formula=score.formula()
        )
        batch, heads = call._batch(), call._heads()
        full: dict[str, Any] = {"heads": heads}
        for name in _TOKENS:
            x = getattr(call, name)
            if x is not None and (x.shape[-2] != heads or x.shape[:-3] != batch):
                own = heads if x.shape[-2] == 1 else x.shape[-2]
                full[name] = x.expand(*batch, x.shape[-3], own, x.shape[-1])
        call, support = call._with(**full), self.support
        if isinstance(support, (Pairs, PendingEdges)):
            full = {"batch": batch}
            if self.bias is not None or pair_key is not None or self.pair_value is not None:
                full.update(call._edge_pairs(support, batch, heads))
            if call.formula is not None:
                full["formula"] = call.formula.of_heads(heads)
            if self.dropout > 0:
                full["seed"] = draw_seed(self.value.device)
            return call._with(**full)
        if isinstance(support, (Dense, Window)):
            call._check_dense_pairs(support, batch, heads)
        return call

    @property
    def goes_by_states(self) -> bool:
        """Whether the states of a graph are taken one by one: one of them is enough work.

        Its rows then fit the cache sooner; with less to do, one call for all costs least.
        """
        work = 0 if torch.compiler.is_compiling() else self.heads * self.key.shape[-1]
        assert isinstance(self.support, (Pairs, PendingEdges))
        return math.prod(self.batch) > 1 and self.support.num_rows * work >= _ENOUGH

    def stacked(self) -> Call:
        """The same with all states in one dimension, and a seed of dropout for each."""
        count = math.prod(self.batch)
        given = {n: x.flatten(0, -4 if n != "bias" else -3) for n, x in self._tensors().items()}
        seed = None if self.seed is None else draw_seed(self.value.device, count)
        return self._with(batch=(count,), seed=seed, **given)

    def states(self) -> tuple[Call, ...]:
        """The states of a stacked call, one by one."""
        given = self._tensors()
        if self.seed is not None:
            given["seed"] = self.seed
        each = zip(*(x.unbind() for x in given.values()), strict=True)
        return tuple(self._with(batch=(), **dict(zip(given, xs, strict=True))) for xs in each)

    def folded(self) -> Call:
        """The same call without batch dimensions over edges, which become heads."""
        batch, heads, times = self.batch, self.heads, math.prod(self.batch)
        if not batch:
            return self
        score = Repeated(self.score, times)
        formula = score.formula()
        return self._with(
            score=score,
            normalizer=repeated(self.normalizer, heads, times),
            formula=None if formula is None else formula.of_heads(times * heads),
            heads=times * heads,
            batch=(),
            **{name: fold(x, batch) for name, x in self._tensors().items()},
        )

    def joined(self, results: list[Tensor | None]) -> Tensor | None:
        """One result over edges of what the `states` gave, with the batch dimensions again."""
        first = results[0]
        if first is None or not self.batch:
            return first
        if len(results) > 1:
            return torch.stack(results).unflatten(0, self.batch)  # type: ignore[arg-type]
        return unfold(first, self.batch, self.heads)

    def ungrouped(self) -> Call:
        """The same call with the heads of keys and values once for each query head they serve."""
        heads, key, value = self.heads, self.key, self.value
        if key.shape[-2] == heads == value.shape[-2]:
            return self
        key, value = (x.repeat_interleave(heads // x.shape[-2], dim=-2) for x in (key, value))
        return self._with(key=key, value=value)

    def without_temperature(self) -> Call:
        """The same softmax with its temperature in the query of a product, or in the vector."""
        normalizer, formula = self.normalizer, self.formula
        if not Softmax.is_one(normalizer) or formula is None:
            return self
        temperature, key = normalizer.temperature, self.key
        # In float32 at least, as are the weights that are computed with it one by one
        wide = torch.promote_types(key.dtype, torch.float32)
        if not isinstance(temperature, Tensor):
            if temperature == 1:
                return self
            temperature = key.new_tensor(temperature, dtype=wide)
        factor = 1 / temperature.to(wide).expand(self.heads)  # [H]
        changes: dict[str, Any] = {"normalizer": Softmax()}
        if formula.kind == "dot" and self.query is not None:
            changes["query"] = self.query * factor[:, None]
        else:
            vector = formula.vector
            vector = key.new_ones(self.heads, key.shape[-1]) if vector is None else vector
            score = Additive(vector * factor[:, None], formula.kind, formula.constant)
            changes.update(score=score, formula=score.formula())
        if self.bias is not None:
            pairs = isinstance(self.support, (Pairs, PendingEdges))
            changes["bias"] = scaled(self.bias, factor if pairs else factor[:, None, None])
        return self._with(**changes)

    def with_score(self, score: Score) -> Call:
        """The same call with another way to compute the same scores."""
        return self._with(score=score)

    def _with(self, **changes: Any) -> Call:
        """The same call with some other arguments; `dataclasses.replace` in one step."""
        return replaced(self, changes)

    @property
    def num_keys(self) -> int:
        """Tk, or the number of source nodes."""
        return self.key.shape[-3]

    def _batch(self) -> tuple[int, ...]:
        """The batch dimensions of all tensors, broadcast."""
        batch, query = self.key.shape[:-3], self.query
        if self.value.shape[:-3] == batch and (query is None or query.shape[:-3] == batch):
            return tuple(batch)
        tokens = [x for x in (query, self.value) if x is not None]
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
        query, most = self.query, self.value.shape[-2]
        of_score = self.score.heads
        same = query is None or query.shape[-2] == most
        if same and self.key.shape[-2] == most and of_score in (1, most):
            return most
        heads = {"the score": of_score} if of_score != 1 else {}
        for name in _TOKENS:
            if (x := getattr(self, name)) is not None:
                heads[name] = x.shape[-2]
        most = max(most, *heads.values())
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
        if self.bias is None and self.pair_key is None and self.pair_value is None:
            return
        queries = support.num_queries(self.query, self.num_keys)
        pairs = queries, support.columns(self.num_keys)
        shapes = {
            "bias": (*batch, heads, *pairs),
            "pair_key": (*batch, *pairs, heads, self._pair_width()),
            "pair_value": (*batch, *pairs, heads, self.value.shape[-1]),
        }
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is not None and not broadcasts_to(tensor.shape, shape):
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}; expected {list(shape)}, or what "
                    "broadcasts to it"
                )

    def _edge_pairs(
        self, support: Pairs | PendingEdges, batch: tuple[int, ...], heads: int
    ) -> dict[str, Any]:
        """What is given for each pair, checked and given its heads."""
        rows, loops = support.num_rows, isinstance(support, PendingEdges) and support.self_loops
        full: dict[str, Any] = {}
        for name, width in (
            ("bias", ()),
            ("pair_key", (self._pair_width(),)),
            ("pair_value", (self.value.shape[-1],)),
        ):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            shaped = tensor.unsqueeze(1) if name == "bias" and tensor.dim() == 1 else tensor
            own = shaped.dim() - len(width) - 2  # how many batch dimensions it has
            fits = own >= 0 and broadcasts_to(shaped.shape[:own], batch)
            if not fits or shaped.shape[own:] not in ((rows, 1, *width), (rows, heads, *width)):
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}; expected {[rows, heads, *width]}, or "
                    f"1 in place of {heads} heads: one row for each edge"
                    + (", then one for each self-loop" if loops else "")
                    + (f", for all of the batch {list(batch)} or for each of it" if batch else "")
                )
            if not (name == "pair_key" and self.score.compiles and not batch):
                shaped = shaped.expand(*batch, rows, heads, *width)
            full[name] = shaped
        return full

    def _pair_width(self) -> int:
        key, pair_key = self.key, self.pair_key
        return key.shape[-1] if pair_key is None else self.score.pair_width(key, pair_key)

    def in_full_precision(self) -> Call:
        """All tensors in one dtype, float32 at least."""
        dtype, alike = torch.float32, True
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor is not None and tensor.dtype != torch.float32:
                dtype, alike = torch.promote_types(dtype, tensor.dtype), False
        if alike:
            score = self.score.to(dtype)
            return self if score is self.score else self._with(score=score)
        given = {name: getattr(self, name) for name in _TENSORS}
        cast: dict[str, Any] = {n: None if x is None else x.to(dtype) for n, x in given.items()}
        return self._with(score=self.score.to(dtype), **cast)

    def on_resolved_support(self) -> Call:
        """The same call over pairs that are known, where the support was pending."""
        if not isinstance(self.support, PendingEdges):
            return self
        if not torch.compiler.is_compiling():
            edges: Edges | TracedPairs = self.support.resolve()
        else:  # how many weights there are depends on the data, which an output does not need
            edges = self.support.traced(exact=self.need_weights)
            if not (self.need_weights and self.support.self_loops):
                return self._with(support=edges)
        return self._with(support=edges, **self._given(edges.source_id))

    def of_queries(self, queries: Tensor) -> tuple[Call, Tensor]:
        """The same call over the pairs of some queries alone, and where these stand among all."""
        call = self.on_resolved_support()
        if not isinstance(call.support, (Edges, TracedPairs)):
            raise TypeError(
                f"queries are chosen over Edges, but support is {type(call.support).__name__}: "
                "index the query tensor, or the weights"
            )
        edges, positions = call.support.of_queries(queries)
        return call._with(support=edges, **call._given(positions)), positions

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors that are given."""
        return {n: x for n in _TENSORS if (x := getattr(self, n)) is not None}

    def _given(self, rows: Tensor) -> dict[str, Any]:
        """Some rows of what is given per pair."""
        return {
            name: tensor.index_select(0, rows)
            for name in _PER_PAIR
            if (tensor := getattr(self, name)) is not None
        }


def _described(given: Any) -> str:
    """A value in few words: a tensor by its shape, a class by its name."""
    if isinstance(given, Tensor):
        return f"a tensor of shape {list(given.shape)}"
    if isinstance(given, type):
        return f"the class {given.__name__}, not an instance"
    return repr(given) if isinstance(given, (str, int, float)) else f"a {type(given).__name__}"
