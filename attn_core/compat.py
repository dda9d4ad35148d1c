"""What older releases of torch and Python lack, each with the release that makes it unnecessary."""

from __future__ import annotations

import abc
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

#: The oldest and the newest series that `make test-versions` runs.
TESTED = {"torch": ("2.6", "2.15"), "torch_geometric": ("2.6", "2.8")}

#: The release of torch that is at work.
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

_T = TypeVar("_T")


# Python 3.11: a class of an abstract base may be given a keyword called `name`.
if sys.version_info >= (3, 11):
    ABCMeta = abc.ABCMeta
else:

    class ABCMeta(abc.ABCMeta):
        def __new__(mcls, name: str, bases: Any, body: Any, /, **kwargs: Any) -> Any:
            made = type.__new__(mcls, name, bases, body, **kwargs)
            abc._abc_init(made)  # type: ignore[attr-defined]
            return made


# torch 2.8: Dynamo follows what is done to an instance's __dict__; here and in the next.
def fields_of(instance: Any) -> dict[str, Any]:
    """What a dataclass holds, by name; not to be written to."""
    if TORCH < (2, 8) and torch.compiler.is_compiling():
        return {name: getattr(instance, name) for name in instance.__match_args__}
    return vars(instance)


def replaced(instance: _T, changes: dict[str, Any]) -> _T:
    """A frozen dataclass with some other fields, all of them checked already."""
    if TORCH < (2, 8) and torch.compiler.is_compiling():
        return type(instance)(**{**fields_of(instance), **changes})
    other = object.__new__(type(instance))
    other.__dict__.update(instance.__dict__, **changes)
    return other


# torch 2.8: Dynamo traces the _replace of a NamedTuple.
def renewed(instance: _T, **changes: Any) -> _T:
    """A NamedTuple with some other fields."""
    if TORCH < (2, 8) and torch.compiler.is_compiling():
        kind: Any = type(instance)
        return kind(*[changes.get(name, getattr(instance, name)) for name in kind._fields])
    replace: Callable[..., _T] = instance._replace  # type: ignore[attr-defined]
    return replace(**changes)


# torch 2.7: torch.compiler.is_exporting. Before, all that is compiled is taken for an export.
is_exporting: Callable[[], bool] = getattr(
    torch.compiler, "is_exporting", torch.compiler.is_compiling
)


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether somebody watches the calls of a module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_untouched(module: torch.nn.Module, kind: type) -> bool:
    """Whether a module is of this very class, and nobody replaced or watches its calls."""
    return type(module) is kind and "forward" not in module.__dict__ and not has_hooks(module)


# After torch 2.6: torch.nn.modules.module._has_any_global_hook.
def any_global_hook() -> bool:
    """Whether there are hooks that act on all modules."""
    module = torch.nn.modules.module
    return bool(
        module._global_forward_hooks
        or module._global_forward_pre_hooks
        or module._global_backward_hooks
        or module._global_backward_pre_hooks
    )


# torch 2.8: Dynamo traces get_dynamic_layer_stack_depth.
@torch.compiler.assume_constant_result
def transform_depth() -> int:
    """How many transforms of torch.func are at work around this call."""
    return torch._C._functorch.get_dynamic_layer_stack_depth()


# torch 2.13: `tolist` reads what torch.func has wrapped. (2.8 does not; between them untried.)
def listed(numbers: Tensor) -> list[int]:
    """The whole numbers of a short vector."""
    if TORCH < (2, 13) and transform_depth() > 0:
        return [int(number) for number in numbers]
    return numbers.tolist()


# torch 2.9: an op may say that torch.compile must leave it out of its CUDA graphs. Those that look
# edges up must: a graph would copy every edge_index into one buffer, and replay the first one's.
LOOKS_EDGES_UP: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
)
