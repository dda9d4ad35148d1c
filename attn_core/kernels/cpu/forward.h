// The forward pass over the pairs of one query: softmax block by block, each visited once.
#pragma once
#include "block.h"

namespace attn::VARIANT {

// Turns logits into e^(logit - largest so far), and what was summed before by `scale`; four heads
// at once. Memory for them is there up to the next multiple of 4.
template <class T>
INLINE void normalise(int heads, int n, Scratch<T>& s, bool first) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  using F = Vec<T, 4>;
  const F lowest = all<T, 4>(-infinity(T()));
  int end = n;
  for (; end % W; end++) {
    for (int h = 0; h < heads; h++) s.logits[h * BLOCK + end] = -infinity(T());
  }
  for (int h = 0; h < heads; h += 4) {
    F x[4];
    for (int u = 0; u < 4; u++) {
      const T* at = s.logits + (h + u) * BLOCK;
      V top = load<T, W>(at);
      for (int e = W; e < end; e += W) {
        const V next = load<T, W>(at + e);
        top = next > top ? next : top;
      }
      x[u] = largest<T, W>(top);
    }
    transpose<T>(x[0], x[1], x[2], x[3]);
    F most = first ? lowest : load<T, 4>(s.largest + h);
    for (int u = 0; u < 4; u++) most = x[u] > most ? x[u] : most;
    const F shift = most == lowest ? F{} : most;
    for (int u = 0; u < 4; u++) {
      T* at = s.logits + (h + u) * BLOCK;
      V total = {};
      for (int e = 0; e < end; e += W) {
        const V weight = exp<T, W>(load<T, W>(at + e) - shift[u]);
        store<T, W>(at + e, weight);
        total += weight;
      }
      x[u] = fold<T, W>(total);
    }
    F total = sums<T>(x[0], x[1], x[2], x[3]);
    if (!first) {
      const F scale = exp<T, 4>(load<T, 4>(s.largest + h) - shift);
      total += load<T, 4>(s.total + h) * scale;
      store<T, 4>(s.scale + h, scale);
    }
    store<T, 4>(s.total + h, total);
    store<T, 4>(s.largest + h, most);
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
INLINE void finish(const Problem<T>& p, int64_t row, Scratch<T>& s, T* output) {
  for (int h = 0; h < p.heads; h += 4) {
    const Vec<T, 4> total = load<T, 4>(s.total + h);
    store<T, 4>(s.largest + h, load<T, 4>(s.largest + h) + log<T>(total));
    store<T, 4>(s.scale + h, total == T(0) ? Vec<T, 4>{} : T(1) / total);
  }
  T* log_sum_exp = p.log_sum_exp[row];
  for (int h = 0; h < p.heads; h++) {
    log_sum_exp[h] = s.largest[h];
    const T scale = s.scale[h];
    for (int c = h * p.value_width; c < (h + 1) * p.value_width; c += 4) {
      store<T, 4>(output + c, scale * load<T, 4>(output + c));
    }
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
  finish(p, row, s, output);
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
  finish(p, row, s, output);
}

}  // namespace attn::VARIANT
