"""Transformer encoder and decoder, beside torch's and against their own cached decoding."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attn_core import Edges
from sequence_attn import (
    ALiBi,
    LearnedPositions,
    PositionWise,
    RotaryPositions,
    SinusoidalPositions,
    T5RelativeBias,
    TransformerDecoder,
    TransformerEncoder,
    TransformerLayer,
)

B, T, TM, D, H = 2, 5, 4, 8, 2
LENGTHS = torch.tensor([5, 3])


def encoder(layers: int = 2, **options) -> TransformerEncoder:
    options = {"dropout": 0.0, "feed_forward_size": 12} | options
    return TransformerEncoder(layers, D, H, **options).double()


def decoder(layers: int = 2, **options) -> TransformerDecoder:
    options = {"dropout": 0.0, "feed_forward_size": 12} | options
    return TransformerDecoder(layers, D, H, **options).double()


def sequence(steps: int = T, width: int = D) -> torch.Tensor:
    return torch.randn(B, steps, width, dtype=torch.float64)


def copy_attention(ours, theirs: nn.MultiheadAttention) -> None:
    for name, weight, bias in zip(
        ("query", "key", "value"),
        theirs.in_proj_weight.chunk(3),
        theirs.in_proj_bias.chunk(3),
        strict=True,
    ):
        getattr(ours, name).load_state_dict({"weight": weight, "bias": bias})
    ours.output.load_state_dict(theirs.out_proj.state_dict())


def copy_stack(ours, theirs) -> None:
    """Give our stack the parameters of torch's."""
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        copy_attention(layer.attention, other.self_attn)
        norms = [layer.attention_norm, layer.feed_forward_norm]
        if layer.memory_attention is not None:
            copy_attention(layer.memory_attention, other.multihead_attn)
            norms.insert(1, layer.memory_norm)
        for i, norm in enumerate(norms, 1):
            norm.load_state_dict(getattr(other, f"norm{i}").state_dict())
        layer.feed_forward.hidden.load_state_dict(other.linear1.state_dict())
        layer.feed_forward.output.load_state_dict(other.linear2.state_dict())
    ours.norm.load_state_dict({} if theirs.norm is None else theirs.norm.state_dict())


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_equals_torchs(norm_first: bool, activation: str) -> None:
    options = {"norm_first": norm_first, "activation": activation}
    layer = nn.TransformerEncoderLayer(
        D, H, 12, 0.0, batch_first=True, dtype=torch.float64, **options
    )
    norm = nn.LayerNorm(D, dtype=torch.float64) if norm_first else None
    theirs = randomised(nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False))
    ours = encoder(**options)
    copy_stack(ours, theirs)
    x = sequence()
    padding = torch.arange(T) >= LENGTHS[:, None]
    expected = theirs(x, src_key_padding_mask=padding).masked_fill(padding[..., None], 0)
    torch.testing.assert_close(ours(x, lengths=LENGTHS).output, expected)
    torch.testing.assert_close(ours(x).output, theirs(x))


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoder_equals_torchs(norm_first: bool) -> None:
    layer = nn.TransformerDecoderLayer(
        D, H, 12, 0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    norm = nn.LayerNorm(D, dtype=torch.float64) if norm_first else None
    theirs = randomised(nn.TransformerDecoder(layer, 2, norm))
    ours = decoder(norm_first=norm_first)
    copy_stack(ours, theirs)
    x, memory = sequence(), sequence(TM)
    lengths = torch.tensor([4, 2])
    expected = theirs(
        x,
        memory,
        tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        memory_key_padding_mask=torch.arange(TM) >= lengths[:, None],
    )
    torch.testing.assert_close(ours(x, memory, memory_lengths=lengths).output, expected)


def test_position_wise_network_is_a_convolution_of_width_1() -> None:
    network, x = PositionWise(D, 12).double(), sequence()
    first, last = (
        nn.Conv1d(linear.in_features, linear.out_features, 1, dtype=torch.float64)
        for linear in (network.hidden, network.output)
    )
    for convolution, linear in ((first, network.hidden), (last, network.output)):
        convolution.load_state_dict(
            {"weight": linear.weight[..., None].detach(), "bias": linear.bias.detach()}
        )
    torch.testing.assert_close(network(x), last(first(x.mT).relu()).mT)


@pytest.mark.parametrize("norm_first", [True, False])
def test_widths_that_differ_are_projected_on_the_residual(norm_first: bool) -> None:
    model = encoder(input_size=3, norm_first=norm_first)
    assert [type(layer.shortcut) for layer in model.layers] == [nn.Linear, nn.Identity]
    x, layer = sequence(width=3), model.layers[0]
    nn.init.zeros_(layer.attention.output.weight)
    nn.init.zeros_(layer.feed_forward.output.weight)
    nn.init.zeros_(layer.feed_forward.output.bias)
    out, _, _ = layer(x, layer.start(None), {}, {})  # nothing but the shortcut is left
    expected = layer.shortcut(x)
    if not norm_first:
        expected = layer.feed_forward_norm(layer.attention_norm(expected))
    torch.testing.assert_close(out, expected)
    assert model(x).output.shape == (B, T, D)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(norm_first: bool, causal: bool) -> None:
    model = encoder(norm_first=norm_first, causal=causal, positions=SinusoidalPositions(D))
    x = sequence()
    output = model(x, lengths=LENGTHS).output
    for b, length in enumerate(LENGTHS):
        torch.testing.assert_close(output[b, :length], model(x[b, :length]).output)
        assert (output[b, length:] == 0).all()


def test_memory_padding_changes_nothing() -> None:
    model, x, memory = decoder(), sequence(), sequence(TM)
    lengths = torch.tensor([4, 2])
    output = model(x, memory, lengths=LENGTHS, memory_lengths=lengths).output
    for b in range(B):
        alone = model(x[b, : LENGTHS[b]], memory[b, : lengths[b]]).output
        torch.testing.assert_close(output[b, : LENGTHS[b]], alone)
    mask = (torch.arange(TM) < lengths[:, None])[:, None].expand(B, T, TM)
    by_mask = model(x, memory, lengths=LENGTHS, memory_mask=mask).output
    torch.testing.assert_close(by_mask, output)


def test_shuffling_changes_nothing_without_positions_and_something_with_them() -> None:
    order, x = torch.randperm(T), sequence()
    model = encoder()
    torch.testing.assert_close(model(x[:, order]).output, model(x).output[:, order])
    model = encoder(positions=SinusoidalPositions(D))
    assert not torch.allclose(model(x[:, order]).output, model(x).output[:, order])


def test_causal_output_does_not_depend_on_later_steps() -> None:
    model, x = encoder(causal=True), sequence()
    y = x.clone()
    y[:, 3:] = 0
    torch.testing.assert_close(model(x).output[:, :3], model(y).output[:, :3])
    assert not torch.allclose(encoder()(x).output[:, :3], encoder()(y).output[:, :3])


class OfDistance(nn.Module):
    """A bias without a class of the library: heads prefer different distances."""

    def forward(self, relative: torch.Tensor) -> torch.Tensor:
        bias = relative.double(), -relative.double().abs()
        return torch.stack(bias, -1 if relative.dim() == 1 else -3)


POSITIONS = {
    "none": {},
    "sinusoidal": {"positions": SinusoidalPositions(D)},
    "learned": {"positions": LearnedPositions(T, D)},
    "rotary": {"rotary": RotaryPositions(4)},
}
BIASES = {
    "alibi": {"relative_bias": ALiBi(H)},
    "t5": {"relative_bias": T5RelativeBias(H, num_buckets=4, max_distance=4)},
    "own": {"relative_bias": OfDistance()},
}


@pytest.mark.parametrize("options", (POSITIONS | BIASES).values(), ids=POSITIONS | BIASES)
@pytest.mark.parametrize("window", [None, 1])
def test_cached_decoding_equals_full_decoding(options: dict, window: int | None) -> None:
    options = copy.deepcopy(options) | {"window": window, "memory_size": 3}
    model, x, memory = decoder(**options), sequence(), sequence(TM, 3)
    lengths = torch.tensor([4, 2])
    full = model(x, memory, memory_lengths=lengths, return_attention_weights=True)
    cache, outputs = model.start(memory, lengths=lengths), []
    for step in x.split([1, 2, 1, 1], dim=1):
        before = cache
        output, weights, cache = model(step, cache=cache, return_attention_weights=True)
        outputs.append(output)
        assert cache.length == before.length + step.shape[1]
    torch.testing.assert_close(torch.cat(outputs, 1), full.output)
    for step, whole in zip(weights, full.weights, strict=True):
        torch.testing.assert_close(step.itself[..., -1, :], whole.itself[..., -1, :])
        torch.testing.assert_close(step.memory[..., -1, :], whole.memory[..., -1, :])


def test_a_causal_encoder_decodes_step_by_step() -> None:
    model, x = encoder(causal=True, positions=SinusoidalPositions(D)), sequence()
    cache, outputs = model.start(), []
    for step in x.split(1, dim=1):
        output, _, cache = model(step, cache=cache)
        outputs.append(output)
    full = model(x)
    torch.testing.assert_close(torch.cat(outputs, 1), full.output)
    assert full.cache is None


@pytest.mark.parametrize("options", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("causal", [True, False])
def test_window_equals_the_band_mask(options: dict, causal: bool) -> None:
    plain = encoder(causal=causal, **copy.deepcopy(options))
    local = copy.deepcopy(plain)
    for layer in local.layers:
        layer.attention.window = 1
    x = sequence()
    band = (torch.arange(T) - torch.arange(T)[:, None]).abs() <= 1
    expected = plain(x, mask=band, lengths=LENGTHS).output
    torch.testing.assert_close(local(x, lengths=LENGTHS).output, expected)


@pytest.mark.parametrize("options", [{}, *BIASES.values()], ids=["none", *BIASES])
def test_a_sequence_as_a_graph(options: dict) -> None:
    """The same stack over the edges of a band gives the same numbers as over the sequence."""
    model, x = encoder(**copy.deepcopy(options)), sequence()[0]
    band = (torch.arange(T) - torch.arange(T)[:, None]).abs() <= 1
    edges = Edges.from_edge_index(band.nonzero().T.flip(0).contiguous(), T)
    torch.testing.assert_close(model(x, support=edges).output, model(x, mask=band).output)


def test_attention_weights_of_every_layer() -> None:
    model, x, memory = decoder(3), sequence(), sequence(TM)
    result = model(x, memory, lengths=LENGTHS, return_attention_weights=True)
    assert len(result.weights) == 3 and model(x, memory).weights is None
    for layer in result.weights:
        assert layer.itself.shape == (B, H, T, T) and layer.memory.shape == (B, H, T, TM)
        torch.testing.assert_close(layer.itself.sum(-1), torch.ones_like(layer.itself[..., 0]))
        assert (layer.itself.triu(1) == 0).all()
    assert encoder()(x, return_attention_weights=True).weights[0].memory is None


def test_options_reach_the_layers() -> None:
    model = encoder(size_per_head=3, score="cosine", normalizer="sparsemax", activation=torch.tanh)
    attention = model.layers[1].attention
    assert (attention.size_per_head, attention.score_name) == (3, "cosine")
    weights = model(sequence(), return_attention_weights=True).weights[0].itself
    x = model.layers[0].attention_norm(sequence())
    assert attention.query.out_features == 6 and weights.shape == (B, H, T, T)
    network = model.layers[0].feed_forward
    torch.testing.assert_close(network(x), network.output(network.hidden(x).tanh()))


def test_dropout_acts_in_training_alone() -> None:
    model, x = encoder(dropout=0.5), sequence()
    assert not torch.allclose(model(x).output, model(x).output)
    model.eval()
    torch.testing.assert_close(model(x).output, model(x).output)


def test_gradients() -> None:
    model = decoder(1, positions=LearnedPositions(T, D))
    names, parameters = zip(*model.named_parameters(), strict=True)
    x, memory = sequence(3).requires_grad_(), sequence(2).requires_grad_()

    def run(x, memory, *parameters):
        named = dict(zip(names, parameters, strict=True))
        lengths = {"lengths": torch.tensor([3, 0]), "memory_lengths": torch.tensor([2, 0])}
        return torch.func.functional_call(model, named, (x, memory), lengths).output

    assert torch.autograd.gradcheck(run, (x, memory, *parameters), fast_mode=True)


def test_compiles_into_one_graph() -> None:
    model, x, memory = decoder(positions=SinusoidalPositions(D)), sequence(), sequence(TM)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    given = {"lengths": LENGTHS, "memory_lengths": torch.tensor([4, 0])}
    torch.testing.assert_close(
        compiled(x, memory, **given).output, model(x, memory, **given).output
    )


def test_compiled_decoding_settles_after_a_few_steps() -> None:
    """The first step has no past, the second has one of fixed length; one graph serves the rest."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    model, x, memory = decoder(1, positions=SinusoidalPositions(D)).eval(), sequence(), sequence(TM)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        full, cache, outputs = model(x, memory).output, model.start(memory), []
        for step in x.split(1, dim=1):
            output, _, cache = compiled(step, cache=cache)
            outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), full)
    assert len(graphs) <= 3


def test_autocast() -> None:
    model, x = encoder(positions=SinusoidalPositions(D)).float(), sequence().float()
    exact = model(x, lengths=LENGTHS).output
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x, lengths=LENGTHS).output
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)


def test_state_dict_round_trip() -> None:
    model, x = encoder(), sequence()
    other = encoder()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x).output, model(x).output)


def test_learns_to_reverse_a_sequence() -> None:
    """A decoder that reads its memory backwards: positions, masks and memory all have to work."""
    symbols, steps = 5, 3
    embedding = nn.Embedding(symbols + 1, 32)
    read = TransformerEncoder(1, 32, 4, dropout=0.0, positions=SinusoidalPositions(32))
    write = TransformerDecoder(1, 32, 4, dropout=0.0, positions=SinusoidalPositions(32))
    head = nn.Linear(32, symbols)
    modules = nn.ModuleList([embedding, read, write, head])
    optimizer = torch.optim.Adam(modules.parameters(), lr=5e-3)
    for _ in range(150):
        source = torch.randint(symbols, (32, steps))
        target = source.flip(1)
        shifted = F.pad(target[:, :-1], (1, 0), value=symbols)
        logits = head(write(embedding(shifted), read(embedding(source)).output).output)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    modules.eval()
    source = torch.randint(symbols, (50, steps))
    cache = write.start(read(embedding(source)).output)
    step, found = torch.full((50, 1), symbols), []
    with torch.no_grad():
        for _ in range(steps):
            output, _, cache = write(embedding(step), cache=cache)
            step = head(output).argmax(-1)
            found.append(step)
    assert (torch.cat(found, 1) == source.flip(1)).float().mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"size": 0}, "size is 0"),
        ({"heads": 3}, "heads is 3, which does not divide size, 8"),
        ({"activation": "sin"}, "activation is 'sin'; known ones are relu, gelu, silu"),
        ({"dropout": 2.0}, "dropout is 2.0"),
        ({"score": "bilinear"}, "score is 'bilinear'"),
        ({"window": -1}, "window is -1"),
        ({"memory_size": 4}, "an encoder has no memory"),
    ],
)
def test_constructor_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerEncoder(**{"layers": 1, "size": D, "heads": H} | arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(B, T, 7)}, ValueError, r"x has shape \[2, 5, 7\].*width 8"),
        ({"x": torch.zeros(D)}, ValueError, r"x has shape \[8\]"),
        ({"x": torch.zeros(B, T, D).double()}, TypeError, "x has dtype torch.float64"),
        ({"memory": torch.zeros(B, TM, 7)}, ValueError, r"memory has shape \[2, 4, 7\].*width 8"),
        ({"memory": None}, ValueError, "memory is needed"),
        ({"memory": torch.zeros(3, TM, D)}, ValueError, "batch"),
        ({"lengths": torch.tensor([6, 1])}, ValueError, "^lengths has the entry 6"),
        ({"memory_lengths": torch.tensor([5, 1])}, ValueError, "^memory_lengths has the entry 5"),
        ({"memory_lengths": torch.tensor([1])}, ValueError, r"^memory_lengths has shape \[1\]"),
        ({"mask": torch.zeros(T, T)}, TypeError, "mask has dtype torch.float32.*bias="),
        ({"memory_mask": torch.ones(T, T, dtype=torch.bool)}, ValueError, r"mask has shape \[5, 5"),
    ],
)
def test_forward_refuses(change: dict, error: type[Exception], message: str) -> None:
    model = decoder().float()
    given = {"x": torch.zeros(B, T, D), "memory": torch.zeros(B, TM, D)} | change
    with pytest.raises(error, match=message):
        model(**given)


def test_cache_refuses() -> None:
    model, x, memory = decoder(), sequence(), sequence(TM)
    cache = model.start(memory)
    for given, message in (
        ({"memory": memory}, "memory is given beside cache"),
        ({"memory_lengths": LENGTHS}, "memory_lengths is given beside cache"),
        (
            {"lengths": LENGTHS, "key_mask": torch.ones(B, T) > 0},
            "key_mask is given beside lengths",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model(x, cache=cache, **given)


def test_a_layer_alone() -> None:
    layer, x = TransformerLayer(D, H, dropout=0.0).double(), sequence()
    out, cache, weights = layer(x, layer.start(None), {"causal": True}, {}, need_weights=True)
    assert out.shape == x.shape and cache.itself.length == T and cache.memory is None
    assert (weights.itself.triu(1) == 0).all()


# Ragged batches: each sequence comes out as it does alone

SCHEMES = {
    "none": dict,
    "sinusoidal": lambda: {"positions": SinusoidalPositions(D)},
    "learned": lambda: {"positions": LearnedPositions(12, D)},
    "rotary": lambda: {"rotary": RotaryPositions(D // H)},
    "alibi": lambda: {"relative_bias": ALiBi(H)},
    "t5": lambda: {"relative_bias": T5RelativeBias(H, num_buckets=4, max_distance=3)},
    "window, t5": lambda: {"window": 1} | SCHEMES["t5"](),
    "grouped rotary": lambda: {"key_heads": 1} | SCHEMES["rotary"](),
}


def alone(model, x: torch.Tensor, real: torch.Tensor, **given) -> torch.Tensor:
    """Each sequence without its padding, back in its place."""
    result = torch.zeros(B, x.shape[1], D, dtype=x.dtype)
    for b in range(B):
        beside = {name: value[b : b + 1] for name, value in given.items()}
        result[b, real[b]] = model(x[b : b + 1, real[b]], **beside).output[0]
    return result


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_padding_on_the_left_changes_nothing(scheme: str, causal: bool) -> None:
    model, x = encoder(causal=causal, **SCHEMES[scheme]()), sequence()
    real = torch.arange(T) >= T - LENGTHS[:, None]
    expected = alone(model, x, real)
    torch.testing.assert_close(model(x, key_mask=real).output, expected)
    positions = torch.arange(T) - (T - LENGTHS)[:, None]  # -2, -1, 0, …
    torch.testing.assert_close(model(x, positions=positions).output, expected)
    dirty = x.masked_fill(~real[..., None], 1e3)
    torch.testing.assert_close(model(dirty, key_mask=real).output, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_decoder_with_padding_on_the_left_of_everything(scheme: str) -> None:
    model, x, memory = decoder(**SCHEMES[scheme]()), sequence(), sequence(TM)
    real = torch.arange(T) >= T - LENGTHS[:, None]
    of_memory = torch.tensor([[True] * TM, [False, False, True, True]])
    output = model(x, memory, key_mask=real, memory_key_mask=of_memory).output
    expected = alone(model, x, real, memory=memory, memory_key_mask=of_memory)
    torch.testing.assert_close(output, expected)
    cache = model.start(memory, key_mask=of_memory)
    last = [model(x[:, :2], cache=cache, key_mask=real[:, :2])]
    for t in range(2, T):
        last.append(model(x[:, t : t + 1], cache=last[-1].cache))
    torch.testing.assert_close(torch.cat([step.output for step in last], 1), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cache_of_sequences_of_different_lengths(scheme: str) -> None:
    """Chunks padded on the right go on where each sequence ends, whatever lies between."""
    model, x = encoder(causal=True, **SCHEMES[scheme]()), sequence(6)
    chunks = [torch.tensor([3, 1]), torch.tensor([0, 2]), torch.tensor([2, 2])]
    cache, found = model.start(), [[], []]
    done = torch.zeros(B, dtype=torch.int64)
    for lengths in chunks:
        padded = torch.full((B, 3, D), 9.0, dtype=torch.float64)
        for b in range(B):
            padded[b, : lengths[b]] = x[b, done[b] : done[b] + lengths[b]]
        output, _, cache = model(padded, lengths=lengths, cache=cache)
        for b in range(B):
            found[b].append(output[b, : lengths[b]])
        assert all((output[b, lengths[b] :] == 0).all() for b in range(B))
        done = done + lengths
    for b in range(B):
        whole = model(x[b : b + 1, :5]).output[0]
        torch.testing.assert_close(torch.cat(found[b]), whole)
    swapped = cache.select(torch.tensor([1, 0]))
    step = sequence(1)
    torch.testing.assert_close(
        model(step, cache=swapped).output[0], model(step.flip(0), cache=cache).output[1]
    )


def test_positions_are_those_that_were_given() -> None:
    """Steps of two packed sequences: each counts from 0, and a mask keeps them apart."""
    model, x = encoder(**SCHEMES["sinusoidal"]()), sequence(4)
    positions = torch.tensor([0, 1, 0, 1])
    apart = torch.block_diag(*[torch.ones(2, 2)] * 2) > 0
    packed = model(x, positions=positions, mask=apart).output
    torch.testing.assert_close(packed[:, 2:], model(x[:, 2:]).output)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"positions": torch.zeros(B, T)}, r"positions has shape \[2, 5\] and dtype torch.float"),
        ({"positions": torch.zeros(T + 1).long()}, r"positions has shape \[6\].*integers \[2, 5\]"),
        ({"key_mask": torch.ones(T) > 0}, r"key_mask has shape \[5\]; expected \[2, 5\]"),
        (
            {
                "positions": torch.arange(T),
                "support": Edges.from_edge_index(torch.zeros(2, 1).long()),
            },
            "positions or key_mask are given beside support",
        ),
    ],
)
def test_ragged_arguments_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(relative_bias=ALiBi(H))(sequence(), **given)
