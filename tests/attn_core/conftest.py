"""Where kernels are tested: those in C++ with each instruction set; those in Triton interpreted on
the CPU, and on a GPU where there is one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from attn_core import compiled, gpu


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the kernels run: all that is attended to in the test goes through them."""
    pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")
    if request.param == "cuda":
        yield "cuda"
    elif os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles here, so it cannot interpret")
    else:
        with gpu.on_cpu():
            yield "cpu"


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernels of the instruction set that the test is parametrised with."""
    before = compiled.module.instruction_set()
    if not compiled.module.choose_instruction_set(request.param):
        pytest.skip(f"this machine has no {request.param}")
    yield
    compiled.module.choose_instruction_set(before)


_NOT_LAUNCHED = {"empty", "empty_like", "new_empty", "detach", "promote_types"}


class Operators(TorchDispatchMode):
    """Counts what torch launches: each operator but views, and those that only take memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        nothing = func.is_view or name in _NOT_LAUNCHED
        if not nothing and func.namespace != "attn_core":  # whose bodies are looked into
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Counted:
    """Stands for a Triton kernel whose launches are counted."""

    def __init__(self, kernel: Any, found: Counter[str]) -> None:
        self.kernel, self.found = kernel, found
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*arguments: Any, **named: Any) -> None:
            self.found[self.kernel.__name__] += 1
            with _disable_current_modes():  # the interpreter makes use of torch
                self.kernel[grid](*arguments, **named)

        return launch


@pytest.fixture
def launches(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], AbstractContextManager[Counter[str]]]:
    """A context that counts operators of torch and launches of Triton kernels, by name.

    Operators inside our ops are counted as well, for these are called as plain functions.
    """
    from attn_core.backends.triton import plan, run, scores, segments

    operators = Operators()
    of_kernels = type(run.attend_rows)
    for module in (plan, run, segments, scores):
        for name, found in list(vars(module).items()):
            if isinstance(found, of_kernels) and not found.fn.__module__.endswith("pieces"):
                monkeypatch.setattr(module, name, Counted(found, operators.found))

    @contextmanager
    def counted() -> Iterator[Counter[str]]:
        operators.found.clear()
        with operators:
            yield operators.found

    return counted
