// Scores of pairs, and sums over the pairs of each row: what attention is made of, one at a time.
// A row is either end of its pairs: by the transpose, the same code serves the other end.
#pragma once
#include "block.h"

namespace attn::VARIANT {

// made = score(query_row, key_e + pair_key_e) for each pair e of a row.
template <class T>
void score_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                 int64_t end, Scratch<T>& s) {
  const int64_t size = int64_t(p.heads) * p.width;
  const T* keys[BLOCK];
  T* out[BLOCK];
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    prefetch(p.key, p.by_query, at + n, n, size);
    find_rows(p.key, p.pair_key, p, p.by_query, at, n, size, s.made_key, keys);
    f.score(p, keys, n, p.query[row], p.width, s.logits);
    add_bias(p, at, n, s.logits);
    for (int e = 0; e < n; e++) out[e] = p.made[p.by_query.place[at + e]];
    collect(s.logits, n, p.heads, out);
  }
}

// The derivatives of the scores, each times the number `given` for its pair, summed over the row:
// sums = Σ_e given_e d score_e / d query_row, where a dot product leaves Σ_e given_e key_e.
template <class T>
void sum_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin, int64_t end,
               Scratch<T>& s, T* sums, T* grad_vector) {
  const int64_t size = int64_t(p.heads) * p.width;
  const T *fixed = p.query ? p.query[row] : nullptr, *keys[BLOCK], *given[BLOCK];
  for (int h = 0; h < p.heads; h++) s.scale[h] = 1;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    prefetch(p.key, p.by_query, at + n, n, size);
    find_rows(p.key, p.pair_key, p, p.by_query, at, n, size, s.made_key, keys);
    for (int e = 0; e < n; e++) given[e] = p.given[p.by_query.place[at + e]];
    for (int e = n; e % 4; e++) given[e] = given[0];
    spread(given, n, p.heads, s.grads);
    if (p.kind == DOT) {
      for (int i = 0; i < p.heads * BLOCK; i++) s.grads[i] *= p.scale;
    }
    if (p.width == 1) {
      for (int e = n; e % WIDEST<T>; e++) {
        for (int h = 0; h < p.heads; h++) s.grads[h * BLOCK + e] = 0;
      }
    }
    if (p.grad_pair_key) {
      for (int e = 0; e < n; e++) {
        f.pair_gradient(p, keys[e], fixed, s.grads + e,
                        p.grad_pair_key[p.row(p.by_query.place[at + e])]);
      }
    }
    if (p.kind == DOT) {
      if (sums) {
        f.gather_key(keys, n, s.grads, at == begin ? nullptr : s.scale, p.heads, p.width, sums);
      }
    } else if (sums || grad_vector) {
      T* out = sums ? sums : s.row_key;
      if (at == begin) {
        for (int64_t c = 0; c < size; c++) out[c] = 0;
      }
      f.score_gradient(p, keys, n, fixed, s.grads, out, grad_vector);
    }
  }
}

template <class T>
void score_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  score_pairs(p, f, row, p.by_query.pointer[row], p.by_query.pointer[row + 1], s);
}

template <class T>
void sum_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s,
             T* grad_vector) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  T* sums = p.grad_query ? p.grad_query[row] : nullptr;
  if (begin < end) {
    sum_pairs(p, f, row, begin, end, s, sums, grad_vector);
  } else if (sums) {
    for (int64_t c = 0; c < int64_t(p.heads) * p.width; c++) sums[c] = 0;
  }
}

}  // namespace attn::VARIANT
