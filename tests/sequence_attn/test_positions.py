"""Sinusoidal positions."""

import math

import pytest
import torch

from sequence_attn import SinusoidalPositions


def test_the_formula_worked_out_by_hand() -> None:
    code = SinusoidalPositions(4).encode(torch.tensor(3))
    angles = 3.0, 3.0 / 10_000**0.5
    expected = [f(angle) for angle in angles for f in (math.sin, math.cos)]
    torch.testing.assert_close(code, torch.tensor(expected))


def test_blocked_is_a_permutation_of_interleaved() -> None:
    steps = torch.arange(50)
    interleaved = SinusoidalPositions(8).encode(steps)
    blocked = SinusoidalPositions(8, layout="blocked").encode(steps)
    assert torch.equal(blocked, torch.cat([interleaved[:, 0::2], interleaved[:, 1::2]], -1))


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
        ((5,), "size is 5.*even"),
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
