"""Exact hard attention: each token is read off one position, and all positions are summed over."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_core import Score, linear
from attn_core.compat import renewed
from sequence_attn.attention import Attention, Memory
from sequence_attn.checks import padding
from sequence_attn.seq2seq.encoder import Encoded, RecurrentEncoder, recurrent, run
from sequence_attn.seq2seq.models import EncoderDecoder, Predicted


class ExactState(NamedTuple):
    """Where an `ExactHardSeq2Seq` stands between two tokens; nothing ever changes one.

    Attributes:
        cell: the state of every layer, `[layers, B, S]`: one tensor, or for an LSTM two.
        memory: the keys of the source, for the score.
        hidden: what the output layer needs of each position, `[B, Ts, A]`.
        padded: bool `[B, Ts]`, which positions there are not.
        prior: the log-probability of each position for the token that comes next, given those
            before it, `[B, Ts]`; None before the first.
        emission: the log-probability of each token there, `[B, Ts, V]`; None likewise.
    """

    cell: tuple[Tensor, ...]
    memory: Memory
    hidden: Tensor
    padded: Tensor
    prior: Tensor | None = None
    emission: Tensor | None = None

    def select(self, index: Tensor, *, memory: bool = True) -> ExactState:
        """The sequences `index` `[n]`, in that order; see `DecoderState.select`."""
        cell = tuple(x[:, index] for x in self.cell)
        prior, emission = (None if x is None else x[index] for x in (self.prior, self.emission))
        kept = self._replace(cell=cell, prior=prior, emission=emission)
        if not memory:
            return kept
        return kept._replace(
            memory=self.memory.select(index), hidden=self.hidden[index], padded=self.padded[index]
        )


class ExactHardSeq2Seq(EncoderDecoder[ExactState]):
    """An encoder–decoder whose hard attention is trained and searched without a sample.

    Soft attention mixes the source before it predicts, `p(y | Σ_j α_ij h_j)`; here each token comes
    from one position, and the mixture is of the predictions:
    `p(y_i | y_<i) = Σ_j α_ij p(y_i | s_i, h_j)`, the expectation that REINFORCE estimates with a
    sample. Wu, Shapiro, Cotterell, "Hard Non-Monotonic Attention for Character-Level Transduction",
    2018. With `monotonic`, a token's position is never before that of the token before it,
    `p(a_i = j | a_{i-1} = k) ∝ exp(score(s_i, h_j))` for j ≥ k, and all such alignments are summed
    over by the forward algorithm. Wu, Cotterell, "Exact Hard Monotonic Attention for
    Character-Level Transduction", 2019.

    The state s_i is that of a recurrent network over the target alone. `logits` are
    log-probabilities, so that the cross-entropy is the exact loss. It takes B · T · Ts · V numbers:
    for vocabularies of characters, not of words.

    Args:
        encoder: reads embedded sources; its input_size is the width of their embedding.
        source_size, target_size: how many tokens either vocabulary has.
        input_size: the width of the embedding of the target. Default: that of the source.
        state_size: S, the width of the decoder's state. Default: the encoder's output.
        hidden_size: A, of the layer before the output. Default: state_size.
        cell, layers: of the decoder, as in `RecurrentEncoder`. Default one layer of "lstm".
        score: as in `Attention`. Default "general".
        monotonic: see above. Default False.
        dropout: of the embeddings, between layers and of what the output layer reads, in training;
            there with one mask for all positions of a token. Default 0.
        pad, bos, eos: the numbers of the symbols. Default 0, 2, 3.

    Raises:
        ValueError: an unknown name, sizes that do not fit.

    >>> encoder = RecurrentEncoder(8, 16, "lstm", bidirectional=True)
    >>> model = ExactHardSeq2Seq(encoder, source_size=50, target_size=40, monotonic=True)
    >>> source, target = torch.randint(4, 50, (2, 7)), torch.randint(4, 40, (2, 5))
    >>> predicted = model(source, target, need_weights=True)
    >>> predicted.logits.exp().sum(-1).round(decimals=3)[0], predicted.weights.shape
    (tensor([1., 1., 1., 1., 1.], grad_fn=<SelectBackward0>), torch.Size([2, 1, 5, 7]))
    """

    def __init__(
        self,
        encoder: RecurrentEncoder,
        *,
        source_size: int,
        target_size: int,
        input_size: int | None = None,
        state_size: int | None = None,
        hidden_size: int | None = None,
        cell: str = "lstm",
        layers: int = 1,
        score: str | Score = "general",
        monotonic: bool = False,
        dropout: float = 0.0,
        pad: int = 0,
        bos: int = 2,
        eos: int = 3,
    ) -> None:
        super().__init__(source_size, target_size, pad, bos, eos)
        width = encoder.input_size if input_size is None else input_size
        state = encoder.output_size if state_size is None else state_size
        hidden = state if hidden_size is None else hidden_size
        self.encoder, self.monotonic, self.dropout = encoder, monotonic, nn.Dropout(dropout)
        self.source_embedding = nn.Embedding(source_size, encoder.input_size)
        self.target_embedding = nn.Embedding(target_size, width)
        self.cell = recurrent(cell, width, state, layers, dropout)
        # Scores as they are: over which positions they compete differs from token to token
        self.attention = Attention(
            score, "identity", query_size=state, key_size=encoder.output_size
        )
        self.of_state = nn.Linear(state, hidden)
        self.of_position = nn.Linear(encoder.output_size, hidden, bias=False)
        self.output = nn.Linear(hidden, target_size)

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Encoded:
        self._check_source(source)
        return self.encoder(self.dropout(self.source_embedding(source)), source_lengths)

    def start(self, encoded: Encoded) -> ExactState:
        keys, lengths = encoded.output, encoded.lengths
        if not keys.shape[1]:
            keys = F.pad(keys, (0, 0, 0, 1))
        if lengths is None:
            padded = torch.zeros(keys.shape[:2], dtype=torch.bool, device=keys.device)
        else:  # a source without a token has its first position, which is all zeros
            padded = padding(lengths.clamp(min=1), keys).squeeze(-1)
        state = keys.new_zeros(self.cell.num_layers, keys.shape[0], self.cell.hidden_size)
        cell = (state, state) if self.cell.mode == "LSTM" else (state,)
        return ExactState(cell, self.attention.precompute(keys), self.of_position(keys), padded)

    def step(self, token: Tensor, state: ExactState) -> tuple[Tensor, ExactState]:
        read, cell = self._run(token.unsqueeze(1), state)
        scores, emission = (x.squeeze(1) for x in self._match(read, state))
        prior = self._prior(scores, self._posterior(state.prior, state.emission, token))
        return mixed(prior, emission), renewed(state, cell=cell, prior=prior, emission=emission)

    def decode(self, target: Tensor, encoded: Encoded, *, need_weights: bool = False) -> Predicted:
        state = self.start(encoded)
        if not target.shape[1]:
            empty = encoded.output.new_zeros(*target.shape, self.target_size)
            unseen = empty.new_zeros(len(target), 1, 0, encoded.output.shape[1])
            return Predicted(empty, unseen if need_weights else None)
        scores, emission = self._match(self._run(target, state)[0], state)
        prior = self._prior(scores, None)
        if self.monotonic:
            priors = [prior[:, 0]]
            for t in range(1, target.shape[1]):
                before = self._posterior(priors[-1], emission[:, t - 1], target[:, t])
                priors.append(self._prior(scores[:, t], before))
            prior = torch.stack(priors, 1)
        weights: Tensor | None = None
        if need_weights:
            weights = prior.exp().unsqueeze(1)[..., : encoded.output.shape[1]]
        return Predicted(mixed(prior, emission), weights)

    def _run(self, target: Tensor, state: ExactState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The states s `[B, T, S]` that have read the tokens, and where the cell then stands."""
        before = state.cell if self.cell.mode == "LSTM" else state.cell[0]
        read, cell = run(self.cell, self.dropout(self.target_embedding(target)), before)
        return read, cell if isinstance(cell, tuple) else (cell,)

    def _match(self, read: Tensor, state: ExactState) -> tuple[Tensor, Tensor]:
        """Scores `[B, T, Ts]`, and the log-probabilities of the tokens there, `[B, T, Ts, V]`."""
        scores = self.attention.weights(read, state.memory)
        # Low enough to weigh nothing; with -inf the gradients of empty sums would be NaN
        lowest = torch.finfo(scores.dtype).min / 4
        scores = scores.masked_fill(state.padded.unsqueeze(1), lowest)
        hidden = torch.tanh(self.of_state(read).unsqueeze(2) + state.hidden.unsqueeze(1))
        if self.training and self.dropout.p > 0:
            hidden = hidden * self.dropout(torch.ones_like(hidden[:, :, :1]))
        return scores, F.log_softmax(linear.apply(self.output, hidden), -1)

    def _posterior(
        self, prior: Tensor | None, emission: Tensor | None, token: Tensor
    ) -> Tensor | None:
        """The log-probability that the token before came from each position, `[B, Ts]`."""
        if not self.monotonic or prior is None or emission is None:
            return None
        index = token[:, None, None].expand(-1, emission.shape[1], 1)
        return F.log_softmax(prior + emission.gather(2, index).squeeze(2), -1)

    def _prior(self, scores: Tensor, before: Tensor | None) -> Tensor:
        """The log-probability of each position, given where the token before came from."""
        if before is None:
            return F.log_softmax(scores, -1)
        # Each position k hands its probability to those from k on, as a softmax over these
        total = scores.flip(-1).logcumsumexp(-1).flip(-1)
        return scores + (before - total).logcumsumexp(-1)


def mixed(prior: Tensor, emission: Tensor) -> Tensor:
    """`log Σ_j exp(prior_j + emission_jv)`: `[..., Ts]` and `[..., Ts, V]` give `[..., V]`."""
    return (prior.unsqueeze(-1) + emission).logsumexp(-2)
