"""Draws every attention mechanism of this library at work on one short sentence.

    python -m examples.attention_tour                       # pictures to runs/tour
    python -m examples.attention_tour --out docs/images     # those of the README and of docs/

Words are random vectors, of which some resemble each other. Where a mechanism has something to
learn it is fitted here, in a moment, to the goal that its panel names; all weights that are drawn
come out of the layers. The first picture, attention_tour.png, shows the mechanisms side by side;
the others are the figures of docs/from-formula-to-code.md.
"""

from __future__ import annotations

from examples.commands.attention_tour import parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from torch import Tensor, nn

from attn_core import (
    Additive,
    Cosine,
    Dense,
    Dot,
    Entmax,
    General,
    Hard,
    Normalizer,
    ScaledDot,
    Score,
    Separable,
    Softmax,
    Sparsemax,
    Window,
    patterns,
)
from attn_core import weights as attention_weights
from attn_core.plotting import COLOURS
from datasets import karate_club
from examples.shared.files import prepare_folder
from examples.shared.pictures import bare, legend_below, save_figure
from examples.shared.program import exit_status
from gat import GATConv
from gat.plot import draw_attention
from sequence_attn import (
    ALiBi,
    Attention,
    BahdanauAttention,
    ContentAddressing,
    CosineAttention,
    HardAttention,
    LocalAttention,
    LuongAttention,
    MultiHead,
    RestrictedSelfAttention,
    SinusoidalPositions,
)
from sequence_attn.plot import alignment_flow, heatmap

SENTENCE = [
    "the", "animal", "did", "not", "cross", "the", "street", "because", "it", "was", "too", "tired",
]  # fmt: skip
LENGTH, SIZE = len(SENTENCE), 32
# What a decoder says: the same words, the clauses swapped. Step t stands for the word ALIGNED[t].
ALIGNED = torch.arange(LENGTH).roll(-SENTENCE.index("because"))
DECODED = [SENTENCE[position] for position in ALIGNED]
SPOKEN = slice(3, 9)  # the steps that "soft" and "hard" show: too tired, the animal did not
QUESTION = ["who", "did", "not", "cross", "and", "why"]
# These are drawn half as the other word, so that they resemble it.
ALIKE = {
    "it": "animal", "who": "animal", "why": "because", "did": "was", "street": "cross",
    "too": "tired",
}  # fmt: skip
# For each word of the sentence the position that a head shall look at.
GOALS = {
    "the word before": [0, *range(LENGTH - 1)],
    "the word it belongs to": [1, 4, 4, 4, 4, 6, 4, 11, 11, 11, 11, 4],
    "who it is about": [1, 1, 1, 1, 1, 1, 1, 8, 1, 8, 8, 8],
}
MEMBER = 2  # of the karate club, with friends on both sides
STRENGTHS = 1.0, 4.0, 16.0
BLUE, ORANGE, RED, PURPLE, GREY = "#3f90da", "#e76300", "#bd1f01", "#832db6", "#717581"


# What the mechanisms attend to


def embed(words: Sequence[str]) -> Tensor:
    """The words as vectors `[1, T, 32]`: the same word, wherever it stands, has the same one."""
    known = sorted({*SENTENCE, *QUESTION})
    drawn = torch.randn(len(known), SIZE, generator=torch.Generator().manual_seed(1))
    own = dict(zip(known, drawn, strict=True))
    vectors = [(own[w] + own[ALIKE[w]]) / 2**0.5 if w in ALIKE else own[w] for w in words]
    return torch.stack(vectors)[None]


def fit(
    weights: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter],
    goal: Tensor,
    until: float = 0.6,
) -> None:
    """Trains until each query gives its goal a certain weight.

    Args:
        weights: computes `[..., Tq, Tk]`.
        parameters: what is trained.
        goal: `[..., Tq]`, the position that each query shall look at.
        until: that weight.
    """
    optimiser = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(500):
        right = weights().gather(-1, goal[..., None])
        if right.min() > until:
            return
        optimiser.zero_grad()
        (-right.log().mean()).backward()
        optimiser.step()


@dataclass(frozen=True)
class Tour:
    """What is drawn.

    Attributes:
        weights: of each mechanism, `[Tq, Tk]`, or `[H, Tq, Tk]` for "heads".
        centres: where "local-m" and "local-p" look, `[Tq]` positions.
        friends, friendship: `[2, E]` and `[E, H]`, what a GAT attends to in the karate club.
        clubs: `[N]`, the club of each member.
    """

    weights: dict[str, Tensor]
    centres: dict[str, Tensor]
    friends: Tensor
    friendship: Tensor
    clubs: Tensor


def run_tour() -> Tour:
    """Runs every mechanism, those with something to learn after fitting them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder, centres = decoder_weights()
        reader = self_weights()
        friends, friendship, clubs = club_weights()
    found = {name: w.detach().squeeze(0) for name, w in {**decoder, **reader}.items()}
    return Tour(found, centres, friends, friendship, clubs)


def decoder_weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A decoder reads the encoded sentence to say its clauses in the other order."""
    positions = SinusoidalPositions(SIZE)
    encoded, states = positions(embed(SENTENCE)), positions(embed(DECODED))
    weights: dict[str, Tensor] = {}

    bahdanau = BahdanauAttention(SIZE)
    learned = bahdanau.parameters()
    fit(lambda: bahdanau.weights(states, encoded), learned, ALIGNED[None], until=0.4)
    hard = HardAttention(query_size=SIZE).eval()  # Bahdanau's score too
    hard.load_state_dict(bahdanau.state_dict())
    weights["soft"] = bahdanau.weights(states[:, SPOKEN], encoded)
    weights["hard"] = hard.weights(states[:, SPOKEN], encoded)

    luong = LuongAttention("general", query_size=SIZE)
    fit(lambda: luong.weights(states, encoded), luong.parameters(), ALIGNED[None])
    local_m = LocalAttention("monotonic", window=2, query_size=SIZE)
    local_p = LocalAttention("predictive", window=3, query_size=SIZE)
    for local in (local_m, local_p):  # the same score; what differs is where they look
        local.load_state_dict(luong.state_dict(), strict=False)
    memory = local_p.precompute(encoded)
    optimiser = torch.optim.Adam(local_p.position.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        F.mse_loss(local_p.centre(states, memory)[0], ALIGNED.float()).backward()
        optimiser.step()
    weights["global"] = luong.weights(states, encoded)
    weights["local-m"] = local_m.weights(states, encoded)
    weights["local-p"] = local_p.weights(states, encoded)
    both = {"local-m": local_m, "local-p": local_p}
    centres = {name: x.centre(states, memory).detach()[0] for name, x in both.items()}

    cross = CosineAttention(SIZE, temperature=0.2)
    weights["cross"] = cross.weights(embed(QUESTION), embed(SENTENCE))
    for strength in STRENGTHS:
        addressing = ContentAddressing(SIZE, strength=strength)
        weights[f"strength {strength:g}"] = addressing.weights(embed(["it"]), embed(SENTENCE))
    return weights, centres


def self_weights() -> dict[str, Tensor]:
    """The sentence reads itself, over several supports, with and without projections."""
    words = 0.8 * embed(SENTENCE)
    attention = Attention("scaled_dot", query_size=SIZE)
    weights = {
        "self": attention.weights(words, words),
        "causal": attention.weights(words, words, causal=True),
        "lengths": attention.weights(words, words, lengths=torch.tensor([7])),
        "both": attention.weights(words, words, lengths=torch.tensor([7]), causal=True),
    }
    for name, radius, dilation in (("restricted", 2, 1), ("atrous", 2, 3)):
        restricted = RestrictedSelfAttention(radius, dilation, size=SIZE)
        narrow = restricted(words, need_weights=True).weights  # [1, T, 2 · radius + 1]
        assert narrow is not None
        weights[name] = on_all_keys(narrow, restricted.pattern)
    one = words.unsqueeze(2)  # [1, T, heads, D]
    for name, pattern in {"sparse": patterns.sparse(3), "strided": patterns.strided(3)}.items():
        support = pattern.support(LENGTH)
        weights[name] = attention_weights(one, one, score=ScaledDot(), support=support)[:, 0]

    # Numbers of variance 1 in 64 channels, as projections give them before training
    query, key = torch.randn(2, 1, LENGTH, 1, 64)
    scores: dict[str, Score] = {"without √d": Dot(), "with √d": ScaledDot()}
    for name, score in scores.items():
        weights[name] = attention_weights(query, key, score=score, support=Dense())[:, 0]

    heads = MultiHead(len(GOALS), 16, input_size=SIZE)
    marked = SinusoidalPositions(SIZE)(words)
    goal = torch.tensor([list(GOALS.values())])
    learned = [*heads.query.parameters(), *heads.key.parameters()]
    fit(lambda: heads.weights(marked), learned, goal)
    weights["heads"] = heads.weights(marked)
    complete = patterns.Pattern(rate=1).edges(LENGTH)  # the graph of all pairs
    source, target = complete.edge_index
    weights["as a graph"] = torch.zeros(1, len(GOALS), LENGTH, LENGTH)
    weights["as a graph"][0, :, target, source] = heads.weights(marked[0], support=complete).t()
    return weights


def on_all_keys(weights: Tensor, window: Window) -> Tensor:
    """Weights along the offsets of a window, `[B, T, W]`, as `[B, T, T]`."""
    steps = weights.shape[1]
    positions, exists = window.positions(steps, steps)
    places = positions.clamp(0, steps - 1).expand_as(weights)
    grid = weights.new_zeros(len(weights), steps, steps)
    return grid.scatter_add(-1, places, weights.masked_fill(~exists, 0))


def club_weights() -> tuple[Tensor, Tensor, Tensor]:
    """A graph attention layer learns which friends tell the club that a member joins."""
    club = karate_club()
    conv = GATConv(club.num_features, 2, heads=4, concat=False)
    optimiser = torch.optim.Adam(conv.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        F.cross_entropy(conv(club.x, club.edge_index), club.y).backward()
        optimiser.step()
    with torch.no_grad():
        _, (friends, friendship) = conv(club.x, club.edge_index, return_attention_weights=True)
    return friends, friendship, club.y


# How it is drawn


_KEY = 0.7  # inches that the legend below the panels takes
_WEIGHTS = "weights"  # names the axes of a matrix, for which there is a colour bar


@dataclass(frozen=True)
class Panel:
    """One part of a picture: its name, what it shows in a few words, and how it is drawn."""

    title: str
    note: str
    draw: Callable[[Axes, Tour], None]


def matrix(
    name: str,
    colours: str = "Blues",
    head: int | None = None,
    source: Sequence[str] = SENTENCE,
    target: Sequence[str] = SENTENCE,
) -> Callable[[Axes, Tour], None]:
    """Draws weights as a matrix; pairs of weight 0, which softmax gives to none, are grey."""

    def draw(ax: Axes, tour: Tour) -> None:
        weights = tour.weights[name] if head is None else tour.weights[name][head]
        heatmap(weights, source, target, cmap=colours, colorbar=False, vmax=1.0, ax=ax)
        seen = weights.numpy() > 0
        ax.imshow(seen, cmap=ListedColormap(["#dddddd", "#dddddd00"]), vmin=0, vmax=1)
        ax.set_gid(_WEIGHTS)
        if not seen.all():
            ax.plot([], [], ls="", marker="s", ms=8, color="#dddddd", label="no such pair")
        if name in tour.centres:
            ax.plot(tour.centres[name].numpy(), range(len(weights)), ls="", marker="o", ms=3.2,
                    color=ORANGE, mec="white", mew=0.6, label="centre of the window")  # fmt: skip
        ax.set_xticks([x - 0.5 for x in range(1, len(source))], minor=True)
        ax.set_yticks([y - 0.5 for y in range(1, len(target))], minor=True)
        ax.grid(which="minor", color="white", linewidth=0.6)
        ax.tick_params(which="both", length=0)
        ax.spines[:].set_visible(False)
        ax.set(xlabel="", ylabel="")

    return draw


def flow(name: str, target: Sequence[str], colour: str) -> Callable[[Axes, Tour], None]:
    """Draws weights as bands from the words that are read (left) to those that read (right)."""

    def draw(ax: Axes, tour: Tour) -> None:
        alignment_flow(tour.weights[name], SENTENCE, target, ax=ax)
        (bands,) = ax.collections
        shades = np.array(bands.get_edgecolor())
        shades[:, :3] = to_rgb(colour)
        bands.set_edgecolor(shades.tolist())
        ax.set_box_aspect(1)
        ax.set_ylabel("")
        for side in ax.child_axes:
            side.set_ylabel("")

    return draw


def draw_club(ax: Axes, tour: Tour) -> None:
    names = ["Mr. Hi's", "the officer's"]
    others = set(ax.figure.axes)
    draw_attention(
        tour.friends, tour.friendship, labels=tour.clubs, node=MEMBER, class_names=names, ax=ax
    )
    ax.set_title("")
    (bar,) = set(ax.figure.axes) - others  # beside small panels there is no room for it
    bar._colorbar.remove()  # type: ignore[attr-defined]
    if (legend := ax.get_legend()) is not None:
        legend.remove()
    for discs in ax.collections:
        discs.set_label("_")  # they are too large for a legend
    for name, colour in zip(names, COLOURS, strict=False):
        ax.plot([], [], ls="", marker="o", ms=8, color=colour,
                label=f"club member on {name} side")  # fmt: skip
    ax.set_box_aspect(1)
    ax.margins(0.1)


def draw_reach(ax: Axes, tour: Tour) -> None:
    """How much each word can still change what the decoder is given, by the length of its path."""
    steps, batch = 40, 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.GRU(SIZE, SIZE, batch_first=True)
        attention = LuongAttention("dot", query_size=SIZE)
        words = torch.randn(batch, steps, SIZE, requires_grad=True)
        states, _ = encoder(words)
        context = attention(states[:, -1].detach(), states).context
        curves = {"the encoder's last state": (states[:, -1], GREY), "attention": (context, BLUE)}
        for label, (given, colour) in curves.items():
            (gradient,) = torch.autograd.grad(
                (given * torch.randn_like(given)).sum(), words, retain_graph=True
            )
            size = gradient.norm(dim=-1).mean(0)  # [T]
            before = torch.arange(steps - 1, -1, -1)
            ax.semilogy(
                before.numpy(), (size / size.max()).numpy(), color=colour, linewidth=2, label=label
            )
    ax.set_xlabel("words before the end", fontsize=8)
    ax.set_ylabel("size of the gradient", fontsize=8)
    ax.legend(frameon=False, fontsize=8)
    _plain(ax)


def draw_look_up(ax: Axes, tour: Tour) -> None:
    """One query, three strengths."""
    rows = torch.cat([tour.weights[f"strength {strength:g}"] for strength in STRENGTHS])
    names = [f"β = {strength:g}" for strength in STRENGTHS]
    heatmap(rows, SENTENCE, names, colorbar=False, vmax=1.0, ax=ax)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def score_map(score: Score) -> Callable[[Axes, Tour], None]:
    """Draws the score of one query with every key of the plane."""

    def draw(ax: Axes, tour: Tour) -> None:
        grid = torch.linspace(-2, 2, 81)
        line, keys = grid.numpy(), torch.cartesian_prod(grid, grid)[:, None]  # [81², heads, 2]
        query = torch.tensor([[[1.2, 0.6]]])
        logits = score.pair(query, keys).reshape(81, 81)
        limit = float(logits.abs().max())
        ax.contourf(line, line, logits.t().numpy(), levels=15, cmap="RdBu", vmin=-limit, vmax=limit)
        ax.annotate("", (1.2, 0.6), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black"})
        ax.set_aspect("equal")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)

    return draw


def draw_normalisers(ax: Axes, tour: Tour) -> None:
    """The weight of the first of two keys, against how much more it scores."""
    margin = torch.linspace(-3, 3, 301)
    scores = torch.stack([margin, torch.zeros(301)], -1)
    kinds: dict[str, tuple[Normalizer, str]] = {
        "softmax": (Softmax(), BLUE),
        "1.5-entmax": (Entmax(), PURPLE),
        "sparsemax": (Sparsemax(), ORANGE),
        "hard": (Hard(), GREY),
    }
    for name, (normalizer, colour) in kinds.items():
        weight = normalizer.dense(scores)[:, 0].numpy()
        ax.plot(margin.numpy(), weight, color=colour, linewidth=1.8, label=name)
    ax.set_xlabel("score of one key minus that of the other", fontsize=8)
    ax.set_ylabel("its weight", fontsize=8)
    ax.legend(frameon=False, fontsize=7, handlelength=1.2)
    _plain(ax)


def draw_sinusoids(ax: Axes, tour: Tour) -> None:
    codes = SinusoidalPositions(SIZE).encode(torch.arange(60))
    ax.imshow(codes.numpy(), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    ax.set_xlabel("channel", fontsize=8)
    ax.set_ylabel("position", fontsize=8)
    _plain(ax)


def draw_nearness(ax: Axes, tour: Tour) -> None:
    codes = SinusoidalPositions(SIZE).encode(torch.arange(61))
    for here, colour in ((15, BLUE), (45, ORANGE)):
        ax.plot(
            (codes @ codes[here]).numpy(), color=colour, linewidth=1.8, label=f"with that of {here}"
        )
    ax.set_xlabel("position", fontsize=8)
    ax.set_ylabel("product of two codes", fontsize=8)
    ax.legend(frameon=False, fontsize=7)
    _plain(ax)


def draw_alibi(ax: Axes, tour: Tour) -> None:
    distance = torch.arange(-30, 31)
    bias = ALiBi(4)(distance[None])[:, 0]  # [H, 61]
    for head, colour in enumerate((BLUE, ORANGE, PURPLE, GREY)):
        ax.plot(
            distance.numpy(), bias[head].numpy(), color=colour, linewidth=1.8, label=f"head {head}"
        )
    ax.set_xlabel("position of the key minus that of the query", fontsize=8)
    ax.set_ylabel("added to the score", fontsize=8)
    ax.set_ylim(-8, 0.5)
    ax.legend(frameon=False, fontsize=7, ncols=2)
    _plain(ax)


def _plain(ax: Axes) -> None:
    ax.tick_params(labelsize=7)
    bare(ax)


def _head(number: int, name: str = "heads") -> Panel:
    goal = list(GOALS)[number]
    return Panel(f"multi-head: {number}", goal, matrix(name, "Purples", number))


PANELS = {
    "soft": Panel("soft", "every word, by its weight", flow("soft", DECODED[SPOKEN], BLUE)),
    "hard": Panel("hard", "one word, the best", flow("hard", DECODED[SPOKEN], BLUE)),
    "without √d": Panel("without √d", "softmax(q·k), d = 64", matrix("without √d")),
    "with √d": Panel("with √d", "softmax(q·k / √d)", matrix("with √d")),
    "global": Panel("global", "all positions", matrix("global", "Oranges", target=DECODED)),
    "local-m": Panel("local-m", "window at step t", matrix("local-m", "Oranges", target=DECODED)),
    "local-p": Panel(
        "local-p", "window where it predicts", matrix("local-p", "Oranges", target=DECODED)
    ),
    "cross": Panel("cross", "a question reads a passage", flow("cross", QUESTION, ORANGE)),
    "self": Panel("self", "each word reads all", matrix("self", "Greens")),
    "causal": Panel("causal", "… up to itself", matrix("causal", "Greens")),
    "restricted": Panel("restricted", "… at most 2 away", matrix("restricted", "Greens")),
    "atrous": Panel("atrous", "… every third", matrix("atrous", "Greens")),
    "sparse": Panel("sparse", "local plus atrous", matrix("sparse", "Greens")),
    "strided": Panel("strided", "sparse and causal", matrix("strided", "Greens")),
    "lengths": Panel("lengths", "7 words, the rest padding", matrix("lengths", "Greens")),
    "both": Panel("lengths and causal", "… up to itself", matrix("both", "Greens")),
    "head 0": _head(0),
    "head 1": _head(1),
    "head 2": _head(2),
    "as a sequence": Panel("head 1, Dense()", "of MultiHead", matrix("heads", "Purples", 1)),
    "as a graph": Panel("head 1, Edges", "complete graph", matrix("as a graph", "Purples", 1)),
    "graph": Panel("graph", "member 2 of a karate club hears his friends", draw_club),
    "reach": Panel("what reaches the decoder", "", draw_reach),
    "look-up": Panel("the word “it” is looked up", "", draw_look_up),
    "normalisers": Panel("two keys", "", draw_normalisers),
    "dot": Panel("Dot", "q·k", score_map(Dot())),
    "cosine": Panel("Cosine", "q·k / ‖q‖‖k‖", score_map(Cosine())),
    "general": Panel(
        "General", "qᵀWk", score_map(General(torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])))
    ),
    "additive": Panel(
        "Additive", "vᵀ tanh(q + k)", score_map(Additive(torch.tensor([[1.2, -1.2]])))
    ),
    "separable": Panel(
        "Separable",
        "LeakyReLU(aᵀq + bᵀk)",
        score_map(Separable(torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))),
    ),
    "sinusoids": Panel("sines and cosines", "", draw_sinusoids),
    "nearness": Panel("near codes match", "", draw_nearness),
    "alibi": Panel("ALiBi", "", draw_alibi),
}

PLAIN = {  # no matrices of weights: such panels explain themselves
    "soft", "hard", "cross", "reach", "look-up", "normalisers", "dot", "cosine", "general",
    "additive", "separable", "sinusoids", "nearness", "alibi",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """Rows of panels, each with a heading, and the size of a panel in inches."""

    rows: dict[str, list[str]]
    width: float = 2.6
    height: float = 2.9


PICTURES = {
    "attention_tour": Picture(
        {
            "How scores become weights": ["soft", "hard", "without √d", "with √d"],
            "Where a decoder looks, which says the clauses in the other order": [
                "global", "local-m", "local-p", "cross",
            ],
            "A sentence reads itself: the same scores, four supports": [
                "self", "causal", "restricted", "atrous",
            ],
            "Several heads, each fitted to a goal, and the nodes of a graph": [
                "head 0", "head 1", "head 2", "graph",
            ],
        }
    ),
    "tour_bottleneck": Picture({"": ["reach"]}, 5.0, 2.6),
    "tour_look_up": Picture({"": ["look-up"]}, 5.0, 2.2),
    "tour_scores": Picture({"": ["dot", "cosine", "general", "additive", "separable"]}, 2.0, 2.2),
    "tour_soft_hard": Picture({"": ["soft", "hard", "normalisers"]}, 3.2),
    "tour_decoder": Picture({"": ["global", "local-m", "local-p"]}),
    "tour_self": Picture({"": ["self", "cross"]}, 3.2),
    "tour_root": Picture({"": ["without √d", "with √d"]}),
    "tour_heads": Picture({"": ["head 0", "head 1", "head 2"]}),
    "tour_positions": Picture({"": ["sinusoids", "nearness", "alibi"]}, 3.2, 2.6),
    "tour_masks": Picture({"": ["self", "lengths", "causal", "both"]}),
    "tour_patterns": Picture({"": ["restricted", "atrous", "sparse", "strided"]}),
    "tour_graph": Picture({"": ["as a sequence", "as a graph", "graph"]}, 3.4, 3.4),
}  # fmt: skip


def draw_picture(picture: Picture, tour: Tour) -> Figure:
    """Draws the panels row by row."""
    rows = len(picture.rows)
    columns = max(len(row) for row in picture.rows.values())
    layout = ConstrainedLayoutEngine(hspace=0.15 if any(picture.rows) else 0.02)
    shown = {name for names in picture.rows.values() for name in names}
    height = rows * picture.height + (0.0 if shown <= PLAIN else _KEY)
    figure = Figure(figsize=(columns * picture.width, height), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, names in zip(axes, picture.rows.values(), strict=True):
        for ax, name in zip(row, names, strict=True):
            panel = PANELS[name]
            panel.draw(ax, tour)
            ax.set_title(panel.note, loc="left", fontsize=8.5, color="#555555")
            ax.annotate(
                panel.title, (0, 1), xytext=(0, 17 if panel.note else 5), fontsize=10.5,
                xycoords="axes fraction", textcoords="offset points", fontweight="bold",
            )  # fmt: skip
    draw_key(figure, axes)
    if any(picture.rows):
        figure.draw_without_rendering()  # which lays it out
        for row, heading in zip(axes, picture.rows, strict=True):
            top = max(ax.get_tightbbox().y1 for ax in row) + 0.09 * figure.dpi
            figure.text(
                0.008, top / figure.bbox.height, heading, fontsize=12, color="#222222",
                va="bottom",
            )  # fmt: skip
    return figure


def draw_key(figure: Figure, axes: NDArray[Any]) -> None:
    """What colours and marks stand for, below all panels, but for those with a legend of their own.

    Matrices have colours of their own in each row of panels, and one scale: the bar is grey.
    """
    if any(ax.get_gid() == _WEIGHTS for ax in axes.flat):
        scale = ScalarMappable(Normalize(0, 1), "Greys")
        bar = figure.colorbar(scale, ax=axes, location="bottom", shrink=0.3, aspect=30, pad=0.02)
        bar.set_label("attention weight, in the colour of each panel", fontsize=8.5)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    panels = [ax for ax in axes.flat if ax.get_legend() is None]
    if any(ax.get_legend_handles_labels()[1] for ax in panels):
        legend_below(figure, panels, ncols=2 if len(axes.flat) < 4 else 4)


def run(folder: Path) -> int:
    """Draws the pictures into a folder."""
    prepare_folder(folder)
    tour = run_tour()
    for name, picture in PICTURES.items():
        path = folder / f"{name}.png"
        save_figure(path, draw_picture(picture, tour), bbox_inches="tight", pad_inches=0.08)
        print(f"wrote {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(Path(parser().parse_args(argv).out)))


if __name__ == "__main__":
    sys.exit(main())
