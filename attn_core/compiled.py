"""The one switch between implementations, and the compiled module, if it was built.

The environment variable `GAT_KERNELS=0` leaves compiled kernels out from the start; with
`GAT_REQUIRE_KERNELS=1` the module's absence is an error. `GAT_INSTRUCTION_SET` names the
instruction set that its kernels use (avx512, avx2 or baseline) in place of the best one that the
processor has.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
from typing import Any

import torch  # first: the module borrows the threads of torch's OpenMP
from torch import Tensor
from torch.utils.dlpack import to_dlpack

module: Any = None
reason = ""
wanted = os.environ.get("GAT_KERNELS", "1") != "0"
_chosen = "auto"

try:
    module = importlib.import_module("attn_core._cpu")
except ImportError as error:
    reason = str(error)
    if os.environ.get("GAT_REQUIRE_KERNELS", "0") not in ("", "0"):
        raise ImportError(
            f"GAT_REQUIRE_KERNELS is set, but the compiled kernels cannot be loaded ({error}): "
            "install the package where a C++17 compiler is, or unset the variable"
        ) from error


def _force(name: str) -> None:
    """Let the kernels use this instruction set."""
    if not module.choose_instruction_set(name):
        raise ValueError(
            f"GAT_INSTRUCTION_SET is {name!r}; this processor has "
            f"{', '.join(module.instruction_sets())}: name one of them, or unset the variable"
        )


forced = os.environ.get("GAT_INSTRUCTION_SET", "")
if module is not None and forced:
    _force(forced)


def choose(name: str) -> str:
    """Choose the implementations for the whole process; returns what was chosen before.

    Raises:
        ValueError: a name other than "auto", "torch" and "reference".
    """
    global _chosen
    if name not in ("auto", "torch", "reference"):
        raise ValueError(f"backend is {name!r}; expected 'auto', 'torch' or 'reference'")
    before, _chosen = _chosen, name
    return before


def is_reference() -> bool:
    """Whether nothing but the definition may run."""
    return _chosen == "reference"


def is_wanted() -> bool:
    """Whether compiled kernels of any kind may be used."""
    return wanted and _chosen == "auto"


def is_on() -> bool:
    """Whether the compiled module is there and may be used."""
    return module is not None and wanted and _chosen == "auto"


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the module.

    Tensors go as capsules: for what the module would ask them, Python takes longer than C++ for a
    small graph.
    """
    given = [capsule(x) if isinstance(x, Tensor) else x for x in arguments]
    return getattr(module, name)(*given)


def capsule(x: Tensor) -> Any:
    """A tensor as the module takes it.

    To export a lazy clone is to copy it, lest somebody writes to it. But the module writes to what
    was made for it alone: a large one is lent as it lies. It must outlive the call.
    """
    if x.numel() > _MANY and _address is not None and _is_lazy(x):
        storage = x.untyped_storage()
        memory = (ctypes.c_char * storage.nbytes()).from_address(_address(x))
        lent = torch.frombuffer(memory, dtype=x.dtype)
        x = lent.as_strided(x.shape, x.stride(), x.storage_offset())
    return to_dlpack(x)


def empty(like: Tensor, *shape: int) -> Tensor:
    """A tensor without values, for those who will not resize it.

    To fill fresh memory costs twice as much: a large tensor gets that of one that is gone.
    """
    size = math.prod(shape) * like.element_size()
    if size < _LARGE:
        return like.new_empty(shape)
    found: Tensor = module.room(size)
    return found.view(like.dtype).view(shape)


def empty_like(x: Tensor) -> Tensor:
    """`empty` of the shape of x."""
    return torch.empty_like(x) if x.nbytes < _LARGE else empty(x, *x.shape)


_LARGE = 2**22  # bytes
_MANY = 2**16  # numbers, which take longer to be copied than to be lent
_is_lazy: Any = torch._C._is_cow_tensor  # type: ignore[attr-defined]
# Where the memory is, without the copy of it that data_ptr() makes; not in every torch, perhaps
_address: Any = getattr(torch._C, "_data_address", None)
