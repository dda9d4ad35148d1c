"""Calls of `attend` drawn at random, on every backend, against their definition in float64.

    python -m tests.fuzz --minutes 10       prints what differs, each with its seed
    python -m tests.fuzz --seed 1234        draws one of them again

A call is a score, a normaliser, a support, a dtype, a scale of the numbers, and what else may be
given: a bias (with pairs that do not exist), vectors per pair, dropout, weights, odd strides. Its
output, weights and all gradients are computed by "auto", "torch" and "reference", and by "auto"
under torch.compile now and then.

How far they may be from the definition in float64 follows from the call itself: some times what the
definition changes by where each step of it, forward and backward, is rounded as the call's dtype
would round it (`tests.rounding`). In 16 bits that is what is given to and left by `Score.prepare`
and the results; all else is float32. So where two scores are equal but for what rounding takes
away, a sparse or hard choice between them may fall either way, in every implementation alike;
where they are not, it may not.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import attn_core
from attn_core import Dense, Edges, PendingEdges, Score, Window, attend, backend, normalizers
from attn_core.backends import cpu
from attn_core.scores import Prepared
from tests.rounding import Rounding, smallest

Tensors = dict[str, Tensor]
BACKENDS = "auto", "torch", "reference"
DTYPES = torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16
SCALES = 0.01, 0.3, 1.0, 1.0, 1.0, 3.0, 10.0, 100.0, 1e4, 1e6
WIDTHS = 1, 1, 2, 3, 4, 5, 8, 16, 17, 33
DIGITS = 4.0  # by how many units of the last place a rounded number changes
SLACK, TRIALS = 16.0, 3  # how many times what the definition changes by, in how many trials
# And before something is called a finding: a choice between equals falls either way by chance
MORE_TRIALS = 60


@dataclass
class Case:
    """One call: what is given in float64, and how to make the arguments of `attend` of it."""

    seed: int
    words: dict[str, Any]
    dtype: torch.dtype
    tensors: Tensors = field(default_factory=dict)
    make: Callable[[Tensors], dict[str, Any]] = dict
    compiled: bool = False

    def __str__(self) -> str:
        return f"seed {self.seed}: " + ", ".join(f"{k} {v}" for k, v in self.words.items())


def draw(seed: int) -> Case:
    """The call of this seed."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    dtype = r.choice(DTYPES)
    scale = r.choice([s for s in SCALES if dtype != torch.float16 or s <= 3])
    heads, width, value_width = (
        r.choice((1, 1, 2, 3, 4, 5, 8, 17)),
        r.choice(WIDTHS),
        r.choice(WIDTHS),
    )
    case = Case(seed, {}, dtype)
    kind = r.choice(("edges", "edges", "loops", "pending", "dense", "window"))
    over_edges = kind in ("edges", "loops", "pending")
    queries = r.choice((0, 1, 2, 5, 9, 20))
    keys = queries if kind in ("loops", "pending") or r.random() < 0.5 else r.choice((1, 3, 8, 17))
    batch = () if over_edges or r.random() < 0.4 else (r.choice((1, 3)),)
    support, columns = _support(r, kind, batch, queries, keys)
    tensors = case.tensors

    def given(name: str, *shape: int, times: float = scale) -> None:
        tensors[name] = (times * torch.randn(shape, dtype=torch.float64)).to(dtype).double()

    shared = r.random() < 0.1  # one head of keys and values for all
    given("query", *batch, queries, heads, width)
    given("key", *batch, keys, 1 if shared else heads, width)
    given("value", *batch, keys, 1 if shared else heads, value_width)
    score_name, score = _score(r, given, heads, width)
    normalizer_name, normalizer = _normalizer(r, tensors, heads, dtype)
    per_pair = (columns,) if over_edges else (*batch, queries, columns)
    options = {name for name in ("bias", "pair_key", "pair_value") if r.random() < 0.3}
    options |= {name for name in ("weights", "strides") if r.random() < 0.4}
    if over_edges and r.random() < 0.2:
        options.add("dropout")
    if "bias" in options:
        shape = (columns, heads) if over_edges else (*batch, heads, queries, columns)
        given("bias", *shape)
        if r.random() < 0.5:
            tensors["bias"][torch.rand(shape) < 0.2] = -torch.inf
    if "pair_key" in options:
        given("pair_key", *per_pair, heads, width)
    if "pair_value" in options:
        given("pair_value", *per_pair, heads, value_width)
    p = 0.4 if "dropout" in options else 0.0

    def make(t: Tensors) -> dict[str, Any]:
        plain = ("query", "key", "value", "bias", "pair_key", "pair_value")
        return {
            **{name: t[name] for name in plain if name in t},
            "score": score(t), "normalizer": normalizer(t), "support": support(),
            "dropout": p, "need_weights": "weights" in options,
        }  # fmt: skip

    case.make = make
    case.compiled = r.random() < 0.02
    case.words = {
        "score": score_name, "normaliser": normalizer_name, "support": kind,
        "dtype": str(dtype).removeprefix("torch."), "scale": scale, "heads": heads,
        "widths": (width, value_width), "queries": queries, "keys": keys, "batch": batch,
        "options": " ".join(sorted(options)) or "none",
    }  # fmt: skip
    if "strides" in options:
        case.words["strides"] = True
    return case


def _support(
    r: random.Random, kind: str, batch: tuple[int, ...], queries: int, keys: int
) -> tuple[Callable[[], Any], int]:
    """How to make it, and how many pairs there are: of all queries over edges, else of each."""
    if kind == "dense":
        options: dict[str, Any] = {"causal": r.random() < 0.4}
        if r.random() < 0.4:
            options["mask"] = torch.rand(queries, keys) < 0.7
        if r.random() < 0.4:
            options["lengths"] = torch.randint(0, keys + 1, batch)
        return lambda: Dense(**options), keys
    if kind == "window":
        options = {"radius": r.choice((0, 1, 2, 5)), "dilation": r.choice((1, 1, 2))}
        options["causal"] = r.random() < 0.4
        if r.random() < 0.3:
            options["centre"] = torch.rand(*batch, queries) * keys
        if r.random() < 0.3:
            options["lengths"] = torch.randint(0, keys + 1, batch)
        return lambda: Window(**options), Window(**options).width
    number = r.choice((0, 1, 7, 40, 40, 200)) if min(queries, keys) else 0
    if number == 200 and r.random() < 0.2:
        number = 9000  # a row of several parts
    pairs = torch.stack([torch.randint(max(n, 1), (number,)) for n in (keys, queries)])
    if number and r.random() < 0.3:
        pairs[r.choice((0, 1)), : number * 3 // 4] = 0  # a hub
    loops = kind != "edges"
    if kind == "pending":
        pairs = pairs.int() if r.random() < 0.3 else pairs
        return lambda: PendingEdges(pairs, keys, queries, loops), number + min(keys, queries)
    edges = Edges.from_edge_index(pairs, (keys, queries), self_loops=loops)
    return lambda: edges, edges.num_edges


def _score(r: random.Random, given: Any, heads: int, width: int) -> tuple[str, Any]:
    name = r.choice(
        ("dot", "scaled", "cosine", "general", "tanh", "leaky_relu", "relu", "separable", "concat")
    )
    if name == "cosine":
        return name, lambda t: attn_core.Cosine()
    if name == "general":
        given("matrix", heads, width, width, times=1 / width)
        return name, lambda t: attn_core.General(t["matrix"])
    if name in ("tanh", "leaky_relu", "relu"):
        given("vector", heads, width, times=width**-0.5)
        return name, lambda t: attn_core.Additive(t["vector"], name)
    if name == "separable":
        given("of_query", heads, width, times=width**-0.5)
        given("of_key", heads, width, times=width**-0.5)
        kind = r.choice(("leaky_relu", "identity", "tanh"))
        return f"{name} {kind}", lambda t: attn_core.Separable(t["of_query"], t["of_key"], kind)
    if name == "concat":
        given("matrix", heads, width, 2 * width, times=1 / width)
        given("vector", heads, width)
        return name, lambda t: attn_core.Concat(t["matrix"], t["vector"])
    return name, lambda t: attn_core.Dot(0.7) if name == "dot" else attn_core.ScaledDot()


def _normalizer(
    r: random.Random, tensors: Tensors, heads: int, dtype: torch.dtype
) -> tuple[str, Any]:
    makers: dict[str, Callable[[Tensors], Any]] = {
        "softmax": lambda t: attn_core.Softmax(),
        "softmax at 0.5": lambda t: attn_core.Softmax(0.5),
        "softmax, learned": lambda t: attn_core.Softmax(t["heat"]),
        "sparsemax": lambda t: attn_core.Sparsemax(),
        "entmax 1.5": lambda t: attn_core.Entmax(1.5),
        "entmax 1.3": lambda t: attn_core.Entmax(1.3),
        "entmax, learned": lambda t: attn_core.Entmax(t["alpha"]),
        "hard": lambda t: attn_core.Hard(),
        "identity": lambda t: attn_core.Identity(),
    }
    name = r.choice(("softmax", "softmax", "softmax", *makers))
    if name == "softmax, learned":
        tensors["heat"] = (0.5 + torch.rand(heads)).to(dtype).double()
    if name == "entmax, learned":
        tensors["alpha"] = (1.2 + torch.rand(heads) / 2).to(dtype).double()
    return name, makers[name]


def compute(
    case: Case,
    dtype: torch.dtype,
    given: Tensors,
    name: str,
    compiled: bool = False,
    kept: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensors:
    """The output, the weights and the gradients of all that is given; `kept` rounds the former."""
    leaves = {
        n: x.detach().clone().to(dtype).requires_grad_() for n, x in given.items() if n != "probe"
    }
    tensors = dict(leaves)
    if "strides" in case.words:
        tensors = {n: x.mT.contiguous().mT if x.dim() > 1 else x for n, x in leaves.items()}

    def run() -> tuple[Tensor, Tensor | None]:
        found = attend(**case.make(tensors))
        return found.output, found.weights

    with backend(name):
        torch.manual_seed(case.seed)  # of dropout
        output, weights = torch.compile(run, backend="aot_eager")() if compiled else run()
        output, weights = kept(output), None if weights is None else kept(weights)
        total = (output.double() * _probe(given["probe"], output)).sum()
        if weights is not None and weights.requires_grad:
            total = total + (weights.double() * _probe(given["probe"], weights)).sum()
        found = {"output": output.detach()}
        if weights is not None:
            found["weights"] = weights.detach()
        if total.requires_grad:
            total.backward()
    found |= {f"gradient of {n}": x.grad for n, x in leaves.items() if x.grad is not None}
    return {n: x.double() for n, x in found.items()}


def _probe(numbers: Tensor, like: Tensor) -> Tensor:
    count = like.numel()
    return numbers.repeat(count // len(numbers) + 1)[:count].view(like.shape)


def rounded(case: Case, given: Tensors, seed: int) -> Tensors:
    """The definition in float64, each step of which is off by what the case's dtype rounds."""
    wide = torch.promote_types(case.dtype, torch.float32)
    rounding = Rounding(wide, DIGITS, seed)

    def kept(x: Tensor) -> Tensor:
        return rounding.kept(x, case.dtype)

    def make(tensors: Tensors) -> dict[str, Any]:
        call = case.make(tensors)
        return {**call, "score": Kept(call["score"], kept)}

    # What all implementations compute in float64, whatever they are given
    in_float64 = {n: rounding.exactly(getattr(normalizers, n)) for n in ("_support", "_bisect")}
    another = replace(case, make=case.make if wide == case.dtype else make)
    exactly = nullcontext() if wide == torch.float64 else patch.multiple(normalizers, **in_float64)
    with exactly, rounding:
        return compute(another, torch.float64, given, "reference", kept=kept)


@dataclass(frozen=True, eq=False)
class Kept(Score):
    """A score whose tokens are kept in 16 bits before and after they are prepared."""

    score: Score
    kept: Callable[[Tensor], Tensor]

    @property
    def heads(self) -> int:
        return self.score.heads

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        left = self.score.prepare(
            *(None if x is None else self.kept(x) for x in (query, key, pair_key))
        )
        return Prepared(left.score, *(None if x is None else self.kept(x) for x in left[1:]))

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        return self.score.pair(query, key)

    def to(self, dtype: torch.dtype) -> Kept:
        return replace(self, score=self.score.to(dtype))


def differences(case: Case) -> list[str]:
    """What is further from the definition than rounding explains."""
    eps = torch.finfo(torch.promote_types(case.dtype, torch.float32)).eps
    own = torch.finfo(case.dtype).eps
    given = {**case.tensors, "probe": torch.randn(97, dtype=torch.float64)}
    truth = compute(case, torch.float64, given, "reference")
    change = {n: torch.zeros_like(x) for n, x in truth.items()}
    seeds = itertools.count(case.seed)

    def try_changes(times: int) -> None:
        for seed in itertools.islice(seeds, times):
            for n, x in rounded(case, given, seed).items():
                change[n] = torch.maximum(change[n], _distance(x, truth[n]))

    ways = [(name, False) for name in BACKENDS] + [("auto", True)] * case.compiled
    results = {}
    for name, compiled in ways:
        way = f"{name}, compiled" if compiled else name
        results[way] = compute(case, case.dtype, given, name, compiled)
        if compiled:
            torch._dynamo.reset()

    def wrong() -> Iterator[str]:
        for way, found in results.items():
            if found.keys() != truth.keys():
                yield f"{way} has {', '.join(found)}; expected {', '.join(truth)}"
                continue
            for n, x in found.items():
                if not x.numel():
                    continue
                largest = float(truth[n].nan_to_num(0, 0, 0).abs().max())
                rounded_once = (eps + own) * largest + smallest(case.dtype)
                bound = SLACK * float(change[n].max()) + 16 * rounded_once + 1e-30
                off, most = float(_distance(x, truth[n]).max()), float(x.max())
                if not off <= bound:
                    yield f"{way}: {n} is off by {off:.3g}, of {largest:.3g}; allowed {bound:.3g}"
                if n == "weights" and "softmax" in case.words["normaliser"] and most > 1 + own:
                    yield f"{way}: a weight is {most}"

    try_changes(TRIALS)
    found = list(wrong())
    if found:
        try_changes(MORE_TRIALS)
        found = list(wrong())
    return found


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|, where infinite and missing numbers are at no distance from their like."""
    same = (x == y) | (x.isnan() & y.isnan())
    return torch.where(same, 0.0, (x - y).abs().nan_to_num(torch.inf, torch.inf, torch.inf))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long; default 10")
    parser.add_argument("--seed", type=int, help="of the one case to draw again")
    arguments = parser.parse_args()
    first = random.SystemRandom().randrange(2**31) if arguments.seed is None else arguments.seed
    end = time.monotonic() + 60 * arguments.minutes
    seed, bad = first, 0
    print(f"from seed {first} on; compiled kernels: {cpu.description()}", flush=True)
    while True:
        case = draw(seed)
        try:
            wrong = differences(case)
        except Exception:
            wrong = [traceback.format_exc(limit=-5)]
        if wrong:
            bad += 1
            print(f"\n{case}", *(f"  {line}" for line in wrong), sep="\n", flush=True)
        seed += 1
        if arguments.seed is not None or time.monotonic() > end:
            break
    print(f"{seed - first} cases, {bad} with a finding")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
