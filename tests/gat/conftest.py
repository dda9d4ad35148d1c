"""What the tests of the graph layers share."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
import torch
import torch_geometric.nn

from gat import GATConv


class Twins(Protocol):
    def __call__(
        self,
        *args: Any,
        dtype: torch.dtype = torch.float64,
        classes: tuple[type, type] = (GATConv, torch_geometric.nn.GATConv),
        **kwargs: Any,
    ) -> tuple[Any, Any]: ...


@pytest.fixture
def twins() -> Twins:
    """Makes our layer and theirs with the same parameters, of which none is zero."""

    def make(
        *args: Any,
        dtype: torch.dtype = torch.float64,
        classes: tuple[type, type] = (GATConv, torch_geometric.nn.GATConv),
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        ours, theirs = (cls(*args, **kwargs).to(dtype) for cls in classes)
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        return ours, theirs

    return make
