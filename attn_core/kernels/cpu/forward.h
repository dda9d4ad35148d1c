// The forward pass over the pairs of one query: softmax block by block, each visited once.
#pragma once
#include "block.h"

namespace attn::VARIANT {

// Turns logits into e^(logit - largest so far), and what was summed before by `scale`.
template <class T>
INLINE void normalise(int heads, int n, Scratch<T>& s, bool first) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  const T lowest = -infinity(T());
  for (int h = 0; h < heads; h++) {
    T* at = s.logits + h * BLOCK;
    int end = n;
    for (; end % W; end++) at[end] = lowest;
    V top = load<T, W>(at);
    for (int e = W; e < end; e += W) {
      const V x = load<T, W>(at + e);
      top = x > top ? x : top;
    }
    T most = first ? lowest : s.largest[h];
    alignas(64) T lanes[W];
    store<T, W>(lanes, top);
    for (int i = 0; i < W; i++) most = lanes[i] > most ? lanes[i] : most;
    const T shift = most == lowest ? T(0) : most;
    V sums = {};
    for (int e = 0; e < end; e += W) {
      const V x = exp<T, W>(load<T, W>(at + e) - shift);
      store<T, W>(at + e, x);
      sums += x;
    }
    const T sum_here = sum<T, W>(sums);
    if (first) {
      s.total[h] = sum_here;
    } else {
      const T scale = exp<T, 4>(all<T, 4>(s.largest[h] - shift))[0];
      s.scale[h] = scale;
      s.total[h] = s.total[h] * scale + sum_here;
    }
    s.largest[h] = most;
  }
}

template <class T>
void forward_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                   int64_t end, Scratch<T>& s, T* output) {
  const int64_t size = int64_t(p.heads) * p.width, value_size = int64_t(p.heads) * p.value_width;
  const bool same = p.key.data == p.value.data && p.key.step == p.value.step && !p.pair_key &&
                    !p.pair_value && p.width == p.value_width;
  const T *keys[BLOCK], *values[BLOCK];
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    prefetch(p.value, p.by_query, at + n, n, value_size);
    if (!same && size > 64) prefetch(p.key, p.by_query, at + n, n, size);
    find_rows(p.key, p.pair_key, p, p.by_query, at, n, size, s.made_key, keys);
    f.score(p, keys, n, p.query[row], p.width, s.logits);
    add_bias(p, at, n, s.logits);
    normalise(p.heads, n, s, at == begin);
    const T* const* summed = keys;
    if (!same) {
      find_rows(p.value, p.pair_value, p, p.by_query, at, n, value_size, s.made_value, values);
      summed = values;
    }
    if (p.drops) {
      draw(p, at, n, s.keep);
      for (int64_t i = 0; i < int64_t(p.heads) * BLOCK; i++) s.logits[i] *= s.keep[i];
    }
    f.gather_value(summed, n, s.logits, at == begin ? nullptr : s.scale, p.heads, p.value_width,
                   output);
  }
}

// Divide by the sum of the weights.
template <class T>
INLINE void finish(const Problem<T>& p, int64_t row, const T* largest, const T* total, T* output) {
  T* log_sum_exp = p.log_sum_exp[row];
  for (int h = 0; h < p.heads; h++) {
    const T scale = total[h] == T(0) ? T(0) : T(1) / total[h];
    for (int c = 0; c < p.value_width; c++) output[h * p.value_width + c] *= scale;
    const T log = sizeof(T) == 4 ? T(__builtin_logf(float(total[h]))) : T(__builtin_log(total[h]));
    log_sum_exp[h] = largest[h] + log;
  }
}

template <class T>
void forward_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  T* output = p.output[row];
  if (begin == end) {
    for (int64_t c = 0; c < int64_t(p.heads) * p.value_width; c++) output[c] = 0;
    for (int h = 0; h < p.heads; h++) p.log_sum_exp[row][h] = -infinity(T());
    return;
  }
  forward_pairs(p, f, row, begin, end, s, output);
  finish(p, row, s.largest, s.total, output);
}

// A part is [largest, total, sum].
template <class T>
void forward_part(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                  int64_t end, Scratch<T>& s, T* partial) {
  forward_pairs(p, f, row, begin, end, s, partial + 2 * p.heads);
  for (int h = 0; h < p.heads; h++) {
    partial[h] = s.largest[h];
    partial[p.heads + h] = s.total[h];
  }
}

template <class T>
void forward_merge(const Problem<T>& p, int64_t row, const T* partials, int64_t count,
                   Scratch<T>& s) {
  const int64_t step = p.partial_size(FORWARD), heads = p.heads, width = p.value_width;
  T* output = p.output[row];
  for (int64_t c = 0; c < heads * width; c++) output[c] = 0;
  for (int64_t h = 0; h < heads; h++) {
    T most = -infinity(T());
    for (int64_t i = 0; i < count; i++) {
      const T here = partials[i * step + h];
      most = here > most || here != here ? here : most;
    }
    const T shift = most == -infinity(T()) ? T(0) : most;
    T total = 0;
    for (int64_t i = 0; i < count; i++) {
      const T* partial = partials + i * step;
      const T scale = exp<T, 4>(all<T, 4>(partial[h] - shift))[0];
      total += scale * partial[heads + h];
      const T* sums = partial + 2 * heads + h * width;
      for (int64_t c = 0; c < width; c++) output[h * width + c] += scale * sums[c];
    }
    s.largest[h] = most;
    s.total[h] = total;
  }
  finish(p, row, s.largest, s.total, output);
}

}  // namespace attn::VARIANT
