// Scores of pairs, and sums over the pairs of each row: what attention is made of, one at a time.
// A row is either end of its pairs: by the transpose, the same code serves the other end.
#pragma once
#include "backward.h"

namespace attn::VARIANT {

// made = score(query_row, key_e + pair_key_e) for the pairs e of a row.
template <class T>
void make_scores(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                 int64_t end, Scratch<T>& s) {
  Row keys[ROWS];
  const T* fixed = p.query.full(row);
  if (f.score_numbers) repeat(p, fixed, s.fixed);
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    score_pairs(p, f, at, n, fixed, s, keys, s.logits);
    hand_out(p, p.by_query, at, n, s.logits, [&](int64_t i) { return p.made[i]; });
  }
}

// The derivatives of the scores, each times the number `given` for its pair, summed over the row:
// sums = Σ_e given_e d score_e / d query_row, where a dot product leaves Σ_e given_e key_e.
template <class T>
void make_sums(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin, int64_t end,
               Scratch<T>& s, T* of_row, T* grad_vector) {
  const int64_t size = int64_t(p.heads) * p.width;
  const T* fixed = p.query ? p.query.full(row) : nullptr;
  Row keys[ROWS], next[ROWS];
  T* sums = of_row ? of_row : s.row_key;
  if (f.score_numbers) repeat(p, fixed, s.fixed);
  for (int64_t c = 0; p.kind != DOT && c < size; c++) sums[c] = 0;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    find_rows(p.key, p.pair_key, p, p.by_query, at, n, size, s.made_key, keys);
    for (int e = 0; e < n; e++) {
      copy_heads(p.given[p.by_query.place[at + e]], p.heads, s.grads + e * p.lanes);
    }
    fill_rest(p, n, T(0), s.grads);
    if (p.kind == DOT) {
      for (int i = 0; i < n * p.lanes; i++) s.grads[i] *= p.scale;
    }
    const auto of_pair = [&](int64_t i) { return p.grad_pair_key[i]; };
    if (f.score_numbers) {
      f.score_numbers(p, keys, n, s.fixed, s.vector, s.x, s.logits);
      f.number_gradient(p, n, s.x, s.vector, s.grads, grad_vector);
      if (p.grad_pair_key) hand_out(p, p.by_query, at, n, s.grads, of_pair);
      sum_pairs(p, n, s.grads, sums);
      continue;
    }
    if (p.grad_pair_key) {
      for (int e = 0; e < n; e++) {
        f.pair_gradient(p, as<T>(keys[e]), fixed, s.grads + e * p.lanes,
                        of_pair(p.by_query.place[at + e]));
      }
    }
    const Row* later = find_next(p, p.key, p.by_query, at, n, next);
    if (p.kind != DOT) {
      f.score_gradient(p, keys, later, n, fixed, s.grads, sums, grad_vector, nullptr);
    } else if (of_row) {
      f.gather_key(p, keys, later, n, s.grads, at == begin ? nullptr : s.ones, p.width, of_row);
    }
  }
}

template <class T>
void make_scores_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  make_scores(p, f, row, p.by_query.pointer[row], p.by_query.pointer[row + 1], s);
}

template <class T>
void make_sums_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s,
                   T* grad_vector) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  T* of_row = p.grad_query ? p.grad_query.full(row) : nullptr;
  if (begin < end) {
    make_sums(p, f, row, begin, end, s, of_row, grad_vector);
  } else if (of_row) {
    for (int64_t c = 0; c < int64_t(p.heads) * p.width; c++) of_row[c] = 0;
  }
}

}  // namespace attn::VARIANT
