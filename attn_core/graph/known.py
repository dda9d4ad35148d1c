"""What is known of a caller's tensor, and who owns a tensor of ours: the two look-ups.

Both hold their tensors weakly. What was made of a caller's tensor is dropped when the tensor dies
or is edited in place. Of that its version counter tells, but for edits that torch does not see:
through a NumPy array or another tensor over the same memory, or `.data`. So on CPUs a checksum of
the numbers is compared too, which takes the compiled module less than 2 % of an attention.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack
from torch.utils.weak import WeakTensorKeyDictionary

from attn_core import compiled
from attn_core.transforms import nobody_watches, outside_inference

_T = TypeVar("_T")
_LOCK = threading.RLock()
_INTEGERS = torch.int32, torch.int64
_KEPT = 2  # of each kind: a tensor is used with one or two numbers of nodes

# A caller's tensor: its state, and what was made of it. Nothing made refers to the tensor.
_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
# A tensor that Edges own: a weak reference to these Edges, or to the Grouping that it belongs to.
_OWNED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def known(tensor: Tensor, what: tuple[Any, ...], make: Callable[[], _T]) -> _T:
    """What was made of a caller's tensor, made once as long as the tensor is not edited.

    Args:
        tensor: whose version counter and numbers say whether it was edited; one made in inference
            mode has no counter, and nothing is kept of it.
        what: its kind, then what else it depends on. The last two of a kind are kept.
        make: makes it.
    """
    if tensor.is_inference():
        return make()
    state = _state(tensor)
    with _LOCK:
        before, made = _KNOWN.get(tensor, (state, None))
        if made is None or before != state:
            made = {}
            _KNOWN[tensor] = state, made
        if what in made:
            found: _T = made[what]
            return found
        with outside_inference():
            found = make()
        of_kind = [other for other in made if other[0] == what[0]]
        for other in of_kind[: len(of_kind) - _KEPT + 1]:
            del made[other]
        made[what] = found
        return found


def keep(tensor: Tensor, what: tuple[Any, ...], made: Any) -> None:
    """Put what is known of a tensor in the place of what was."""
    if tensor.is_inference():
        return
    with _LOCK:
        _KNOWN[tensor] = _state(tensor), {what: made}


def _state(tensor: Tensor) -> tuple[int, ...]:
    """What changes when the tensor is edited: its version, and a checksum where that is cheap."""
    numbers = _numbers(tensor)
    if compiled.module is None or not tensor.is_cpu or not nobody_watches(*numbers):
        return (tensor._version,)
    checksum, threads = compiled.module.checksum, torch.get_num_threads()
    sums = [checksum(to_dlpack(x), threads) for x in numbers if x.dtype in _INTEGERS]
    return tensor._version, *sums


def _numbers(tensor: Tensor) -> tuple[Tensor, ...]:
    """The indices of a sparse matrix, which it does not count edits of; else the tensor itself."""
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout == torch.sparse_coo:
        return (tensor._indices(),)
    if tensor.layout == torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices()
    if tensor.layout == torch.sparse_csc:
        return tensor.ccol_indices(), tensor.row_indices()
    return (tensor,)


def own(tensor: Tensor, owner: Any) -> None:
    """Let ops that are handed this tensor find its owner again."""
    _OWNED[tensor] = weakref.ref(owner)


def owner_of(tensor: Tensor) -> Any:
    """The living owner of a tensor; None of a caller's."""
    reference = _OWNED.get(tensor)
    return None if reference is None else reference()


def clear_cache() -> None:
    """Forget what is kept of callers' tensors: the Edges of edge_index, the order of other indices.

    It is dropped by itself when the tensor dies or is edited in place. This call is needed only
    where an edit is one that torch does not count (through `.data`, or a NumPy array or another
    tensor over the same memory), and the tensor is on a GPU, or the compiled module is missing.
    Large memory that the kernels keep for the next step, 256 MiB at most, is freed as well.

    >>> clear_cache()
    """
    with _LOCK:
        _KNOWN.clear()
    if compiled.module is not None:
        compiled.module.let_go()
