"""The decoders of the literature, each against its paper's steps written out with plain cells."""

import math

import pytest
import torch
from torch import Tensor, nn

from sequence_attn import LuongAttention
from sequence_attn.seq2seq import (
    AttentionDecoder,
    Encoded,
    RecurrentEncoder,
    bahdanau,
    context_only,
    grammar,
    luong,
    plain,
)

B, T, TK, E, H = 3, 4, 7, 3, 4  # H: of one direction of the encoder
D = 2 * H  # the width of the memory
S = D  # of the decoder, so that the encoder's last state can start it
LENGTHS = torch.tensor([7, 3, 5])


def shaken(module: nn.Module) -> nn.Module:
    """In float64 and with no parameter, biases included, at zero."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def encoded(cell: str = "gru", layers: int = 1) -> Encoded:
    encoder = shaken(RecurrentEncoder(E, H, cell, bidirectional=True, layers=layers))
    x = torch.randn(B, TK, E, dtype=torch.float64)
    return encoder(x, LENGTHS)


def inputs() -> Tensor:
    return torch.randn(B, T, E, dtype=torch.float64, requires_grad=True)


class Cells:
    """A stack of torch's one-step cells with the parameters of a decoder."""

    def __init__(self, decoder: AttentionDecoder) -> None:
        of_mode = {"GRU": nn.GRUCell, "LSTM": nn.LSTMCell, "RNN_TANH": nn.RNNCell}
        own, self.cells = decoder.cell.state_dict(), []
        for layer in range(decoder.layers):
            width = own[f"weight_ih_l{layer}"].shape[1]
            one = of_mode[decoder.cell.mode](width, decoder.state_size, dtype=torch.float64)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            one.load_state_dict({name: own[f"{name}_l{layer}"] for name in names})
            self.cells.append(one)

    def __call__(self, x: Tensor, states: list) -> tuple[Tensor, list]:
        after = []
        for cell, state in zip(self.cells, states, strict=True):
            after.append(cell(x, state))
            x = after[-1][0] if isinstance(after[-1], tuple) else after[-1]
        return x, after


def last_states(source: Encoded) -> list:
    """Of each layer, forwards and backwards concatenated; (h, c) of an LSTM."""
    layers = range(source.state[0].shape[0])
    halves = [[torch.cat([half[i, 0], half[i, 1]], 1) for half in source.state] for i in layers]
    return [tuple(half) if len(half) == 2 else half[0] for half in halves]


def softmax_over_real(scores: Tensor) -> Tensor:
    """Of scores `[B, Tk]`, over the real keys."""
    padding = torch.arange(TK) >= LENGTHS[:, None]
    return scores.masked_fill(padding, -math.inf).softmax(1)


def mix(weights: Tensor, memory: Tensor) -> Tensor:
    return torch.einsum("bk,bkd->bd", weights, memory)


def additive(attention: nn.Module, query: Tensor, memory: Tensor) -> Tensor:
    """vᵀ tanh(W q + b + U h_j) of every key, `[B, Tk]`."""
    asked = query @ attention.query_weight.T
    asked = asked if attention.hidden_bias is None else asked + attention.hidden_bias
    return torch.tanh(asked[:, None] + memory @ attention.key_weight.T) @ attention.vector


def agrees(decoder: AttentionDecoder, source: Encoded, x: Tensor, by_hand: list) -> None:
    """Outputs, weights and their gradients are those of the steps by hand."""
    outputs, weights = (torch.stack(part, 1) for part in zip(*by_hand, strict=True))
    decoded = decoder(x, source, need_weights=True)
    torch.testing.assert_close(decoded.output, outputs)
    torch.testing.assert_close(decoded.weights.transpose(1, 2), weights)
    # The cells by hand hold copies of their parameters
    leaves = [p for name, p in decoder.named_parameters() if not name.startswith("cell.")]
    leaves += [x, source.output]
    ours, theirs = (
        torch.autograd.grad(o.sin().sum(), leaves, retain_graph=True, allow_unused=True)
        for o in (decoded.output, outputs)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("attention_size", [None, 5])
def test_bahdanau_with_its_maxout_layer(attention_size):
    """Appendix A: s_0, then for each word a_i(s_{i-1}), c_i, t_i of s_{i-1}, s_i."""
    decoder = shaken(bahdanau(E, 6, H, attention_size=attention_size, output_size=5))
    source, x, cell = encoded(), inputs(), Cells(decoder)
    (attention,) = decoder.reads
    assert attention.vector.shape == (attention_size or 6,)
    annotations = source.output
    backward_1 = source.state[0][-1, 1]  # ←h_1
    torch.testing.assert_close(backward_1, annotations[:, 0, H:])
    s = torch.tanh(backward_1 @ decoder.bridge.weight.T + decoder.bridge.bias)
    u, v, c_o = decoder.combine.weight.split([6, E, D], 1)
    steps = []
    for y in x.unbind(1):
        alpha = softmax_over_real(additive(attention, s, annotations))
        c = mix(alpha, annotations)
        pairs = s @ u.T + y @ v.T + c @ c_o.T + decoder.combine.bias
        maxout = torch.stack([pairs[:, 2 * j : 2 * j + 2].amax(1) for j in range(5)], 1)
        _, (s,) = cell(torch.cat([y, c], 1), [s])
        steps.append((maxout, alpha[:, None]))
    agrees(decoder, source, x, steps)


def test_bahdanau_with_another_readout_shows_it_the_new_state():
    decoder = shaken(bahdanau(E, 6, H, output="linear", cell="lstm"))
    source, x, cell = encoded(), inputs(), Cells(decoder)
    h = torch.tanh(source.state[0][-1, 1] @ decoder.bridge.weight.T + decoder.bridge.bias)
    states, steps = [(h, torch.zeros_like(h))], []
    for y in x.unbind(1):
        alpha = softmax_over_real(additive(decoder.reads[0], states[0][0], source.output))
        c = mix(alpha, source.output)
        top, states = cell(torch.cat([y, c], 1), states)
        steps.append((decoder.combine(torch.cat([top, c], 1)), alpha[:, None]))
    agrees(decoder, source, x, steps)


def test_bahdanau_differs_from_the_order_that_most_programs_have():
    """With the new state in the maxout layer, other outputs come out of the same parameters."""
    paper = bahdanau(E, 6, H)
    common = AttentionDecoder(
        paper.reads[0],
        input_size=E,
        state_size=6,
        memory_size=D,
        attend="before",
        inputs="both",
        readout="deep",
        initial="backward",
        bidirectional=True,
    )
    common.load_state_dict(paper.state_dict())
    source, x = encoded(), inputs()
    assert not torch.allclose(paper.double()(x, source).output, common.double()(x, source).output)


def luong_scores(attention: nn.Module, name: str, h: Tensor, memory: Tensor) -> Tensor:
    match name:
        case "dot":
            return torch.einsum("bd,bkd->bk", h, memory)
        case "general":
            return torch.einsum("bd,de,bke->bk", h, attention.weight, memory)
        case "concat":
            pairs = torch.cat([h[:, None].expand(-1, TK, -1), memory], 2)
            return torch.tanh(pairs @ attention.weight.T) @ attention.vector
    return (h @ attention.weight.T)[:, :TK]  # location


def luong_by_hand(decoder, source, x, read, feeding):
    """h_t = cell(y_{t-1} and h̃_{t-1}), c_t = read(h_t, t), h̃_t = tanh(W_c [c_t; h_t])."""
    cell, states, steps = Cells(decoder), last_states(source), []
    tilde = torch.zeros(B, S, dtype=torch.float64)
    for t, y in enumerate(x.unbind(1)):
        h, states = cell(torch.cat([y, tilde], 1) if feeding else y, states)
        alpha = read(h, t)
        c = mix(alpha, source.output)
        tilde = torch.tanh(torch.cat([c, h], 1) @ decoder.combine.weight.T)
        steps.append((tilde, alpha[:, None]))
    return steps


@pytest.mark.parametrize("feeding", [True, False])
@pytest.mark.parametrize("score", ["dot", "general", "concat", "location"])
def test_luong_global(score, feeding):
    longest = TK + 2 if score == "location" else None
    made = luong(E, S, D, attention=score, max_length=longest, input_feeding=feeding)
    decoder, source, x = shaken(made), encoded(), inputs()
    (attention,) = decoder.reads

    def read(h: Tensor, t: int) -> Tensor:
        return softmax_over_real(luong_scores(attention, score, h, source.output))

    agrees(decoder, source, x, luong_by_hand(decoder, source, x, read, feeding))


@pytest.mark.parametrize("feeding", [True, False])
def test_luong_with_the_papers_stack_of_lstms(feeding):
    decoder = shaken(luong(E, S, D, cell="lstm", layers=3, input_feeding=feeding))
    source, x = encoded("lstm", 3), inputs()

    def read(h: Tensor, t: int) -> Tensor:
        return softmax_over_real(luong_scores(decoder.reads[0], "general", h, source.output))

    agrees(decoder, source, x, luong_by_hand(decoder, source, x, read, feeding))


@pytest.mark.parametrize("feeding", [True, False])
@pytest.mark.parametrize("align", ["local-m", "local-p"])
def test_luong_local(align, feeding):
    window = 2
    made = luong(E, S, D, attention=align, window=window, input_feeding=feeding)
    decoder, source, x = shaken(made), encoded(), inputs()
    (attention,) = decoder.reads

    def read(h: Tensor, t: int) -> Tensor:
        scores = luong_scores(attention, "general", h, source.output)
        rows = []
        for b, length in enumerate(LENGTHS.tolist()):
            centre = torch.tensor(float(min(t, length - 1)), dtype=torch.float64)
            if align == "local-p":
                inner = torch.tanh(attention.position[0].weight @ h[b])
                centre = length * torch.sigmoid(attention.position[2].weight @ inner).squeeze()
            near = [s for s in range(length) if abs(s - centre.item()) <= window]
            alpha = scores[b, near].softmax(0)
            if align == "local-p":
                distance = torch.tensor(near) - centre
                alpha = alpha * torch.exp(-(distance**2) / (2 * (window / 2) ** 2))
            row = torch.zeros(TK, dtype=torch.float64)
            rows.append(row.index_put((torch.tensor(near),), alpha))
        return torch.stack(rows)

    agrees(decoder, source, x, luong_by_hand(decoder, source, x, read, feeding))


def test_context_only():
    """z⁰ → match → c⁰ → z¹ → match → c¹ → …; what is written is z¹, z², …"""
    decoder, source, x = shaken(context_only(E, 6, D)), encoded(), inputs()
    cell, steps = Cells(decoder), []
    z = decoder.first[0, 0].expand(B, -1)
    for _ in range(T):
        alpha = softmax_over_real(additive(decoder.reads[0], z, source.output))
        c = mix(alpha, source.output)
        _, (z,) = cell(c, [z])
        steps.append((z, alpha[:, None]))
    agrees(decoder, source, x, steps)
    torch.testing.assert_close(
        decoder(x, source).output, decoder(torch.full_like(x, 9), source).output
    )


@pytest.mark.parametrize("cell, layers", [("lstm", 2), ("lstm", 1), ("gru", 1)])
@pytest.mark.parametrize("initial_state_attention", [None, False, True])
def test_grammar(cell, layers, initial_state_attention):
    """TensorFlow's attention_decoder: linear, cell, attention of the new state, linear."""
    reads, options = 2, {"cell": cell, "layers": layers}
    options["initial_state_attention"] = initial_state_attention
    decoder = shaken(grammar(E, S, D, reads=reads, attention_size=5, output_size=6, **options))
    source, x, cells = encoded(cell, layers), inputs(), Cells(decoder)

    def attend(states: list) -> tuple[list[Tensor], Tensor]:
        if cell == "lstm":  # the whole state: every layer's h, then every layer's c
            query = torch.cat([state[half] for half in range(2) for state in states], 1)
        else:
            query = torch.cat(states, 1)
        alphas = [softmax_over_real(additive(one, query, source.output)) for one in decoder.reads]
        return [mix(alpha, source.output) for alpha in alphas], torch.stack(alphas, 1)

    states, steps = last_states(source), []
    attentions = [torch.zeros(B, D, dtype=torch.float64) for _ in range(reads)]
    if initial_state_attention:
        attentions, _ = attend(states)
    for y in x.unbind(1):
        merged = torch.cat([y, *attentions], 1) @ decoder.merge.weight.T + decoder.merge.bias
        assert merged.shape == (B, E)
        h, states = cells(merged, states)
        attentions, alphas = attend(states)
        joined = torch.cat([h, *attentions], 1)
        steps.append((joined @ decoder.combine.weight.T + decoder.combine.bias, alphas))
    agrees(decoder, source, x, steps)


def test_grammar_has_a_bias_in_the_map_of_the_query_and_the_widths_of_the_original():
    decoder = grammar(E, S, D, reads=3, layers=2)
    assert len(decoder.reads) == 3
    for attention in decoder.reads:
        assert attention.query_size == 2 * 2 * S
        assert attention.hidden_bias.shape == attention.vector.shape == (D,)


@pytest.mark.parametrize("cell, layers", [("lstm", 2), ("gru", 1)])
@pytest.mark.parametrize("context", [False, True])
def test_plain(cell, layers, context):
    decoder = shaken(plain(E, S, D, context=context, cell=cell, layers=layers))
    source, x, cells = encoded(cell, layers), inputs(), Cells(decoder)
    states, outputs = last_states(source), []
    summary = torch.cat([source.state[0][-1, 0], source.state[0][-1, 1]], 1)
    for y in x.unbind(1):
        h, states = cells(torch.cat([y, summary], 1) if context else y, states)
        outputs.append(torch.cat([h, summary], 1) if context else h)
    decoded = decoder(x, source, need_weights=True)
    torch.testing.assert_close(decoded.output, torch.stack(outputs, 1))
    assert decoded.weights is None


@pytest.mark.parametrize(
    "make",
    [
        lambda a: bahdanau(E, S, H, attention=a),
        lambda a: luong(E, S, D, attention=a),
        lambda a: context_only(E, S, D, attention=a),
    ],
)
def test_any_attention_in_place_of_the_papers(make):
    attention = LuongAttention("dot", query_size=S)
    decoder = make(attention).double()
    assert decoder.reads[0] is attention
    weights = decoder(inputs(), encoded(), need_weights=True).weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, 1, T, dtype=torch.float64))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: luong(E, S, D, attention="additive"), "score is 'additive'; Luong's are"),
        (lambda: luong(E, S, D, attention="dot", max_length=4), "no use for max_length"),
        (lambda: luong(E, S, D, attention="location"), "'location' needs max_length"),
        (lambda: luong(E, S, D, attention="local-p", window=0), "window is 0"),
        (lambda: luong(E, S, D + 1, attention="dot"), "query_size is 8 and key_size 9"),
        (lambda: grammar(E, S, D, reads=0), "reads is 0; expected at least 1"),
        (lambda: bahdanau(E, S, H, output="maxout"), "readout is 'maxout'; expected one of"),
        (lambda: bahdanau(E, 0, H), "query_size is 0"),
        (lambda: context_only(E, S, D, cell="mgu"), "cell is 'mgu'"),
        (lambda: plain(E, S, D, initial="encoder"), "initial is 'encoder'; expected one of 'last'"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
