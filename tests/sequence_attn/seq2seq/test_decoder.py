"""The decoder's switches, and what holds whatever their setting."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sequence_attn.seq2seq.decoder as decoding
from sequence_attn import (
    Attention,
    BahdanauAttention,
    ContentAddressing,
    HardAttention,
    HardAttentionLoss,
    LocalAttention,
    RestrictedSelfAttention,
)
from sequence_attn.seq2seq import (
    AttentionDecoder,
    Decoded,
    DecoderState,
    Encoded,
    RecurrentEncoder,
    bahdanau,
    context_only,
    grammar,
    luong,
    plain,
)

B, T, TK, E, H = 3, 5, 6, 3, 4  # H: of one direction of the encoder
D = S = 2 * H
LENGTHS = torch.tensor([6, 2, 4])


def decoder_with(attention=None, **options) -> AttentionDecoder:
    sizes = {"input_size": E, "state_size": S, "memory_size": D}
    return AttentionDecoder(attention, **sizes | options)


def attention(query_size: int = S, score: str = "general", **options) -> Attention:
    return Attention(score, query_size=query_size, key_size=D, **options)


DECODERS = {
    "bahdanau": lambda: bahdanau(E, S, H),
    "bahdanau, attentional output": lambda: bahdanau(E, S, H, output="attentional"),
    "luong": lambda: luong(E, S, D),
    "luong without input feeding": lambda: luong(E, S, D, attention="dot", input_feeding=False),
    "luong location": lambda: luong(
        E, S, D, attention="location", max_length=9, input_feeding=False
    ),
    "local-m": lambda: luong(E, S, D, attention="local-m", window=1),
    "local-m without input feeding": lambda: luong(
        E, S, D, attention="local-m", window=1, input_feeding=False
    ),
    "local-p without input feeding": lambda: luong(
        E, S, D, attention="local-p", window=2, input_feeding=False
    ),
    "context_only": lambda: context_only(E, S, D),
    "context_only, first step reads nothing": lambda: context_only(
        E, S, D, initial_state_attention=False
    ),
    "grammar": lambda: grammar(E, S, D, reads=2),
    "grammar, initial state attends": lambda: grammar(
        E, S, D, cell="gru", initial_state_attention=True
    ),
    "plain": lambda: plain(E, S, D),
    "plain with context": lambda: plain(E, S, D, context=True, cell="lstm"),
    "plain, fed": lambda: plain(E, S, D, feed="context", merge="linear"),
    "plain, previous state": lambda: plain(E, S, D, attend="before", readout_state="previous"),
    "hard": lambda: decoder_with(HardAttention(query_size=S)),
    "content addressing": lambda: decoder_with(ContentAddressing(S, strength=3.0)),
    "hard, before": lambda: bahdanau(E, S, H, attention=HardAttention(query_size=S)),
    "two kinds of read": lambda: decoder_with(
        [attention(normalizer="sparsemax"), attention(score="cosine")], readout="linear"
    ),
    "all of an lstm": lambda: decoder_with(
        attention(2 * S), query="all", cell="lstm", readout="join"
    ),
    "rnn, all of its state": lambda: decoder_with(attention(), query="all", cell="rnn"),
    "deep, after": lambda: decoder_with(attention(), readout="deep", output_size=5),
    "before, fed with all": lambda: decoder_with(
        attention(), attend="before", inputs="both", feed="attentional", merge="linear"
    ),
    "before, context fed": lambda: decoder_with(
        attention(), attend="before", inputs="both", feed="context", readout="state"
    ),
    "two layers": lambda: decoder_with(attention(), layers=2, initial="bridge", bidirectional=True),
}
IN_ONE_CALL = {
    "luong without input feeding",
    "luong location",
    "local-m without input feeding",
    "local-p without input feeding",
    "plain",
    "plain with context",
    "hard",
    "content addressing",
    "two kinds of read",
    "rnn, all of its state",
    "deep, after",
    "two layers",
}
every_decoder = pytest.mark.parametrize("name", DECODERS)


def made(name: str) -> AttentionDecoder:
    decoder = DECODERS[name]().double().eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return decoder


def encoder(cell: str = "gru", layers: int = 1) -> RecurrentEncoder:
    return RecurrentEncoder(E, H, cell, bidirectional=True, layers=layers).double()


def source() -> Tensor:
    return torch.randn(B, TK, E, dtype=torch.float64)


def inputs(steps: int = T) -> Tensor:
    return torch.randn(B, steps, E, dtype=torch.float64)


def encoded() -> Encoded:
    return encoder()(source(), LENGTHS)


def step_by_step(
    decoder: AttentionDecoder, x: Tensor, state: DecoderState
) -> tuple[Tensor, Tensor | None, DecoderState]:
    outputs, weights = [], []
    for y in x.unbind(1):
        output, state, read = decoder.step(y, state, need_weights=True)
        outputs.append(output)
        weights.append(read.weights)
    found = None if weights[0] is None else torch.cat(weights, 2)
    return torch.stack(outputs, 1), found, state


def assert_same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs)


# What holds for every decoder


@every_decoder
def test_in_one_call_where_no_input_depends_on_a_context(name):
    assert made(name).in_one_call == (name in IN_ONE_CALL)


@every_decoder
def test_decoding_is_the_loop_of_its_steps(name):
    decoder, read, x = made(name), encoded(), inputs()
    decoded = decoder(x, read, need_weights=True)
    output, weights, state = step_by_step(decoder, x, decoder.start(read))
    assert_same(decoded.output, output)
    assert_same(decoded.weights, weights)
    assert_same(decoded.state.cell, state.cell)
    assert_same(decoded.state.fed, state.fed)
    assert decoded.state.step == state.step == T
    assert_same(decoder(x, read).output, output)
    assert decoder(x, read).weights is None


@every_decoder
def test_gradients_are_those_of_the_loop(name):
    decoder, x = made(name), inputs()
    x.requires_grad_()
    read = encoded()
    leaves = [x, read.output, *decoder.parameters()]

    def gradients(output: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output.sin().sum(), leaves, retain_graph=True, allow_unused=True)

    looped, _, _ = step_by_step(decoder, x, decoder.start(read))
    assert_same(gradients(decoder(x, read).output), gradients(looped))


@every_decoder
def test_three_steps_and_two_are_five(name):
    decoder, read, x = made(name), encoded(), inputs()
    whole = decoder(x, read, need_weights=True)
    first = decoder(x[:, :3], read, need_weights=True)
    then = decoder(x[:, 3:], state=first.state, need_weights=True)
    assert_same(torch.cat([first.output, then.output], 1), whole.output)
    if whole.weights is not None:
        assert_same(torch.cat([first.weights, then.weights], 2), whole.weights)
    again = decoder(x[:, 3:], state=first.state, need_weights=True)  # no state ever changes
    torch.testing.assert_close(again.output, then.output)


@every_decoder
def test_a_padded_batch_is_decoded_as_each_sequence_alone(name):
    decoder, reader = made(name), encoder()
    x, y = source(), inputs()
    padding = (torch.arange(TK) >= LENGTHS[:, None])[..., None]
    parameters = [*reader.parameters(), *decoder.parameters()]

    def gradients(output: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(output.sin().sum(), parameters, allow_unused=True)
        return [torch.zeros(()) if one is None else one for one in found]

    together = decoder(y, reader(x.masked_fill(padding, math.nan), LENGTHS), need_weights=True)
    alone = [0.0] * len(parameters)
    for b, length in enumerate(LENGTHS.tolist()):
        one = decoder(y[b : b + 1], reader(x[b : b + 1, :length]), need_weights=True)
        assert_same(together.output[b : b + 1], one.output)
        if one.weights is not None:
            assert_same(together.weights[b : b + 1, ..., :length], one.weights)
            assert not together.weights[b, ..., length:].any()
        alone = [a + g for a, g in zip(alone, gradients(one.output), strict=True)]
    for ours, theirs in zip(gradients(together.output), alone, strict=True):
        torch.testing.assert_close(ours, theirs, check_dtype=False)


@every_decoder
def test_a_memory_whose_padding_is_nan(name):
    """Of an encoder that is not ours: what stands behind the lengths may be anything."""
    decoder, read, y = made(name), encoded(), inputs()
    padding = (torch.arange(TK) >= LENGTHS[:, None])[..., None]
    output = read.output.masked_fill(padding, math.nan).detach().requires_grad_()
    dirty = decoder(y, read._replace(output=output)).output
    assert_same(dirty, decoder(y, read).output)
    dirty.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


@every_decoder
def test_later_inputs_do_not_change_earlier_outputs(name):
    decoder, read, x = made(name), encoded(), inputs()
    other = torch.cat([x[:, :4], torch.full_like(x[:, 4:], math.nan)], 1)
    assert_same(decoder(other, read).output[:, :4], decoder(x, read).output[:, :4])


def loop(previous: Tensor, step: int) -> Tensor:
    return (previous[:, :E] + step).sin()


@every_decoder
def test_with_feed_previous_later_inputs_change_nothing(name):
    decoder, read, x = made(name), encoded(), inputs()
    own = decoder(x, read, feed_previous=True, loop_function=loop, need_weights=True)
    other = torch.cat([x[:, :1], torch.full_like(x[:, 1:], math.nan)], 1)
    again = decoder(other, read, feed_previous=True, loop_function=loop)
    assert_same(own.output, again.output)
    # What a step got was made of the output before, so that told the same it does the same
    told = [x[:, 0]] + [loop(own.output[:, t - 1], t) for t in range(1, T)]
    known = decoder(torch.stack(told, 1), read, need_weights=True)
    assert_same(known.output, own.output)
    assert_same(known.weights, own.weights)


@pytest.mark.parametrize("name", ["luong", "luong without input feeding", "grammar"])
def test_feed_previous_of_some_sequences_and_some_steps(name):
    decoder, read, x = made(name), encoded(), inputs()
    fed = decoder(x, read, feed_previous=True, loop_function=loop).output
    told = decoder(x, read).output
    rows = torch.tensor([False, True, False])
    output = decoder(x, read, feed_previous=rows, loop_function=loop).output
    assert_same(output, torch.where(rows[:, None, None], fed, told))
    for always in (torch.tensor(True), torch.ones(B, T, dtype=torch.bool)):
        assert_same(decoder(x, read, feed_previous=always, loop_function=loop).output, fed)
    never = torch.tensor(False)
    assert_same(decoder(x, read, feed_previous=never, loop_function=loop).output, told)
    # From step 3 on: as if the steps before had been told, and the rest was its own
    late = (torch.arange(T) >= 3).expand(B, T)
    output = decoder(x, read, feed_previous=late, loop_function=loop).output
    given = x.clone()
    for t in range(3, T):
        given[:, t] = loop(decoder(given, read).output[:, t - 1], t)
    assert_same(output, decoder(given, read).output)
    assert_same(output[:, :3], told[:, :3])


def test_the_loop_function_gets_the_output_before_and_the_number_of_the_step():
    decoder, read, x = made("grammar"), encoded(), inputs()
    calls = []

    def remember(previous: Tensor, step: int) -> Tensor:
        calls.append((previous, step))
        return previous[:, :E]

    output = decoder(x, read, feed_previous=True, loop_function=remember).output
    assert [step for _, step in calls] == list(range(1, T))
    for previous, step in calls:
        assert torch.equal(previous, output[:, step - 1])


@every_decoder
def test_select_reorders_what_is_to_come(name):
    decoder, read, x = made(name), encoded(), inputs()
    index = torch.tensor([0, 2, 2, 1])
    state = decoder(x[:, :3], read).state
    expected = decoder(x[:, 3:], state=state).output[index]
    assert_same(decoder(x[:, 3:][index], state=state.select(index)).output, expected)


@every_decoder
def test_select_without_the_memory_takes_what_the_steps_have_changed(name):
    """Hypotheses about one source change places; the memory is the same for all of them."""
    decoder, x = made(name), inputs()
    one = encoded().select(torch.tensor([1, 1, 1]))
    state = decoder(x[:, :3], one).state
    index = torch.tensor([2, 2, 0])
    light, full = state.select(index, memory=False), state.select(index)
    assert all(a is b for a, b in zip(light.memories, state.memories, strict=True))
    later = inputs(2)
    assert_same(decoder(later, state=light).output, decoder(later, state=full).output)


@every_decoder
def test_an_empty_source_gives_finite_numbers(name):
    decoder, reader, y = made(name), encoder(), inputs()
    for lengths in ([3, 0, 6], [0, 0, 0]):
        decoded = decoder(y, reader(source(), torch.tensor(lengths)), need_weights=True)
        assert decoded.output.isfinite().all()
        if decoded.weights is not None:
            assert not decoded.weights[1].any()
        decoded.output.sum().backward()
    parameters = [*reader.parameters(), *decoder.parameters()]
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)


@every_decoder
def test_no_steps_and_no_sequences(name):
    decoder, reader = made(name), encoder()
    read = encoded()
    nothing = decoder(inputs(0), read)
    assert nothing.output.shape == (B, 0, decoder.output_size)
    assert nothing.state.step == 0
    x = source()[:0]
    assert decoder(inputs()[:0], reader(x, LENGTHS[:0])).output.shape == (0, T, decoder.output_size)


@every_decoder
def test_copies_decode_alike(name):
    decoder, read, x = made(name), encoded(), inputs()
    expected = decoder(x, read).output
    file = io.BytesIO()
    torch.save(decoder.state_dict(), file)
    file.seek(0)
    other = DECODERS[name]().double().eval()
    other.load_state_dict(torch.load(file))
    for twin in (other, copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        torch.testing.assert_close(twin(x, read).output, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DECODERS)
def test_autocast(name, dtype):
    decoder, reader = made(name).float(), encoder().float()
    x, y = source().float(), inputs().float()
    with torch.autocast("cpu", dtype):
        read = reader(x, LENGTHS)
        decoded = decoder(y, read)
        step, _, _ = decoder.step(y[:, 0], decoded.state)
    assert step.isfinite().all()
    expected = decoder(y, reader(x, LENGTHS)).output
    if "hard" not in name:  # whose choice may fall on another key
        assert (decoded.output - expected).abs().mean() < 0.05
    decoded.output.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


# How often things are computed


class Counted:
    """How often a method of a class, or a function of a module, was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, method: str) -> None:
        self.times = 0
        original = getattr(owner, method)

        def counted(*args, **kwargs):
            self.times += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, counted)


@every_decoder
def test_keys_are_projected_once_for_each_read(name, monkeypatch):
    decoder, read, x = made(name), encoded(), inputs()
    keys = Counted(monkeypatch, Attention, "_project_keys")
    decoder(x, read)
    assert keys.times == len(decoder.reads)
    state = decoder.start(read)
    assert keys.times == 2 * len(decoder.reads)
    step_by_step(decoder, x, state)
    decoder(x, state=state.select(torch.tensor([2, 1, 0])))
    assert keys.times == 2 * len(decoder.reads)


@every_decoder
def test_in_one_call_means_one_call(name, monkeypatch):
    decoder, read, x = made(name), encoded(), inputs()
    queries = Counted(monkeypatch, Attention, "_project_query")
    cells = Counted(monkeypatch, decoding, "run")
    decoder(x, read)
    assert cells.times == (1 if name in IN_ONE_CALL else T)
    if name in IN_ONE_CALL:
        assert queries.times == len(decoder.reads)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_step_is_what_the_cell_computes(cell):
    """Also where somebody hooks the cell, who is called at every step."""
    options = {"cell": cell, "initial": "zeros", "feed": "attentional"}
    decoder = decoder_with(attention(), **options).double()
    read, x = encoded(), inputs()
    expected, calls = decoder(x, read), []
    decoder.cell.register_forward_hook(lambda *_: calls.append(1))
    found = decoder(x, read)
    assert len(calls) == T
    assert_same((found.output, found.state.cell), (expected.output, expected.state.cell))
    gradients = [
        torch.autograd.grad(one.output.square().sum(), list(decoder.parameters()))
        for one in (found, expected)
    ]
    assert_same(*gradients)


@pytest.mark.parametrize("name", ["weight_ih_l0", "bias_ih_l0"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_step_knows_parameters_by_name(cell, name):
    """Those that were pruned lie behind the others."""
    decoder = decoder_with(attention(), cell=cell, initial="zeros", feed="attentional").double()
    prune.l1_unstructured(decoder.cell, name, amount=0.3)
    prune.remove(decoder.cell, name)
    read, x = encoded(), inputs()
    found = decoder(x, read)
    decoder.cell.register_forward_hook(lambda *_: None)  # goes by the cell itself
    assert_same(found.output, decoder(x, read).output)


@pytest.mark.parametrize("options", [{"num_layers": 2, "bias": False}, {"bias": False}])
def test_a_cell_of_ones_own_is_stepped_as_it_is(options):
    cells = nn.GRU(4, 6, batch_first=True, **options).double()
    x, state = torch.randn(3, 1, 4).double(), torch.randn(cells.num_layers, 3, 6).double()
    assert_same(decoding.run(cells, x, state), cells(x, state))
    decoder = decoder_with(attention(), cell="gru", initial="zeros", feed="attentional").double()
    own = decoder.cell
    decoder.cell = nn.GRU(own.input_size, own.hidden_size, bias=False, batch_first=True).double()
    assert decoder(inputs(), encoded()).output.isfinite().all()


# The switches one by one


def test_join_and_state_show_what_they_say():
    x, read = inputs(), encoded()
    joined = decoder_with(attention(), readout="join").double()
    bare = decoder_with(attention(), readout="state").double()
    bare.load_state_dict(joined.state_dict())
    s, c = joined(x, read).output.split([S, D], -1)
    assert_same(bare(x, read).output, s)
    weights = joined(x, read, need_weights=True).weights
    assert_same(c, weights[:, 0] @ read.output)
    top, _ = joined.cell(x, joined.start(read).cell[0])
    assert_same(s, top)


@pytest.mark.parametrize("readout", ["linear", "attentional", "deep"])
def test_the_readouts_of_state_and_context(readout):
    x, read = inputs(), encoded()
    decoder = decoder_with(attention(), readout=readout, output_size=5).double()
    joined = decoder_with(attention(), readout="join").double()
    joined.load_state_dict(decoder.state_dict(), strict=False)
    s, c = joined(x, read).output.split([S, D], -1)
    weight, bias = decoder.combine.weight, decoder.combine.bias
    if readout == "linear":
        expected = torch.cat([s, c], -1) @ weight.T + bias
    elif readout == "attentional":
        assert bias is None
        expected = torch.tanh(torch.cat([c, s], -1) @ weight.T)
    else:
        pairs = torch.cat([s, x, c], -1) @ weight.T + bias
        expected = torch.maximum(pairs[..., 0::2], pairs[..., 1::2])
    assert_same(decoder(x, read).output, expected)


def test_the_previous_state_in_the_readout():
    x, read = inputs(), encoded()
    options = {"attend": "before", "inputs": "both", "readout": "join"}
    new = decoder_with(attention(), **options).double()
    previous = decoder_with(attention(), readout_state="previous", **options).double()
    previous.load_state_dict(new.state_dict())
    s, c = new(x, read).output.split([S, D], -1)
    s_before, c_again = previous(x, read).output.split([S, D], -1)
    first = new.start(read).cell[0][-1]
    assert_same(s_before, torch.cat([first.unsqueeze(1), s[:, :-1]], 1))
    assert_same(c_again, c)


def test_the_first_step_reads_nothing_if_the_initial_state_does_not_attend():
    x, read = inputs(), encoded()
    options = {"attend": "before", "inputs": "both", "readout": "join"}
    decoder = decoder_with(attention(), initial_state_attention=False, **options).double()
    decoded = decoder(x, read, need_weights=True)
    assert not decoded.weights[:, :, 0].any() and not decoded.output[:, 0, S:].any()
    assert_same(decoded.weights[:, :, 1:].sum(-1), torch.ones(B, 1, T - 1, dtype=torch.float64))


def test_the_context_that_is_fed_at_first():
    read = encoded()
    options = {"feed": "context", "readout": "join"}
    zeros = decoder_with(attention(), **options).double()
    assert not zeros.start(read).fed.any()
    reads = decoder_with(attention(), initial_state_attention=True, **options).double()
    state = reads.start(read)
    memory, one = state.memories[0], reads.reads[0]
    assert_same(state.fed, one(state.cell[0][-1], memory).context)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("initial", ["last", "bridge", "backward", "learned", "zeros", "random"])
def test_every_initial_state(cell, layers, initial):
    read = encoder(cell, layers)(source(), LENGTHS)
    options = {"cell": cell, "layers": layers, "initial": initial, "bidirectional": True}
    decoder = decoder_with(attention(), **options).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter)
    states = decoder.start(read).cell
    assert [state.shape for state in states] == [(layers, B, S)] * (2 if cell == "lstm" else 1)
    zeros = torch.zeros(layers, B, S, dtype=torch.float64)
    top = read.state[0][-1]
    match initial:
        case "last":
            expected = [torch.cat([half[:, 0], half[:, 1]], -1) for half in read.state]
        case "bridge" | "backward":
            seen = top[1] if initial == "backward" else torch.cat([top[0], top[1]], -1)
            first = torch.tanh(seen @ decoder.bridge.weight.T + decoder.bridge.bias)
            expected = [torch.stack(first.split(S, -1)), zeros]
        case "learned":
            expected = [half[:, None].expand(-1, B, -1) for half in decoder.first]
        case "zeros":
            expected = [zeros, zeros]
        case "random":
            again = decoder.start(read).cell
            assert all((a != b).all() for a, b in zip(states, again, strict=True))
            return
    assert_same(states, tuple(expected[: len(states)]))
    output = decoder(inputs(), read).output
    output.sum().backward()
    if initial == "learned":
        assert decoder.first.grad.abs().sum() > 0


def test_random_initial_states_are_a_tenth_of_standard_normal():
    decoder = decoder_with(attention(), initial="random")
    (state,) = decoder.start(Encoded(torch.zeros(5000, 2, D), None)).cell
    assert abs(state.mean()) < 0.002 and abs(state.std() - 0.1) < 0.002


def test_a_cell_of_another_kind_than_the_encoders():
    """What both have is taken over: h; an LSTM's memory starts at zero."""
    read = encoder("lstm")(source(), LENGTHS)
    (state,) = decoder_with(attention()).double().start(read).cell
    assert_same(state[0], torch.cat([read.state[0][0, 0], read.state[0][0, 1]], -1))
    h, c = decoder_with(attention(), cell="lstm").double().start(encoded()).cell
    assert h.abs().sum() > 0 and not c.any()


def test_a_plain_decoder_without_an_encoders_state_has_the_last_real_output():
    decoder = plain(E, S, D, context=True, initial="zeros").double()
    output = encoded().output
    padding = (torch.arange(TK) >= torch.tensor([6, 0, 4])[:, None])[..., None]
    read = Encoded(output.masked_fill(padding, math.nan), torch.tensor([6, 0, 4]))
    summary = decoder.start(read).summary
    assert_same(summary, torch.stack([output[0, 5], torch.zeros_like(output[1, 0]), output[2, 3]]))
    assert_same(decoder.start(Encoded(output, None)).summary, output[:, -1])
    assert not decoder.start(Encoded(output[:, :0], None)).summary.any()


def test_dropout_of_the_output_and_between_layers_in_training_alone():
    x, read = inputs(), encoded()
    decoder = decoder_with(attention(), dropout=0.5).double()
    output = decoder(x, read).output
    assert 0.3 < (output == 0).double().mean() < 0.7
    expected = decoder.eval()(x, read).output
    kept = output != 0
    assert_same(output[kept], 2 * expected[kept])
    deep = decoder_with(
        attention(), layers=2, initial="zeros", dropout=0.5, readout="state"
    ).double()
    assert deep.cell.dropout == 0.5
    torch.testing.assert_close(deep.eval()(x, read).output, deep(x, read).output)


def test_dropout_of_attention_is_not_in_the_weights():
    x, read = inputs(), encoded()
    decoder = decoder_with(attention(dropout=0.5)).double()
    training = decoder(x, read, need_weights=True)
    quiet = decoder.eval()(x, read, need_weights=True)
    assert_same(training.weights, quiet.weights)
    assert not torch.allclose(training.output, quiet.output)


# Hard attention


def hard_and_soft(estimator: str = "reinforce", **options) -> tuple:
    """A decoder with hard attention, and one with the same parameters and soft attention."""
    hard = decoder_with(HardAttention("general", estimator, query_size=S), **options).double()
    soft = decoder_with(attention(), **options).double()
    soft.load_state_dict(hard.state_dict())
    return hard, soft


def test_hard_attention_returns_the_log_probability_of_its_choices():
    hard, soft = hard_and_soft()
    x, read = inputs(), encoded()
    decoded = hard(x, read, need_weights=True)
    assert decoded.log_prob.shape == decoded.entropy.shape == (B, 1, T)
    # Without feeding, queries do not depend on the choices: soft attention has the distribution
    p = soft(x, read, need_weights=True).weights
    assert_same(decoded.log_prob, (p.log() * decoded.weights).nan_to_num(0).sum(-1))
    assert_same(decoded.entropy, -torch.special.xlogy(p, p).sum(-1))
    assert ((decoded.weights == 0) | (decoded.weights == 1)).all()
    assert hard.eval()(x, read).log_prob is None


@pytest.mark.parametrize("feed", [None, "context"])
@pytest.mark.parametrize("soft_reads", [0, 1])
def test_the_shapes_of_hard_choices_in_a_loop_and_in_one_call(feed, soft_reads):
    reads = [HardAttention(query_size=S), HardAttention("dot", query_size=S)]
    reads += [attention() for _ in range(soft_reads)]
    decoded = decoder_with(reads, feed=feed).double()(inputs(), encoded(), need_weights=True)
    assert decoded.log_prob.shape == decoded.entropy.shape == (B, 2, T)
    assert decoded.weights.shape == (B, 2 + soft_reads, T, TK)


def test_a_step_that_reads_nothing_has_chosen_nothing():
    reads = [HardAttention(query_size=S), attention()]
    options = {"attend": "before", "inputs": "both", "initial_state_attention": False}
    decoded = decoder_with(reads, **options).double()(inputs(), encoded())
    assert decoded.log_prob.shape == (B, 1, T)
    assert not decoded.log_prob[..., 0].any() and not decoded.entropy[..., 0].any()
    assert (decoded.log_prob[..., 1:] < 0).all()


def test_reinforce_reaches_the_scores_by_the_log_probability_alone():
    hard, _ = hard_and_soft()
    weight = hard.reads[0].weight
    decoded = hard(inputs(), encoded())
    (of_output,) = torch.autograd.grad(
        decoded.output.sum(), weight, retain_graph=True, allow_unused=True
    )
    assert of_output is None or not of_output.any()
    loss = HardAttentionLoss()
    loss(torch.randn(B).double(), decoded.log_prob.sum(1), decoded.entropy.sum(1)).backward()
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{}, {"feed": "attentional"}])
def test_gumbel_reaches_the_scores_by_the_output(options):
    hard, _ = hard_and_soft("gumbel", **options)
    decoded = hard(inputs(), encoded(), need_weights=True)
    assert_same(decoded.weights.amax(-1), torch.ones(B, 1, T, dtype=torch.float64))
    decoded.output.sum().backward()
    assert hard.reads[0].weight.grad.abs().sum() > 0


def test_hard_attention_chooses_the_likeliest_key_in_evaluation():
    hard, soft = hard_and_soft()
    x, read = inputs(), encoded()
    chosen = hard.eval()(x, read, need_weights=True).weights.argmax(-1)
    assert torch.equal(chosen, soft(x, read, need_weights=True).weights.argmax(-1))


# Bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attend": "during"}, "attend is 'during'; expected one of 'before', 'after'"),
        ({"query": "bottom"}, "query is 'bottom'; expected one of 'top', 'all'"),
        ({"inputs": "none"}, "inputs is 'none'; expected one of"),
        ({"merge": "sum"}, "merge is 'sum'; expected one of 'join', 'linear'"),
        ({"feed": "state"}, "feed is 'state'; expected one of None, 'context', 'attentional'"),
        ({"readout": "softmax"}, "readout is 'softmax'; expected one of"),
        ({"readout_state": "old"}, "readout_state is 'old'; expected one of 'new', 'previous'"),
        ({"initial": "first"}, "initial is 'first'; expected one of"),
        ({"inputs": "context"}, "inputs is 'context', but with attend='after'.*attend='before'"),
        ({"inputs": "both"}, "inputs is 'both', but with attend='after'.*feed='context'"),
        ({"feed": "attentional", "readout": "join"}, "readout is 'join'.*readout='attentional'"),
        ({"readout_state": "previous"}, "readout_state is 'previous'.*attend='before'"),
        ({"readout": "state", "output_size": 5}, "output_size is 5, but readout 'state' has width"),
        ({"readout": "join", "output_size": 5}, "output_size is 5.* 16: leave it out"),
        ({"output_size": 0}, "output_size is 0; expected at least 1"),
        ({"memory_size": 0}, "memory_size is 0; expected at least 1"),
        ({"input_size": 0}, "input_size is 0; expected at least 1"),
        ({"layers": 0}, "layers is 0; expected at least 1"),
        ({"cell": "mgu"}, "cell is 'mgu'; known ones are gru, lstm, rnn"),
        ({"dropout": 2.0}, "dropout probability has to be between 0 and 1, but got 2"),
        ({"state_size": 5}, "queries of width 8, but query='top'.* 5: build it with query_size=5"),
        ({"query": "all", "layers": 2}, "query='all' of this decoder has width 16"),
        ({"memory_size": 6}, "keys of width 8, but memory_size is 6: build it with key_size=6"),
        ({"initial": "backward"}, "initial is 'backward', but bidirectional is False"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        decoder_with(attention(), **options)


@pytest.mark.parametrize(
    "wrong, name",
    [
        (nn.Linear(S, D), "Linear"),
        ([attention(), nn.Linear(S, D)], "Linear"),
        (RestrictedSelfAttention(1, size=S), "RestrictedSelfAttention"),
        (["general"], "str"),
    ],
)
def test_attentions_that_are_none(wrong, name):
    with pytest.raises(TypeError, match=f"attention is {name}; expected an Attention of queries"):
        decoder_with(wrong)


@pytest.mark.parametrize(
    "encode, options, message",
    [
        (
            lambda x: RecurrentEncoder(E, H).double()(x),
            {},
            "the encoder's output has width 4; expected memory_size, 8",
        ),
        (
            lambda x: RecurrentEncoder(E, H, bidirectional=True, layers=2).double()(x),
            {},
            "ends with 2 layers of width 8, and the decoder starts with 1 .*initial='bridge'",
        ),
        (
            lambda x: RecurrentEncoder(E, 2 * H).double()(x),
            {"initial": "backward", "bidirectional": True},
            "initial is 'backward', but the encoder reads forwards only",
        ),
        (
            lambda x: RecurrentEncoder(E, H, bidirectional=True).double()(x),
            {"initial": "bridge", "encoder_size": 3, "bidirectional": True},
            "the encoder's last state has width 8; expected 6: see encoder_size",
        ),
        (
            lambda x: Encoded(torch.zeros(B, TK, D).double(), None),
            {},
            "initial is 'last', but the encoder has no state: use 'learned', 'zeros'",
        ),
    ],
)
def test_encoders_that_do_not_fit(encode, options, message):
    with pytest.raises(ValueError, match=message):
        decoder_with(attention(), **options).double()(inputs(), encode(source()))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"inputs": torch.zeros(B, T, E + 1)}, ValueError, r"inputs has shape \[3, 5, 4\]"),
        ({"inputs": torch.zeros(B, E)}, ValueError, r"inputs has shape \[3, 3\]; expected \[B, T"),
        ({"inputs": torch.zeros(2, T, E)}, ValueError, "inputs has batch size 2, but .*encoded 3"),
        ({"encoded": None}, ValueError, "encoded is needed, unless state"),
        ({"feed_previous": True}, ValueError, "feed_previous needs a loop_function"),
        ({"feed_previous": 1}, TypeError, "feed_previous is of int; expected a bool"),
        ({"feed_previous": torch.ones(B)}, TypeError, "feed_previous is of torch.float32"),
        (
            {"feed_previous": torch.ones(T, dtype=torch.bool), "loop_function": loop},
            ValueError,
            r"feed_previous has shape \[5, 1\]; expected \[\], \[3\] or \[3, 5\]",
        ),
        (
            {"feed_previous": torch.ones(B, T, 1, dtype=torch.bool), "loop_function": loop},
            ValueError,
            r"feed_previous has shape \[3, 5, 1\]; expected",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    given = {"inputs": torch.zeros(B, T, E), "encoded": Encoded(torch.zeros(B, TK, D), None)}
    decoder = decoder_with(attention(), initial="zeros")
    with pytest.raises(error, match=message):
        decoder(**given | arguments)


def test_a_source_that_is_too_long_for_location():
    decoder = luong(E, S, D, attention="location", max_length=4, initial="zeros")
    with pytest.raises(ValueError, match="4"):
        decoder(torch.zeros(B, T, E), Encoded(torch.zeros(B, TK, D), None))


def test_results_are_named():
    decoded = made("luong")(inputs(), encoded(), need_weights=True)
    assert isinstance(decoded, Decoded) and isinstance(decoded.state, DecoderState)
    assert decoded.log_prob is None and decoded.entropy is None


def test_local_attention_moves_on_over_calls():
    """The window of step t is around t, also where the steps come in several calls."""
    local = LocalAttention("monotonic", 0, query_size=S)
    decoder, read = decoder_with(local).double(), encoded()._replace(lengths=None)
    state = decoder.start(read)
    for t in range(TK + 2):
        _, state, found = decoder.step(inputs(1)[:, 0], state, need_weights=True)
        assert found.weights.argmax(-1).tolist() == [[[min(t, TK - 1)]]] * B


def test_reads_may_be_one_attention_twice():
    one = BahdanauAttention(S, D)
    decoder = decoder_with([one, one], readout="join").double()
    output = decoder(inputs(), encoded()).output
    assert_same(output[..., S : S + D], output[..., S + D :])
