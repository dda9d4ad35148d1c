"""What sentiment, tagging and captioning build, under torch.compile and torch.export.

torch leaves its recurrent cells out of a graph and packs no sequences of lengths that it does not
know: models that have them are compiled around these, and exported where they read whole ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves

from examples import captioning, sentiment, tagging
from examples.commands.tagging import LETTERS, Widths

Case = tuple[Callable[[], nn.Module], Callable[[int, int], tuple[tuple[Any, ...], dict[str, Any]]]]


def review(batch: int, steps: int):
    """Texts of one length, padded in front."""
    tokens = torch.randint(2, 20, (batch, 7))
    tokens[0, :3] = tokens[-1, :5] = 0
    return (tokens,), {}


def classifier(encoder: str, **options: Any) -> Case:
    def inputs(batch: int, steps: int):
        tokens, _ = review(batch, steps)
        return tokens, {"need_weights": True} if "attention" in encoder else {}

    return lambda: sentiment.Classifier(20, 7, encoder, **options), inputs


def tagger(model: str, letters: int = 0) -> Case:
    widths = Widths(size=16, layers=1, heads=2, window=2, dropout=0.1, letters=letters)

    def inputs(batch: int, steps: int):
        lengths = torch.arange(batch) % steps + 1
        lengths[0] = steps
        words = torch.randint(1, 30, (batch, steps)), lengths
        spelt = (torch.randint(1, 12, (batch, steps, LETTERS)),) if letters else ()
        return (*words, *spelt), {}

    return lambda: tagging.Tagger(30, 5, model, widths, alphabet=12), inputs


def speller(read: str) -> Case:
    def inputs(batch: int, steps: int):
        images = torch.randint(0, captioning.GREYS, (batch, captioning.SIDE**2))
        return (images, torch.randint(3, len(captioning.LETTERS), (batch, 5))), {}

    return lambda: captioning.Speller(1, read, 4, 8, 4), inputs


CASES: dict[str, Case] = {
    **{name: classifier(name) for name in ("attention", "cnn", "cnn+attention")},
    "attention, masked": classifier("attention", mask=True, positions="sinusoidal"),
    "cnn+attention, masked": classifier("cnn+attention", mask=True, positions="learned"),
    "three classes": classifier("attention", classes=3),
    **{name: tagger(name) for name in tagging.MODELS if name not in ("attention", "cnn", "bilstm")},
    "tagger": tagger("attention"),
    "tagger, spelling": tagger("cnn", letters=8),
}
RECURRENT: dict[str, Case] = {
    "lstm": classifier("lstm"),
    "lstm+attention": classifier("lstm+attention"),
    **{read: speller(read) for read in ("soft", "reinforce", "gumbel", "none")},
}
PACKED: dict[str, Case] = {
    "lstm, masked": classifier("lstm", mask=True),
    "bilstm": tagger("bilstm"),
}
SIZES = (3, 6), (4, 9), (5, 5)


FAST = "cnn+attention, masked", "three classes", "rotary", "window+relative", "tagger, spelling"


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(x, marks=pytest.mark.slow) for x in CASES if x not in FAST)]
)
def test_one_graph_and_another_for_other_sizes(name: str) -> None:
    torch._dynamo.reset()
    make, inputs = CASES[name]
    model, counter = make().eval(), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for sizes in SIZES:
        args, given = inputs(*sizes)
        same(compiled(*args, **given), model(*args, **given))
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "name", ["attention, masked", "rotary", "window+relative", "bilstm", "soft"]
)
def test_a_step_of_training_is_the_same(name: str) -> None:
    torch._dynamo.reset()
    make, inputs = (CASES | RECURRENT | PACKED)[name]
    model = make().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # compiled code draws other numbers
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    args, given = inputs(3, 6)

    def gradients(run: Callable[..., Any]) -> list[Tensor]:
        outputs = [x for x in tree_leaves(run(*args, **given)) if isinstance(x, Tensor)]
        loss = sum((x.sin() * x).sum() for x in outputs if x.requires_grad)
        return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))

    same(gradients(torch.compile(model, backend="aot_eager")), gradients(model))


@pytest.mark.parametrize("name", ["lstm+attention", "soft", *PACKED])  # a kind each: they take long
def test_recurrent_cells_are_left_out_of_the_graphs(name: str) -> None:
    torch._dynamo.reset()
    make, inputs = (RECURRENT | PACKED)[name]
    model = make().eval()
    compiled = torch.compile(model, backend="eager")
    for sizes in SIZES[:2]:
        args, given = inputs(*sizes)
        same(compiled(*args, **given), model(*args, **given))


@pytest.mark.filterwarnings("ignore:The tensor attributes self")  # torch's cells, of their own
@pytest.mark.parametrize("name", [*CASES, *RECURRENT])
def test_exports_with_any_batch(name: str, check_export: Any) -> None:
    make, inputs = (CASES | RECURRENT)[name]
    check_export(make().eval(), *(inputs(*sizes) for sizes in SIZES))


def same(found: Any, expected: Any) -> None:
    both = ([x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in (found, expected))
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
