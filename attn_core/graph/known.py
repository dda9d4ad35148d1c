"""What is known of a caller's tensor, and who owns a tensor of ours: the two look-ups.

Both hold their tensors weakly. What was made of a caller's tensor is dropped when the tensor dies
or is edited in place, which its version counter tells.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from attn_core.transforms import outside_inference

_T = TypeVar("_T")
_LOCK = threading.RLock()
_KEPT = 2  # of each kind: a tensor is used with one or two numbers of nodes

# A caller's tensor: its version, and what was made of it. Nothing made refers to the tensor.
_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
# A tensor that Edges own: a weak reference to these Edges, or to the Grouping that it belongs to.
_OWNED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def known(tensor: Tensor, what: tuple[Any, ...], make: Callable[[], _T]) -> _T:
    """What was made of a caller's tensor, made once as long as the tensor is not edited.

    Args:
        tensor: whose version counter says whether it was edited; one made in inference mode has
            none, and nothing is kept of it.
        what: its kind, then what else it depends on. The last two of a kind are kept.
        make: makes it.
    """
    if tensor.is_inference():
        return make()
    with _LOCK:
        version = tensor._version
        before, made = _KNOWN.get(tensor, (version, None))
        if made is None or before != version:
            made = {}
            _KNOWN[tensor] = version, made
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
        _KNOWN[tensor] = tensor._version, {what: made}


def own(tensor: Tensor, owner: Any) -> None:
    """Let ops that are handed this tensor find its owner again."""
    _OWNED[tensor] = weakref.ref(owner)


def owner_of(tensor: Tensor) -> Any:
    """The living owner of a tensor; None of a caller's."""
    reference = _OWNED.get(tensor)
    return None if reference is None else reference()


def clear_cache() -> None:
    """Forget what is kept of callers' tensors: the Edges of edge_index, the order of other indices.

    It is dropped by itself when the tensor dies or is edited in place. Only an edit that torch does
    not count (through `.data` or a NumPy array that shares the memory) needs this call.

    >>> clear_cache()
    """
    with _LOCK:
        _KNOWN.clear()
