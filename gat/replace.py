"""Our layers and models in the place of torch_geometric's, where these are there already."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch_geometric.nn
import torch_geometric.nn.dense.linear
from torch import nn
from torch_geometric.nn.conv import MessagePassing

from gat.conv import AGNNConv, GATConv, GATv2Conv, TransformerConv
from gat.conv.base import AttentionConv
from gat.conv.projecting import check_fill_value
from gat.models import GAT
from gat.sparse import Dropout, Linear

_OURS: dict[type[MessagePassing], type[AttentionConv]] = {
    torch_geometric.nn.GATConv: GATConv,
    torch_geometric.nn.GATv2Conv: GATv2Conv,
    torch_geometric.nn.TransformerConv: TransformerConv,
    torch_geometric.nn.AGNNConv: AGNNConv,
}
# These attend as well, but are no MessagePassing
_DENSE = (torch_geometric.nn.DenseGATConv,)
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

    GATConv, GATv2Conv, TransformerConv, AGNNConv and the model GAT are replaced (which returns
    attention weights then); a subclass of them is not, since what it changes would be lost. A layer
    stays the same object and changes its class alone: its parameters and buffers are those that an
    optimiser knows, hooks stay registered, training mode, dtype, device and lazy parameters are as
    they were, and whoever refers to the layer (a list, the model twice) sees the new one. So a
    model that is such a layer itself can be replaced too.

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
        elif isinstance(module, torch_geometric.nn.GAT):
            if type(module) is not torch_geometric.nn.GAT:
                report.left[name] = f"{type(module).__name__}: {_SUBCLASS.format('GAT')}"
            elif "forward" in module.__dict__:
                report.left[name] = f"{type(module).__name__}: {_STEP.format('forward')}"
            else:
                report.replaced[name] = GAT.__name__
                module.__class__ = GAT
                module.extend()
        elif dropout and type(module) is nn.Dropout and "forward" not in module.__dict__:
            report.replaced[name] = Dropout.__name__
            module.__class__ = Dropout
        elif isinstance(module, _DENSE):
            report.left[name] = f"{type(module).__name__}: gat has no layer on adjacency matrices"
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
        fresh = ours() if ours is AGNNConv else ours(1, 1)
    decomposed, module._decomposed_layers = module.decomposed_layers, 1
    module.__dict__.pop("propagate", None)
    for name in _OF_CLASS:
        setattr(module, name, getattr(fresh, name))
    if hasattr(module, "fill_value"):
        module.fill_value = check_fill_value(module.fill_value)
    module.__class__ = ours
    module.decomposed_layers = decomposed
    for child in module.children():
        if type(child) is torch_geometric.nn.dense.linear.Linear:
            child.__class__ = Linear
