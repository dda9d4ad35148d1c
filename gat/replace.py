"""Our layers and models in the place of torch_geometric's, where these are there already."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_geometric.nn
from torch import nn
from torch_geometric.nn.conv import MessagePassing

from gat import conv
from gat.conv.base import AttentionConv
from gat.conv.drop_in import with_sparse_linears
from gat.conv.projecting import check_fill_value
from gat.models import GAT
from gat.sparse import Dropout

_TYPES = ["node"], [("node", "to", "node")]
# Our class, by the name that torch_geometric's has too, with arguments to build it with
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("GATConv", "GATv2Conv", "TransformerConv", "SuperGATConv"), (1, 1)),
    **dict.fromkeys(("GeneralConv", "HypergraphConv"), (1, 1)),
    **dict.fromkeys(("HGTConv", "HANConv"), (1, 1, _TYPES)),
    "AGNNConv": (),
    "FAConv": (1,),
    "RGATConv": (1, 1, 1),
}
_OURS: dict[type[MessagePassing], type[AttentionConv]] = {
    getattr(torch_geometric.nn, name): getattr(conv, name) for name in _ARGUMENTS
}
_THEIR_GAT = torch_geometric.nn.GAT  # a user may let the name stand for ours later
# These attend as well, but are no MessagePassing: nothing but their forward differs
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    torch_geometric.nn.DenseGATConv: conv.DenseGATConv,
    torch_geometric.nn.GPSConv: conv.GPSConv,
}
# What torch_geometric reads off a class and keeps in each instance
_OF_CLASS = ("inspector", "fuse", "_user_args", "_fused_user_args", "_edge_user_args")
_STEPS = (
    *("forward", "propagate", "edge_updater", "message", "edge_update", "aggregate", "update"),
    "message_and_aggregate",
)


@dataclass(frozen=True, eq=False)
class Replacement:
    """What `replace` did; print it.

    Attributes:
        model: the model, the very object that was given.
        replaced: the class of each layer or model that is ours now, by its name in the model.
        left: why each other one that passes messages, or attends, is what it was, by name.
    """

    model: nn.Module
    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        def listed(verb: str, modules: dict[str, str]) -> Iterable[str]:
            yield f"{verb} {len(modules)} module{'' if len(modules) == 1 else 's'}"
            for name, about in modules.items():
                yield f"  {name or '(the model itself)'}: {about}"

        return "\n".join([*listed("replaced", self.replaced), *listed("left", self.left)])


def replace(model: nn.Module, dropout: bool = False) -> Replacement:
    """Turn torch_geometric's attention layers inside a model into ours, in place.

    All layers that `gat` has too, and the model GAT, are replaced (which returns attention weights
    then); HypergraphConv and GeneralConv where they were built with attention. A subclass of them
    is not, since what it changes would be lost. A layer stays the same object and changes its class
    alone: its parameters and buffers are those that an optimiser knows, hooks stay registered,
    training mode, dtype, device and lazy parameters are as they were, and whoever refers to the
    layer (a list, the model twice) sees the new one. So a model that is such a layer itself can be
    replaced too.

    Args:
        model: any module.
        dropout: turn `torch.nn.Dropout` into `gat.Dropout` too, which draws other numbers, and on
            CPUs several times as fast. Default False.

    Returns:
        A Replacement, which tells what was replaced, and what was left and why.

    Raises:
        TypeError: model is no module.

    >>> import torch_geometric.nn
    >>> model = torch_geometric.nn.GAT(4, 8, num_layers=2, out_channels=3)
    >>> print(replace(model))
    replaced 3 modules
      (the model itself): GAT
      convs.0: GATConv
      convs.1: GATConv
    left 0 modules
    >>> model.convs[0].__module__
    'gat.conv.gat_conv'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    report = Replacement(model)
    for name, module in model.named_modules():
        scripted = getattr(module, "original_name", "")  # which compiled code keeps
        if isinstance(module, torch.jit.ScriptModule) and scripted in _NAMES:
            report.left[name] = f"{scripted}: compiled by TorchScript"
        elif isinstance(module, _THEIR_GAT):
            if type(module) is not _THEIR_GAT:
                report.left[name] = f"{type(module).__name__}: {_SUBCLASS.format('GAT')}"
            elif "forward" in module.__dict__:
                report.left[name] = f"{type(module).__name__}: {_STEP.format('forward')}"
            else:
                report.replaced[name] = GAT.__name__
                module.__class__ = GAT
                module.extend()
        elif plain := next((cls for cls in _PLAIN if isinstance(module, cls)), None):
            obstacle = _obstacle_of_plain(module, plain)
            if obstacle is None:
                report.replaced[name] = type(module).__name__
                module.__class__ = _PLAIN[plain]
                if _PLAIN[plain] is conv.DenseGATConv:
                    with_sparse_linears(module)
            else:
                report.left[name] = f"{type(module).__name__}: {obstacle}"
        elif dropout and type(module) is nn.Dropout and "forward" not in module.__dict__:
            report.replaced[name] = Dropout.__name__
            module.__class__ = Dropout
        elif isinstance(module, MessagePassing):
            obstacle = _obstacle(module)
            if obstacle is None:
                report.replaced[name] = type(module).__name__
                _convert(module, _OURS[type(module)])
            else:
                report.left[name] = f"{type(module).__name__}: {obstacle}"
    return report


_NAMES = {theirs.__name__ for theirs in _OURS}
_SUBCLASS = "a subclass of {}, whose changes would be lost"
_STEP = "its {} was replaced on this very module"


def _obstacle_of_plain(module: nn.Module, theirs: type[nn.Module]) -> str | None:
    """The same of a layer that passes no messages."""
    if type(module) is _PLAIN[theirs]:
        return "is gat's already"
    if type(module) is not theirs:
        return _SUBCLASS.format(theirs.__name__)
    return _STEP.format("forward") if "forward" in module.__dict__ else None


def _obstacle(module: MessagePassing) -> str | None:
    """Why this layer must stay as it is, if it must."""
    if isinstance(module, AttentionConv):
        return "is gat's already"
    theirs = type(module)
    if theirs not in _OURS:
        parent = next((cls.__name__ for cls in theirs.__mro__ if cls in _OURS), None)
        if parent is None:
            return "gat has no such layer"
        return _SUBCLASS.format(parent)
    if getattr(module, "use_attention", getattr(module, "attention", True)) is False:
        return "built without attention"
    if module.explain:
        return "being explained; set its `explain` to None first"
    for step in _STEPS:
        if step in module.__dict__ and not _is_generated(module, step):
            return _STEP.format(step)
    try:
        check_fill_value(getattr(module, "fill_value", None))
    except ValueError as error:
        return str(error)
    return None


def _is_generated(module: MessagePassing, step: str) -> bool:
    """Whether torch_geometric itself chose this `propagate` (after explaining, or to decompose)."""
    function = getattr(module.__dict__[step], "__func__", None)
    known = (getattr(type(module), f"_{kind}_propagate", None) for kind in ("orig", "jinja"))
    return step == "propagate" and function is not None and function in known


def _convert(module: MessagePassing, ours: type[AttentionConv]) -> None:
    with torch.device("meta"):  # where nothing is drawn, so that random numbers stay as they come
        fresh = ours(*_ARGUMENTS[ours.__name__])
    decomposed, module._decomposed_layers = module.decomposed_layers, 1
    module.__dict__.pop("propagate", None)
    for name in _OF_CLASS:
        setattr(module, name, getattr(fresh, name))
    if hasattr(module, "fill_value"):
        module.fill_value = check_fill_value(module.fill_value)
    module.__class__ = ours
    module.decomposed_layers = decomposed
    with_sparse_linears(module)
