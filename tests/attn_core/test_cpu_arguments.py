"""The compiled module, called directly with whatever there is: it answers or raises, no more."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import Dot, Edges, Separable, attend, backend, compiled
from attn_core.backends import cpu
from attn_core.ops import edge_layer

pytestmark = pytest.mark.skipif(compiled.module is None, reason="no compiled kernels")

HEADS, WIDTH, NODES, FEATURES = 2, 4, 3, 5
POINTER, PLACE = torch.tensor([0, 2, 3, 4]), torch.tensor([0, 2, 1, 3])
PAIRS = len(PLACE)
OTHER = torch.tensor([0, 1, 2, 0], dtype=torch.int32)
OF_LAYERS = edge_layer._NAMES
WRITTEN = {
    "forward": ("output", "log_sum_exp", "maximum", "total"),
    "backward": (
        "grad_query", "grad_key", "grad_value", "grad_vector", "grad_bias", "grad_pair_key",
        "grad_pair_value",
    ),
    "forward of halves": ("output", "rounded", "log_sum_exp", "maximum", "total"),
    "backward of halves": ("grad_query", "grad_key", "grad_value", "grad_vector", "grad_bias"),
    "pair_scores": ("scores",),
    "pair_sums": ("sums", "of_vector", "of_pair"),
    "segment_softmax": ("weights", "log_sum_exp"),
    "segment_entmax": ("weights",),
    "entmax_forward": ("output", "thresholds"),
    "entmax_backward": (
        "grad_query", "grad_key", "grad_value", "grad_vector", "grad_bias", "grad_pair_key",
        "grad_pair_value",
    ),
    "segment_gradient": ("of_scores",),
    "additive_scores": ("logits",),
    "additive_gradients": ("grad_query", "grad_key", "grad_vector"),
    "multiply": ("out",),
    "drop": ("to",),
    "sort": ("pointer", "place", "other"),
    "turn": ("to_pointer", "to_place", "to_other"),
    "count_drawn": ("begins",),
    "draw_pairs": ("sources", "places"),
    "give_numbers": ("numbers",),
    "take_numbers": ("numbers",),
    "number_nodes": ("numbers", "fresh", "to"),
    "layer_forward": ("output", "numbers", "merged"),
    "layer_backward": (
        "grad_query", "grad_key", "grad_value", "grad_vector", "grad_pair_key", "grad_pair_value",
        "grad_add",
    ),
    "layer_forward of ends": ("output", "numbers", "merged"),
    "layer_backward of ends": (
        "grad_value", "grad_of_query", "grad_of_key", "grad_vector", "grad_add",
    ),
    "layer_forward of maps": ("hidden", "output", "numbers", "merged"),
    "layer_backward of maps": (
        "grad_x", "grad_x_query", "grad_weight_query", "grad_bias_query", "grad_weight_key",
        "grad_bias_key", "grad_weight_value", "grad_bias_value", "grad_weight_add",
        "grad_bias_add", "grad_vector",
    ),
}  # fmt: skip


def sorted_pairs() -> Any:
    """The graph of these arguments, as layers hand it on."""
    ends = POINTER.clone(), OTHER.clone(), PLACE.clone()
    pairs = compiled.module.SortedPairs(NODES, NODES, PAIRS, *ends)
    pairs.set_by_key(*(x.clone() for x in ends))
    return pairs


def nodes(width: int) -> Tensor:
    return torch.randn(NODES, HEADS, width)


def of_pairs(*width: int) -> Tensor:
    return torch.randn(PAIRS, HEADS, *width)


def arguments(name: str, numbers: bool = False) -> dict[str, Any]:
    """Good arguments of a function of the module; `numbers`: of scores of single numbers.

    "backward of halves": as `halves` makes them of those of "backward", and so on.
    """
    name, _, kind = name.partition(" of ")
    given = plain_arguments(name, 1 if numbers else WIDTH)
    return KINDS[kind](given) if kind else given


def plain_arguments(name: str, width: int) -> dict[str, Any]:
    """Those of a function, whose scores are made of vectors of this width."""
    graph = {"pointer": POINTER.clone(), "place": PLACE.clone()}
    vector = torch.randn(HEADS, width)
    score = {"kind": 1, "constant": 0.2, "threads": 2}
    attention = {
        "query": nodes(width), "key": nodes(width), "value": nodes(WIDTH), "vector": vector,
        "bias": of_pairs(), "pair_key": of_pairs(width), "pair_value": of_pairs(WIDTH),
        **graph, "other": OTHER.clone(),
        "pair_id": torch.arange(PAIRS), **score, "dropout": 0.5, "seed": 7, "num_rows": PAIRS,
    }  # fmt: skip
    softmax = {
        "output": nodes(WIDTH), "maximum": torch.randn(NODES, HEADS),
        "total": torch.rand(NODES, HEADS),
    }  # fmt: skip
    entmax = {
        "alpha": 1.5, "thresholds": torch.rand(NODES, 2, HEADS, dtype=torch.float64),
    }  # fmt: skip
    gradients = {
        "key_pointer": POINTER.clone(), "key_other": OTHER.clone(), "key_place": PLACE.clone(),
        "grad_output": nodes(WIDTH), "grad_query": nodes(width), "grad_key": nodes(width),
        "grad_value": nodes(WIDTH), "grad_vector": vector.clone(), "grad_bias": of_pairs(),
        "grad_pair_key": of_pairs(width), "grad_pair_value": of_pairs(WIDTH),
    }  # fmt: skip
    pairwise = {
        "row": nodes(width), "other": nodes(width), "vector": vector, "pair": of_pairs(width),
        **graph, "column": OTHER.clone(), **score,
    }  # fmt: skip
    additive = {  # sequences of as many tokens as there are heads elsewhere
        "query": nodes(WIDTH), "key": nodes(WIDTH), "vector": torch.randn(NODES, WIDTH), **score,
    }  # fmt: skip
    logits = torch.randn(NODES, HEADS, HEADS)
    layer = {
        "pairs": sorted_pairs(), "query": nodes(width), "key": nodes(width), "value": nodes(WIDTH),
        "vector": vector, "of_query": None, "of_key": None, "pair_key": of_pairs(width),
        "pair_value": of_pairs(WIDTH), **score, "dropout": 0.5, "seed": 7, "concat": width > 1,
        "heads": HEADS, "hidden": None, "output": nodes(WIDTH),
        "numbers": torch.randn(3 * NODES * HEADS),
    }  # fmt: skip
    merged = torch.randn(NODES, HEADS * WIDTH if width > 1 else WIDTH)
    numbered = torch.full((NODES,), -1, dtype=torch.int32)
    given: dict[str, dict[str, Any]] = {
        "forward": {**attention, **softmax, "log_sum_exp": torch.randn(NODES, HEADS)},
        "backward": {
            **attention, **softmax, **gradients, "grad_log_sum_exp": torch.randn(NODES, HEADS),
        },
        "entmax_forward": {**attention, **entmax, "output": nodes(WIDTH)},
        "entmax_backward": {**attention, **entmax, **gradients},
        "pair_scores": {**pairwise, "scores": of_pairs()},
        "pair_sums": {
            "given": of_pairs(), **pairwise, "sums": nodes(width), "of_vector": vector.clone(),
            "of_pair": of_pairs(width),
        },
        "segment_softmax": {
            "scores": of_pairs(), **graph, "threads": 2, "weights": of_pairs(),
            "log_sum_exp": torch.randn(NODES, HEADS),
        },
        "segment_entmax": {
            "scores": of_pairs(), **graph, "alpha": 1.5, "threads": 2, "weights": of_pairs(),
        },
        "segment_gradient": {
            "grad": of_pairs(), "weights": of_pairs(), **graph, "alpha": 1.5, "threads": 2,
            "of_scores": of_pairs(),
        },
        "additive_scores": {**additive, "logits": logits},
        "additive_gradients": {
            "grad": logits.clone(), **additive, "grad_query": nodes(WIDTH),
            "grad_key": nodes(WIDTH), "grad_vector": torch.randn(NODES, WIDTH),
        },
        "multiply": {
            "values": torch.randn(PAIRS), **graph, "column": OTHER.clone(),
            "dense": torch.randn(NODES, WIDTH), "threads": 2, "out": torch.randn(NODES, WIDTH),
        },
        "drop": {
            "from": torch.randn(9), "p": 0.5, "seed": 7, "threads": 2, "to": torch.randn(9),
        },
        "sort": {
            "nodes": torch.tensor([0, 2, 1, 2]), "others": torch.arange(PAIRS), "num_others": 4,
            "threads": 2, **graph, "other": OTHER.clone(),
        },
        "turn": {
            **graph, "other": OTHER.clone(), "places": PAIRS, "threads": 2,
            "to_pointer": POINTER.clone(), "to_place": PLACE.clone(), "to_other": OTHER.clone(),
        },
        "count_drawn": {
            "pointer": POINTER.clone(), "pairs": PAIRS, "nodes": torch.tensor([2, 0]), "most": 1,
            "begins": torch.zeros(3, dtype=torch.int64),
        },
        "draw_pairs": {
            **graph, "other": OTHER.clone(), "nodes": torch.tensor([2, 0]), "most": 1, "seed": 7,
            "begins": torch.arange(3), "threads": 2, "sources": torch.zeros(2, dtype=torch.int32),
            "places": torch.zeros(2, dtype=torch.int64),
        },
        "give_numbers": {"nodes": torch.tensor([2, 0]), "numbers": numbered.clone()},
        "take_numbers": {"nodes": torch.tensor([2, 0]), "numbers": numbered.clone()},
        "number_nodes": {
            "nodes": OTHER.clone(), "first": 0, "numbers": numbered.clone(), "threads": 2,
            "fresh": torch.zeros(NODES, dtype=torch.int64), "to": torch.zeros_like(OTHER),
        },
        "layer_forward": {**layer, "add": torch.randn(merged.shape), "merged": merged},
        "layer_backward": {
            **layer, "grad": torch.randn(merged.shape), "grad_query": nodes(width),
            "grad_key": nodes(width), "grad_value": nodes(WIDTH), "grad_vector": vector.clone(),
            "grad_pair_key": of_pairs(width), "grad_pair_value": of_pairs(WIDTH),
            "grad_add": torch.randn(merged.shape[1]),
        },
    }  # fmt: skip
    return given[name]


def halves(given: dict[str, Any]) -> dict[str, Any]:
    """Rows in 16 bits, which no vectors of pairs go with; single numbers are none."""
    rows = ["value"] if given["key"].shape[-1] == 1 else ["query", "key", "value"]
    rows += [f"grad_{of}" for of in (*rows, "output")]
    given.update({of: given[of].bfloat16() for of in rows if of in given})
    given.update(dict.fromkeys(of for of in given if of.endswith(("pair_key", "pair_value"))))
    if "grad_output" not in given:
        given["rounded"] = nodes(WIDTH).bfloat16()
    return given


def ends(given: dict[str, Any]) -> dict[str, Any]:
    """GAT's, whose scores of nodes a layer's functions make of the values."""
    made = {
        "query": None, "key": None, "of_query": torch.randn(HEADS, WIDTH),
        "of_key": torch.randn(HEADS, WIDTH), "vector": torch.randn(HEADS, 1),
        "pair_key": of_pairs(),
    }  # fmt: skip
    return with_gradients(given, made) | {"numbers": torch.randn(5 * NODES * HEADS)}


def maps(given: dict[str, Any]) -> dict[str, Any]:
    """Those of a layer that makes query, key, value and what is added of its input."""
    wide = HEADS * WIDTH
    sizes = {"query": wide, "key": wide, "value": wide, "add": wide if given["concat"] else WIDTH}
    made: dict[str, Any] = dict.fromkeys(sizes)
    made |= {"vector": torch.randn(HEADS, WIDTH), "pair_key": of_pairs(WIDTH)}
    made |= {of: torch.randn(NODES, FEATURES) for of in ("x", "x_query")}
    made |= {f"weight_{of}": torch.randn(size, FEATURES) for of, size in sizes.items()}
    made |= {f"bias_{of}": torch.randn(size) for of, size in sizes.items()}
    return with_gradients(given, made) | {"hidden": torch.randn(3 * NODES * wide)}


def with_gradients(given: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """A layer's arguments with others in their place, and with the gradients of these."""
    grads = {f"grad_{of}": None if x is None else x.clone() for of, x in made.items()}
    return {**given, **made, **(grads if "grad" in given else {})}


KINDS = {"halves": halves, "ends": ends, "maps": maps}


def call(name: str, given: dict[str, Any]) -> Any:
    name = name.partition(" of ")[0]
    if name.startswith("layer"):  # whose tensors come in two lists
        rest = dict(given)
        given = {"given": [rest.pop(of, None) for of in OF_LAYERS]}
        if name == "layer_backward":
            given["grads"] = [rest.pop(f"grad_{of}", None) for of in OF_LAYERS]
        given.update(rest)
    return getattr(compiled.module, name)(**given)


def expanded(x: Tensor) -> Tensor:
    return x.new_zeros(()).expand(x.shape)


def repeated_rows(x: Tensor) -> Tensor:
    return x[:1].clone().expand(x.shape)


def spread_out(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def turned(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize(("name", "written"), [(n, w) for n in WRITTEN for w in WRITTEN[n]])
class TestWhatIsWritten:
    def test_must_be_packed(self, name: str, written: str, numbers: bool) -> None:
        call(name, arguments(name, numbers))
        for change in (expanded, repeated_rows, spread_out, turned):
            given = arguments(name, numbers)
            x = given[written]
            changed = change(x)
            sizes = zip(changed.stride(), x.stride(), x.shape, strict=True)
            if all(a == b or size == 1 for a, b, size in sizes):
                continue  # as it was
            given[written] = changed
            with pytest.raises((ValueError, TypeError)):
                call(name, given)

    def test_shares_no_memory(self, name: str, written: str, numbers: bool) -> None:
        for other, x in arguments(name, numbers).items():
            given = arguments(name, numbers)
            mine = given[written]
            if other == written or not isinstance(x, Tensor) or x.dtype != mine.dtype:
                continue
            both = torch.zeros(x.numel() + mine.numel() - 1, dtype=x.dtype)
            given[written] = both[: mine.numel()].view(mine.shape)
            given[other] = both[mine.numel() - 1 :].view(x.shape)
            with pytest.raises((ValueError, IndexError)):
                call(name, given)


@pytest.mark.parametrize("name", ["layer_forward", "layer_backward"])
@pytest.mark.parametrize("order", range(6))
def test_a_layer_does_not_write_to_the_order_of_its_pairs(name: str, order: int) -> None:
    for written in WRITTEN[name]:
        given = arguments(name)
        ends = [x.clone() for _ in range(2) for x in (POINTER, OTHER, PLACE)]
        x = given[written]
        shared = torch.zeros(x.numel() + 8)
        ends[order] = shared[:8].view(ends[order].dtype)[: len(ends[order])].copy_(ends[order])
        given[written] = shared[1 : 1 + x.numel()].view(x.shape)
        given["pairs"] = compiled.module.SortedPairs(NODES, NODES, PAIRS, *ends[:3])
        given["pairs"].set_by_key(*ends[3:])
        with pytest.raises(ValueError, match="shares memory"):
            call(name, given)


@pytest.mark.parametrize(
    "sizes", [(2**62, 3, 4), (3, 2**62, 4), (-1, 3, 4), (3, -1, 4), (3, 3, -1)]
)
def test_sizes_of_no_graph(sizes: tuple[int, int, int]) -> None:
    pointer = POINTER if sizes[1] == NODES else POINTER[:0]
    with pytest.raises(ValueError, match="is no number"):
        compiled.module.SortedPairs(*sizes, pointer, OTHER, PLACE)


def test_what_is_sorted_must_be_pairs_of_the_nodes_there_are() -> None:
    pairs = torch.tensor([[0, 2, 1, 2], [1, 0, 1, 2]])
    sort = compiled.module.sort_ends
    for given in (pairs, pairs.t().contiguous().t(), pairs.int(), pairs[:, ::2]):
        made = sort(given, NODES, NODES, 0, True, 2, True)
        assert made.count == given.shape[1] and made.has_key
        for of_keys, order in ((False, given[1]), (True, given[0])):
            _, _, places = map(torch.from_dlpack, made.order(of_keys))
            assert torch.equal(places, order.argsort(stable=True).int())
    assert sort(pairs, NODES, NODES, 0, True, 2, False).order(True) is None
    for sizes in ((2, NODES), (NODES, 2)):
        assert sort(pairs, *sizes, 0, True, 2, True) is None
    assert sort(pairs - 1, NODES, NODES, 0, True, 2, True) is None
    for given in (pairs[:1], torch.cat([pairs, pairs])):
        with pytest.raises(ValueError, match="is not"):
            sort(given, NODES, NODES, 0, True, 2, True)
    for sizes in ((-1, 3, 0), (3, -1, 0), (2**62, 3, 0), (3, 3, -1), (3, 3, 4)):
        with pytest.raises(ValueError):
            sort(pairs, *sizes, True, 2, True)
    for other in (pairs.float(), pairs.short(), pairs[0], None):
        with pytest.raises((TypeError, ValueError)):
            sort(other, NODES, NODES, 0, True, 2, True)


def test_an_order_outlives_its_pairs() -> None:
    made = compiled.module.sort_ends(torch.tensor([[0, 2, 1], [1, 0, 1]]), 3, 3, 0, True, 1, True)
    pointer, others, _ = map(torch.from_dlpack, made.order(False))
    del made
    junk = [torch.full((16,), -1) for _ in range(100)]
    assert pointer.tolist() == [0, 1, 3, 3] and others.tolist() == [2, 0, 1] and junk


def test_more_numbers_than_64_bits_count() -> None:
    given = arguments("layer_forward")
    ends = POINTER, OTHER, PLACE
    given["pairs"] = compiled.module.SortedPairs(NODES, NODES, 2**64 // (HEADS * WIDTH), *ends)
    given["pair_key"] = torch.empty(0, HEADS, WIDTH)
    with pytest.raises(ValueError, match="pair_key"):
        call("layer_forward", given)


def test_probabilities_and_settings() -> None:
    dropped = "forward", "backward", "layer_forward", "layer_backward"
    for name, argument in (*((name, "dropout") for name in dropped), ("drop", "p")):
        for p in (-0.1, 1.1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="is no probability"):
                call(name, {**arguments(name), argument: p})
    for threads in (-(2**31), 0, 2**31 - 1):
        call("forward", {**arguments("forward"), "threads": threads})
        call("drop", {**arguments("drop"), "threads": threads})


@pytest.mark.parametrize("name", ["backward", "backward of halves", "entmax_backward"])
@pytest.mark.parametrize("of", ["pair_key", "pair_value"])
def test_no_gradient_of_what_is_not_given(name: str, of: str) -> None:
    gradient = torch.zeros_like(arguments("backward")[of])
    with pytest.raises(ValueError, match=f"grad_{of} is asked for"):
        call(name, {**arguments(name), of: None, f"grad_{of}": gradient})


# --- Whatever else, in a process of its own, which must come to its end ---

CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "expanded": expanded,
    "repeated rows": repeated_rows,
    "spread out": spread_out,
    "transposed": turned,
    "of other dimensions": lambda x: x.transpose(0, -1),
    "backwards": lambda x: x.numpy()[::-1],
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "long": lambda x: x.long(),
    "int": lambda x: x.int(),
    "complex": lambda x: x.to(torch.complex64),
    "longer": lambda x: torch.cat([x, x]),
    "shorter": lambda x: x[:-1],
    "wider": lambda x: torch.cat([x, x], -1),
    "empty": lambda x: x[:0],
    "flat": lambda x: x.flatten(),
    "deeper": lambda x: x[None],
    "scalar": lambda x: x.flatten()[0],
    "none": lambda x: None,
    "large": lambda x: torch.full_like(x, 2**30),
    "negative": lambda x: torch.full_like(x, -1),
    "not a number": lambda x: torch.full_like(x, float("nan")) if x.is_floating_point() else x,
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "a list": lambda x: x.tolist(),
}
SCALARS = 0, -1, 2, 3, 2**31 - 1, -(2**31), 2**62, 0.5, -0.5, float("nan"), float("inf"), None, "x"


def fuzz() -> None:
    """Every argument of every function changed in every way, alone or with a second one."""
    torch.manual_seed(0)
    cases = raised = 0
    for name in WRITTEN:
        for numbers in (False, True):
            for argument, x in arguments(name, numbers).items():
                changes: list[Any] = list(SCALARS)
                if isinstance(x, Tensor):
                    changes = list(CHANGES.values())
                for change in changes:
                    given = arguments(name, numbers)
                    named, second = list(given), torch.rand(()) < 0.5
                    for which in [argument, *(
                        named[int(torch.randint(len(named), ()))] for _ in range(int(second))
                    )]:  # fmt: skip
                        old = given[which]
                        try:
                            if isinstance(old, Tensor):
                                other = changes[int(torch.randint(len(changes), ()))]
                                by = change if which == argument else other
                                given[which] = by(old) if callable(by) else old
                            else:
                                given[which] = change if not callable(change) else 0
                        except (RuntimeError, IndexError, TypeError):
                            continue
                    if name == "turn" and given["places"] == 2**31 - 1:
                        continue  # memory for so many is what was asked for
                    cases += 1
                    try:
                        call(name, given)
                    except Exception:
                        raised += 1
    print(cases, raised)


def test_no_arguments_crash_it() -> None:
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import test_cpu_arguments
        test_cpu_arguments.fuzz()
    """
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", textwrap.dedent(code), here],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cases, raised = map(int, done.stdout.split())
    assert 0 < raised < cases


# --- What the kernels do not serve, plain torch does ---


@pytest.mark.parametrize("score", ["dot", "separable"])
@pytest.mark.parametrize(
    ("heads", "width", "value_width"), [(70_000, 1, 1), (1, 2**20 + 1, 1), (1, 1, 2**20 + 1)]
)
def test_more_than_the_kernels_have_room_for(
    heads: int, width: int, value_width: int, score: str
) -> None:
    pairs = torch.tensor([[0, 1, 1], [1, 0, 1]])
    query, key = torch.randn(2, 2, heads, width, requires_grad=True).unbind(0)
    value = torch.randn(2, heads, value_width, requires_grad=True)
    vector = torch.ones(heads, width) / width**0.5
    axes: Any = {
        "score": Dot(width**-0.5) if score == "dot" else Separable(vector, vector),
        "support": Edges(pairs),
    }
    found = []
    for name in ("auto", "reference"):
        with backend(name):
            output = attend(query, key, value, **axes).output
            found.append((output, *torch.autograd.grad(output.square().sum(), (query, value))))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_largest_that_the_kernels_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    if not cpu.available():
        pytest.skip("switched off")
    pairs, called = torch.tensor([[0, 1], [1, 0]]), []
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda p: called.append(p) or forward(p))  # type: ignore[func-returns-value]
    for heads, width in ((2**16, 1), (1, 2**20)):
        x = torch.randn(2, heads, width)
        output = attend(x, x, x, score=Dot(0.0), support=Edges(pairs)).output
        assert torch.equal(output, x.flip(0))
    assert len(called) == 2
