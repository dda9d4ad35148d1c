"""Scores given as functions: compiled over edges, in blocks without a compiler, else as written."""

from __future__ import annotations

import copy
import os
import pickle
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gat
from attn_core import (
    Additive,
    Dense,
    Dot,
    Edges,
    PendingEdges,
    Score,
    Sparsemax,
    Window,
    attend,
    backend,
    logits,
    score_function,
)
from attn_core.backends import generated
from attn_core.backends.generated import build

N, H, D, E = 24, 2, 4, 150


@score_function
def product(query, key):
    return (query * key).sum(-1)


@score_function
def additive(query, key, vector):
    return (F.leaky_relu(query + key, 0.2) * vector).sum(-1)


@score_function(name="near", shapes=lambda heads, size: {"width": (heads,)})
def near(query, key, width):
    """`-width ‖q - k‖²`."""
    return -width * (query - key).square().sum(-1)


@score_function
def radial(query, key, query_position, key_position, head, width, scale):
    far = (query_position - key_position).square().sum(-1)
    return (query * key).sum(-1) * scale - width * far / (head + 1)


@score_function
def rotary(query, key, pair):
    (cos, sin), (k, j) = (pair.cos(), pair.sin()), (key[..., ::2], key[..., 1::2])
    turned = torch.stack([k * cos - j * sin, k * sin + j * cos], -1).flatten(-2)
    return (query * turned).sum(-1)


@score_function
def gated(query, key, gate, vector):
    return (torch.sigmoid(gate * key) * F.leaky_relu(query + key, 0.2) * vector).sum(-1)


# A name is known while the tests of this file run, which the root's conftest sees to
del Score.named["near"]

POSITION = torch.linspace(-1, 1, 3 * N, dtype=torch.float64).view(N, 3).sin()
# Shapes of the parameters, of what each pair has of its own, and whether there are positions
CASES: dict[Any, tuple[tuple[tuple[int, ...], ...], tuple[int, ...] | None, bool]] = {
    product: ((), None, False),
    additive: (((H, D),), None, False),
    near: (((H,),), None, False),
    radial: (((H,), ()), None, True),
    rotary: ((), (1, D // 2), False),
    gated: (((H, D), (D,)), None, False),
}
every_case = pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _named() -> None:
    Score.named["near"] = near


def pairs() -> Tensor:
    """A hub, which is node 5, nodes without pairs, which are the last three, and loops."""
    edge_index = torch.randint(0, N - 3, (2, E))
    edge_index[1, :60] = 5
    return edge_index


class Given:
    """What one call takes; `leaves` have gradients."""

    def __init__(self, cls: Any, dtype: torch.dtype = torch.float64) -> None:
        shapes, pair, positioned = CASES[cls]
        # Neither packed nor in order
        wide = torch.randn(3, H, N, D + 1, dtype=dtype)
        tokens = [x[..., :D].transpose(0, 1).detach() for x in wide]
        rest = [torch.rand(shape, dtype=dtype) for shape in shapes]
        self.leaves = [x.requires_grad_() for x in (*tokens, *rest)]
        self.options: dict[str, Any] = {"bias": torch.randn(E, H, dtype=dtype).requires_grad_()}
        if pair is not None:
            self.options["pair_key"] = torch.randn(E, *pair, dtype=dtype).requires_grad_()
        self.cls, self.position = cls, {"position": POSITION.to(dtype)} if positioned else {}
        self.leaves += self.options.values()
        self.score = cls(*rest, **self.position)

    def __call__(self, support: Any, **options: Any) -> Any:
        query, key, value = self.leaves[:3]
        return attend(
            query, key, value, score=self.score, support=support, **self.options, **options
        )

    def gradients(self, support: Any, **options: Any) -> tuple[Tensor, ...]:
        """The output, the log-sum-exp and all gradients of both."""
        torch.manual_seed(7)
        output, _, log_sum_exp = self(support, need_log_sum_exp=True, **options)
        some = log_sum_exp[log_sum_exp > -1e30]
        loss = output.cos().sum() + some.sin().sum()
        return output, log_sum_exp, *torch.autograd.grad(loss, self.leaves)


@every_case
def test_output_and_gradients_are_those_of_the_definition(cls: Any) -> None:
    given, edges = Given(cls), Edges(pairs(), N, N)
    for options in ({}, {"dropout": 0.4}):
        with backend("reference"):
            expected = given.gradients(edges, **options)
        torch.testing.assert_close(given.gradients(edges, **options), expected)
        with backend("torch"):
            torch.testing.assert_close(given.gradients(edges, **options), expected)
    assert any(cls.__qualname__ in name for name in generated.kernels())
    weights = given(edges, need_weights=True).weights
    with backend("reference"):
        torch.testing.assert_close(given(edges, need_weights=True).weights, weights)


@pytest.mark.parametrize("cls", [product, additive], ids=lambda cls: cls.__name__)
def test_a_built_in_score_written_out_gives_its_numbers(cls: Any) -> None:
    given, edges = Given(cls), Edges(pairs(), N, N)
    found = given.gradients(edges)
    given.score = Dot() if cls is product else Additive(given.leaves[3], "leaky_relu")
    torch.testing.assert_close(given.gradients(edges), found)


def test_long_rows_are_cut_and_threads_change_no_bit() -> None:
    """A hub with 9,000 pairs either way, which several tasks share."""
    num = 9_000
    nodes = torch.arange(num)
    hub = torch.zeros(num, dtype=torch.int64)
    edge_index = torch.cat([torch.stack([nodes, hub]), torch.stack([hub, nodes])], 1)
    tensors = [torch.randn(num, H, D, dtype=torch.float64).requires_grad_() for _ in range(3)]
    width, edges = torch.rand(H, dtype=torch.float64).requires_grad_(), Edges(edge_index, num, num)

    def run() -> tuple[Tensor, ...]:
        output = attend(*tensors, score=near(width), support=edges).output
        return output, *torch.autograd.grad(output.cos().sum(), [*tensors, width])

    found, threads = run(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(torch.equal(x, y) for x, y in zip(run(), found, strict=True))
    finally:
        torch.set_num_threads(threads)
    with backend("reference"):
        torch.testing.assert_close(run(), found)


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_nothing_to_attend_to(name: str) -> None:
    given = Given(near)
    none = Edges(torch.zeros(2, 0, dtype=torch.int64), N, N)
    given.options = {}
    given.leaves = given.leaves[:4]
    with backend(name):
        output = given(none).output
        grads = torch.autograd.grad(output.sum(), given.leaves)
    assert output.abs().sum() == 0 and all(grad.abs().sum() == 0 for grad in grads)


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_what_is_wrong_stays_visible_and_pairs_of_minus_infinity_do_not_exist(name: str) -> None:
    given, edge_index = Given(near), torch.tensor([[0, 1, 2, 3, 4, 4], [6, 6, 7, 7, 8, 9]])
    given.options = {"bias": torch.zeros(6, H, dtype=torch.float64)}
    bias = given.options["bias"]
    bias[0], bias[2], bias[4] = torch.nan, torch.inf, -torch.inf
    with backend(name):
        output = given(Edges(edge_index, N, N)).output
    assert output[6:8].isnan().all()
    assert (output[8] == 0).all() and (output[9] == given.leaves[2][4]).all()


def test_single_precision_and_large_scores() -> None:
    """Gradients are as exact as those of the built-in kernel."""
    errors = []
    for cls, built in ((product, False), (product, True)):
        torch.manual_seed(3)
        exact = Given(cls)
        with torch.no_grad():
            for x in exact.leaves[:2]:
                x *= 30
        torch.manual_seed(3)
        given = Given(cls, torch.float32)
        with torch.no_grad():
            for x, y in zip(given.leaves, exact.leaves, strict=True):
                x.copy_(y)
                y.copy_(x.double())
        if built:
            given.score = Dot()
        edges = Edges(pairs(), N, N)
        with backend("reference"):
            expected = exact.gradients(edges)
        found = given.gradients(edges)
        assert found[0].dtype == torch.float32
        errors.append([
            float((x.double() - y).norm() / y.norm())
            for x, y in zip(found[2:], expected[2:], strict=True)
        ])  # fmt: skip
    assert all(x < 4 * y + 1e-6 for x, y in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("loops", [False, True])
def test_compiled_code_has_it_in_one_graph(loops: bool) -> None:
    given, edge_index = Given(near), pairs()
    given.options, given.leaves = {}, given.leaves[:4]
    pending = PendingEdges(edge_index, N, N, self_loops=loops)

    def run(query: Tensor, key: Tensor, value: Tensor, width: Tensor) -> Tensor:
        return attend(query, key, value, score=near(width), support=pending).output

    compiled: Any = torch.compile(run, fullgraph=True, backend="aot_eager")
    for name in ("auto", "torch"):
        with backend(name):
            found, expected = compiled(*given.leaves), run(*given.leaves)
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(
                torch.autograd.grad(found.cos().sum(), given.leaves),
                torch.autograd.grad(expected.cos().sum(), given.leaves),
            )


def test_gradients_of_gradients() -> None:
    given, edges = Given(gated), Edges(pairs(), N, N)

    def run() -> Any:
        grads = torch.autograd.grad(
            given(edges).output.cos().sum(), given.leaves, create_graph=True
        )
        return torch.autograd.grad(sum(x.square().sum() for x in grads), given.leaves)

    found = run()
    with backend("reference"):
        torch.testing.assert_close(run(), found)


def test_a_batch_over_one_graph() -> None:
    """Its states are heads of the op, and calls of the kernel."""
    given, edges = Given(radial), Edges(pairs(), N, N)
    query, key, value = (torch.randn(3, N, H, D, dtype=torch.float64) for _ in range(3))
    states = [x.requires_grad_() for x in (query, key, value)]

    def run() -> Any:
        torch.manual_seed(1)
        result = attend(*states, score=given.score, support=edges, dropout=0.2)
        return result.output, *torch.autograd.grad(
            result.output.cos().sum(), [*states, *given.leaves[3:5]]
        )

    found = run()
    with backend("reference"):
        torch.testing.assert_close(run(), found)


@pytest.mark.parametrize("cls", [near, radial, rotary], ids=lambda cls: cls.__name__)
def test_other_supports_and_normalisers_have_the_same_numbers(cls: Any) -> None:
    given = Given(cls)
    query, key = torch.ones(N, N, dtype=torch.bool).nonzero().T
    edges = Edges(torch.stack([key, query]), N, N)
    near_by = (key - query).abs() <= 1
    pair = None
    if "pair_key" in given.options:
        pair = torch.randn(N * N, 1, D // 2, dtype=torch.float64)
    given.options = {}
    expected = given(edges, pair_key=pair).output
    square = None if pair is None else pair.view(N, N, 1, -1)
    torch.testing.assert_close(given(Dense(), pair_key=square).output, expected)
    sparse = given(edges, pair_key=pair, normalizer=Sparsemax()).output
    torch.testing.assert_close(
        given(Dense(), pair_key=square, normalizer=Sparsemax()).output, sparse
    )
    if pair is None:
        band = Edges(torch.stack([key, query])[:, near_by], N, N)
        torch.testing.assert_close(given(Window(1)).output, given(band).output)
        found = logits(*given.leaves[:2], score=given.score, support=edges)
        dense = logits(*given.leaves[:2], score=given.score, support=Dense())
        torch.testing.assert_close(found.T.reshape(H, N, N), dense)


@pytest.mark.parametrize("by", ["name", "instance"])
def test_in_a_layer(by: str) -> None:
    score: Any = "near" if by == "name" else near(nn.Parameter(torch.ones(H)))
    layer = gat.GraphAttentionConv(D, D, heads=H, score=score).double()
    assert dict(layer.named_parameters())["score_width"].shape == (H,)
    x, edge_index = torch.randn(N, D, dtype=torch.float64), pairs()
    output = layer(x, edge_index)
    grads = torch.autograd.grad(output.cos().sum(), list(layer.parameters()))
    with backend("reference"):
        expected = layer(x, edge_index)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(
            grads, torch.autograd.grad(expected.cos().sum(), list(layer.parameters()))
        )
    torch.testing.assert_close(copy.deepcopy(layer)(x, edge_index), output)


def test_a_class_can_be_pickled() -> None:
    sent = pickle.loads(pickle.dumps(F.__name__)) and near(torch.ones(H))
    assert near.__module__ == __name__ and near.__doc__ == "`-width ‖q - k‖²`."
    assert repr(sent) == "near(width)"


def warned(score: Any, words: str) -> None:
    """The definition's numbers, after one warning."""
    edges, x = Edges(pairs(), N, N), torch.randn(N, H, D, dtype=torch.float64)
    with backend("reference"):
        expected = attend(x, x, x, score=score, support=edges).output
    with pytest.warns(UserWarning, match=words):
        torch.testing.assert_close(attend(x, x, x, score=score, support=edges).output, expected)
    torch.testing.assert_close(attend(x, x, x, score=score, support=edges).output, expected)


def test_what_cannot_be_compiled_is_named_once(recwarn: pytest.WarningsRecorder) -> None:
    @score_function
    def ranked(query, key):
        return (query.cumsum(-1) * key).sum(-1)

    warned(ranked(), r"score ranked uses aten\.cumsum\.default; over edges it runs in plain torch")
    around = torch.ones(H, dtype=torch.float64)

    @score_function
    def captured(query, key):
        return (query * key).sum(-1) * around

    warned(captured(), "score captured .*tensor")

    @score_function
    def mixed(query, key):
        return (query * key).sum((-1, -2), keepdim=True).squeeze(-1).expand(*key.shape[:-1])

    warned(mixed(), "score mixed mixes heads")
    assert not [x for x in recwarn if "score" in str(x.message)]  # each has been seen


@pytest.mark.parametrize("kind", ["int", "long", "half", "bfloat16", "float"])
def test_what_rounds_is_not_compiled(kind: str) -> None:
    @score_function
    def rounded(query, key):
        return (query * key).sum(-1) + getattr(3 * key, kind)().sum(-1)

    warned(rounded(), r"score rounded rounds to torch\.\w+; over edges it runs in plain torch")


def test_truth_values_are_numbers_and_numbers_truth_values() -> None:
    @score_function
    def there(query, key):
        positive = (query > key).double().sum(-1) + (query < key).int().sum(-1) / 2
        return (query * key).sum(-1) + key.relu().bool().to(key.dtype).sum(-1) + positive

    edges, x = Edges(pairs(), N, N), torch.randn(N, H, D, dtype=torch.float64)
    x[::2, 0] = 0
    with backend("reference"):
        expected = attend(x, x, x, score=there(), support=edges).output
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(attend(x, x, x, score=there(), support=edges).output, expected)


SLOPE = 1.0


def helped(x: Tensor) -> Tensor:
    return SLOPE * x


def test_numbers_from_around_are_those_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    shift = 2.0

    @score_function
    def steep(query, key):
        near_by = [SLOPE * shift * part for part in (query * key).unbind(-1)]
        return torch.stack(near_by, -1).sum(-1)

    @score_function
    def indirect(query, key):
        return helped((query * key).sum(-1))

    edges, x = Edges(pairs(), N, N), torch.randn(N, H, D, dtype=torch.float64)
    found = []
    for slope, moved in ((1.0, 2.0), (5.0, 2.0), (5.0, 0.5), (1.0, 2.0)):
        monkeypatch.setitem(globals(), "SLOPE", slope)
        shift = moved
        for score in (steep(), indirect()):
            with backend("reference"):
                expected = attend(x, x, x, score=score, support=edges).output
            found.append(attend(x, x, x, score=score, support=edges).output)
            torch.testing.assert_close(found[-1], expected)
    assert not torch.allclose(found[0], found[2]) and not torch.allclose(found[1], found[3])


def test_a_zero_that_is_written_makes_nan_of_the_infinite() -> None:
    @score_function
    def undefined(query, key):
        return (query * key).sum(-1) + (0 * key.log()).sum(-1)

    edges, x = Edges(pairs(), N, N), torch.rand(N, H, D, dtype=torch.float64) + 0.1
    x[3, 1, 2] = 0
    with backend("reference"):
        expected = attend(x, x, x, score=undefined(), support=edges).output
    found = attend(x, x, x, score=undefined(), support=edges).output
    assert expected.isnan().any()
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("support", ["Edges", "Dense"])
def test_parameters_of_truth_values_and_of_integers_stay_what_they_are(support: str) -> None:
    @score_function
    def chosen(query, key, which, order, weight):
        return (torch.where(which, query, weight)[..., order] * key).sum(-1)

    x = torch.randn(N, H, D, dtype=torch.float64)
    which, order = torch.arange(D) % 2 == 0, torch.arange(D).flip(0)
    weight = torch.rand(D, requires_grad=True)  # float32, which is converted
    on: Any = Dense() if support == "Dense" else Edges(pairs(), N, N)
    found = attend(x, x, x, score=chosen(which, order, weight), support=on).output
    (gradient,) = torch.autograd.grad(found.cos().sum(), weight)
    assert gradient.dtype == torch.float32 and gradient[1::2].any() and not gradient[::2].any()
    with backend("reference"):
        expected = attend(x, x, x, score=chosen(which, order, weight), support=on).output
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["heads", "prepare", "formula", "to", "takes", "named"])
def test_names_that_every_score_has_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"function <lambda> takes {name}, which every score has"):
        score_function(eval(f"lambda query, key, {name}: (query * key).sum(-1) * {name}"))


def test_without_a_compiler_blocks_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    @score_function
    def alone(query, key):
        return (query * key).sum(-1)

    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    warned(alone(), r"score alone needs a C\+\+17 compiler")


def test_functions_and_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"takes \(key, query\); expected \(query, key"):
        score_function(lambda key, query: key)
    x, edges = torch.zeros(N, H, D), Edges(pairs(), N, N)
    with pytest.raises(ValueError, match="score rotary takes pair; got pair_key=None"):
        attend(x, x, x, score=rotary(), support=edges)
    with pytest.raises(ValueError, match="score radial takes positions; give it position="):
        attend(x, x, x, score=radial(1.0, 1.0), support=edges)
    with pytest.raises(ValueError, match=rf"position of query has shape \[3, 2\]; expected .*{N}"):
        attend(x, x, x, score=radial(1.0, 1.0, position=torch.zeros(3, 2)), support=edges)
    Score.named["additive_one"] = additive
    with pytest.raises(ValueError, match="score additive is asked for by name, but the shapes of"):
        gat.GraphAttentionConv(D, D, score="additive_one")


_BUILD = """
import sys
import warnings
from attn_core.backends.generated import build
library = build.load('extern "C" __attribute__((visibility("default"))) int one() { return 1; }')
print(library.one(), library._name)
"""


def test_two_processes_build_one_library(tmp_path: Path) -> None:
    """Side by side; only files of this user's own are loaded."""
    env = {**os.environ, "GAT_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", _BUILD]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].split() for process in both]
    assert said[0] == said[1] and said[0][0] == "1"
    library = Path(said[0][1])
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    library.chmod(0o722)
    with pytest.raises(OSError, match="may be written by others than this user"):
        build._check_own(library)
    library.parent.chmod(0o777)
    with pytest.raises(OSError, match="may be written by others than this user"):
        build._own_folder(library.parent)


def test_memory_without_a_compiler_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor in either pass is larger than the nodes' or a block's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.setattr("attn_core.backends.blocks._BLOCK", 64 * H * D)
    num, count = 50, 4_000
    tensors = [torch.randn(num, H, D, requires_grad=True) for _ in range(3)]
    edges = Edges(torch.randint(num, (2, count)), num, num)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for x in made if isinstance(made, (tuple, list)) else [made]:
                if isinstance(x, Tensor) and x.is_floating_point():
                    largest = max(largest, x.untyped_storage().nbytes() // x.element_size())
            return made

    with backend("torch"), Largest():
        from attn_core.backends import blocks
        from attn_core.backends.problem import Problem
        from attn_core.score_functions import name_of

        found = name_of(near(torch.ones(H)), H)
        assert found is not None
        problem = Problem(
            tensors[0].detach(), tensors[1].detach(), tensors[2].detach(), found[1], None, None,
            None, edges.pairs, num, num, False, found[0], 0.0, 0.0, None, None,
        )  # fmt: skip
        output, log_sum_exp, maximum, total = blocks.forward(problem)
        needed = [True, True, True, True, False, False, False]
        blocks.backward(problem, output, log_sum_exp, output, maximum, total, needed)
    assert 0 < largest <= 64 * H * D + num * H * D
