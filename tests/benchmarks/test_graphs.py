"""The graphs that are measured on: as large as asked for, without self-loops, as skewed as said."""

import pytest

from benchmarks._graphs import GRAPHS, make_graph


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs(kind: str) -> None:
    pairs, nodes = make_graph(kind, 16_000)
    assert pairs.shape == (2, 16_000) and nodes == 1000
    assert pairs.min() >= 0 and pairs.max() < nodes
    largest = int(pairs[1].bincount().max())
    low, high = {
        "uniform": (20, 60), "power law": (800, 2500), "one hub": (8000, 8100), "band": (16, 16),
    }[kind]  # fmt: skip
    assert low <= largest <= high


@pytest.mark.parametrize("kind", ["uniform", "power law", "one hub"])
@pytest.mark.parametrize("nodes", [2, 7, 50])
def test_no_self_loops(kind: str, nodes: int) -> None:
    pairs, found = make_graph(kind, 1000, nodes=nodes)
    assert found == nodes and pairs.max() < nodes
    assert (pairs[0] != pairs[1]).all()


def test_a_power_law_is_skewed_at_both_ends() -> None:
    (source, target), _ = make_graph("power law", 16_000)
    busiest = source.bincount().argmax(), target.bincount().argmax()
    assert source.bincount().max() > 800 and busiest[0] != busiest[1]
