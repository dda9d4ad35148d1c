"""A projection that a user replaced is called as it is, in every layer that has some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_attn import MultiHead, MultiHeadAttention, TransformerDecoder, TransformerEncoder
from sequence_attn.seq2seq import Transformer

MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "MultiHead": (lambda: MultiHead(2, 4, input_size=8), lambda: (torch.randn(2, 5, 8),)),
    "MultiHeadAttention": (
        lambda: MultiHeadAttention(8, 2, batch_first=True),
        lambda: (torch.randn(2, 5, 8),) * 3,
    ),
    "TransformerEncoder": (
        lambda: TransformerEncoder(2, 8, 2, dropout=0.0),
        lambda: (torch.randn(2, 5, 8),),
    ),
    "TransformerDecoder": (
        lambda: TransformerDecoder(1, 8, 2, dropout=0.0),
        lambda: (torch.randn(2, 5, 8), torch.randn(2, 3, 8)),
    ),
    "Transformer": (
        lambda: Transformer(9, 9, size=8, heads=2, layers=1),
        lambda: (torch.ones(2, 5).long(), torch.ones(2, 4).long()),
    ),
}


def replaced(module: nn.Module, by: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """The module with another in the place of each linear map."""
    for name, child in module.named_children():
        setattr(module, name, by(child) if isinstance(child, nn.Linear) else replaced(child, by))
    return module


def quantised(linear: nn.Linear) -> nn.Module:
    """The same map in 8 bits, whose `weight` is a method."""
    plain = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
    plain.load_state_dict(linear.state_dict())
    plain.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return torch.ao.nn.quantized.dynamic.Linear.from_float(plain)


def output(module: nn.Module, given: Any) -> Tensor:
    found = module(*given)
    return found if isinstance(found, Tensor) else found[0]


@pytest.mark.parametrize("name", MODULES)
def test_a_map_that_was_replaced_is_called_as_it_is(name: str) -> None:
    make, inputs = MODULES[name]
    module, given = make().eval(), inputs()
    expected = output(module, given)
    torch.testing.assert_close(output(replaced(module, nn.Sequential), given), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MODULES)
def test_dynamically_quantised_maps_come_near(name: str) -> None:
    make, inputs = MODULES[name]
    module, given = make().eval(), inputs()
    expected = output(module, given)
    found = output(replaced(module, quantised), given)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.2)
