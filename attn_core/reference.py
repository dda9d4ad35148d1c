"""The definition of attention: score, normalise, aggregate, in plain torch on one screen.

Every fast path is tested against it. It can be differentiated any number of times, and torch.func
and forward-mode differentiation go through it.
"""

from __future__ import annotations

from torch import Tensor

from attn_core.call import Attended, Call
from attn_core.normalizers import Normalizer, Softmax
from attn_core.rows import Rows


class Steps:
    """The three steps; a faster way to attend overrides some of them."""

    def attend(self, call: Call) -> Attended:
        """`output_i = Σ_j weight_ij value_j`, with `weight_i = normalizer(score(q_i, k_j))`."""
        call, scores, rows = self.scored(call)
        weights, log_sum_exp = self.normalize(call, scores, rows)
        dropped = weights
        if call.dropout > 0:
            dropped = call.support.drop(weights, call.dropout, call.seed)
        output = self.aggregate(call, dropped)
        return Attended(output, weights, log_sum_exp)

    def weights(self, call: Call, log_sum_exp: Tensor | None = None) -> Tensor:
        """The weights alone; those of a softmax whose log-sum-exp is known, of any of its pairs."""
        call, scores, rows = self.scored(call)
        if log_sum_exp is None:
            return self.normalize(call, scores, rows)[0]
        assert isinstance(call.normalizer, Softmax)
        return call.normalizer.from_log_sum_exp(scores, log_sum_exp, rows)

    def scored(self, call: Call) -> tuple[Call, Tensor, Rows]:
        """The scores of all pairs, -inf where a pair does not exist, and the rows they form."""
        call = call.on_resolved_support().in_full_precision()
        scores = self.scores(call)
        if call.bias is not None:
            scores = scores + call.bias
        rows = self.rows(call, scores)
        return call, rows.allow(scores), rows

    def scores(self, call: Call) -> Tensor:
        return call.support.scores(call.score, call.query, call.key, call.pair_key)

    def rows(self, call: Call, scores: Tensor) -> Rows:
        return call.support.rows(scores, call.num_keys)

    def normalize(self, call: Call, scores: Tensor, rows: Rows) -> tuple[Tensor, Tensor | None]:
        return normalize(call.normalizer, scores, rows, call.need_log_sum_exp)

    def aggregate(self, call: Call, weights: Tensor) -> Tensor:
        return call.support.aggregate(weights, call.value, call.pair_value)


def normalize(
    normalizer: Normalizer, scores: Tensor, rows: Rows, need_log_sum_exp: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The weights, and the log-sum-exp of a softmax if it was asked for."""
    if need_log_sum_exp and Softmax.is_one(normalizer):
        return normalizer.with_log_sum_exp(scores, rows)
    return normalizer.normalize(scores, rows), None
