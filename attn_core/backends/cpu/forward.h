// The forward pass over the pairs of one query: softmax block by block, each visited once.
#pragma once
#include "block.h"

namespace attn::VARIANT {

// Turns logits into e^(logit - largest so far), and what was summed before by `scale`. S is the
// number of lanes if several pairs share a vector, else the vector's length.
template <class T, int S>
void normalise(const Problem<T>& p, int n, Scratch<T>& s, bool first) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  const V lowest = all<T, W>(-infinity(T()));
  const int end = fill_rest(p, n, -infinity(T()), s.logits), step = period(p);
  for (int at = 0; at < step; at += W) {
    V most = lowest;
    for (int i = at; i < end; i += step) {
      const V x = load<T, W>(s.logits + i);
      most = x > most ? x : most;
    }
    most = largest_apart<T, W, S>(most);
    if (!first) {
      const V before = load<T, W>(s.largest + at);
      most = before > most ? before : most;
    }
    const V shift = most == lowest ? V{} : most;
    V total = {};
    for (int i = at; i < end; i += step) {
      const V weight = exp<T, W>(load<T, W>(s.logits + i) - shift);
      store<T, W>(s.logits + i, weight);
      total += weight;
    }
    total = sum_apart<T, W, S>(total);
    if (!first) {
      const V scale = exp<T, W>(load<T, W>(s.largest + at) - shift);
      total += load<T, W>(s.total + at) * scale;
      store<T, W>(s.scale + at, scale);
    }
    store<T, W>(s.total + at, total);
    store<T, W>(s.largest + at, most);
  }
}

template <class T, int S = 1>
auto choose_normalise(int lanes) -> decltype(&normalise<T, S>) {
  if constexpr (S < WIDEST<T>) {
    if (lanes > S) return choose_normalise<T, 2 * S>(lanes);
  }
  return &normalise<T, S>;
}

// The key's row serves as value too.
template <class T>
INLINE bool is_shared(const Problem<T>& p) {
  return p.key.data == p.value.data && p.key.step == p.value.step && !p.pair_key &&
         !p.pair_value && p.width == p.value_width;
}

// The logits of a block of a query's pairs; `fixed` is the query, repeated if it is numbers.
template <class T>
INLINE void score_pairs(const Problem<T>& p, const Functions<T>& f, int64_t begin, int n,
                        const T* query, Scratch<T>& s, Row* keys, T* logits) {
  const int64_t size = int64_t(p.heads) * p.width;
  find_rows(p.key, p.pair_key, p, p.by_query, begin, n, size, s.made_key, keys);
  if (f.score_numbers) {
    prefetch_next(p, p.key, p.by_query, begin, n, size);
    f.score_numbers(p, keys, n, s.fixed, s.vector, s.x, logits);
  } else {
    Row next[ROWS];
    f.score(p, keys, find_next(p, p.key, p.by_query, begin, n, next), n, query, p.width, logits);
  }
  add_bias(p, p.by_query, begin, n, logits);
}

template <class T>
void forward_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                   int64_t end, Scratch<T>& s, T* output) {
  const int64_t value_size = int64_t(p.heads) * p.value_width;
  const bool shared = is_shared(p);
  const T* query = widened(p.query, row, int64_t(p.heads) * p.width, s.fixed_key);
  if (f.score_numbers) repeat(p, query, s.fixed);
  // Where little is computed of a key, values are asked for at once if sums sweep over them but once
  // or twice, which would wait for them; shorter vectors sweep more often, and ask as they go.
  const bool at_once = REGISTER == 64 && f.score_numbers;
  Row keys[ROWS], values[ROWS], next[ROWS];
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    if (at_once) prefetch_next(p, p.value, p.by_query, at, n, value_size);
    score_pairs(p, f, at, n, query, s, keys, s.logits);
    f.normalise(p, n, s, at == begin);
    if (p.drops) {
      draw(p, p.by_query, at, n, s.keep);
      for (int i = 0; i < n * p.lanes; i++) s.logits[i] *= s.keep[i];
    }
    const Row *summed = keys, *later = nullptr;
    if (!shared) {
      find_rows(p.value, p.pair_value, p, p.by_query, at, n, value_size, s.made_value, values);
      if (!at_once) later = find_next(p, p.value, p.by_query, at, n, next);
      summed = values;
    }
    f.gather_value(p, summed, later, n, s.logits, at == begin ? nullptr : s.scale, p.value_width,
                   output);
  }
}

// Divide by the sum of the weights. The backward pass makes weights of the maximum and the sum: the
// log-sum-exp, one number, rounds by as much as the scores are large.
template <class T>
INLINE void finish(const Problem<T>& p, int64_t row, Scratch<T>& s, T* output) {
  copy_heads(s.largest, p.heads, p.maximum[row]);
  copy_heads(s.total, p.heads, p.total[row]);
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
  put(p.rounded, row, int64_t(p.heads) * p.value_width, output);
}

// Where a row of the output is made, if it is not kept but in 16 bits.
template <class T>
INLINE T* output_of(const Problem<T>& p, int64_t row, Scratch<T>& s) {
  return p.output ? p.output[row] : s.row_value;
}

template <class T>
void forward_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  const int64_t size = int64_t(p.heads) * p.value_width;
  T* output = output_of(p, row, s);
  if (begin == end) {
    for (int64_t c = 0; c < size; c++) output[c] = 0;
    put(p.rounded, row, size, output);
    for (int h = 0; h < p.heads; h++) {
      p.log_sum_exp[row][h] = p.maximum[row][h] = -infinity(T());
      p.total[row][h] = 0;
    }
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
  T* output = output_of(p, row, s);
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
