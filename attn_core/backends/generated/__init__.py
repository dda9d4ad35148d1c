"""Score functions over edges as code that is generated, compiled once and kept.

`trace` makes FX graphs of a score and of its derivatives, `emit` and `source` C++ of these, `build`
a library; here, a problem's tensors are handed to it. For GPUs `tiles` makes Triton functions,
which the kernels of `attn_core.backends.triton` call. What cannot be compiled, `blocks` computes,
after one warning that says why.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from attn_core import compiled
from attn_core.backends import triton
from attn_core.backends.cpu import _order, _plain
from attn_core.backends.generated.build import load
from attn_core.backends.generated.source import source
from attn_core.backends.generated.tiles import Function, function
from attn_core.backends.generated.trace import Sizes, Traced, Unsupported, trace
from attn_core.backends.problem import Problem
from attn_core.dropout import start_of
from attn_core.score_functions import FUNCTION, known

_DTYPES = torch.float32, torch.float64
_MOST_PAIRS = 2**32 - 1
_MOST_KERNELS = 32  # of one class and head count, after which another constant is not compiled
_POINTER = ctypes.c_void_p
_lock = threading.Lock()
_Key = tuple[str, Sizes, torch.dtype, Any]  # a score's name, and what makes something of it
_kernels: dict[_Key, Any] = {}  # what was made; or why nothing was


class _Order(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("pointer", "other", "place")),
        *((name, ctypes.c_int64) for name in ("num", "wide")),
    ]


_TENSORS = "query", "key", "value", "bias", "pair"


class _Call(ctypes.Structure):
    """The struct Call of tasks.hpp."""

    _fields_ = [
        *((name, _POINTER) for name in (*_TENSORS, "par")),
        *((f"{name}_step", ctypes.c_int64) for name in _TENSORS),
        ("by_query", _Order),
        ("by_key", _Order),
        ("pair_id", _POINTER),
        *((name, ctypes.c_int64) for name in ("places", "threads", "drops")),
        *((name, ctypes.c_uint32) for name in ("seed_state", "threshold", "first_head")),
        ("keep_scale", ctypes.c_double),
        *((name, _POINTER) for name in ("output", "log_sum_exp", "maximum", "total")),
        *((name, _POINTER) for name in ("grad_output", "grad_log_sum_exp")),
        *(
            (f"{name}_step", ctypes.c_int64)
            for name in ("output", "numbers", "grad", "grad_numbers")
        ),
        *((f"grad_{name}", _POINTER) for name in (*_TENSORS, "par")),
        *((f"grad_{name}_step", ctypes.c_int64) for name in _TENSORS),
    ]


def serves(problem: Problem) -> bool:
    """Whether a kernel computes this call; makes it, if it is not there yet."""
    edges = problem.edges
    if not (
        compiled.is_wanted()
        and problem.kind.startswith(FUNCTION)
        and problem.dtype in _DTYPES
        and all(x is None or x.numel() > 0 for x in (problem.query, problem.key, problem.value))
    ):
        return False
    if triton.serves(problem.key, problem.value):
        return function_of(problem) is not None
    return (
        problem.key.device.type == "cpu"
        and max(edges.num_keys, edges.num_queries) < 2**31 - 1
        and edges.num_edges < _MOST_PAIRS
        and _library(problem) is not None
    )


def _sizes(p: Problem) -> Sizes:
    assert p.query is not None
    pair, score = p.pair_key, known(p.kind)
    shared = pair is not None and pair.shape[1] != p.heads
    return Sizes(
        score.heads,
        p.query.shape[-1],
        p.key.shape[-1],
        p.value.shape[-1],
        0 if pair is None else pair.shape[-1],
        0 if pair is None else 1 if shared else score.heads,
        score.shapes,
    )


def function_of(p: Problem) -> Function | None:
    """The Triton of a problem's score; None where there is none."""
    found: Function | None = _made_once(_key_of_function(p))
    return found


def refuse(p: Problem, error: Exception) -> None:
    """From now on there is no Triton of this problem's score: its launch ended in this error."""
    key = _key_of_function(p)
    with _lock:
        _kernels[key] = f"is refused by Triton ({type(error).__name__}: {error})"
        _tell(key)


def _key_of_function(p: Problem) -> _Key:
    # Of which values are no part; and where a vector of a pair is one for all heads, strides say it
    return p.kind, _sizes(p)._replace(value=0, pair_heads=0), p.dtype, function


def _library(p: Problem) -> ctypes.CDLL | None:
    """The library of a problem's score; None where it cannot be compiled."""
    found: ctypes.CDLL | None = _made_once((p.kind, _sizes(p), p.dtype, _compiled))
    return found


def _made_once(key: _Key) -> Any:
    """What is made of a score, once; None where it cannot be, after a warning that says why."""
    with _lock:
        if key not in _kernels:
            # Another thread traces, since this one may be in the midst of an op
            with ThreadPoolExecutor(1) as apart:
                _kernels[key] = apart.submit(_made, *key).result()
            if isinstance(_kernels[key], str):
                _tell(key)
        found = _kernels[key]
        return None if isinstance(found, str) else found


def _tell(key: _Key) -> None:
    """Warn of a score of which nothing is made, and say why."""
    warnings.warn(
        f"score {known(key[0]).cls.__name__} {_kernels[key]}; over edges it runs in plain torch, "
        "block by block",
        stacklevel=3,
    )


def kernels() -> list[str]:
    """The names of the scores that are compiled here."""
    return [name for (name, *_), found in _kernels.items() if not isinstance(found, str)]


def _made(name: str, sizes: Sizes, dtype: torch.dtype, make: Any) -> Any:
    """What is made of a score, or why nothing is."""
    alike = [known(other).cls for other, *_, way in _kernels if way is make]
    if alike.count(known(name).cls) >= _MOST_KERNELS:
        return (
            f"was compiled {_MOST_KERNELS} times for other constants or sizes: make what changes a "
            "tensor"
        )
    try:
        return make(trace(name, sizes, dtype), sizes, dtype)
    except Unsupported as reason:
        return str(reason)
    except Exception as error:  # an op in a form that the rules do not foresee
        return f"cannot be compiled ({error!r})"


def _compiled(traced: Traced, sizes: Sizes, dtype: torch.dtype) -> ctypes.CDLL:
    library = load(source(traced, sizes, dtype))
    for entry in (library.attn_forward, library.attn_backward):
        entry.argtypes, entry.restype = [ctypes.POINTER(_Call)], None
    return library


def forward(problem: Problem) -> tuple[Tensor, ...]:
    """The output `[Nq, H, Dv]`; log-sum-exp, maximum and total `[Nq, H]`."""
    run = _Run(problem, by_key=False)
    shape = problem.edges.num_queries, *problem.value.shape[1:]
    output = torch.empty(shape, dtype=problem.dtype, device="cpu")
    statistics = [output.new_empty(output.shape[:2]) for _ in range(3)]
    run.give(output=output, output_step=output.stride(0))
    run.give(**dict(zip(("log_sum_exp", "maximum", "total"), statistics, strict=True)))
    run.give(numbers_step=output.shape[1])
    run("attn_forward", ("output", "log_sum_exp", "maximum", "total"))
    return output, *statistics


def backward(
    problem: Problem,
    grad_output: Tensor,
    grad_log_sum_exp: Tensor,
    output: Tensor,
    maximum: Tensor,
    total: Tensor,
    needed: list[bool],
) -> list[Tensor | None]:
    """Gradients of query, key, value, vector, bias, pair_key and pair_value, where needed."""
    run, dtype = _Run(problem, by_key=True), problem.dtype
    rows, pairs = problem.num_rows, problem.edges.num_edges
    made: list[Tensor | None] = []
    for i, (need, x) in enumerate(zip(needed, problem.tensors, strict=True)):
        if not need or x is None:
            made.append(None)
        else:  # zeros for rows of self-loops that were replaced, and to be added to
            fresh = torch.empty if i < 3 or (i > 3 and rows == pairs) else torch.zeros
            made.append(fresh(x.shape, dtype=dtype, device="cpu"))
    names = "query", "key", "value", "par", "bias", "pair"
    for name, grad in zip(names, made, strict=False):
        if grad is not None:
            run.give(**{f"grad_{name}": grad})
            if name != "par":
                run.give(**{f"grad_{name}_step": grad.stride(0)})
    output, grad_output = _plain(output, dtype), _plain(grad_output, dtype)
    numbers = [x.to(dtype).contiguous() for x in (maximum, total, grad_log_sum_exp)]
    run.give(output=output, output_step=output.stride(0), numbers_step=output.shape[1])
    run.give(grad_output=grad_output, grad_step=grad_output.stride(0))
    run.give(maximum=numbers[0], total=numbers[1], grad_log_sum_exp=numbers[2])
    run.give(grad_numbers_step=output.shape[1])
    run(
        "attn_backward",
        (
            *("output", "maximum", "total", "grad_output", "grad_log_sum_exp"),
            *(f"grad_{name}" for name in _TENSORS),
        ),
    )
    return made


class _Run:
    """One call of a kernel: its struct, and the tensors that must live as long."""

    def __init__(self, p: Problem, by_key: bool) -> None:
        self.problem, self.held = p, []  # type: ignore[var-annotated]
        self.call, self.tensors = _Call(), dict[str, Tensor]()
        dtype = p.dtype
        given = (*p.tensors[:3], p.bias, p.pair_key)
        for name, x in zip(_TENSORS, given, strict=True):
            if x is not None:
                laid = _plain(x, dtype)
                self.give(**{name: laid, f"{name}_step": laid.stride(0)})
        if p.vector is not None:
            self.give(par=p.vector.to(dtype).contiguous())
        order, pair_id, places = _order(p)
        self._take(self.call.by_query, order)
        if by_key:
            self._take(self.call.by_key, _order(p, by_key=True)[0])
        if pair_id is not None:
            self.give(pair_id=pair_id.contiguous())
        self.give(places=places, threads=torch.get_num_threads(), drops=int(p.seed is not None))
        if p.seed is not None:
            state, threshold, scale = start_of(int(p.seed), p.dropout)
            self.give(seed_state=state, threshold=threshold, keep_scale=scale)

    def _take(self, to: _Order, order: tuple[Tensor, ...]) -> None:
        pointer, other, place = (x.contiguous() for x in order)
        other = other.int()
        self.held += [pointer, other, place]
        to.pointer, to.other, to.place = (x.data_ptr() for x in (pointer, other, place))
        to.num, to.wide = len(pointer) - 1, int(place.dtype == torch.int64)

    def give(self, **fields: Any) -> None:
        """Set fields of the struct; a tensor's is where it lies."""
        for name, x in fields.items():
            if isinstance(x, Tensor):
                self.tensors[name] = x
                x = x.data_ptr()
            setattr(self.call, name, x)

    def __call__(self, entry: str, per_head: tuple[str, ...]) -> None:
        """Run the kernel, once for each state where a batch is folded into the heads."""
        p, library = self.problem, _library(self.problem)
        assert library is not None
        heads = known(p.kind).heads
        states = p.heads // heads
        moved = [name for name in (*_TENSORS, *per_head) if name in self.tensors]
        sums = self.tensors.get("grad_par")
        total = None if sums is None or states == 1 else torch.zeros_like(sums)
        for state in range(states):
            for name in moved if state else ():
                x = self.tensors[name]
                if x.shape[1] == p.heads:
                    setattr(self.call, name, x[:, state * heads :].data_ptr())
            self.call.first_head = state * heads
            getattr(library, entry)(ctypes.byref(self.call))
            if total is not None and sums is not None:
                total += sums
        if total is not None and sums is not None:
            sums.copy_(total)


__all__ = ["Function", "backward", "forward", "function_of", "kernels", "refuse", "serves"]
