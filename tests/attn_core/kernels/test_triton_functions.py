"""Scores given as functions, in Triton that is generated: against the definition, interpreted."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core import Edges, PendingEdges, attend, backend, score_function
from attn_core.backends import blocks

pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")

from triton.runtime.errors import OutOfResources

from attn_core.backends.triton import plan, run

N, H, D = 7, 3, 4
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hubs of a few edges are cut already."""
    monkeypatch.setattr(plan, "CHUNK", 4)


@score_function
def near(query, key, width):
    """One parameter for each head."""
    return -width * (query - key).square().sum(-1)


@score_function
def radial(query, key, query_position, key_position, head, width):
    """Positions, the number of a head, a parameter for all."""
    far = (query_position - key_position).square().sum(-1)
    return (query * key).sum(-1) - width * far / (head + 1)


@score_function
def rotary(query, key, pair):
    """An own vector of each pair, one for all heads; slices, whose gradients are joined."""
    (q, r), (k, j), (cos, sin) = (x.chunk(2, -1) for x in (query, key, pair))
    return ((q * k + r * j) * cos + (q * j - r * k) * sin).sum(-1)


@score_function
def gated(query, key, gate, vector):
    """Several parameters of each channel."""
    return (torch.sigmoid(gate * key) * F.leaky_relu(query + key, 0.2) * vector).sum(-1)


@score_function
def joined(query, key, pair, gate, first, second):
    """A perceptron of what is joined, strided and reversed: sums within sums, numbers by loops."""
    x = torch.cat([query, key[..., ::2], pair.flip(-1)], -1)
    x = F.silu(torch.einsum("...hd,de->...he", x, first))
    turned = torch.stack([key[..., 1::2], -key[..., ::2]], -1).flatten(-2)
    return torch.einsum("...he,he->...h", x, second) + gate * F.cosine_similarity(query, turned, -1)


@score_function
def activated(query, key, scale):
    """What there is of functions, where they are smooth."""
    x, y = scale * query, 0.5 + key.square()
    sums = torch.tanh(x) + torch.erf(x) + F.elu(x) + F.gelu(y) + F.softplus(x) + F.hardswish(x)
    sums = sums + x.sin() * x.cos() + y.log() + y.log2() + y.log1p() + x.expm1() + y.sqrt()
    sums = sums + y**1.7 + y.rsqrt() + x.abs().clamp(0.1, 1.5) * x.sign() + (-y).exp()
    return torch.where(x > 0.2, sums, torch.maximum(x, y)).sum(-1) / x.norm(dim=-1)


# Shapes of the parameters; of what each pair has of its own; channels of positions
CASES: dict[Any, tuple[tuple[tuple[int, ...], ...], tuple[int, ...] | None, int]] = {
    near: (((H,),), None, 0),
    radial: (((),), None, 3),
    rotary: ((), (1, D), 0),
    gated: (((H, D), (D,)), None, 0),
    joined: (((), (D + D // 2 + 2, 2), (H, 2)), (H, 2), 0),
    activated: (((D,),), None, 0),
}
every_case = pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)


def graph() -> Tensor:
    """Duplicates, loops, a query and a key of many edges, and nodes without any."""
    some = torch.randint(N - 2, (2, 10))
    to_hub = torch.stack([torch.randint(N - 2, (9,)), torch.ones(9, dtype=torch.int64)])
    return torch.cat([some, to_hub, to_hub.flip(0) + 1], 1)


def arguments(
    cls: Any,
    device: str,
    dtype: torch.dtype = DOUBLE,
    pairs: Tensor | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A call of `attend`, all of whose tensors are leaves; see `leaves`."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=DOUBLE).to(device, dtype).requires_grad_()

    shapes, pair, positions = CASES[cls]
    pairs = (graph() if pairs is None else pairs).to(device)
    support: Any = PendingEdges(pairs, N, N, self_loops=True)
    rows = support.num_rows
    given = {"query": leaf(N, H, D), "key": leaf(N, H, D), "value": leaf(N, H, 5)}
    given["bias"] = leaf(rows, H)
    if pair is not None:
        given["pair_key"] = leaf(rows, *pair)
    position = {"position": torch.randn(N, positions).to(device, dtype)} if positions else {}
    score = cls(*(leaf(*shape) for shape in shapes), **position)
    return {**given, "score": score, "support": support, **options}


def leaves(given: dict[str, Any]) -> list[Tensor]:
    tensors = [*given.values(), *vars(given["score"]).values()]
    return [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]


def everything(given: dict[str, Any]) -> list[Tensor]:
    """Output, log-sum-exp and all gradients."""
    torch.manual_seed(1)
    result = attend(**given, need_log_sum_exp=True)
    assert result.log_sum_exp is not None
    some = result.log_sum_exp[result.log_sum_exp.isfinite()]
    loss = result.output.cos().sum() + some.sin().sum()
    return [result.output, result.log_sum_exp, *torch.autograd.grad(loss, leaves(given))]


@pytest.fixture
def _no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, plain torch might be compared with itself."""

    def never(*_: Any) -> Any:
        raise AssertionError("plain torch was called")

    monkeypatch.setattr(blocks, "forward", never)
    monkeypatch.setattr(blocks, "backward", never)


@every_case
@pytest.mark.usefixtures("_no_blocks")
def test_output_and_every_gradient(cls: Any, device: str) -> None:
    given = arguments(cls, device, dropout=0.4)
    found = everything(given)
    with backend("reference"):
        torch.testing.assert_close(found, everything(given))


@pytest.mark.usefixtures("_no_blocks")
def test_large_scores_and_pairs_that_do_not_exist(device: str) -> None:
    """Some pairs are absent, all of a query's too; of the others one is far above the rest."""
    given = arguments(gated, device)
    bias = 1e3 * given["bias"].detach()
    bias[torch.rand(bias.shape, device=device) < 0.3] = -torch.inf
    into_hub = torch.cat([graph()[1], torch.arange(N)]).to(device) == 1
    bias[into_hub[: len(bias)]] = -torch.inf
    given["bias"] = bias.requires_grad_()
    found = everything(given)
    with backend("reference"):
        torch.testing.assert_close(found, everything(given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("_no_blocks")
def test_lower_precision(dtype: torch.dtype, device: str) -> None:
    """Computed in float32, whatever the dtype that is read."""
    given = arguments(gated, device, dtype)
    exact = {k: v.detach().double() if isinstance(v, Tensor) else v for k, v in given.items()}
    score = vars(given["score"]).items()
    own = {k: v.detach().double().requires_grad_() for k, v in score}
    exact["score"] = gated(**own)
    for x in exact.values():
        if isinstance(x, Tensor):
            x.requires_grad_()
    with backend("reference"):
        truth = everything(exact)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for x, y in zip(everything(given), truth, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cls", [rotary, gated], ids=lambda cls: cls.__name__)
@pytest.mark.usefixtures("_no_blocks")
def test_the_cut_into_tiles_makes_no_difference(
    cls: Any, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs of one head each add up what heads share; so do parameters with tiles of their own,
    in several turns."""
    given = arguments(cls, device, pairs=graph()[:, ::4])
    whole = everything(given)
    for name, number in (("TILE", 8), ("_WIDE", 0), ("MOST_BYTES", 2**10)):
        monkeypatch.setattr(run, name, number)
    torch.testing.assert_close(everything(given), whole)


@pytest.mark.usefixtures("_no_blocks")
def test_a_batch_over_one_graph(device: str) -> None:
    given = arguments(gated, device, dropout=0.2)
    for name in ("query", "key", "value"):
        given[name] = torch.randn(2, *given[name].shape, dtype=DOUBLE, device=device)
        given[name].requires_grad_()
    found = everything(given)
    with backend("reference"):
        torch.testing.assert_close(found, everything(given))


@pytest.mark.usefixtures("_no_blocks")
def test_without_edges_and_with_the_gradient_of_a_parameter_alone(device: str) -> None:
    given = arguments(near, device)
    none = torch.zeros(2, 0, dtype=torch.int64, device=device)
    given |= {"support": Edges(none, N, N), "bias": None}
    for found in everything(given):
        assert (found.masked_fill(found == -torch.inf, 0) == 0).all()
    given["support"] = Edges(graph().to(device), N, N)
    of_width = everything(given)[-1]
    for x in leaves(given)[:-1]:
        x.requires_grad_(False)
    assert torch.equal(everything(given)[2], of_width)


def test_how_many_launches_a_step_takes(
    device: str, launches: Callable[[], AbstractContextManager[Counter[str]]]
) -> None:
    given = arguments(gated, device)
    everything(given)
    with launches() as found:
        output = attend(**given).output
    assert found.pop("attend_rows") == 1 and sum(found.values()) <= 4, found
    grad = torch.ones_like(output)
    with launches() as found:
        torch.autograd.grad(output, leaves(given), grad)
    kernels = {"mean_rows": 1, "by_query": 2, "by_key": 1, "combine_rows": 4}
    assert {name: found[name] for name in kernels} == kernels, found
    assert sum(found.values()) <= 30, found


def test_what_cannot_be_written_in_triton_runs_in_blocks_after_one_warning(device: str) -> None:
    @score_function
    def turned(query, key):
        return torch.atan(query * key).sum(-1)

    @score_function
    def wide(query, key, matrix):
        return torch.einsum("...hd,hde,...he->...h", query, matrix, key)

    x = torch.randn(N, H, 65, dtype=DOUBLE, device=device)
    edges = Edges(graph().to(device), N, N)
    for score, reason in (
        (turned(), r"score turned uses aten\.atan\.default; over edges it runs in plain torch"),
        (wide(x.new_ones(H, 65, 65)), "score wide has more than 4096 numbers per head in one sum"),
    ):
        with pytest.warns(UserWarning, match=reason):
            found = attend(x, x, x, score=score, support=edges).output
        with backend("reference"):
            expected = attend(x, x, x, score=score, support=edges).output
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(attend(x, x, x, score=score, support=edges).output, found)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("refusal", [OutOfResources(300_000, 232_448, "shared memory"),
                                   RuntimeError("PassManager::run failed")])  # fmt: skip
def test_what_triton_refuses_runs_in_blocks_after_one_warning(
    where: str, refusal: Exception, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @score_function
    def product(query, key):
        return (query * key).sum(-1)

    def refused(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(run, where, refused)
    x = torch.randn(N, H, D, dtype=DOUBLE, device=device, requires_grad=True)
    edges = Edges(graph().to(device), N, N)

    def gradient() -> Tensor:
        output = attend(x, x, x, score=product(), support=edges).output
        return torch.autograd.grad(output.square().sum(), x)[0]

    told = f"product is refused by Triton .*{str(refusal)[:12]}.* plain torch"
    with pytest.warns(UserWarning, match=told):
        found = gradient()
    with backend("reference"):
        torch.testing.assert_close(found, gradient())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(gradient(), found)


def test_a_triton_that_takes_no_functions_is_named(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @score_function
    def product(query, key):
        return (query * key).sum(-1)

    monkeypatch.setattr("triton.__version__", "3.2.0")
    x = torch.randn(N, H, D, dtype=DOUBLE, device=device)
    edges = Edges(graph().to(device), N, N)
    with pytest.warns(
        UserWarning, match=r"product needs Triton 3\.3 on a GPU, and 3\.2\.0 is inst"
    ):
        found = attend(x, x, x, score=product(), support=edges).output
    with backend("reference"):
        expected = attend(x, x, x, score=product(), support=edges).output
    torch.testing.assert_close(found, expected)
