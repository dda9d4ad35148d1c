"""Which pairs of a padded batch exist: one meaning of a mask, and each sequence's own last key."""

import pytest
import torch
from torch import Tensor

from attn_core import backend
from sequence_attn import (
    Attention,
    LocalAttention,
    MultiHead,
    MultiHeadAttention,
    RotaryPositions,
    TransformerEncoder,
)

B, D = 3, 4


def sequence(steps: int) -> Tensor:
    return torch.randn(B, steps, D, dtype=torch.float64)


TRIANGLE = torch.ones(B, B, dtype=torch.bool).tril()


def multi_head(**options) -> MultiHead:
    return MultiHead(2, 3, input_size=D, **options).double()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Attention("additive", query_size=D).double(),
        lambda: LocalAttention("monotonic", 9, query_size=D).double(),
        multi_head,
        lambda: multi_head(window=5),
    ],
)
def test_a_2d_mask_or_bias_is_of_queries_and_keys(layer) -> None:
    """Where there are as many sequences as steps, too: [B, Tk] would be of the same shape."""
    attention, x = layer(), sequence(B)
    changed = x.clone()
    changed[:, -1] += 1.0
    for given in (
        {"mask": TRIANGLE},
        {"bias": torch.zeros(B, B, dtype=torch.float64).masked_fill(~TRIANGLE, -torch.inf)},
    ):
        if "bias" in given and getattr(attention, "window", None) == 5:
            continue  # a bias over a window is laid along its offsets
        context, after = attention(x, x, **given)[0], attention(x, changed, **given)[0]
        torch.testing.assert_close(context[:, :-1], after[:, :-1])  # the future is not seen
        assert (context[:, -1] != after[:, -1]).any()


def test_a_2d_mask_of_an_encoder_is_of_steps_and_steps() -> None:
    encoder, x = TransformerEncoder(1, D, 2, dropout=0.0).double(), sequence(B)
    causal = TransformerEncoder(1, D, 2, dropout=0.0, causal=True).double()
    causal.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(encoder(x, mask=TRIANGLE).output, causal(x).output)


@pytest.mark.parametrize("score", ["additive", "dot"])
def test_a_key_mask_is_of_sequences_and_keys(score: str) -> None:
    attention, (query, keys) = Attention(score, query_size=D).double(), (sequence(2), sequence(B))
    real = torch.tensor([[True, False, True], [False, True, True], [False, False, False]])
    found = attention(query, keys, key_mask=real, need_weights=True)
    for b in range(B):
        alone = attention(query[b : b + 1], keys[b : b + 1, real[b]], need_weights=True)
        torch.testing.assert_close(found.context[b : b + 1], alone.context)
        torch.testing.assert_close(found.weights[b : b + 1][..., real[b]], alone.weights)
    one = attention(query[:, 0], keys, key_mask=real).context
    torch.testing.assert_close(one, found.context[:, 0])
    mask = torch.rand(2, B) < 0.6
    both = attention(query, keys, key_mask=real, mask=mask).context
    torch.testing.assert_close(both, attention(query, keys, mask=mask & real[:, None]).context)
    with pytest.raises(ValueError, match=r"mask has shape \[3, 3\]; expected \[Tq, Tk\] = \[1, 3"):
        attention(query[:, 0], keys, mask=real)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("mask_dims", [None, 2, 3, 4])
def test_a_key_mask_of_multi_head_attention(window: int | None, mask_dims: int | None) -> None:
    attention, (query, keys) = multi_head(window=window), (sequence(4), sequence(6))
    real = torch.rand(B, 6) < 0.6
    mask = None if mask_dims is None else torch.rand(*(B, 2, 4, 6)[-mask_dims:]) < 0.7
    if mask_dims == 3:
        mask = torch.rand(B, 4, 6) < 0.7
    full = real[:, None, None]
    if mask is not None:
        full = full & (mask[:, None] if mask_dims == 3 else mask)
    expected = attention(query, keys, mask=full.expand(-1, 2, 4, -1), need_weights=True)
    torch.testing.assert_close(
        attention(query, keys, key_mask=real, mask=mask, need_weights=True), expected
    )
    torch.testing.assert_close(
        attention.weights(query, keys, key_mask=real, mask=mask), expected[1]
    )


@pytest.mark.parametrize("how", ["auto", "reference"])
@pytest.mark.parametrize("layer", ["additive", "dot", "multi-head", "rotary", "window"])
@pytest.mark.parametrize("queries", [1, 2, 4])
def test_causal_order_ends_at_each_sequences_own_last_key(
    how: str, layer: str, queries: int
) -> None:
    lengths, x, keys = torch.tensor([6, 4, 5]), sequence(queries), sequence(6)
    name = "lengths"
    if layer in ("additive", "dot"):
        attention = Attention(layer, query_size=D).double()
    else:
        rotary = RotaryPositions(2) if layer == "rotary" else None
        attention = multi_head(window=2 if layer == "window" else None, rotary=rotary)
        name = "key_lengths"
    with backend(how):
        found = attention(x, keys, causal=True, **{name: lengths}).context
        for b, length in enumerate(lengths):
            alone = attention(x[b : b + 1], keys[b : b + 1, :length], causal=True).context
            torch.testing.assert_close(found[b : b + 1], alone)


@pytest.mark.parametrize("window", [None, 1])
def test_queries_may_be_ragged_too(window: int | None) -> None:
    attention, (x, keys) = (
        multi_head(window=window, rotary=RotaryPositions(2)),
        (
            sequence(3),
            sequence(6),
        ),
    )
    many, lengths = torch.tensor([3, 1, 2]), torch.tensor([6, 4, 2])
    given = {"causal": True, "query_lengths": many, "key_lengths": lengths}
    found = attention(x, keys, **given).context
    for b in range(B):
        alone = attention(x[b : b + 1, : many[b]], keys[b : b + 1, : lengths[b]], causal=True)
        torch.testing.assert_close(found[b : b + 1, : many[b]], alone.context)
        assert (found[b, many[b] :] == 0).all()


def test_as_many_queries_as_keys_are_the_same_steps() -> None:
    x, lengths = sequence(5), torch.tensor([5, 3, 1])
    attention = multi_head()
    found = attention(x, causal=True, key_lengths=lengths).context
    both = attention(x, causal=True, key_lengths=lengths, query_lengths=lengths.clone()).context
    for b, length in enumerate(lengths):
        alone = attention(x[b : b + 1, :length], causal=True).context
        torch.testing.assert_close(found[b : b + 1, :length], alone)
        torch.testing.assert_close(both[b : b + 1, :length], alone)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"key_mask": torch.ones(B, 4)}, TypeError, "key_mask has dtype torch.float32; expected"),
        ({"key_mask": torch.ones(4) > 0}, ValueError, r"key_mask has shape \[4\]; expected \[3, 4"),
        (
            {"positions": torch.arange(4)},
            ValueError,
            "positions is given, but the layer has",
        ),
        ({"mask": torch.ones(B, 3) > 0}, ValueError, r"mask has shape \[3, 3\]; expected \[Tq, Tk"),
    ],
)
def test_multi_head_refuses(given: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        multi_head()(sequence(4), **given)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("options", [{}, {"window": 1}, {"add_bias_kv": True}])
def test_drop_in_attention_is_causal_up_to_each_sequences_own_last_key(
    options: dict, floating: bool, left: bool
) -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(D, 2, batch_first=True, **options).double()
    query, keys, lengths = sequence(2), sequence(5), [5, 3, 2]
    real = torch.arange(5) < torch.tensor(lengths)[:, None]
    real = real.flip(1) if left else real
    padding = torch.zeros(B, 5).double().masked_fill(~real, -torch.inf) if floating else ~real
    found = attention(query, keys, keys, padding, causal=True)[0]
    for b in range(B):
        own = keys[b : b + 1, real[b]]
        alone = attention(query[b : b + 1], own, own, causal=True)[0]
        torch.testing.assert_close(found[b : b + 1], alone)


def test_queries_and_keys_of_the_same_lengths_are_the_same_steps() -> None:
    """Padded to different widths, too."""
    attention, steps, lengths = multi_head(), sequence(6), torch.tensor([4, 2, 3])
    found = attention(
        steps[:, :4], steps, query_lengths=lengths, key_lengths=lengths, causal=True
    ).context
    for b, n in enumerate(lengths.tolist()):
        alone = attention(steps[b : b + 1, :n], causal=True).context
        torch.testing.assert_close(found[b : b + 1, :n], alone)
