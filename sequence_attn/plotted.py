"""What is plotted: weights as a checked array, and the names of what they are between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def as_weights(weights: Tensor | ArrayLike) -> NDArray[np.float64]:
    """The weights as a checked array, on the CPU and without gradients."""
    if weights is None:
        raise TypeError("weights is None: ask the layer for them with need_weights=True")
    if hasattr(weights, "weights"):
        raise TypeError(f"weights is a {type(weights).__name__}: pass its .weights")
    if isinstance(weights, Tensor):
        array = weights.detach().cpu().double().numpy()
    else:
        array = np.asarray(weights, dtype=np.float64)
    if array.ndim not in (2, 3):
        mend = {1: "for a single query pass weights[None]"}.get(
            array.ndim, "choose one sequence of the batch, weights[0]"
        )
        raise ValueError(
            f"weights must have shape [Tq, Tk] or [H, Tq, Tk]; got {array.shape}: {mend}"
        )
    if not array.size:
        raise ValueError(f"weights has shape {array.shape}: there is nothing to draw")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        where = tuple(wrong[0].tolist())
        raise ValueError(
            f"weights must be finite, but {len(wrong)} of {array.size} are not, the first"
            f" {array[where]} at {list(where)}: replace them with torch.nan_to_num"
        )
    return array


def as_tokens(name: str, tokens: Iterable[object] | None, count: int) -> list[str] | None:
    """The tokens as a list of str, one for each position."""
    if tokens is None:
        return None
    listed = list(tokens.tolist() if isinstance(tokens, (Tensor, np.ndarray)) else tokens)
    if len(listed) != count:
        kind, dimension, cut = (
            ("keys", "last dimension", f"weights[..., :{len(listed)}]")
            if name == "source"
            else ("queries", "dimension before the last", f"weights[..., :{len(listed)}, :]")
        )
        unit = "characters (split the str to have words)" if isinstance(tokens, str) else "tokens"
        mend = f", or cut off the padding with {cut}" if len(listed) < count else ""
        raise ValueError(
            f"{name} has {len(listed)} {unit}, but weights has {count} {kind}, its {dimension}:"
            f" name each of them{mend}"
        )
    written = [str(token) for token in listed]
    return [token if token.strip(" ") else "␣" * len(token) for token in written]
