"""Where the Triton kernels run: on CUDA devices, and on the CPU where Triton interprets them.

On a device where Triton cannot work, plain torch serves: as it runs, Triton needs a C compiler,
which many images with torch for CUDA lack, and a GPU that it knows. One tiny kernel is tried on
each device before any other.
"""

from __future__ import annotations

import importlib.util
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from attn_core import compiled

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
installed = importlib.util.find_spec("triton") is not None
_devices: tuple[str, ...] = ("cuda",)
_failures: dict[tuple[str, int | None], str | None] = {}  # of each device, once it was tried
_lock = threading.Lock()


def is_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU, which must not wait for a look at its numbers."""
    return device.type in _devices


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels may run on these tensors."""
    for x in tensors:
        if x.device.type not in _devices or x.dtype not in DTYPES:
            return False
    device = tensors[0].device
    return installed and compiled.is_wanted() and failure(device.type, device.index) is None


@torch.compiler.assume_constant_result
def failure(kind: str, index: int | None) -> str | None:
    """Why Triton runs no kernel on a device; None where it does. The first time, it is tried."""
    device = kind, index
    with _lock:
        if device not in _failures:
            # In another thread: in this one, torch.compile may be in the midst of a trace
            with ThreadPoolExecutor(1) as apart:
                _failures[device] = reason = apart.submit(_tried, *device).result()
            if reason is not None:
                warnings.warn(
                    f"Triton cannot run on {kind}{'' if index is None else f':{index}'} "
                    f"({reason}): attention runs in plain torch there, which takes longer and more "
                    "memory; mend what Triton lacks and start anew, or say that plain torch is "
                    "right with the environment variable GAT_KERNELS=0",
                    stacklevel=2,
                )
        return _failures[device]


def _tried(kind: str, index: int | None) -> str | None:
    try:
        from attn_core.probe import launch  # which imports Triton

        launch(torch.device(kind) if index is None else torch.device(kind, index))
    except Exception as error:  # of which kind, depends on what is missing
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def on_cpu() -> Iterator[None]:
    """Inside, the kernels serve CPU tensors as well, interpreted: slow, and for tests alone.

    `TRITON_INTERPRET=1` must be set before anything imports Triton, as torch.compile does.
    """
    global _devices
    before, _devices = _devices, ("cuda", "cpu")
    try:
        yield
    finally:
        _devices = before
