"""Positions: values worked out by hand, and what they change in attention."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from attn_core import (
    Additive,
    Attended,
    Concat,
    Cosine,
    Dense,
    Dot,
    Edges,
    General,
    Normalizer,
    ScaledDot,
    Score,
    Separable,
    Softmax,
    Sparsemax,
    Support,
    Window,
    attend,
    weights,
)
from sequence_attn import (
    ALiBi,
    LearnedPositions,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
    T5RelativeBias,
)

LAYOUTS = ["interleaved", "blocked"]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def grid(queries: int, keys: int) -> Tensor:
    """Key position minus query position, where the last query stands at the last key."""
    return torch.arange(keys) - (torch.arange(queries)[:, None] + keys - queries)


def test_the_formula_worked_out_by_hand() -> None:
    code = SinusoidalPositions(4).encode(torch.tensor(3))
    angles = 3.0, 3.0 / 10_000**0.5
    expected = [f(angle) for angle in angles for f in (math.sin, math.cos)]
    torch.testing.assert_close(code, torch.tensor(expected))


def test_blocked_is_a_permutation_of_interleaved() -> None:
    steps = torch.arange(50)
    interleaved = SinusoidalPositions(8).encode(steps)
    blocked = SinusoidalPositions(8, layout="blocked").encode(steps)
    torch.testing.assert_close(blocked, torch.cat([interleaved[:, 0::2], interleaved[:, 1::2]], -1))


def test_a_shift_is_a_linear_map() -> None:
    positions = SinusoidalPositions(6)
    steps = torch.arange(100, dtype=torch.float64)
    here, there = positions.encode(steps), positions.encode(steps + 7)
    shift = torch.linalg.lstsq(here, there).solution
    torch.testing.assert_close(here @ shift, there)
    rotation = torch.block_diag(
        *(
            torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
            for a in (7 / 10_000 ** (2 * i / 6) for i in range(3))
        )
    ).double()
    torch.testing.assert_close(there, here @ rotation, rtol=1e-6, atol=1e-6)


def test_adding_and_joining() -> None:
    x = torch.randn(2, 5, 4)
    codes = SinusoidalPositions(4).encode(torch.arange(5))
    torch.testing.assert_close(SinusoidalPositions(4)(x), x + codes)
    joined = SinusoidalPositions(6, merge="concat")(x)
    assert joined.shape == (2, 5, 10)
    assert torch.equal(joined[..., :4], x)
    assert torch.equal(joined[0, :, 4:], joined[1, :, 4:])


def test_offset_continues_a_sequence() -> None:
    positions = SinusoidalPositions(4)
    x = torch.randn(1, 9, 4)
    parts = torch.cat([positions(x[:, :5]), positions(x[:, 5:], offset=5)], 1)
    torch.testing.assert_close(parts, positions(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_far_positions_are_exact_to_the_dtype(dtype: torch.dtype) -> None:
    positions = SinusoidalPositions(4)
    code = positions(torch.zeros(1, 1, 4, dtype=dtype), offset=100_001)
    assert code.dtype == dtype
    expected = torch.tensor([math.sin(100_001), math.cos(100_001)], dtype=torch.float64)
    tolerance = max(torch.finfo(dtype).eps, 1e-9)
    torch.testing.assert_close(code[0, 0, :2].double(), expected, rtol=0, atol=tolerance)


def test_no_parameters_and_no_buffers() -> None:
    assert not SinusoidalPositions(4).state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "size is 1; expected at least 2"),
        ((0,), "size is 0"),
        ((4, {"layout": "mixed"}), "layout is 'mixed'; expected 'interleaved' or 'blocked'"),
        ((4, {"merge": "multiply"}), "merge is 'multiply'; expected 'add' or 'concat'"),
        ((4, {"base": 0.0}), "base is 0.0"),
    ],
)
def test_constructor_refuses(arguments: tuple, message: str) -> None:
    size, *options = arguments
    with pytest.raises(ValueError, match=message):
        SinusoidalPositions(size, **(options[0] if options else {}))


@pytest.mark.parametrize("shape", [(4,), (2, 5, 6)])
def test_forward_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x has shape .*D = 4, the size of the codes"):
        SinusoidalPositions(4)(torch.zeros(shape))


def test_learned_positions_add_or_join_a_row_for_each_step() -> None:
    x = torch.randn(2, 3, 4)
    positions = LearnedPositions(6, 4)
    assert torch.equal(positions(x), x + positions.weight[:3])
    joined = LearnedPositions(6, 5, merge="concat")
    assert torch.equal(joined(x)[..., :4], x)
    assert torch.equal(joined(x)[1, :, 4:], joined.weight[:3])


def test_learned_positions_continue_up_to_the_last() -> None:
    positions = LearnedPositions(9, 4)
    x = torch.randn(1, 9, 4)
    parts = torch.cat([positions(x[:, :5]), positions(x[:, 5:], offset=5)], 1)
    assert torch.equal(parts, positions(x))


def test_each_learned_position_gets_its_own_gradient() -> None:
    positions = LearnedPositions(5, 2)
    positions(torch.zeros(3, 2, 2), offset=1).sum().backward()
    steps_there = torch.tensor([0.0, 3.0, 3.0, 0.0, 0.0])  # the batch has three sequences
    assert torch.equal(positions.weight.grad, steps_there[:, None].expand(5, 2))


def test_learned_positions_keep_the_dtype_of_the_input() -> None:
    x = torch.randn(1, 3, 4, dtype=torch.bfloat16)
    assert LearnedPositions(3, 4)(x).dtype == torch.bfloat16
    assert LearnedPositions(3, 4, merge="concat")(x).dtype == torch.bfloat16


def test_learned_positions_start_small() -> None:
    weight = LearnedPositions(500, 100).weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(weight.mean().item()) < 1e-3


@pytest.mark.parametrize(
    ("steps", "offset", "message"),
    [
        (6, 0, "x has 6 time steps and offset is 0; positions were learned from 0 to 4.*shorten"),
        (1, 5, "x has 1 time steps and offset is 5.*max_length above 5"),
        (2, -1, "offset is -1"),
    ],
)
def test_positions_that_were_not_learned_are_refused(steps: int, offset: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedPositions(5, 4)(torch.zeros(1, steps, 4), offset=offset)


@pytest.mark.parametrize("shape", [(4,), (2, 5, 6)])
def test_learned_positions_refuse_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x has shape .*D = 4, the size of the codes"):
        LearnedPositions(9, 4)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"size": 0}, "size is 0"),
        ({"merge": "multiply"}, "merge is 'multiply'; expected 'add' or 'concat'"),
    ],
)
def test_learned_positions_refuse_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedPositions(**{"max_length": 5, "size": 4} | arguments)


def test_a_rotation_worked_out_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, None]
    fast, slow = 3.0, 3.0 / 10_000**0.5

    def turned(a: float, b: float, angle: float) -> list[float]:
        cos, sin = math.cos(angle), math.sin(angle)
        return [a * cos - b * sin, a * sin + b * cos]

    expected = [*turned(1, 2, fast), *turned(3, 4, slow)]
    torch.testing.assert_close(
        RotaryPositions(4)(x, offset=3).flatten(), torch.tensor(expected), rtol=1e-6, atol=1e-6
    )
    (a, c), (b, d) = turned(1, 3, fast), turned(2, 4, slow)
    torch.testing.assert_close(
        RotaryPositions(4, layout="blocked")(x, offset=3).flatten(), torch.tensor([a, b, c, d])
    )


def test_blocked_rotation_is_interleaved_rotation_of_permuted_channels() -> None:
    x = randn(2, 5, 3, 8)
    apart = [0, 2, 4, 6, 1, 3, 5, 7]
    interleaved = RotaryPositions(8)(x)
    blocked = RotaryPositions(8, layout="blocked")(x[..., apart])
    torch.testing.assert_close(blocked, interleaved[..., apart])


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    query_at=st.integers(-1000, 1000), key_at=st.integers(-1000, 1000), shift=st.integers(-500, 500)
)
def test_rotated_products_depend_on_the_difference_of_positions_alone(
    layout: str, query_at: int, key_at: int, shift: int
) -> None:
    rotary = RotaryPositions(6, layout=layout)
    query, key = randn(1, 2, 8), randn(1, 2, 8)

    def product(m: int, n: int) -> Tensor:
        return Dot().pair(rotary(query, offset=m), rotary(key, offset=n))

    here = product(query_at, key_at)
    torch.testing.assert_close(here, product(query_at + shift, key_at + shift))
    if shift:  # the fastest pair has no period among the whole numbers
        assert not torch.allclose(here, product(query_at + shift, key_at), rtol=0, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_keeps_lengths_and_what_is_beyond_its_size(layout: str) -> None:
    x = randn(2, 7, 3, 10)
    turned = RotaryPositions(6, layout=layout)(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert not torch.isclose(turned[:, 1:, :, :6], x[:, 1:, :, :6]).all(-1).any()
    assert torch.equal(turned[:, 0], x[:, 0])


def test_rotation_takes_an_offset_or_positions() -> None:
    rotary, x = RotaryPositions(4), torch.randn(2, 9, 3, 4)
    parts = torch.cat([rotary(x[:, :5]), rotary(x[:, 5:], offset=5)], 1)
    torch.testing.assert_close(parts, rotary(x))
    torch.testing.assert_close(rotary(x, positions=torch.arange(9) + 2), rotary(x, offset=2))
    own = torch.stack([torch.arange(9), 100 - torch.arange(9)])  # for each sequence
    each = torch.stack([rotary(one, positions=p) for one, p in zip(x, own, strict=True)])
    torch.testing.assert_close(rotary(x, positions=own), each)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rotation_far_away_is_exact_to_the_dtype(dtype: torch.dtype) -> None:
    x = torch.tensor([0.6, 0.8], dtype=dtype)[None, None]
    turned = RotaryPositions(2)(x, offset=100_001)
    assert turned.dtype == dtype
    torch.testing.assert_close(RotaryPositions(2)(x, positions=torch.tensor([100_001])), turned)
    a, b = x.double().flatten().tolist()
    cos, sin = math.cos(100_001), math.sin(100_001)
    expected = torch.tensor([a * cos - b * sin, a * sin + b * cos], dtype=torch.float64)
    tolerance = max(torch.finfo(dtype).eps, 1e-12)
    torch.testing.assert_close(turned.flatten().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (2, 5), (1, 5), (0, 5), (5, 2)])
def test_rotating_both_lets_them_end_at_the_same_step(queries: int, keys: int) -> None:
    rotary = RotaryPositions(4)
    query, key = randn(2, queries, 3, 4), randn(2, keys, 1, 4)
    longer = max(queries, keys)
    turned = rotary.both(query, key, offset=3)
    torch.testing.assert_close(turned[0], rotary(query, offset=3 + longer - queries))
    torch.testing.assert_close(turned[1], rotary(key, offset=3 + longer - keys))
    steps = torch.randint(50, (2, longer))
    turned = rotary.both(query, key, positions=steps)
    torch.testing.assert_close(turned[0], rotary(query, positions=steps[:, longer - queries :]))
    torch.testing.assert_close(turned[1], rotary(key, positions=steps[:, longer - keys :]))


def test_decoding_with_rotated_keys_kept_is_decoding_at_once() -> None:
    rotary, (query, key, value) = RotaryPositions(4), randn(3, 2, 6, 3, 8)
    turned = rotary.both(query, key)
    at_once = attend(*turned, value, score=ScaledDot(), support=Dense(causal=True)).output
    kept = []
    for t in range(6):
        now, new = rotary.both(query[:, t : t + 1], key[:, t : t + 1], offset=t)
        kept.append(new)
        seen = value[:, : t + 1]
        output = attend(now, torch.cat(kept, 1), seen, score=ScaledDot(), support=Dense()).output
        torch.testing.assert_close(output[:, 0], at_once[:, t])


def test_keys_may_be_shuffled_with_their_positions_but_not_without() -> None:
    rotary, order = RotaryPositions(4), torch.tensor([2, 0, 3, 1])
    query, key, value = randn(3, 4, 1, 4)
    query = rotary(query)

    def read(key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, score=ScaledDot(), support=Dense()).output

    expected = read(rotary(key), value)
    with_positions = rotary(key[order], positions=order)
    torch.testing.assert_close(read(with_positions, value[order]), expected)
    assert not torch.allclose(read(rotary(key[order]), value[order]), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 5}, "size is 5.*even"),
        ({"size": 0}, "size is 0"),
        ({"layout": "half"}, "layout is 'half'; expected 'interleaved' or 'blocked'"),
        ({"base": 0.5}, "base is 0.5"),
    ],
)
def test_rotary_refuses_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotaryPositions(**{"size": 4} | arguments)


def test_rotary_refuses_what_does_not_fit() -> None:
    rotary, x = RotaryPositions(4), torch.zeros(2, 3, 1, 4)
    with pytest.raises(ValueError, match=r"x has shape \[3, 4\]; expected \[..., T, H, D\]"):
        rotary(x[0, :, 0])
    with pytest.raises(ValueError, match=r"query has shape \[2, 3, 1, 2\].*D of at least 4"):
        rotary.both(x[..., :2], x)
    with pytest.raises(ValueError, match=r"key has shape \[2, 3, 1, 2\].*D of at least 4"):
        rotary.both(x, x[..., :2])
    for shape in [(2,), (3, 3), (3, 1), (1, 2, 3)]:
        with pytest.raises(ValueError, match=r"positions has shape .* \[3\] or \[2, 3\]"):
            rotary(x, positions=torch.zeros(shape))
    with pytest.raises(ValueError, match="offset is 2, but positions are given"):
        rotary(x, offset=2, positions=torch.arange(3))


def slopes(heads: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What ALiBi adds for a key one step before its query."""
    return -ALiBi(heads)(torch.tensor([-1]).to(dtype)).flatten()


def test_the_slopes_are_those_of_the_paper() -> None:
    assert slopes(8).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert slopes(4).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert slopes(1).tolist() == [1 / 256]
    sixteen = torch.tensor([2 ** (-h / 2) for h in range(1, 17)], dtype=torch.float64)
    torch.testing.assert_close(slopes(16, torch.float64), sixteen)


def test_slopes_between_powers_of_two_are_those_of_the_authors_code() -> None:
    assert slopes(3).tolist() == [1 / 16, 1 / 256, 1 / 4]
    assert slopes(6).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    twelve = [*(2.0**-h for h in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    torch.testing.assert_close(slopes(12), torch.tensor(twelve))


def test_alibi_is_the_slope_times_the_distance_either_way() -> None:
    expected = [[-0.5, 0, -0.5], [-1, -0.5, 0]]  # two queries, of which the last is at key 2
    bias = ALiBi(8)(grid(2, 3))
    assert bias.shape == (8, 2, 3)
    assert bias[0].tolist() == expected
    assert torch.equal(bias[3], torch.tensor(expected) / 8)


def test_causal_alibi_weights_are_those_of_the_published_form() -> None:
    # The authors add slope · j, which differs from ours by a number for each query
    query, key = randn(2, 5, 8, 4)
    published = slopes(8)[:, None, None] * torch.arange(5.0)
    ours, theirs = (
        weights(query, key, score=ScaledDot(), support=Dense(causal=True), bias=bias)
        for bias in (ALiBi(8)(grid(5, 5)), published)
    )
    torch.testing.assert_close(ours, theirs)


def test_alibi_tells_distant_positions_apart_in_every_dtype() -> None:
    far = torch.tensor([-100_000, -100_001])
    for alibi in (ALiBi(2), ALiBi(2).bfloat16(), ALiBi(2, learned=True).bfloat16()):
        bias = alibi(far)
        assert bias.dtype == torch.float32
        assert bias.tolist() == [[-6250, -390.625], [-6250.0625, -390.62890625]]
    assert ALiBi(2, learned=True).double()(far).dtype == torch.float64


def test_learned_slopes_start_as_the_fixed_ones() -> None:
    assert not ALiBi(6).state_dict()
    alibi = ALiBi(6, learned=True)
    assert list(alibi.state_dict()) == ["slopes"]
    assert torch.equal(alibi.slopes, slopes(6))
    relative = grid(3, 4)
    alibi(relative).sum().backward()
    assert alibi.slopes.grad.tolist() == [-relative.abs().sum().item()] * 6


# The first distance of each bucket, worked out by hand. 16 buckets for each direction: 0 to 7, then
# ceil(8 · 16^(k/8)), where 16^(1/8) = √2
EITHER_WAY = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
# 32 buckets for the past: 0 to 15, then ceil(16 · 8^(k/16))
PAST_ONLY = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


def buckets_by_hand(starts: list[int], distances: int) -> list[int]:
    return [sum(start <= distance for start in starts) - 1 for distance in range(distances)]


def test_buckets_of_either_direction() -> None:
    bias, distance = T5RelativeBias(1), torch.arange(300)
    expected = buckets_by_hand(EITHER_WAY, 300)
    assert bias.buckets(-distance).tolist() == expected
    assert bias.buckets(distance).tolist() == [0, *(16 + bucket for bucket in expected[1:])]


def test_buckets_of_the_past() -> None:
    bias, distance = T5RelativeBias(1, bidirectional=False), torch.arange(300)
    assert bias.buckets(-distance).tolist() == buckets_by_hand(PAST_ONLY, 300)
    assert not bias.buckets(distance).any()


def test_buckets_that_begin_at_whole_powers() -> None:
    # 4 exact distances, then 4, 8, 16 and 32 (bucket 3 + k from 4 · 2^(k - 1) on)
    bias = T5RelativeBias(1, num_buckets=8, max_distance=64, bidirectional=False)
    starts = [0, 1, 2, 3, 4, 8, 16, 32]
    for past in (torch.int64, torch.int32):
        relative = -torch.arange(200, dtype=past)
        assert bias.buckets(relative).tolist() == buckets_by_hand(starts, 200)


def test_t5_gives_each_pair_and_head_the_number_of_its_bucket() -> None:
    bias = T5RelativeBias(3)
    relative = grid(4, 6)
    found = bias(relative)
    assert found.shape == (3, 4, 6)
    for i in range(4):
        for j in range(6):
            bucket = bias.buckets(relative[i, j])
            assert torch.equal(found[:, i, j], bias.weight[bucket])
    assert list(bias.state_dict()) == ["weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"num_buckets": 5}, "num_buckets is 5; expected at least an even number from 4 on"),
        ({"num_buckets": 2}, "num_buckets is 2"),
        ({"num_buckets": 1, "bidirectional": False}, "num_buckets is 1; expected at least 2"),
        ({"max_distance": 8}, "max_distance is 8; expected more than 8"),
        ({"max_distance": 16, "bidirectional": False}, "max_distance is 16; expected more than 16"),
    ],
)
def test_t5_refuses_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        T5RelativeBias(**{"heads": 2} | arguments)


def test_biases_refuse_what_is_no_relative_position() -> None:
    with pytest.raises(ValueError, match="heads is 0"):
        ALiBi(0)
    for bias in (ALiBi(2), T5RelativeBias(2)):
        with pytest.raises(ValueError, match=r"relative has shape \[\]"):
            bias(torch.tensor(1))
    with pytest.raises(TypeError, match=r"relative has dtype torch.float32.*\.long\(\)"):
        T5RelativeBias(2)(torch.zeros(3))


BIASES = [
    ALiBi(3),
    ALiBi(3, learned=True),
    T5RelativeBias(3),
    T5RelativeBias(3, bidirectional=False),
]


@pytest.mark.parametrize("bias", BIASES, ids=repr)
def test_biases_of_grids_batches_and_lists_of_pairs_agree(bias: RelativeBias) -> None:
    relative = torch.randint(-20, 20, (2, 4, 5))
    batch = bias(relative)
    assert batch.shape == (2, 3, 4, 5)
    assert torch.equal(batch, torch.stack([bias(one) for one in relative]))
    pairs = bias(relative.flatten())
    assert pairs.shape == (40, 3)
    assert torch.equal(batch.movedim(1, -1).flatten(0, 2), pairs)
    assert bias(relative[:, :0]).shape == (2, 3, 0, 5)
    assert bias(relative.flatten()[:0]).shape == (0, 3)


class Band:
    """A support that looks one step to either side."""

    def relative_positions(
        self, queries: int, keys: int, device: torch.device | None = None
    ) -> Tensor:
        return torch.arange(-1, 2, device=device).expand(queries, 3)


@pytest.mark.parametrize("bias", BIASES, ids=repr)
def test_the_bias_of_a_support_is_that_of_its_relative_positions(bias: RelativeBias) -> None:
    found = bias.of(Band(), 4, 6)
    assert found.shape == (3, 4, 3)
    assert torch.equal(found, bias(torch.tensor([-1, 0, 1]).expand(4, 3)))


def test_the_bias_of_a_support_is_made_where_the_parameters_are() -> None:
    assert T5RelativeBias(2).to("meta").of(Band(), 4, 6).is_meta
    assert ALiBi(2).of(Band(), 4, 6, torch.device("meta")).is_meta


SCORES: dict[str, Score] = {
    "dot": Dot(),
    "scaled dot": ScaledDot(),
    "cosine": Cosine(),
    "general": General(randn(3, 4, 4)),
    "concat": Concat(randn(3, 5, 8), randn(3, 5)),
    "additive": Additive(randn(3, 4)),
    "gatv2": Additive(randn(3, 4), "leaky_relu"),
    "separable": Separable(randn(3, 4), randn(3, 4)),
}


def complete_graph(queries: int, keys: int) -> Edges:
    return Edges.from_edge_index(
        torch.cartesian_prod(torch.arange(keys), torch.arange(queries)).T, (keys, queries)
    )


@pytest.mark.parametrize("normalizer", [Softmax(), Sparsemax()], ids=repr)
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("kind", [ALiBi, T5RelativeBias])
def test_a_bias_over_a_sequence_is_that_over_its_complete_graph(
    kind: type[RelativeBias], score: Score, normalizer: Normalizer
) -> None:
    bias = ALiBi(3, learned=True) if kind is ALiBi else T5RelativeBias(3)
    nn.init.normal_(next(bias.parameters()))
    inputs = [x.requires_grad_() for x in randn(3, 6, 3, 4)]

    def run(support: Support, relative: Tensor) -> tuple[Attended, tuple[Tensor, ...]]:
        result = attend(
            *inputs, score=score, normalizer=normalizer, support=support, bias=bias(relative),
            need_weights=True,
        )  # fmt: skip
        probe = torch.linspace(-1, 1, result.output.numel(), dtype=torch.float64)
        loss = (result.output.flatten() * probe).sum()
        wanted = [*inputs, *bias.parameters()]
        return result, torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)

    edges = complete_graph(6, 6)
    sequence, of_sequence = run(Dense(), grid(6, 6))
    graph, of_graph = run(edges, edges.key_index - edges.query_index)
    torch.testing.assert_close(graph.output, sequence.output)
    by_pair = sequence.weights[:, edges.query_index, edges.key_index]
    torch.testing.assert_close(graph.weights, by_pair.T)
    torch.testing.assert_close(of_graph, of_sequence)
    plain = attend(*inputs, score=score, normalizer=normalizer, support=Dense()).output
    assert not torch.allclose(plain, sequence.output, atol=1e-3)


def test_a_batch_of_sequences_is_the_disjoint_union_of_their_graphs() -> None:
    alibi, (query, key, value) = ALiBi(3), randn(3, 2, 4, 3, 5)
    padded = attend(
        query, key, value, score=ScaledDot(), support=Dense(causal=True), bias=alibi(grid(4, 4))
    ).output
    past = torch.tensor([(j, i) for i in range(4) for j in range(i + 1)]).T
    edges = Edges.from_edge_index(torch.cat([past, past + 4], 1))
    union = attend(
        *(x.flatten(0, 1) for x in (query, key, value)),
        score=ScaledDot(),
        support=edges,
        bias=alibi(edges.key_index - edges.query_index),
    ).output
    torch.testing.assert_close(union, padded.flatten(0, 1))


def test_a_bias_of_other_heads_is_refused() -> None:
    x = torch.zeros(5, 2, 4)
    with pytest.raises(ValueError, match=r"bias has shape \[3, 5, 5\]; expected \[2, 5, 5\]"):
        attend(x, x, x, score=Dot(), support=Dense(), bias=ALiBi(3)(grid(5, 5)))
    with pytest.raises(ValueError, match=r"bias has shape \[25, 3\]; expected \[25, 2\]"):
        attend(
            x, x, x, score=Dot(), support=complete_graph(5, 5), bias=ALiBi(3)(grid(5, 5).flatten())
        )


MODULES = {
    "learned": LearnedPositions(16, 8),
    "learned, joined": LearnedPositions(16, 8, merge="concat"),
    "rotary": RotaryPositions(8),
    "rotary, blocked, partial": RotaryPositions(4, layout="blocked"),
    "alibi": ALiBi(3),
    "alibi, learned": ALiBi(3, learned=True),
    "t5": T5RelativeBias(3),
    "t5, past": T5RelativeBias(3, bidirectional=False),
}


def read_with(module: nn.Module, x: Tensor) -> Tensor:
    """Self-attention of x `[B, T, 3, 8]` with positions."""
    bias = None
    if isinstance(module, RelativeBias):
        steps = torch.arange(x.shape[1])
        bias = module(steps - steps[:, None])
    elif isinstance(module, RotaryPositions):
        query, key = module.both(x, x)
        return attend(query, key, x, score=ScaledDot(), support=Dense()).output
    else:
        x = module(x.movedim(1, -2)).movedim(-2, 1)
    return attend(x, x, x, score=ScaledDot(), support=Dense(), bias=bias).output


@pytest.mark.parametrize("name", ["learned", "rotary, blocked, partial", "alibi, learned", "t5"])
def test_positions_recompile_once_for_all_lengths(name: str) -> None:
    torch._dynamo.reset()
    module = MODULES[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(read_with, fullgraph=True, backend=counter)
    for length in (4, 5, 16):
        x = torch.randn(2, length, 3, 8, requires_grad=True)
        wanted = [x, *module.parameters()]
        outputs = compiled(module, x), read_with(module, x)
        torch.testing.assert_close(*outputs)
        gradients = (torch.autograd.grad(output.square().sum(), wanted) for output in outputs)
        torch.testing.assert_close(*gradients)
    assert counter.frame_count <= 2  # once for a fixed length, once for any


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_positions_pass_gradcheck(module: nn.Module) -> None:
    module = copy.deepcopy(module).double()
    inputs = [randn(1, 3, 3, 8).requires_grad_(), *module.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: read_with(module, x), inputs)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_positions_under_autocast(module: nn.Module) -> None:
    x = torch.randn(2, 5, 3, 8)
    exact = read_with(module, x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = read_with(module, x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_positions_keep_their_state(module: nn.Module) -> None:
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 3, 8)
    changed = read_with(other, x)
    assert bool(other.state_dict()) == (not torch.allclose(changed, read_with(module, x)))
    fresh = copy.deepcopy(module)
    fresh.load_state_dict(other.state_dict())
    torch.testing.assert_close(read_with(fresh, x), changed)


@pytest.mark.parametrize("make", [ALiBi, T5RelativeBias])
def test_biases_over_every_support(make: type[ALiBi] | type[T5RelativeBias]) -> None:
    bias, length = make(2).double(), 9
    x = torch.randn(length, 2, 4, dtype=torch.float64)
    near = (torch.arange(length) - torch.arange(length)[:, None]).abs() <= 2
    target, source = near.nonzero().T
    supports = (
        Dense(near),
        Window(2),
        Edges.from_edge_index(torch.stack([source, target]), size=length),
    )
    dense, window, edges = (
        attend(
            x, x, x, score=ScaledDot(), support=support, bias=bias.of(support, length, length)
        ).output
        for support in supports
    )
    torch.testing.assert_close(window, dense)
    torch.testing.assert_close(edges, dense)


# Conventions of other libraries


@pytest.mark.parametrize("size", [2, 6, 7])
def test_tensor2tensors_numbers(size: int) -> None:
    """As get_timing_signal_1d computes them; fairseq's are the same in its own words."""
    timescales = size // 2
    increment = math.log(1e4) / max(timescales - 1, 1)
    inverse = torch.exp(torch.arange(timescales) * -increment)
    scaled = torch.arange(50.0)[:, None] * inverse
    signal = torch.cat([scaled.sin(), scaled.cos(), torch.zeros(50, size % 2)], 1)
    code = SinusoidalPositions(size, layout="blocked", reach_base=True)(torch.zeros(50, size))
    torch.testing.assert_close(code, signal, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("reach_base", "longest"), [(False, 1e4 ** (3 / 4)), (True, 1e4)])
def test_wavelengths(reach_base: bool, longest: float) -> None:
    """The fastest wave has the length 2π; the slowest is the longest times as long."""
    positions = SinusoidalPositions(8, reach_base=reach_base)
    code = positions.encode(torch.tensor([math.pi, longest * math.pi], dtype=torch.float64))
    torch.testing.assert_close(code[0, 1], torch.tensor(-1.0).double())  # cos(π), half a wave
    torch.testing.assert_close(code[1, 7], torch.tensor(-1.0).double())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_odd_size_ends_in_a_channel_of_zeros(layout: str) -> None:
    steps = torch.arange(9)
    odd, even = (SinusoidalPositions(size, layout=layout).encode(steps) for size in (7, 6))
    assert torch.equal(odd, torch.nn.functional.pad(even, (0, 1)))


# Positions of each sequence's own

STEPS = torch.tensor([[3, 4, 5], [-1, 0, 1]])
CLASSES = {
    "sinusoidal": lambda: SinusoidalPositions(4),
    "sinusoidal, joined": lambda: SinusoidalPositions(4, merge="concat"),
    "learned": lambda: LearnedPositions(9, 4),
    "rotary": lambda: RotaryPositions(4),
}


@pytest.mark.parametrize("name", CLASSES)
def test_each_sequence_has_its_positions(name: str) -> None:
    positions = CLASSES[name]().double()
    x = randn(2, 3, 5, 4) if name == "rotary" else randn(2, 3, 4)
    found = positions(x, positions=STEPS)
    torch.testing.assert_close(positions(x, offset=torch.tensor([3, -1])), found)
    torch.testing.assert_close(found[0], positions(x[0], offset=3))
    torch.testing.assert_close(found[1, 1:], positions(x[1, 1:], offset=0))
    torch.testing.assert_close(positions(x, positions=STEPS[0])[1], positions(x[1], offset=3))
    if name == "learned":
        assert torch.equal(found[1, 0], x[1, 0])  # there is nothing for padding on the left


def test_queries_and_keys_turn_by_the_positions_of_their_sequence() -> None:
    rotary, query, key = RotaryPositions(4), randn(2, 2, 1, 4), randn(2, 3, 1, 4)
    turned = rotary.both(query, key, offset=torch.tensor([3, -1]))
    assert torch.equal(turned[0], rotary(query, positions=STEPS[:, 1:]))
    assert torch.equal(turned[1], rotary(key, positions=STEPS))


@pytest.mark.parametrize("bias", [ALiBi(2), T5RelativeBias(2, num_buckets=8)])
def test_relative_biases_of_each_sequence(bias: RelativeBias) -> None:
    found = bias.between(STEPS[:, 1:], STEPS)
    assert found.shape == (2, 2, 2, 3)
    for b in range(2):
        torch.testing.assert_close(found[b], bias.of(Dense(), 2, 3))  # as far apart as without


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("sinusoidal", {"positions": torch.zeros(2, 4)}, ValueError, r"positions has shape \[2, 4"),
        ("sinusoidal", {"positions": STEPS, "offset": 1}, ValueError, "offset is 1, but positions"),
        ("learned", {"offset": torch.zeros(3).long()}, ValueError, r"offset has shape \[3\]"),
        ("learned", {"offset": torch.zeros(2)}, ValueError, "dtype torch.float32; expected integ"),
        ("learned", {"positions": STEPS + 4}, ValueError, "positions has the entry 9; positions w"),
        ("learned", {"positions": STEPS.float()}, TypeError, r"positions has dtype.*\.long\(\)"),
    ],
)
def test_positions_of_sequences_are_refused(
    name: str, given: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CLASSES[name]()(torch.zeros(2, 3, 4), **given)
