"""Runs one Transformer on sentences as sequences and as graphs: the numbers are the same.

    python -m examples.sequence_as_graph
    python -m examples.sequence_as_graph "your own sentence" "and another one" --window 1

To a Transformer a sentence is a graph: its words are the nodes, and an edge leads from each word to
each word that listens to it, which is the complete graph. Attention in a window is a graph in which
only neighbours in the sentence are joined, causal attention one whose edges all lead forward, and a
padded batch is several graphs without an edge between them. What makes the words a sequence is not
the attention but the positions, which are marked on the words before.

Each way to compute this is a function of a few lines below. The program runs them with the same
weights, prints the largest differences between their outputs and between their gradients, and draws
the attention of the first sentence as a matrix and as a graph. Then it shows every pattern that the
library knows (windows, steps, global tokens, random blocks, neighbours on grids, nearest points,
sequences side by side) as a matrix, as a graph, and by the support that is fastest.
"""

from __future__ import annotations

from examples.commands.sequence_as_graph import parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch_geometric.nn import TransformerConv

from attn_core import patterns
from attn_core.supports.patterns import Pattern
from examples import _pattern_gallery
from examples.shared.files import UserError, prepare_folder
from examples.shared.pictures import save_figure
from examples.shared.program import exit_status
from gat.plot import draw_attention
from sequence_attn import MultiHead, SinusoidalPositions, TransformerEncoder, TransformerLayer
from sequence_attn.plot import heatmap

LAYERS, SIZE, HEADS = 2, 32, 4
# Rounding, as a share of the largest number; two layers add up about a thousand products.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}


class Batch(NamedTuple):
    """Sentences side by side.

    Attributes:
        x: `[B, T, D]`, a vector for each word, marked with its position; zeros behind the end.
        lengths: `[B]`, how many words each sentence has.
    """

    x: Tensor
    lengths: Tensor

    @property
    def real(self) -> Tensor:
        """Where there are words, bool `[B, T]`; `x[real]` are the nodes `[N, D]` of all graphs."""
        return torch.arange(self.x.shape[1]) < self.lengths[:, None]


def embed(sentences: Sequence[str], dtype: torch.dtype) -> Batch:
    """Draws a vector for each word, the same for the same word, and marks it with its position."""
    split = [sentence.split() for sentence in sentences]
    words = list(dict.fromkeys(word for sentence in split for word in sentence))
    vectors = torch.randn(len(words), SIZE, dtype=torch.float64)
    mark = SinusoidalPositions(SIZE)
    rows = [mark(vectors[[words.index(word) for word in sentence]]) for sentence in split]
    lengths = torch.tensor([len(sentence) for sentence in split])
    return Batch(pad_sequence(rows, batch_first=True).to(dtype), lengths)


def padded_batch(encoder: TransformerEncoder, batch: Batch, pattern: Pattern) -> Tensor:
    """As sequences: filled up to one length, and the padding kept out (Dense, or Window)."""
    support = pattern.support(batch.x.shape[1], lengths=batch.lengths)
    return encoder(batch.x, support=support).output[batch.real]


def masked_batch(encoder: TransformerEncoder, batch: Batch, pattern: Pattern) -> Tensor:
    """As sequences, with all pairs computed and the others masked (Dense)."""
    places = torch.arange(batch.x.shape[1])
    mask = pattern.allowed(places, places)
    return encoder(batch.x, lengths=batch.lengths, mask=mask).output[batch.real]


def one_by_one(encoder: TransformerEncoder, batch: Batch, pattern: Pattern) -> Tensor:
    """As sequences, without padding: every sentence for itself."""
    sentences = [x[:length] for x, length in zip(batch.x, batch.lengths.tolist(), strict=True)]
    return torch.cat([encoder(x, support=pattern.support(len(x))).output for x in sentences])


def one_graph(encoder: TransformerEncoder, batch: Batch, pattern: Pattern) -> Tensor:
    """As a graph: a node for each word, and no edge between sentences (Edges)."""
    nodes = batch.x[batch.real]  # [N, D]
    return encoder(nodes, support=pattern.edges(batch.lengths)).output


def padded_graph(encoder: TransformerEncoder, batch: Batch, pattern: Pattern) -> Tensor:
    """As a graph that has a node for each place of padding too, but no edge to it (Edges)."""
    nodes = batch.x.flatten(0, 1)  # [B T, D]
    edges = pattern.edges(batch.lengths, padded_to=batch.x.shape[1])
    return encoder(nodes, support=edges).output[batch.real.flatten()]


def graph_network(encoder: TransformerEncoder, batch: Batch, pattern: Pattern) -> Tensor:
    """As a graph network of torch_geometric's own layers, which are handed an edge_index."""
    x = batch.x[batch.real]
    edge_index = pattern.edges(batch.lengths).edge_index  # [2, E]: from a word, to a listener
    for layer in layers_of(encoder):
        y = layer.attention_norm(x)
        assert layer.attention.output is not None  # every layer of a Transformer has one
        x = x + layer.attention.output(convolution(layer.attention)(y, edge_index))
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
    return encoder.norm(x)


def layers_of(encoder: TransformerEncoder) -> list[TransformerLayer]:
    """Its layers, the first first."""
    return cast(list[TransformerLayer], list(encoder.layers))


def convolution(attention: MultiHead) -> TransformerConv:
    """A graph convolution with the projections of a multi-head attention."""
    layer = TransformerConv(SIZE, SIZE // HEADS, HEADS, root_weight=False)
    layer.lin_query, layer.lin_key, layer.lin_value = (
        attention.query, attention.key, attention.value
    )  # fmt: skip
    return layer


Way = Callable[[TransformerEncoder, Batch, Pattern], Tensor]
WAYS: dict[str, Way] = {
    "sequences: a padded batch": padded_batch,
    "sequences: a padded batch with a mask": masked_batch,
    "sequences: one by one": one_by_one,
    "graph: a node per word": one_graph,
    "graph: a node per place of the batch": padded_graph,
    "graph: torch_geometric's TransformerConv": graph_network,
}


class Difference(NamedTuple):
    """How far one way is from the first, as shares of the largest number there.

    Attributes:
        listens: what each word listens to.
        way: the name of the way.
        dtype: that all of it was computed in.
        output: of the outputs at all words.
        gradient: of the gradients of all parameters and of the words' vectors.
    """

    listens: str
    way: str
    dtype: torch.dtype
    output: float
    gradient: float

    @property
    def is_rounding(self) -> bool:
        return max(self.output, self.gradient) <= TOLERANCE[self.dtype]


def build(seed: int, dtype: torch.dtype) -> TransformerEncoder:
    """A Transformer with random weights, the same in each dtype."""
    torch.manual_seed(seed)
    encoder = TransformerEncoder(LAYERS, SIZE, HEADS, dropout=0.0)
    with torch.no_grad():
        for layer in layers_of(encoder):  # so that words differ in whom they listen to
            layer.attention.query.weight *= 3
    return encoder.to(dtype)


def listening(window: int) -> dict[str, Pattern]:
    """What a word may listen to."""
    return {
        "every word (the complete graph)": patterns.atrous(1),
        f"words at most {window} away (a band)": patterns.local(window),
        "itself and earlier words (causal)": patterns.causal(),
    }


def differences(sentences: Sequence[str], window: int, seed: int) -> Iterator[Difference]:
    """Computes everything in every way, in two dtypes."""
    for listens, pattern in listening(window).items():
        for dtype in TOLERANCE:
            encoder = build(seed, dtype)
            batch = embed(sentences, dtype)
            batch.x.requires_grad_()
            leaves = [batch.x, *encoder.parameters()]
            first: tuple[Tensor, Tensor] | None = None
            for name, way in WAYS.items():
                output = way(encoder, batch, pattern)
                probe = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output).sin()
                gradients = torch.autograd.grad((output * probe).sum(), leaves)
                found = output.detach(), torch.cat([gradient.flatten() for gradient in gradients])
                first = found if first is None else first
                shares = [_share(a, b) for a, b in zip(found, first, strict=True)]
                yield Difference(listens, name, dtype, *shares)


def _share(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def table(found: Sequence[Difference]) -> str:
    """The differences, a row for each way and two columns for each dtype."""
    cell = "{:>10} {:>10}  ".format
    first = next(iter(WAYS))
    lines = [f"{'':44}" + "".join(f"{str(dtype)[6:]:^23}" for dtype in TOLERANCE)]
    lines.append(f"{'each word listens to':44}" + cell("output", "gradient") * len(TOLERANCE))
    for listens in dict.fromkeys(row.listens for row in found):
        lines += ["", listens]
        for way in WAYS:
            rows = [row for row in found if (row.listens, row.way) == (listens, way)]
            cells = (cell(f"{row.output:.1e}", f"{row.gradient:.1e}") for row in rows)
            lines.append(f"  {way:42}" + ("" if way == first else "".join(cells)))
    return "\n".join(map(str.rstrip, lines))


@torch.no_grad()
def draw(figure: Figure, sentence: str, window: int, seed: int) -> None:
    """Attention in the first head of the first layer: sequences left, graphs right."""
    words, encoder = sentence.split(), build(seed, torch.float64)
    x, places = embed([sentence], torch.float64).x[0], torch.arange(len(words))
    angle = np.linspace(0.5 * np.pi, -1.5 * np.pi, len(words), endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    kinds = list(listening(window).items())[:2]
    for (left, right), (listens, pattern) in zip(figure.subplots(2, 2), kinds, strict=True):
        run = {"mask": pattern.allowed(places, places)}, {"support": pattern.edges(len(words))}
        matrix, on_edges = (
            encoder(x, return_attention_weights=True, **how).weights[0].itself for how in run
        )
        heatmap(matrix[0], words, words, ax=left)
        left.set_title(f"a sequence: to {listens.partition(' (')[0]}", fontsize=11)
        draw_attention(
            pattern.edges(len(words)).edge_index,
            on_edges[:, :1],
            labels=np.zeros(len(words), int),
            class_names=["a word"],
            positions=circle,
            ax=right,
        )
        for (x_place, y_place), word in zip(1.15 * circle, words, strict=True):
            side = "center" if abs(x_place) < 0.1 else "left" if x_place > 0 else "right"
            right.text(x_place, y_place, word, ha=side, va="center", fontsize=9)
        right.set_title("the same weights on the graph", fontsize=11)
        right.set_aspect("equal", adjustable="box")
        right.set(xlim=(-1.6, 1.6), ylim=(-1.4, 1.4))


def run(args: argparse.Namespace) -> int:
    """Compares, prints and draws; returns 1 if any way differs by more than rounding."""
    for sentence in args.sentences:
        if not sentence.split():
            raise UserError(f"the sentence {sentence!r} has no words; write some, or leave it out")
    folder = Path(args.out)
    prepare_folder(folder)
    found = list(differences(args.sentences, args.window, args.seed))
    print(
        "One Transformer, always the same weights. How far each way is from the first of its group,"
        "\nas a share of the largest number:\n"
    )
    print(table(found))
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    draw(figure, args.sentences[0], args.window, args.seed)
    path = folder / "sequence_as_graph.png"
    save_figure(path, figure)
    different = [row for row in found if not row.is_rounding]
    for row in different:
        print(f"\nmore than rounding: {row.listens}: {row.way}, {row.dtype}", file=sys.stderr)
    if not different:
        print("\nAll are the same but for rounding.")
    print(f"The attention of the first sentence is drawn in {path}")
    return 1 if show_patterns(folder, args.seed) or different else 0


def show_patterns(folder: Path, seed: int) -> bool:
    """Prints and draws every pattern; returns whether one differs by more than rounding."""
    shown = _pattern_gallery.gallery(seed)
    rows = [(one, _pattern_gallery.differences(one, seed)) for one in shown]
    print(
        "\nEvery pattern, computed by the support that is fastest and as a graph. How far each is "
        "from\nall pairs with a mask, outputs and gradients, as a share of the largest number:\n"
    )
    print(_pattern_gallery.table(rows))
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    _pattern_gallery.draw(figure, shown)
    save_figure(folder / "patterns.png", figure)
    print(f"\nThey are drawn in {folder / 'patterns.png'}")
    wrong = [one.name for one, off in rows if max(off.values()) > TOLERANCE[torch.float64]]
    for name in wrong:
        print(f"\nmore than rounding: {name}", file=sys.stderr)
    return bool(wrong)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 1 if two ways differ, 2 after an error that can be mended."""
    return exit_status(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
