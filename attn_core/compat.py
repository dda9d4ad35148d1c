"""What older releases of torch lack, each with the release that makes it unnecessary."""

from __future__ import annotations

import functools
import typing
from typing import Any, TypeVar

import torch

T = TypeVar("T")

#: The oldest and the newest series that `make test-versions` runs.
TESTED = {"torch": ("2.6", "2.15"), "torch_geometric": ("2.6", "2.8")}


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


# torch 2.7: a schema is inferred from builtin generics, such as list[bool], as well.
def custom_op(name: str, function: Any = None, **options: Any) -> Any:
    """`torch.library.custom_op`, whose annotations may be written in today's way."""
    if function is None:
        return functools.partial(custom_op, name, **options)
    hints = typing.get_type_hints(function)
    function.__annotations__ = {name: _spelled_out(hint) for name, hint in hints.items()}
    return torch.library.custom_op(name, function, **options)


def _spelled_out(hint: Any) -> Any:
    if typing.get_origin(hint) is list:
        return typing.List[typing.get_args(hint)[0]]  # type: ignore[misc]  # noqa: UP006
    return hint
