"""Pairs that are drawn, and nodes that are numbered anew: by the module as by plain torch."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attn_core import Edges, backend, compiled
from attn_core.graph.listing import Sorted
from attn_core.graph.sampling import Drawn, draw, numbering

needs_module = pytest.mark.skipif(compiled.module is None, reason="no compiled kernels")
NODES, HUB = 300, 7


def order() -> Sorted:
    """Pairs into nodes of all degrees: some have none, one has thousands."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(0, NODES, (2, 4000), generator=generator)
    pairs[1] = pairs[1].square() // NODES
    into_hub = torch.stack([torch.arange(5000) % NODES, torch.full((5000,), HUB)])
    return Edges(torch.cat([pairs, into_hub], 1), NODES, NODES).sorted(by_key=False)


def numbered(given: Tensor, others: list[Tensor]) -> list[Tensor]:
    with numbering(NODES) as numbers:
        numbers.give(given)
        found = [x for nodes in others for x in numbers.of(nodes)]
        return [*found, numbers.known]


@needs_module
@pytest.mark.parametrize("most", [-1, 0, 1, 3, 32, 33, 1000, 2**40])
@pytest.mark.parametrize("seed", [0, -(2**63), 2**63 - 1])
def test_the_module_draws_what_plain_torch_draws(most: int, seed: int) -> None:
    sorted_pairs = order()
    nodes = torch.cat([torch.randint(0, NODES, (600,)), torch.tensor([HUB, HUB])])
    found = draw(sorted_pairs, nodes, most, seed)
    with backend("torch"):
        expected = draw(sorted_pairs, nodes, most, seed)
    for name in Drawn._fields:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype and torch.equal(one, other), name


@needs_module
def test_the_module_numbers_as_plain_torch_does() -> None:
    given = torch.tensor([5, 299, 5, 0])  # one twice
    others = [torch.randint(0, NODES, (n,), dtype=torch.int32) for n in (0, 50, 70_000)]
    found = numbered(given, others)
    with backend("torch"):
        expected = numbered(given, others)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_numbers_are_places_among_what_is_known() -> None:
    given, nodes = torch.tensor([5, 2]), torch.tensor([9, 2, 4, 9, 5], dtype=torch.int32)
    with numbering(10) as numbers:
        numbers.give(given)
        to, fresh = numbers.of(nodes)
        again, none = numbers.of(nodes)
        assert to.tolist() == again.tolist() == [3, 1, 2, 3, 0]
        assert fresh.tolist() == [4, 9] and none.tolist() == []
        assert numbers.known.tolist() == [5, 2, 4, 9]


@needs_module
def test_many_nodes_are_sorted_and_numbered_alike_in_any_number_of_threads() -> None:
    num, generator = 2**21 + 5, torch.Generator().manual_seed(0)
    nodes = torch.randint(0, num, (100_000,), generator=generator, dtype=torch.int32)
    nodes[0] = num - 1
    expected, places = nodes.unique(return_inverse=True)
    before, alike = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with numbering(num) as numbers:
                to, fresh = numbers.of(nodes)
            assert torch.equal(fresh, expected.long()) and torch.equal(to.long(), places)
            alike.append(draw(order(), torch.arange(NODES), 5, 1))
        assert all(map(torch.equal, *alike))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("implementation", ["auto", "torch"])
def test_each_pair_is_drawn_equally_often(implementation: str) -> None:
    degree, most, stars = 50, 40, 2000  # more than are looked through one by one
    pairs = torch.stack(
        [torch.arange(degree).repeat(stars), torch.arange(stars).repeat_interleave(degree)]
    )
    sorted_pairs = Edges(pairs, stars, stars).sorted(by_key=False)
    with backend(implementation):
        chosen = draw(sorted_pairs, torch.arange(stars), most, 3).places.view(stars, most)
    assert bool((chosen.diff() > 0).all())  # no pair twice
    assert torch.equal(chosen // degree, torch.arange(stars)[:, None].expand(-1, most))
    counts = torch.bincount((chosen % degree).flatten(), minlength=degree).double()
    expected = stars * most / degree
    # Drawn without replacement, counts vary by 1 - most / degree of what they would
    chi_square = ((counts - expected) ** 2 / expected).sum() / (1 - most / degree)
    assert abs(chi_square - (degree - 1)) < 4 * (2 * (degree - 1)) ** 0.5


def test_nodes_that_are_not_there_are_refused_and_change_nothing() -> None:
    sorted_pairs = order()
    for node in (-1, NODES):
        if compiled.module is not None:
            with pytest.raises(IndexError, match="nodes has an index out of range"):
                draw(sorted_pairs, torch.tensor([0, node]), 2, 0)
        with pytest.raises(IndexError), numbering(NODES) as numbers:
            numbers.give(torch.tensor([3]))
            numbers.of(torch.tensor([4, node + NODES * (node > 0)], dtype=torch.int32))
        assert numbered(torch.tensor([8]), [])[-1].tolist() == [8]
        with numbering(NODES) as numbers:
            assert numbers.of(torch.tensor([3, 4], dtype=torch.int32))[0].tolist() == [0, 1]


@needs_module
def test_threads_of_python_draw_at_the_same_time() -> None:
    sorted_pairs, found = order(), {}

    def work(seed: int) -> None:
        for _ in range(20):
            drawn = draw(sorted_pairs, torch.arange(NODES), 9, seed)
            found[seed] = [*drawn, *numbered(torch.tensor([seed]), [drawn.sources])]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        drawn = draw(sorted_pairs, torch.arange(NODES), 9, seed)
        expected = [*drawn, *numbered(torch.tensor([seed]), [drawn.sources])]
        assert all(map(torch.equal, found[seed], expected))


@needs_module
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_a_draw_reads_no_more_of_a_hub_than_it_draws(tmp_path: Path) -> None:
    degree = 2**28
    with (tmp_path / "columns").open("wb") as file:
        file.truncate(4 * degree)  # zeros, which take no room on a disk
    columns = torch.from_numpy(np.memmap(tmp_path / "columns", np.int32, "r+"))
    hub = Sorted(torch.tensor([0, degree]), columns, columns)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    draw(hub, torch.tensor([0]), 4, 0)
    before = resident()
    drawn = draw(hub, torch.tensor([0]), 100, 1)
    assert drawn.sources.tolist() == [0] * 100
    assert resident() - before < 100 * 2 * 2**17  # of 2 GiB; a page that is read brings some others
