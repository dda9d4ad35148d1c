"""What older releases of torch and Python lack, each with the release that makes it unnecessary."""

from __future__ import annotations

import abc
import sys
from typing import Any

import torch

#: The oldest and the newest series that `make test-versions` runs.
TESTED = {"torch": ("2.6", "2.15"), "torch_geometric": ("2.6", "2.8")}


# Python 3.11: a class of an abstract base may be given a keyword called `name`.
if sys.version_info >= (3, 11):
    ABCMeta = abc.ABCMeta
else:

    class ABCMeta(abc.ABCMeta):
        def __new__(mcls, name: str, bases: Any, body: Any, /, **kwargs: Any) -> Any:
            made = type.__new__(mcls, name, bases, body, **kwargs)
            abc._abc_init(made)  # type: ignore[attr-defined]
            return made


# torch 2.8: Dynamo traces get_dynamic_layer_stack_depth.
@torch.compiler.assume_constant_result
def transform_depth() -> int:
    """How many transforms of torch.func are at work around this call."""
    return torch._C._functorch.get_dynamic_layer_stack_depth()


# torch 2.9: an op may say that torch.compile must leave it out of its CUDA graphs. Those that look
# edges up must: a graph would copy every edge_index into one buffer, and replay the first one's.
LOOKS_EDGES_UP: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
)
