"""Hypothesis profiles, seed 0 for every test, GPU tests skipped without a GPU, and exports."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
from hypothesis import register_random, settings
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves


class TorchRandom:
    """torch's generator as hypothesis wants it: seeded for every example, so examples replay."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # hypothesis keeps only a weak reference
register_random(TORCH_RANDOM)

# No deadlines: the first call of an operator may compile, and machines are shared.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)


# --- Exports --------------------------------------------------------------------------------------

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class CheckExport(Protocol):
    def __call__(self, module: nn.Module, *inputs: Inputs, **options: Any) -> None: ...


@pytest.fixture
def check_export() -> CheckExport:
    """Exports a module by torch.export, and compares the program with it."""
    return lambda module, *inputs, **options: _check(_exported, module, *inputs, **options)


@pytest.fixture
def check_onnx() -> CheckExport:
    """Exports a module to ONNX, and compares what onnxruntime computes with it."""
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    return lambda module, *inputs, **options: _check(_in_onnxruntime, module, *inputs, **options)


def _check(
    export: Callable[..., Callable[..., Any]], module: nn.Module, *inputs: Inputs, **options: Any
) -> None:
    """Export with the first inputs, in which what differs from the second is free; try them all."""
    (args, given), (other_args, other) = inputs[:2]
    names = list(inspect.signature(module.forward).parameters)[: len(args)]
    shapes = dict(zip(names, map(_dynamic, args, other_args), strict=True))
    shapes |= {name: _dynamic(value, other[name]) for name, value in given.items()}
    run = export(module, args, given, dynamic_shapes=shapes, **options)
    for args, given in inputs:
        expected = _tensors(module(*args, **given))
        torch.testing.assert_close(_tensors(run(*args, **given)), expected, rtol=1e-5, atol=1e-5)


def _dynamic(one: Any, other: Any) -> Any:
    """Of two inputs, the dimensions that differ."""
    if isinstance(one, list):
        return [_dynamic(*both) for both in zip(one, other, strict=True)]
    if not isinstance(one, Tensor):
        return None
    pairs = enumerate(zip(one.shape, other.shape, strict=True))
    return {i: Dim.DYNAMIC for i, (a, b) in pairs if a != b}


def _tensors(found: Any) -> list[Tensor]:
    return [x for x in tree_leaves(found) if isinstance(x, Tensor)]


def _exported(module: nn.Module, args: Any, given: Any, **options: Any) -> Callable[..., Any]:
    return torch.export.export(module, args, given, **options).module()


def _in_onnxruntime(module: nn.Module, args: Any, given: Any, **options: Any) -> Callable[..., Any]:
    import onnxruntime

    program = torch.onnx.export(module, args, kwargs=given, dynamo=True, verbose=False, **options)
    assert program is not None
    model = program.model_proto
    assert {node.domain for node in model.graph.node} == {""}, "an operator that is not standard"
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [each.name for each in session.get_inputs()]

    def run(*args: Any, **given: Any) -> list[Tensor]:
        feeds = dict(zip(names, (x.numpy() for x in _tensors((args, given))), strict=True))
        return [torch.from_numpy(x) for x in session.run(None, feeds)]

    return run
