"""The three steps by ops: what serves every score and normaliser that has no kernel of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_core import compiled, reference
from attn_core.call import Call
from attn_core.normalizers import Normalizer, use_for_weights
from attn_core.ops import additive, dense_rows, edge_scores, segments
from attn_core.reference import Steps
from attn_core.rows import EdgeRows, Rows
from attn_core.supports.dense import Dense
from attn_core.supports.edges import Edges
from attn_core.supports.pairs import Pairs


class OpSteps(Steps):
    """Over edges, products and sums without a vector for each edge; over dense supports, additive
    scores in blocks."""

    def scores(self, call: Call) -> Tensor:
        score, support, query, key = call.score, call.support, call.query, call.key
        if isinstance(support, Dense):
            if additive.serves(call):
                score = additive.in_blocks(score)
            return support.scores(score, query, key, call.pair_key)
        if not isinstance(support, Pairs):
            return support.scores(score, query, key, call.pair_key)
        graph = support.pairs, support.num_keys, support.num_queries
        formula = call.formula
        if formula is not None and formula.kind == "dot" and query is not None:
            query = query if formula.constant == 1 else query * formula.constant
            product: Tensor = torch.ops.attn_core.edge_dot(query, key, call.pair_key, *graph)
            return product
        found = edge_scores.scores(score, query, key, call.pair_key, graph)
        if found is not None:
            return found
        of_pair = segments.gather(key, support.key_index)  # [E, H, D]
        of_query = None if query is None else segments.gather(query, support.query_index)
        return score.of_pairs(of_query, of_pair, call.pair_key)

    def rows(self, call: Call, scores: Tensor) -> Rows:
        support = call.support
        if not isinstance(support, Pairs):
            return support.rows(scores, call.key.shape[-3])
        handle = support.pairs if isinstance(support, Edges) else None
        return segments.Segments(support.query_index, support.num_queries, support.exists, handle)

    def normalize(self, call: Call, scores: Tensor, rows: Rows) -> tuple[Tensor, Tensor | None]:
        return normalize(call.normalizer, scores, rows, call.need_log_sum_exp)

    def aggregate(self, call: Call, weights: Tensor) -> Tensor:
        support = call.support
        if not isinstance(support, Pairs):
            return support.aggregate(weights, call.value, call.pair_value)
        output: Tensor = torch.ops.attn_core.edge_sum(
            weights, call.value, call.pair_value, support.pairs, support.num_keys,
            support.num_queries, False,
        )  # fmt: skip
        return output


def normalize(
    normalizer: Normalizer, scores: Tensor, rows: Rows, need_log_sum_exp: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The weights, and the log-sum-exp of a softmax where it is asked for or costs nothing."""
    if compiled.is_reference():
        return reference.normalize(normalizer, scores, rows, need_log_sum_exp)
    if isinstance(rows, EdgeRows):
        return segments.normalize(normalizer, scores, rows, need_log_sum_exp)
    return dense_rows.normalize(normalizer, scores, rows, need_log_sum_exp)


use_for_weights(lambda normalizer, scores, rows: normalize(normalizer, scores, rows)[0])
