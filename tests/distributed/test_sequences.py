"""Sequences that are split along time give what whole ones give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_core import Additive, Entmax, ScaledDot, Softmax
from attn_core.distributed import traffic
from attn_core.ring import Ring, Run
from sequence_attn import (
    ALiBi,
    LearnedPositions,
    MultiHead,
    MultiHeadAttention,
    RotaryPositions,
    SinusoidalPositions,
    T5RelativeBias,
    TransformerEncoder,
)
from sequence_attn.distributed import ContextParallel, context_parallel, shard, unshard

BATCH, TIME, SIZE = 2, 32, 8
LENGTHS = torch.tensor([32, 21])


class SelfAttention(nn.Module):
    """What MultiHead or MultiHeadAttention makes of one sequence."""

    def __init__(self, attention: nn.Module, **given: Any) -> None:
        super().__init__()
        self.attention, self.given = attention, given

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.attention, MultiHead):
            return self.attention(x, **self.given).context
        return self.attention(x, x, x, need_weights=False, **self.given)[0]


class Encoding(nn.Module):
    def __init__(self, encoder: TransformerEncoder, **given: Any) -> None:
        super().__init__()
        self.encoder, self.given = encoder, given

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x, **self.given).output


def heads(**options: Any) -> MultiHead:
    return MultiHead(4, 2, input_size=SIZE, output_size=SIZE, bias=True, **options)


def encoder(**options: Any) -> TransformerEncoder:
    return TransformerEncoder(2, SIZE, 2, dropout=0.0, **options)


def cases() -> dict[str, tuple[nn.Module, bool]]:
    """Modules, and whether their sequences are split head and tail."""
    torch.manual_seed(1)
    own = Softmax(torch.nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 1.5])))
    vector = Additive(torch.randn(4, 2), "tanh")
    return {
        "MultiHead": (SelfAttention(heads()), False),
        "causal": (SelfAttention(heads(), causal=True), False),
        "causal, balanced": (SelfAttention(heads(), causal=True), True),
        "balanced": (SelfAttention(heads(), key_lengths=LENGTHS), True),
        "grouped keys": (SelfAttention(heads(key_heads=2), causal=True), True),
        "additive": (SelfAttention(heads(score="additive")), False),
        "given score": (SelfAttention(heads(score=vector, normalizer=own), causal=True), True),
        "rotary": (SelfAttention(heads(rotary=RotaryPositions(2)), causal=True), True),
        "window": (SelfAttention(heads(window=3)), False),
        "causal window": (SelfAttention(heads(window=5), causal=True), False),
        "wide window": (SelfAttention(heads(window=11, rotary=RotaryPositions(2))), False),
        "entmax in a window": (SelfAttention(heads(window=3, normalizer="entmax")), False),
        "MultiHeadAttention": (
            SelfAttention(MultiHeadAttention(SIZE, 2, batch_first=True), causal=True),
            True,
        ),
        "MultiHeadAttention, window": (
            SelfAttention(MultiHeadAttention(SIZE, 2, batch_first=True, window=2)),
            False,
        ),
        "sinusoidal": (Encoding(encoder(positions=SinusoidalPositions(SIZE))), True),
        "learned, ALiBi": (
            Encoding(
                encoder(
                    positions=LearnedPositions(TIME, SIZE), relative_bias=ALiBi(2), causal=True
                ),
                lengths=LENGTHS,
            ),
            True,
        ),
        "T5": (
            Encoding(encoder(relative_bias=T5RelativeBias(2, num_buckets=8, max_distance=16))),
            False,
        ),
        "ALiBi over a window": (
            Encoding(encoder(relative_bias=ALiBi(2), window=4), lengths=LENGTHS),
            False,
        ),
    }


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = BATCH, TIME, SIZE
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)


def whole() -> dict[str, dict[str, Tensor]]:
    found = {}
    x, factors = inputs()
    for name, (module, _) in cases().items():
        module.double()
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        (out * factors).sin().mean().backward()
        grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        found[name] = {"out": out.detach(), "x": leaf.grad, **grads}
    return found


def split(rank: int, world: int) -> Any:
    found: dict[str, Any] = {}
    x, factors = inputs()
    for name, (module, balanced) in cases().items():
        model = context_parallel(module.double(), balanced=balanced)
        leaf = model.shard(x).clone().requires_grad_()
        with traffic() as forward:
            out = model(leaf)
        with traffic() as backward:
            model.mean((out * model.shard(factors)).sin()).backward()
        grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        found[name] = {"out": model.unshard(out), "x": model.unshard(leaf.grad), **grads}
        found[f"{name}, sent"] = forward.rows, backward.rows
    found["dropout"] = dropped()
    return found


def dropped() -> list[Tensor]:
    """Attention dropout in training: the output, and the gradient of x."""
    torch.manual_seed(7)
    module = heads(dropout=0.4).double()
    model = context_parallel(SelfAttention(module, causal=True), balanced=True)
    x, factors = inputs()
    leaf = model.shard(x).clone().requires_grad_()
    out = model(leaf)
    model.mean((out * model.shard(factors)).sin()).backward()
    weight = module.value.weight.grad
    assert weight is not None
    return [model.unshard(out), model.unshard(leaf.grad), weight]


@pytest.fixture(scope="module", params=[2, 4])
def everywhere(request: pytest.FixtureRequest, in_processes: Any) -> list[Any]:
    return in_processes(__file__, "split", request.param)


def test_layers_give_what_whole_sequences_give(everywhere: list[Any]) -> None:
    for name, expected in whole().items():
        for each in everywhere:
            assert each[name].keys() == expected.keys(), name
            for what, value in expected.items():
                torch.testing.assert_close(
                    each[name][what],
                    value,
                    rtol=1e-10,
                    atol=1e-12,
                    msg=lambda text, name=name, what=what: f"{name}, {what}: {text}",
                )


def test_attention_dropout_does_not_depend_on_the_number_of_processes(
    everywhere: list[Any],
) -> None:
    expected = dropped()
    for each in everywhere:
        torch.testing.assert_close(each["dropout"], expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(expected[0], whole()["causal"]["out"])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "runs",
    [[[(0, 100)], [(100, 100)]], [[(0, 30), (90, 30)], [(30, 30), (60, 30)]], [[(0, 3)], [(3, 3)]]],
)
def test_blocks_of_a_ring_are_all_pairs_once(runs: list[list[Run]], causal: bool) -> None:
    ring = Ring(ScaledDot(), Softmax(), runs, runs, causal)  # as the first process sees it
    places = [torch.cat([torch.arange(at, at + n) for at, n in of_process]) for of_process in runs]
    query = torch.empty(1, len(places[0]), 2, 8)
    for source, keys in enumerate(places):
        seen = torch.zeros(len(places[0]), len(keys), dtype=torch.int64)
        for part in range(ring.parts):
            here = torch.cat([torch.arange(at, at + n) for at, (_, n) in ring.pieces(source, part)])
            assert len(here) <= -(-len(keys) // ring.parts) + 1
            for rows, columns, block in ring.blocks(query, source, part):
                assert max(rows.stop - rows.start, columns.stop - columns.start) <= 13
                pairs = torch.ones(rows.stop - rows.start, columns.stop - columns.start)
                assert (places[0][rows][0], keys[here[columns]][0]) == (
                    block.first_query,
                    block.first_key,
                )
                if block.diagonal:
                    pairs = pairs.tril(pairs.shape[1] - pairs.shape[0])
                seen[rows, here[columns]] += pairs.long()
        expected = places[0][:, None] >= keys if causal else torch.ones_like(seen)
        assert torch.equal(seen, expected.long())


def test_bytes_sent_are_what_the_formula_says(everywhere: list[Any]) -> None:
    world = len(everywhere)
    steps = TIME // world
    for rank, each in enumerate(everywhere):
        keys_and_values = 2 * BATCH * steps * SIZE * 8
        forward, backward = each["MultiHead, sent"]
        assert forward == (world - 1) * keys_and_values
        assert backward == (2 * world - 1) * keys_and_values
        # The last steps of the process before; it gets their gradients back
        row = 2 * BATCH * SIZE * 8
        begins = [process * steps for process in range(world + 1)]
        sent = 0
        for begin in begins[rank + 1 : world]:
            sent += max(0, min(begin, begins[rank + 1]) - max(begin - 5, begins[rank]))
        received = min(5, begins[rank])
        assert each["causal window, sent"] == (sent * row, received * row)


def test_one_process_has_whole_sequences() -> None:
    x, _ = inputs()
    for balanced in (False, True):
        assert torch.equal(unshard(shard(x, balanced=balanced), balanced=balanced), x)
    with pytest.raises(ValueError, match="has 5 steps, which 2 parts cannot share equally"):
        shard(torch.zeros(5, 1), balanced=True)


def test_what_split_sequences_do_not_know_is_refused() -> None:
    x = torch.zeros(1, 4, SIZE)

    def parallel(module: nn.Module, **given: Any) -> ContextParallel:
        return context_parallel(module, **given)

    with pytest.raises(ValueError, match="normalizer is Entmax, whose weights"):
        parallel(heads(normalizer=Entmax()))(x)
    with pytest.raises(ValueError, match="mask is given, but the sequences are split"):
        parallel(heads())(x, mask=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="need_weights is given"):
        parallel(heads())(x, need_weights=True)
    with pytest.raises(ValueError, match="return_attention_weights is given"):
        parallel(encoder())(x, return_attention_weights=True)
    with pytest.raises(ValueError, match="a window needs neighbouring steps"):
        parallel(heads(window=1), balanced=True)(x)
    with pytest.raises(ValueError, match="has 3 steps; expected an even number"):
        parallel(heads(), balanced=True)(x[:, :3])
    with pytest.raises(ValueError, match="bias is a tensor"):
        parallel(heads())(x, bias=torch.zeros(4, 4))
    with pytest.raises(ValueError, match="module is a Linear, which has none of MultiHead"):
        parallel(nn.Linear(2, 2))
