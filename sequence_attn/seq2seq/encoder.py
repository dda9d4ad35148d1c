"""The recurrent encoder: it reads a padded batch and returns what there is to attend to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attn_core.compat import any_global_hook, has_hooks
from attn_core.transforms import is_autocast
from sequence_attn.checks import check_lengths, chosen


def run(cells: nn.RNNBase, x: Any, state: Any = None) -> Any:
    """What the cells make of x and a state, as they themselves do.

    An LSTM computes in float32 what autocast asks of a CPU that has no kernel for it: without
    AVX-512, oneDNN has none for bfloat16 or float16, and torch asks it all the same.
    """
    bare = state is not None and x.shape[1] == 1 and not is_autocast(x.device.type)
    if bare and _is_bare(cells):
        return _one_step(cells, x.squeeze(1), state)
    asked = cells.mode == "LSTM" and cells.weight_hh_l0.dtype == torch.float32
    asked = asked and torch.is_autocast_enabled("cpu")
    if not asked or _has_kernel(torch.get_autocast_dtype("cpu")):
        return cells(x, state)
    with torch.autocast("cpu", enabled=False):
        wide = None if state is None else tuple(part.float() for part in state)
        return cells(x.float(), wide)


_STEPS: dict[type, Callable[..., Any]] = {nn.GRU: torch.gru_cell, nn.LSTM: torch.lstm_cell}


def _is_bare(cells: nn.RNNBase) -> bool:
    """Whether these are one layer of torch's in one direction, with no hook around it."""
    return (
        type(cells) in _STEPS
        and cells.num_layers == 1
        and cells.bias
        and not (
            cells.bidirectional
            or cells.proj_size
            or has_hooks(cells)
            or any_global_hook()
            or torch.compiler.is_compiling()
        )
    )


def _one_step(cells: nn.RNNBase, x: Tensor, state: Any) -> Any:
    """What they make of one step `[B, I]`, without what torch does for sequences."""
    # By name: pruned and normalised parameters lie in another order
    names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
    step, parameters = _STEPS[type(cells)], (getattr(cells, name) for name in names)
    if isinstance(state, tuple):
        hidden, memory = step(x, [half.squeeze(0) for half in state], *parameters)
        return hidden.unsqueeze(1), (hidden.unsqueeze(0), memory.unsqueeze(0))
    hidden = step(x, state.squeeze(0), *parameters)
    return hidden.unsqueeze(1), hidden.unsqueeze(0)


@functools.cache
def _has_kernel(dtype: torch.dtype) -> bool:
    """Whether torch has an LSTM for autocast of this type on this CPU."""
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            nn.LSTM(4, 4, device="cpu")(torch.zeros(1, 1, 4, device="cpu"))
    except RuntimeError:
        return False
    return True


CELLS: dict[str, Callable[..., nn.RNNBase]] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class Encoded(NamedTuple):
    """A batch that has been read.

    Attributes:
        output: the top layer at every step, `[B, T, directions · H]`; zero behind the end of a
            sequence.
        lengths: how many steps of each sequence are real, `[B]`; None for all.
        state: the last state of every layer and direction, `[layers, directions, B, H]`: one
            tensor, or for an LSTM two (hidden and cell). Empty if the encoder has none.
    """

    output: Tensor
    lengths: Tensor | None
    state: tuple[Tensor, ...] = ()

    def select(self, index: Tensor) -> Encoded:
        """The sequences `index` `[n]`, in that order; one may occur often."""
        state = tuple(chosen(x, index, 2) for x in self.state)
        return Encoded(chosen(self.output, index), chosen(self.lengths, index), state)

    def last(self) -> Tensor:
        """What was made of the whole of each sequence, `[B, D]`: the top layer's last state."""
        if self.state:
            return torch.cat(list(self.state[0][-1]), -1)
        batch, steps, width = self.output.shape
        if not steps:
            return self.output.new_zeros(batch, width)
        if self.lengths is None:
            return self.output[:, -1]
        last = (self.lengths - 1).clamp(min=0)
        output = self.output[torch.arange(batch, device=last.device), last]
        return output.masked_fill((self.lengths == 0)[:, None], 0)


class RecurrentEncoder(nn.Module):
    """A recurrent network over a padded batch; padding changes nothing.

    `h_t = cell(x_t, h_{t-1})`; both ways, `h_t = [→h_t; ←h_t]`, the second of which starts at the
    true end of each sequence. (Schuster and Paliwal, 1997; Cho et al., 2014; Hochreiter and
    Schmidhuber, 1997.) The cells are torch's.

    Args:
        input_size: the width of a step.
        hidden_size: H, the width of the state of one direction.
        cell: "gru" (default), "lstm" or "rnn" (tanh).
        bidirectional: read both ways. Default False.
        layers: how many, one upon the other. Default 1.
        dropout: the probability with which a number between two layers is dropped in training.
            Default 0.

    Raises:
        ValueError: an unknown cell, a size below 1, a dropout that is no probability.

    >>> import torch
    >>> encoder = RecurrentEncoder(8, 16, "lstm", bidirectional=True, layers=2)
    >>> encoded = encoder(torch.randn(3, 5, 8), torch.tensor([5, 2, 4]))
    >>> encoded.output.shape, [x.shape for x in encoded.state]
    (torch.Size([3, 5, 32]), [torch.Size([2, 2, 3, 16]), torch.Size([2, 2, 3, 16])])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        cell: str = "gru",
        *,
        bidirectional: bool = False,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.cell = recurrent(
            cell, input_size, hidden_size, layers, dropout, bidirectional=bidirectional
        )
        self.input_size, self.hidden_size, self.layers = input_size, hidden_size, layers
        self.directions = 2 if bidirectional else 1

    @property
    def output_size(self) -> int:
        """The width of a step of the output."""
        return self.directions * self.hidden_size

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Read.

        Args:
            x: `[B, T, input_size]`.
            lengths: integers `[B]`: how many steps of each sequence are real. Default: all. A
                sequence of length 0 has an output and states of zero.

        Returns:
            Encoded(output, lengths, state).

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            raise ValueError(f"x has shape {list(x.shape)}; expected [B, T, {self.input_size}]")
        if lengths is not None:
            check_lengths("lengths", lengths, x)
        steps = x.shape[1]
        if not x.numel():  # torch's cells take no empty batch, nor sequences without a step
            empty = x.new_zeros(self.layers, self.directions, x.shape[0], self.hidden_size)
            output = x.new_zeros(x.shape[0], steps, self.output_size)
            return Encoded(output, lengths, (empty,) * (2 if self.cell.mode == "LSTM" else 1))
        if lengths is None:
            output, state = run(self.cell, x)
        else:
            empty = lengths == 0
            # Torch packs at least one step of each; NaN there would reach the gradients
            x = x.masked_fill(empty[:, None, None], 0)
            packed = pack_padded_sequence(
                x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
            )
            packed, state = run(self.cell, packed)
            output, _ = pad_packed_sequence(packed, batch_first=True, total_length=steps)
        states = state if isinstance(state, tuple) else (state,)
        states = tuple(x.unflatten(0, (self.layers, self.directions)) for x in states)
        if lengths is not None:
            output = output.masked_fill(empty[:, None, None], 0)
            states = tuple(x.masked_fill(empty[:, None], 0) for x in states)
        return Encoded(output, lengths, states)


def recurrent(
    cell: str,
    input_size: int,
    hidden_size: int,
    layers: int,
    dropout: float,
    *,
    bidirectional: bool = False,
) -> nn.RNNBase:
    """A recurrent network of torch, batch first, its arguments checked."""
    if cell not in CELLS:
        raise ValueError(f"cell is {cell!r}; known ones are {', '.join(CELLS)}")
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "layers": layers}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; expected at least 1")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is {dropout}; a probability lies between 0 and 1")
    return CELLS[cell](
        input_size,
        hidden_size,
        layers,
        batch_first=True,
        dropout=dropout if layers > 1 else 0.0,  # torch warns of one that has no place
        bidirectional=bidirectional,
    )
