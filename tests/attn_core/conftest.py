"""Where Triton kernels are tested: interpreted on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from attn_core import gpu


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the kernels run: all that is attended to in the test goes through them."""
    pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")
    if request.param == "cuda":
        yield "cuda"
    elif os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles here, so it cannot interpret")
    else:
        with gpu.on_cpu():
            yield "cpu"
