"""The recurrent encoder: a padded batch is read as each of its sequences alone."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from sequence_attn.seq2seq import Encoded, RecurrentEncoder

B, T, E, H = 4, 5, 3, 4
LENGTHS = torch.tensor([2, 5, 0, 3])  # in no order, one of them empty
CELLS = ("gru", "lstm", "rnn")
every_encoder = pytest.mark.parametrize(
    "cell, bidirectional, layers",
    [(cell, both, layers) for cell in CELLS for both in (False, True) for layers in (1, 2)],
)


def read(encoder: nn.Module, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
    encoded = encoder(x, lengths)
    return encoded.output, *encoded.state


def padded(x: Tensor, lengths: Tensor = LENGTHS) -> Tensor:
    """With NaN behind the end of each sequence."""
    return x.masked_fill((torch.arange(x.shape[1]) >= lengths[:, None])[..., None], math.nan)


@every_encoder
def test_a_padded_batch_is_read_as_each_sequence_alone(cell, bidirectional, layers):
    encoder = RecurrentEncoder(E, H, cell, bidirectional=bidirectional, layers=layers).double()
    x = torch.randn(B, T, E, dtype=torch.float64)
    output, *state = read(encoder, padded(x), LENGTHS)
    for b, length in enumerate(LENGTHS.tolist()):
        alone, *state_alone = read(encoder, x[b : b + 1, :length])
        torch.testing.assert_close(output[b : b + 1, :length], alone)
        assert (output[b, length:] == 0).all()
        for of_batch, of_one in zip(state, state_alone, strict=True):
            torch.testing.assert_close(of_batch[:, :, b : b + 1], of_one)


@every_encoder
def test_gradients_are_those_of_each_sequence_alone(cell, bidirectional, layers):
    encoder = RecurrentEncoder(E, H, cell, bidirectional=bidirectional, layers=layers).double()
    x = torch.randn(B, T, E, dtype=torch.float64)
    sum(part.sin().sum() for part in read(encoder, padded(x), LENGTHS)).backward()
    together = [parameter.grad.clone() for parameter in encoder.parameters()]
    encoder.zero_grad()
    for b, length in enumerate(LENGTHS.tolist()):
        if length:
            sum(part.sin().sum() for part in read(encoder, x[b : b + 1, :length])).backward()
    alone = [parameter.grad for parameter in encoder.parameters()]
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("cell", CELLS)
def test_the_state_is_where_each_direction_ends(cell):
    encoder = RecurrentEncoder(E, H, cell, bidirectional=True, layers=2)
    encoded = encoder(torch.randn(B, T, E), LENGTHS)
    top = encoded.state[0][-1]
    for b, length in enumerate(LENGTHS.tolist()):
        if length:
            torch.testing.assert_close(top[0, b], encoded.output[b, length - 1, :H])
            torch.testing.assert_close(top[1, b], encoded.output[b, 0, H:])


@pytest.mark.parametrize(
    "cell, by_step", [("gru", nn.GRUCell), ("lstm", nn.LSTMCell), ("rnn", nn.RNNCell)]
)
def test_two_layers_both_ways_step_by_step(cell, by_step):
    """Layer 2 reads both directions of layer 1; the second direction starts at the end."""
    encoder = RecurrentEncoder(E, H, cell, bidirectional=True, layers=2).double()
    x = torch.randn(1, T, E, dtype=torch.float64)
    steps = list(x.unbind(1))
    for layer in range(2):
        ways = []
        for suffix, order in (("", range(T)), ("_reverse", reversed(range(T)))):
            one = by_step(steps[0].shape[1], H, dtype=torch.float64)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            own = encoder.cell.state_dict()
            one.load_state_dict({name: own[f"{name}_l{layer}{suffix}"] for name in names})
            state, way = None, {}
            for t in order:
                state = one(steps[t], state)
                way[t] = state[0] if cell == "lstm" else state
            ways.append(way)
        steps = [torch.cat([ways[0][t], ways[1][t]], 1) for t in range(T)]
    torch.testing.assert_close(encoder(x).output, torch.stack(steps, 1))


def test_full_lengths_are_as_none():
    encoder, x = RecurrentEncoder(E, H, bidirectional=True), torch.randn(B, T, E)
    torch.testing.assert_close(read(encoder, x), read(encoder, x, torch.full((B,), T)))


def test_lengths_of_any_integer_type():
    encoder, x = RecurrentEncoder(E, H), torch.randn(B, T, E)
    expected = encoder(x, LENGTHS).output
    torch.testing.assert_close(encoder(x, LENGTHS.int()).output, expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(0, T), (B, 0), (0, 0)])
def test_nothing_to_read(cell, shape):
    encoder = RecurrentEncoder(E, H, cell, bidirectional=True, layers=2)
    encoded = encoder(torch.randn(*shape, E))
    assert encoded.output.shape == (*shape, 2 * H)
    assert len(encoded.state) == (2 if cell == "lstm" else 1)
    assert all(x.shape == (2, 2, shape[0], H) and not x.any() for x in encoded.state)


def test_all_sequences_empty():
    encoder = RecurrentEncoder(E, H)
    x = torch.full((B, T, E), math.nan, requires_grad=True)
    output, state = read(encoder, x, torch.zeros(B, dtype=torch.int64))
    assert not output.any() and not state.any()
    (output.sum() + state.sum()).backward()
    assert not x.grad.any()
    assert all(not parameter.grad.any() for parameter in encoder.parameters())


def test_dropout_between_layers_in_training_alone():
    encoder, x = RecurrentEncoder(E, H, layers=2, dropout=0.5), torch.randn(B, T, E)
    assert not torch.allclose(encoder(x).output, encoder(x).output)
    encoder.eval()
    torch.testing.assert_close(encoder(x).output, encoder(x).output)


def test_select():
    encoder = RecurrentEncoder(E, H, "lstm", bidirectional=True)
    x, index = torch.randn(B, T, E), torch.tensor([3, 0, 3])
    chosen, again = encoder(x, LENGTHS).select(index), encoder(x[index], LENGTHS[index])
    torch.testing.assert_close(chosen.output, again.output)
    torch.testing.assert_close(chosen.state, again.state)
    assert torch.equal(chosen.lengths, again.lengths)
    assert Encoded(x, None).select(index).lengths is None


def test_copies_read_alike():
    encoder, x = RecurrentEncoder(E, H, "lstm", layers=2), torch.randn(B, T, E)
    other = RecurrentEncoder(E, H, "lstm", layers=2)
    other.load_state_dict(encoder.state_dict())
    for twin in (other, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        torch.testing.assert_close(twin(x, LENGTHS).output, encoder(x, LENGTHS).output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    encoder, x = RecurrentEncoder(E, H, bidirectional=True), torch.randn(B, T, E)
    with torch.autocast("cpu", dtype):
        encoded = encoder(x, LENGTHS)
    torch.testing.assert_close(
        encoded.output.float(), encoder(x, LENGTHS).output, atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cell": "mgu"}, "cell is 'mgu'; known ones are gru, lstm, rnn"),
        ({"input_size": 0}, "input_size is 0; expected at least 1"),
        ({"hidden_size": -1}, "hidden_size is -1; expected at least 1"),
        ({"layers": 0}, "layers is 0; expected at least 1"),
        ({"dropout": 1.5}, "dropout is 1.5; a probability lies between 0 and 1"),
        ({"dropout": math.nan}, "dropout is nan; a probability"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        RecurrentEncoder(**{"input_size": E, "hidden_size": H} | arguments)


@pytest.mark.parametrize(
    "x, lengths, error, message",
    [
        (
            torch.zeros(B, T, E + 1),
            None,
            ValueError,
            r"x has shape \[4, 5, 4\]; expected \[B, T, 3",
        ),
        (torch.zeros(T, E), None, ValueError, r"x has shape \[5, 3\]; expected \[B, T, 3\]"),
        (torch.zeros(B, T, E), torch.tensor([6, 1, 1, 1]), ValueError, "lengths has the entry 6"),
        (torch.zeros(B, T, E), torch.tensor([-1, 1, 1, 1]), ValueError, "lengths has the entry -1"),
        (torch.zeros(B, T, E), torch.tensor([1, 1]), ValueError, r"lengths has shape \[2\]"),
        (torch.zeros(B, T, E), torch.ones(B), TypeError, "lengths .*float32"),
    ],
)
def test_bad_input(x, lengths, error, message):
    with pytest.raises(error, match=message):
        RecurrentEncoder(E, H)(x, lengths)
