"""NATTEN's neighbourhood attention, in the environment where NATTEN is: this library need not be.

On CPUs it has no fused kernel: one pass makes the logits, torch their softmax, another the output.

An environment for it has NATTEN 0.17.5 from its source, with `CXXFLAGS="-O3 -march=native"`: by
itself the build asks for no optimisation. With torch 2.13 and without a GPU two things must be
changed before it can be imported: `torch.cuda._device_t` is gone (any type does), and
`natten/utils/testing.py` asks for a device's capability.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks._worker import Contender, of_attention


def attention(inputs: str, size: int, kernel: int) -> Contender:
    """Over a square image, of queries, keys and values that `benchmarks.sequence` wrote."""
    natten: Any = __import__("natten.functional")

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # each [1, H, height, width, D]
        logits = natten.functional.na2d_qk(query * query.shape[-1] ** -0.5, key, kernel)
        output: Tensor = natten.functional.na2d_av(logits.softmax(-1), value, kernel)
        return output

    def laid(x: Tensor) -> Tensor:
        return x.view(1, size, size, *x.shape[1:]).permute(0, 3, 1, 2, 4)

    contender = of_attention(call, inputs, laid, lambda x: x[0].flatten(1, 2).transpose(0, 1))
    contender.facts = {"NATTEN": natten.__version__, "torch": torch.__version__}
    return contender
