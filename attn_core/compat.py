"""What older releases of torch and Python lack, each with the release that makes it unnecessary."""

from __future__ import annotations

import abc
import sys
from typing import Any, TypeVar

import torch

T = TypeVar("T")

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


# torch 2.9: Dynamo traces torch.amp.is_autocast_available.
@torch.compiler.assume_constant_result
def is_autocast_available(device: str) -> bool:
    """Whether autocast exists on devices of this type; not on "meta", for example."""
    return torch.amp.is_autocast_available(device)


# torch 2.8: Dynamo traces it.
@torch.compiler.assume_constant_result
def transform_depth() -> int:
    """How many transforms of torch.func are at work around this call."""
    return torch._C._functorch.get_dynamic_layer_stack_depth()


# torch 2.7: Dynamo traces `dataclasses.replace` under Python 3.10, too.
def replace(instance: T, **changes: Any) -> T:
    """`dataclasses.replace`, for a class without fields that are kept out of its constructor."""
    names = instance.__match_args__  # type: ignore[attr-defined]
    given = {name: getattr(instance, name) for name in names}
    return type(instance)(**{**given, **changes})
