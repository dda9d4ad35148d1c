"""Several Python threads and forked DataLoader workers: the same bits as one thread alone."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attn_core import (
    Additive,
    Dot,
    Edges,
    Entmax,
    Separable,
    Softmax,
    attend,
    scatter_softmax,
)
from attn_core.backends import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")

CASES = 4


def outcome(i: int) -> list[Tensor]:
    """Attention over a new graph, by fused kernels and by those over groups, with gradients."""
    generator = torch.Generator().manual_seed(i)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    hub = torch.stack([torch.arange(5000) % 300, torch.zeros(5000, dtype=torch.int64)])
    random = torch.randint(300, (2, 3000), generator=generator)
    edges = Edges.from_edge_index(torch.cat([hub, random], 1), 300)
    x, vector, number = leaf(300, 2, 8), leaf(2, 8), leaf(300, 2, 1)
    one = torch.ones(2, 1)  # a number for each node, so that no sum of torch's has a part in it
    found: list[Tensor] = []
    for score, normalizer, inputs in (
        (Additive(vector, "leaky_relu"), Softmax(), (x, vector)),
        (Separable(one, one), Softmax(), (number,)),
        (Dot(), Entmax(), (x,)),
    ):
        y = inputs[0]
        out = attend(y, y, y, score=score, normalizer=normalizer, support=edges).output
        found += [out, *torch.autograd.grad(out.square().sum(), inputs)]
    scores, index = leaf(8000, 2), edges.query_index.clone()
    weights = scatter_softmax(scores, index, 300)
    return [*(y.detach() for y in found), weights.detach()]


class Graphs(Dataset[list[Tensor]]):
    def __len__(self) -> int:
        return CASES

    def __getitem__(self, i: int) -> list[Tensor]:
        return outcome(i)


def same(found: list[Any], expected: list[Any]) -> bool:
    return all(
        torch.equal(a, b)
        for x, y in zip(found, expected, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_several_python_threads(two_threads: None) -> None:
    expected = [outcome(i) for i in range(CASES)]
    found: dict[tuple[int, int], list[Tensor]] = {}

    def work(worker: int) -> None:
        for i in range(CASES):
            found[worker, i] = outcome((i + worker) % CASES)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 * CASES
    for (worker, i), ours in found.items():
        assert same([ours], [expected[(i + worker) % CASES]])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_forked_data_loader_workers(two_threads: None) -> None:
    expected = [outcome(i) for i in range(CASES)]  # the parent's threads are there by now
    loader = DataLoader(
        Graphs(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120
    )
    assert same(list(loader), expected)


def test_one_index_sorted_by_several_threads_at_once(two_threads: None) -> None:
    """The cache of orders is shared."""
    index, scores = torch.randint(50, (20_000,)), torch.randn(20_000, 4)
    expected = scatter_softmax(scores, index.clone(), 50)
    found: list[Tensor] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        found.append(scatter_softmax(scores, index, 50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(x, expected) for x in found)
