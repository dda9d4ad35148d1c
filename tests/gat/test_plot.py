"""What the pictures show, read back from the artists that matplotlib was given."""

import builtins
import sys
import warnings

import matplotlib
import networkx as nx
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch

matplotlib.use("Agg")

from matplotlib import pyplot

from gat.plot import draw_attention, draw_embedding

BLUE, ORANGE = "#3f90da", "#ffa90e"

# 1 and 2 attend to 0 and to themselves, 0 to itself and, most of all, to 3.
EDGE_INDEX = torch.tensor([[0, 1, 0, 2, 0, 3], [1, 1, 2, 2, 0, 0]])
WEIGHTS = torch.tensor([[0.9, 0.5], [0.1, 0.5], [0.2, 0.2], [0.8, 0.8], [0.1, 0.1], [0.9, 0.9]])
LABELS = [0, 1, 1, -1]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def arrows(ax):
    return [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]


def darkness(artist):
    return 1 - np.mean(artist.get_edgecolor()[:3])


def scatters(ax):
    """The nodes of each class, by legend name."""
    return {c.get_label(): c for c in ax.collections if isinstance(c, PathCollection)}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def star(degree):
    """Node 0 hears from 1..degree, with weights that grow with the number of the node."""
    others = torch.arange(1, degree + 1)
    return torch.stack([others, torch.zeros_like(others)]), others.double() / others.sum()


def ids(ax):
    return sorted(int(text.get_text()) for text in ax.texts)


class TestAttention:
    def test_wider_and_darker_arrows_for_larger_weights(self):
        ax = draw_attention(*star(5))
        drawn = sorted(arrows(ax), key=lambda arrow: arrow.get_linewidth())
        assert len(drawn) == 5
        assert np.all(np.diff([arrow.get_linewidth() for arrow in drawn]) > 0)
        assert np.all(np.diff([darkness(arrow) for arrow in drawn]) > 0)

    def test_widths_are_affine_in_the_weights(self):
        weight = torch.tensor([0.0, 0.25, 0.5, 1.0])
        ax = draw_attention(star(4)[0], weight)
        width = np.sort([arrow.get_linewidth() for arrow in arrows(ax)])
        assert np.allclose((width - width[0]) / (width[-1] - width[0]), weight)

    def test_arrows_point_from_source_to_target(self):
        positions = np.array([[0.0, 0.0], [1.0, 0.0]])
        ax = draw_attention([[0], [1]], [1.0], positions=positions)
        (arrow,) = arrows(ax)
        tail, head = arrow._posA_posB
        assert tail[0] < head[0]

    def test_self_attention_is_a_ring_and_not_an_arrow(self):
        ax = draw_attention(EDGE_INDEX, WEIGHTS, labels=[0, 1, 2, 3])
        assert len(arrows(ax)) == 3
        rings = [scatters(ax)[f"class {n}"].get_linewidths()[0] for n in range(4)]
        # 0.1, 0.3, 0.8 and node 3, which has no loop
        assert rings[0] < rings[1] < rings[2]
        assert "ring: attention to itself" in legend(ax)
        without = draw_attention([[0], [1]], [1.0])
        assert "ring: attention to itself" not in legend(without)

    def test_mean_over_heads_or_one_head(self):
        wide = {}
        for head in (None, 0, 1):
            ax = draw_attention(EDGE_INDEX, WEIGHTS, head=head)
            wide[head] = ax.figure.axes[-1].get_ylim()[1]  # top of the colour bar: the largest
        assert wide[None] == pytest.approx(0.9)
        only_first_edge = draw_attention(EDGE_INDEX[:, :1], WEIGHTS[:1], head=1)
        assert only_first_edge.figure.axes[-1].get_ylim()[1] == pytest.approx(0.5)
        mean = draw_attention(EDGE_INDEX[:, :1], WEIGHTS[:1])
        assert mean.figure.axes[-1].get_ylim()[1] == pytest.approx(0.7)
        assert "head 1" in only_first_edge.get_title() and "mean over 2 heads" in mean.get_title()

    def test_colours_and_legend_by_class(self):
        ax = draw_attention(EDGE_INDEX, WEIGHTS, labels=LABELS, class_names=["cat", "dog"])
        nodes = scatters(ax)
        assert to_hex(nodes["cat"].get_facecolors()[0]) == BLUE
        assert to_hex(nodes["dog"].get_facecolors()[0]) == ORANGE
        assert to_hex(nodes["unknown"].get_facecolors()[0]) == "#ffffff"
        assert [len(nodes[name].get_offsets()) for name in ("cat", "dog", "unknown")] == [1, 2, 1]
        assert legend(ax)[:3] == ["unknown", "cat", "dog"]

    def test_fifty_classes_have_fifty_looks(self):
        ax = draw_attention(star(49)[0], star(49)[1], labels=np.arange(50))
        looks = {
            (to_hex(nodes.get_facecolors()[0]), nodes.get_paths()[0].vertices.tobytes())
            for nodes in scatters(ax).values()
        }
        assert len(looks) == 50

    def test_parallel_edges_are_one_arrow_with_the_sum(self):
        ax = draw_attention([[0, 0, 2], [1, 1, 1]], [0.2, 0.3, 0.5])
        first, second = arrows(ax)
        assert first.get_linewidth() == pytest.approx(second.get_linewidth())

    def test_neighbourhood_is_what_the_node_hears(self):
        # 0 <- 1 <- 2 <- 3, and 0 -> 4, which 0 does not hear
        edge_index, weights = torch.tensor([[1, 2, 3, 0], [0, 1, 2, 4]]), torch.ones(4)
        one = draw_attention(edge_index, weights, node=0)
        assert ids(one) == [0, 1] and len(arrows(one)) == 1
        two = draw_attention(edge_index, weights, node=0, hops=2)
        assert ids(two) == [0, 1, 2] and len(arrows(two)) == 2
        assert "2 neighbours within 2 hops" in two.get_title()

    def test_edges_into_the_rim_are_left_out(self):
        # 2 hears from 1, but that reaches 0 in three layers only
        edge_index = torch.tensor([[1, 2, 1], [0, 0, 2]])
        ax = draw_attention(edge_index, torch.ones(3), node=0)
        assert len(arrows(ax)) == 2

    def test_a_hub_shows_its_strongest_neighbours_and_says_so(self):
        ax = draw_attention(*star(500), node=0, max_neighbours=10)
        assert ids(ax) == [0, *range(491, 501)]
        assert "the strongest 10 of 500 neighbours" in ax.get_title()

    def test_one_isolated_node(self):
        ax = draw_attention(
            torch.empty(2, 0, dtype=torch.long), torch.empty(0, 4), labels=[0, 1], node=1
        )
        assert ids(ax) == [1] and not arrows(ax)
        assert "0 neighbours" in ax.get_title()

    def test_whole_graph_without_edges(self):
        ax = draw_attention(
            torch.empty(2, 0, dtype=torch.long), torch.empty(0, 4), labels=[0, 1, 1]
        )
        assert ids(ax) == [0, 1, 2]

    def test_empty_graph(self):
        ax = draw_attention(np.empty((2, 0), dtype=int), np.empty(0))
        assert not arrows(ax) and not ids(ax)

    def test_numbers_do_not_overlap(self):
        edge_index, weights = star(30)
        figure, ax = pyplot.subplots(figsize=(7, 7))
        draw_attention(edge_index + 1000, weights, node=1000, ax=ax)
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in ax.texts]
        assert len(boxes) == 31
        overlaps = [a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
        assert not any(overlaps)

    def test_nodes_of_a_whole_graph_keep_apart(self):
        # The two leaders of the karate club know the same people, which pulls them together.
        edge_index = np.array(nx.karate_club_graph().edges).T
        ax = draw_attention(edge_index, np.ones(78))
        xy = np.concatenate([nodes.get_offsets() for nodes in scatters(ax).values()])
        gap = np.linalg.norm(xy[:, None] - xy[None], axis=2)[np.triu_indices(len(xy), 1)]
        diameter = 16 / 150  # of a marker of 16 points, in a drawing about 300 points wide
        assert gap.min() > 0.95 * diameter

    def test_positions_are_used(self):
        positions = np.arange(8.0).reshape(4, 2)
        ax = draw_attention(EDGE_INDEX, WEIGHTS, labels=LABELS, positions=positions)
        assert np.allclose(scatters(ax)["class 1"].get_offsets(), positions[1:3])

    def test_draws_in_the_given_axes(self):
        _, axes = pyplot.subplots(1, 2)
        assert draw_attention(EDGE_INDEX, WEIGHTS, ax=axes[1]) is axes[1]
        assert not axes[0].collections and not axes[0].patches

    def test_weights_with_gradients_and_in_bfloat16(self):
        weights = WEIGHTS.bfloat16().requires_grad_()
        assert len(arrows(draw_attention(EDGE_INDEX, weights))) == 3

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"edge_index": EDGE_INDEX.T}, r"edge_index must have shape \[2, E\]; got \(6, 2\)"),
            ({"edge_index": EDGE_INDEX - 1}, "got -1"),
            ({"labels": [0, 1]}, r"edge_index must lie in 0..1; got 3"),
            ({"weights": WEIGHTS[:4]}, r"E = 6.*got \(4, 2\).*returned with them"),
            ({"weights": -WEIGHTS}, "finite and not negative"),
            ({"weights": WEIGHTS * torch.nan}, "finite and not negative"),
            ({"labels": [0.5, 1, 1, 0]}, "labels must be integers"),
            ({"class_names": ["cat"]}, "class_names has 1 names but labels go up to 1"),
            ({"head": 2}, "head must lie in 0..1.*got 2"),
            ({"head": -1}, "head must lie in 0..1.*got -1"),
            ({"node": 4}, "node must lie in 0..3; got 4"),
            ({"node": 0, "hops": 0}, "hops and max_neighbours must be at least 1; got 0"),
            ({"positions": np.zeros((4, 3))}, r"positions must have shape \(4, 2\); got \(4, 3\)"),
            ({"positions": np.full((4, 2), np.nan)}, "positions must be finite"),
            ({"edge_index": EDGE_INDEX.double()}, "edge_index must hold integers; got float64"),
            ({"weights": WEIGHTS[:, :0]}, r"weights must have shape .* got \(6, 0\)"),
        ],
    )
    def test_bad_input(self, changed, message):
        arguments = {"edge_index": EDGE_INDEX, "weights": WEIGHTS, "labels": LABELS, **changed}
        with pytest.raises(ValueError, match=message):
            draw_attention(**arguments)

    def test_tensors_stand_for_numbers(self):
        node, positions = torch.tensor(1), torch.rand(4, 2, requires_grad=True)
        drawn, expected = (
            draw_attention(EDGE_INDEX, WEIGHTS, node=n, positions=p)
            for n, p in ((node, positions), (1, positions.detach().numpy()))
        )
        assert drawn.get_title() == expected.get_title()
        assert len(arrows(drawn)) == len(arrows(expected)) > 0

    def test_a_large_graph_asks_for_a_node(self):
        with pytest.raises(ValueError, match=r"501 nodes is too large.*pass node="):
            draw_attention(*star(500))


class TestEmbedding:
    def clusters(self):
        """Two far clusters of twenty nodes each, in four dimensions."""
        rng = np.random.default_rng(0)
        features = rng.normal(size=(40, 4))
        features[20:] += 50
        return torch.tensor(features), [0] * 20 + [1] * 20

    def lines(self, ax):
        return next(c for c in ax.collections if isinstance(c, LineCollection))

    def test_clusters_stay_apart(self):
        features, labels = self.clusters()
        nodes = scatters(draw_embedding(features, labels=labels))
        first, second = nodes["class 0"].get_offsets(), nodes["class 1"].get_offsets()
        assert len(first) == len(second) == 20
        between = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
        assert between > 2 * first.std(axis=0).max()

    def test_thickness_is_the_sum_over_heads_and_directions(self):
        features, labels = self.clusters()
        # {0, 1}: 0.1 + 0.2 + 0.3 + 0.4 = 1.0; {2, 3}: 0.5; {4, 4} is a loop; {5, 6}: 0 of both
        edge_index = [[0, 1, 2, 4, 5], [1, 0, 3, 4, 6]]
        weights = [[0.1, 0.2], [0.3, 0.4], [0.25, 0.25], [9.0, 9.0], [0.0, 0.0]]
        ax = draw_embedding(features, labels=labels, edge_index=edge_index, weights=weights)
        lines = self.lines(ax)
        zero, half, one = np.sort(lines.get_linewidths())
        assert (half - zero) / (one - zero) == pytest.approx(0.5)
        assert "3 node pairs" in ax.get_title()
        ends = {tuple(segment.ravel()) for segment in map(np.asarray, lines.get_segments())}
        xy = scatters(ax)["class 0"].get_offsets()
        assert tuple(np.concatenate([xy[0], xy[1]])) in ends

    def test_only_the_strongest_pairs(self):
        features, labels = self.clusters()
        edge_index, weights = star(39)
        ax = draw_embedding(
            features, labels=labels, edge_index=edge_index, weights=weights, top_edges=5
        )
        xy = np.concatenate([scatters(ax)[name].get_offsets() for name in ("class 0", "class 1")])
        drawn = {tuple(segment[1]) for segment in self.lines(ax).get_segments()}
        assert drawn == {tuple(xy[n]) for n in range(35, 40)}

    def test_lines_lie_beneath_the_nodes(self):
        features, labels = self.clusters()
        ax = draw_embedding(features, labels=labels, edge_index=star(39)[0], weights=star(39)[1])
        assert self.lines(ax).zorder < min(nodes.zorder for nodes in scatters(ax).values())

    def test_a_large_graph_is_sampled_and_the_title_says_so(self):
        features, labels = self.clusters()
        edge_index, weights = star(39)
        ax = draw_embedding(
            features, labels=labels, edge_index=edge_index, weights=weights, max_nodes=12
        )
        nodes = scatters(ax)
        assert sum(len(c.get_offsets()) for c in nodes.values()) == 12
        assert "12 of 40 nodes" in ax.get_title()
        assert len(self.lines(ax).get_segments()) < 12

    def test_same_seed_same_picture(self):
        features, labels = self.clusters()
        first, again = (scatters(draw_embedding(features, labels=labels)) for _ in range(2))
        assert np.array_equal(first["class 0"].get_offsets(), again["class 0"].get_offsets())

    @pytest.mark.parametrize("size", [0, 1, 2, 3])
    def test_very_small_graphs(self, size):
        ax = draw_embedding(torch.eye(3)[:size], labels=[0] * size)
        assert sum(len(c.get_offsets()) for c in scatters(ax).values()) == size

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_equal_features_are_drawn(self, value):
        (nodes,) = scatters(draw_embedding(torch.full((40, 3), value))).values()
        assert len(nodes.get_offsets()) == 40 and np.isfinite(nodes.get_offsets()).all()

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_clusters_stay_apart_at_any_scale(self, scale):
        features, labels = self.clusters()
        nodes = scatters(draw_embedding((features * scale).float(), labels=labels))
        first, second = nodes["class 0"].get_offsets(), nodes["class 1"].get_offsets()
        between = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
        assert between > 2 * first.std(axis=0).max()

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (
                {"features": torch.ones(4)},
                r"features must have shape \[N, D\] with D ≥ 1; got \(4,\)",
            ),
            ({"features": torch.full((4, 2), torch.nan)}, "features must be finite"),
            ({"features": torch.ones(4, 0)}, r"with D ≥ 1; got \(4, 0\)"),
            ({"top_edges": -1}, "top_edges must be at least 0 .* got -1 and 5000"),
            ({"max_nodes": 0}, "max_nodes at least 1; got 2000 and 0"),
            ({"labels": [0, 1]}, "labels must have one entry per row of features, 4; got 2"),
            ({"weights": None}, "go together: pass both or neither"),
            ({"edge_index": None}, "go together: pass both or neither"),
            ({"edge_index": EDGE_INDEX + 1}, "edge_index must lie in 0..3; got 4"),
        ],
    )
    def test_bad_input(self, changed, message):
        arguments = {"features": torch.eye(4), "edge_index": EDGE_INDEX, "weights": WEIGHTS}
        with pytest.raises(ValueError, match=message):
            draw_embedding(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("draw", "missing"),
    [
        (lambda: draw_attention(EDGE_INDEX, WEIGHTS), "networkx"),
        (lambda: draw_embedding(torch.eye(4)), "sklearn"),
        (lambda: draw_embedding(torch.eye(4)), "matplotlib"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, draw, missing):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real_import(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{missing}.*pip install 'gat-attention\[plot\]'"
    ):
        draw()


class TestNames:
    def test_nodes_and_classes_have_names_in_any_script(self):
        names = ["Ann", "Żółw", "$x$", "日本"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no font for Japanese may be installed
            ax = draw_attention(
                EDGE_INDEX, WEIGHTS, labels=LABELS, node_names=names, class_names=["Äpfel", "$b_1$"]
            )
        written = {text.get_text(): text for text in ax.texts}
        assert {"Ann", "Żółw", "$x$"} < written.keys()
        assert written.keys() & {"日本", "\\u65e5\\u672c"}
        assert not written["$x$"].get_parse_math()
        legend = [text.get_text() for text in ax.get_legend().get_texts()]
        assert "Äpfel" in legend and "$b_1$" in legend
        ax.figure.canvas.draw()  # with a font that has all that is written

    def test_the_title_names_the_node(self):
        names = ["Ann", "Bob", "Cid", "Dan"]
        ax = draw_attention(EDGE_INDEX, WEIGHTS, node=1, node_names=names)
        assert "node Bob" in ax.get_title()

    def test_a_name_is_needed_for_each_node(self):
        with pytest.raises(ValueError, match="node_names must have one entry per node, 4; got 1"):
            draw_attention(EDGE_INDEX, WEIGHTS, labels=LABELS, node_names=["x"])

    def test_an_embedding_has_class_names_in_any_script(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ax = draw_embedding(torch.eye(6), labels=[0, 0, 0, 1, 1, 1], class_names=["犬", "čáp"])
        legend = [text.get_text() for text in ax.get_legend().get_texts()]
        assert legend[1] == "čáp" and legend[0] in ("犬", "\\u72ac")
