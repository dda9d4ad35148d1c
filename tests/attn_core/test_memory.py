"""Large memory is used again: never while somebody holds it, and no more is kept than is said."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import attn_core
import gat
from attn_core import compiled

pytestmark = pytest.mark.skipif(compiled.module is None, reason="needs the compiled module")
MANY, MOST = 2**20, 256 * 2**20  # numbers of a large tensor; bytes that are kept at most


def kept() -> int:
    """The bytes that were kept, of which now none are."""
    found: int = compiled.module.let_go()
    return found


def room(numbers: int) -> Tensor:
    return compiled.empty(torch.empty(0), numbers)


needs_pages = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, nothing is kept")


@needs_pages
def test_memory_that_was_given_back_is_used_again() -> None:
    kept()
    first = room(3 * MANY).fill_(1)
    at = first.data_ptr()
    second = room(3 * MANY)
    assert second.data_ptr() != at  # which is in use
    del first
    assert room(3 * MANY - 1000).data_ptr() == at
    assert room(MANY).data_ptr() != at  # too small for so much memory
    del second
    assert kept() >= 2 * 3 * MANY * 4
    assert kept() == 0


@pytest.mark.parametrize("like", [torch.empty(0), torch.empty(0, dtype=torch.bfloat16)])
@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (MANY, 1), (2, MANY, 3)])
def test_it_looks_like_any_tensor(like: Tensor, shape: tuple[int, ...]) -> None:
    found = compiled.empty(like, *shape)
    assert found.shape == shape
    assert found.dtype == like.dtype
    assert found.is_contiguous() and not found.requires_grad
    assert found.fill_(2).sum() == 2 * found.numel()
    assert compiled.empty_like(found).shape == shape


@needs_pages
def test_no_more_is_kept_than_is_said() -> None:
    kept()
    held = [room(8 * MANY) for _ in range(12)]  # 32 MiB each
    del held
    assert MOST - 40 * 2**20 < kept() <= MOST


@needs_pages
def test_clearing_the_cache_lets_go() -> None:
    room(MANY)
    attn_core.clear_cache()
    assert kept() == 0


def test_no_two_threads_get_the_same() -> None:
    wrong: list[int] = []

    def work(mine: int) -> None:
        for _ in range(30):
            held = [room(MANY + 4096 * i).fill_(mine) for i in range(3)]
            wrong.extend(mine for x in held if not bool((x == mine).all()))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert not wrong


@pytest.mark.parametrize("layer", [gat.GATv2Conv, gat.TransformerConv])
def test_a_gradient_that_is_kept_stays_what_it_is(layer: type) -> None:
    generator = torch.Generator().manual_seed(0)
    num = 20_000
    edge_index = torch.randint(num, (2, num), generator=generator)
    x = torch.randn(num, 64, generator=generator).requires_grad_()
    conv = layer(64, 16, heads=4)

    def gradients(scale: float) -> tuple[Tensor, ...]:
        out = conv(x, edge_index)
        return torch.autograd.grad(out, [x, *conv.parameters()], torch.full_like(out, scale))

    first = gradients(1.0)
    copies = [one.clone() for one in first]
    for scale in (2.0, 3.0):
        gradients(scale)
    for one, copy in zip(first, copies, strict=True):
        assert one.equal(copy)


def test_what_is_left_at_the_end_of_the_program_does_no_harm() -> None:
    code = (
        "import torch\nfrom attn_core import compiled\n"
        "left = compiled.empty(torch.empty(0), 2**21).fill_(1)\n"
        "class Last:\n    def __del__(self, held=left): held.fill_(2)\n"
        "last = Last()\nprint('done')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
