// The backward pass of attention with α-entmax: by query everything but the gradients of keys and
// values, for which each pair leaves its weight and the gradient of its logit; both are 0 outside the
// support, whose pairs alone are looked at again.
#pragma once
#include "entmax.h"

namespace attn::VARIANT {

// The gradients of the weights of [begin, end), and [Σ u g, Σ u] of them: the mean that the
// gradients of logits, u (g - mean), are taken from. Weights become dropped ones.
template <class T>
void entmax_means(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                  int64_t end, Scratch<T>& s, const Kept<T>& kept, T* sums) {
  const int64_t size = int64_t(p.heads) * p.value_width;
  const int lanes = p.lanes;
  Row values[ROWS], next[ROWS];
  int which[BLOCK];
  keep_scores(p, f, row, begin, end, s, kept.weights);
  make_weights(p, kept, end - begin, kept.slopes);
  for (int h = 0; h < 2 * p.heads; h++) sums[h] = 0;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    const int64_t first = (at - begin) * lanes;
    T *weights = kept.weights + first, *grads = kept.grads + first;
    const T* slopes = kept.slopes + first;
    find_rows(p.value, p.pair_value, p, p.by_query, at, n, size, s.made_value, values);
    const Row* later = nullptr;
    if (!is_shared(p)) later = find_next(p, p.value, p.by_query, at, n, next);
    const int count = pick(p, n, p.heads, [&](int e) { return slopes + e * lanes; }, which);
    pick_rows<T>(which, count, n, size, values, later);
    f.dot(p, values, later, count, p.grad_output.full(row), p.value_width, s.grads);
    for (int i = 0; i < n * lanes; i++) grads[i] = 0;
    for (int i = 0; i < count; i++) {
      for (int h = 0; h < lanes; h++) grads[which[i] * lanes + h] = s.grads[i * lanes + h];
    }
    if (p.drops) {
      draw(p, p.by_query, at, n, s.keep);
      for (int i = 0; i < n * lanes; i++) {
        grads[i] *= s.keep[i];
        weights[i] *= s.keep[i];
      }
    }
    for (int i = 0; i < n * lanes; i++) {
      s.x[i] = slopes[i] * grads[i];
      s.rests[i] = slopes[i];
    }
    sum_pairs(p, n, s.x, sums);
    sum_pairs(p, n, s.rests, sums + p.heads);
  }
}

// From them the gradients of logits, of all that the pass by query knows; the rest is left.
template <class T>
void entmax_gradients(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                      int64_t end, Scratch<T>& s, const Kept<T>& kept, const T* sums,
                      T* grad_query, T* grad_vector) {
  const int64_t size = int64_t(p.heads) * p.width;
  const int lanes = p.lanes, heads = p.heads;
  const bool product = p.kind == DOT, more = grad_query || grad_vector || p.grad_pair_key;
  Row keys[ROWS];
  const T *query = p.query.full(row), *grad = p.grad_output.full(row);
  int which[BLOCK];
  T* into = grad_query ? grad_query : s.row_key;
  for (int64_t c = 0; !product && c < size; c++) into[c] = 0;
  for (int h = 0; h < heads; h++) {
    s.largest[h] = sums[heads + h] == T(0) ? T(0) : sums[h] / sums[heads + h];
  }
  repeat(p, s.largest, s.mean);
  if (f.score_numbers) repeat(p, query, s.fixed);
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    const int64_t first = (at - begin) * lanes;
    const T *weights = kept.weights + first, *grads = kept.grads + first;
    T* slopes = kept.slopes + first;
    const T scale = product ? p.scale : T(1);
    for (int e = 0; e < n; e++) {
      for (int i = e * lanes, h = 0; h < lanes; h++, i++) {
        slopes[i] *= grads[i] - s.mean[h];
      }
    }
    if (p.grad_bias) {
      hand_out(p, p.by_query, at, n, slopes, [&](int64_t i) { return p.grad_bias[i]; });
    }
    if (p.grad_pair_value) value_gradients<T>(p, p.by_query, at, n, weights, nullptr, grad);
    for (int i = 0; i < n * lanes; i++) s.grads[i] = slopes[i] * scale;
    if (f.score_numbers) {
      // Given the sum of the logits' arguments, keys are of no more use
      find_rows(p.key, p.pair_key, p, p.by_query, at, n, size, s.made_key, keys);
      f.score_numbers(p, keys, n, s.fixed, s.vector, s.x, s.logits);
      f.number_gradient(p, n, s.x, s.vector, s.grads, grad_vector);
      if (p.grad_pair_key) {
        hand_out(p, p.by_query, at, n, s.grads, [&](int64_t i) { return p.grad_pair_key[i]; });
      }
    }
    for (int e = 0; p.left && e < n; e++) {
      T* left = p.left + (at + e) * 2 * heads;
      copy_heads(weights + e * lanes, heads, left);
      copy_heads(s.grads + e * lanes, heads, left + heads);
    }
    if (f.score_numbers) {
      sum_pairs(p, n, s.grads, into);
    } else if (more) {
      find_rows(p.key, p.pair_key, p, p.by_query, at, n, size, s.made_key, keys);
      if (p.grad_pair_key) {
        for (int e = 0; e < n; e++) {
          f.pair_gradient(p, as<T>(keys[e]), query, s.grads + e * lanes,
                          p.grad_pair_key[p.by_query.place[at + e]]);
        }
      }
      const int count = pick(p, n, heads, [&](int e) { return s.grads + e * lanes; }, which);
      pick_rows<T>(which, count, n, size, keys, nullptr);
      pick_numbers(which, count, n, lanes, s.grads);
      if (!product) {
        f.score_gradient(p, keys, nullptr, count, query, s.grads, into, grad_vector, nullptr);
      } else if (grad_query) {
        f.gather_key(p, keys, nullptr, count, s.grads, at == begin ? nullptr : s.ones, p.width,
                     grad_query);
      }
    }
  }
}

template <class T>
void entmax_query_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s,
                      T* grad_vector) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  T* grad_query = p.grad_query ? p.grad_query.full(row) : nullptr;
  if (begin == end) {
    for (int64_t c = 0; grad_query && c < int64_t(p.heads) * p.width; c++) grad_query[c] = 0;
    return;
  }
  const Kept<T> kept = kept_of(p, row, s);
  take_threshold(p, row, kept);
  entmax_means(p, f, row, begin, end, s, kept, s.means);
  entmax_gradients(p, f, row, begin, end, s, kept, s.means, grad_query, grad_vector);
}

// A long row in parts: first what its means are made of, then all the rest.
template <class T>
INLINE Kept<T> kept_part(const Problem<T>& p, int64_t row, int64_t begin, Scratch<T>& s) {
  Kept<T> kept = kept_of(p, row, s);
  kept.forward((begin - p.by_query.pointer[row]) * p.lanes);
  return kept;
}
template <class T>
void entmax_means_part(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                       int64_t end, Scratch<T>& s, T* sums) {
  const Kept<T> kept = kept_part(p, row, begin, s);
  take_threshold(p, row, kept);
  entmax_means(p, f, row, begin, end, s, kept, sums);
}

// By key: the sums over its pairs of what they left.
template <class T>
void entmax_key_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                      int64_t end, Scratch<T>& s, T* grad_key, T* grad_value) {
  const int64_t size = int64_t(p.heads) * p.width, value_size = int64_t(p.heads) * p.value_width;
  const int64_t last = p.by_key.pointer[p.by_key.num] - 1, step = 2 * p.heads;
  Row queries[ROWS], grads[ROWS], next[ROWS];
  const T* lefts[ROWS];
  const T* key = p.key.full(row);
  const Rows<const T> none;
  const bool product = p.kind == DOT;
  const T* fixed = !product && p.pair_key ? s.zeros : key;  // as in the pass by key of softmax
  int which[BLOCK];
  for (int64_t c = 0; grad_key && !product && c < size; c++) grad_key[c] = 0;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    const T* ones = at == begin ? nullptr : s.ones;
    for (int e = 0; e < n; e++) {
      const int64_t later = p.from[at + e + AHEAD < last ? at + e + AHEAD : last];
      for (int64_t c = 0; c < step; c += 64 / int(sizeof(T))) {
        __builtin_prefetch(p.left + step * later + c);
      }
      lefts[e] = p.left + step * int64_t(p.from[at + e]);
    }
    const int count = pick(p, n, step, [&](int e) { return lefts[e]; }, which);
    for (int i = 0; i < count; i++) {
      copy_heads(lefts[which[i]], p.heads, s.weights + i * p.lanes);
      copy_heads(lefts[which[i]] + p.heads, p.heads, s.grads + i * p.lanes);
    }
    if (grad_value) {
      find_rows(p.grad_output, none, p, p.by_key, at, n, value_size, s.made_value, grads);
      const Row* later = find_next(p, p.grad_output, p.by_key, at, n, next);
      pick_rows<T>(which, count, n, value_size, grads, later);
      f.gather_value(p, grads, later, count, s.weights, ones, p.value_width, grad_value);
    }
    if (!grad_key) continue;
    if (f.score_numbers) {
      sum_pairs(p, count, s.grads, grad_key);
      continue;
    }
    find_rows(p.query, product ? none : p.pair_key, p, p.by_key, at, n, size, s.made_key, queries,
              key);
    const Row* later = find_next(p, p.query, p.by_key, at, n, next);
    pick_rows<T>(which, count, n, size, queries, later);
    if (product) {
      f.gather_key(p, queries, later, count, s.grads, ones, p.width, grad_key);
    } else {
      f.score_gradient(p, queries, later, count, fixed, s.grads, grad_key, nullptr, nullptr);
    }
  }
}

template <class T>
void entmax_key_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  const int64_t begin = p.by_key.pointer[row], end = p.by_key.pointer[row + 1];
  T* grad_key = p.grad_key ? p.grad_key.full(row) : nullptr;
  T* grad_value = p.grad_value ? p.grad_value.full(row) : nullptr;
  if (begin < end) return entmax_key_pairs(p, f, row, begin, end, s, grad_key, grad_value);
  for (int64_t c = 0; grad_key && c < int64_t(p.heads) * p.width; c++) grad_key[c] = 0;
  for (int64_t c = 0; grad_value && c < int64_t(p.heads) * p.value_width; c++) grad_value[c] = 0;
}

}  // namespace attn::VARIANT
