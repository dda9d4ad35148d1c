// Of features: their dropout, drawn as that of attention weights is, and products of sparse ones.
#pragma once
#include "block.h"

namespace attn::VARIANT {

// Number i of a tensor is head i % DRAWS of edge i / DRAWS.
template <class T>
void drop(const Dropout& dropout, const T* from, int64_t begin, int64_t end, T* to) {
  constexpr int BATCH = WORDS * DRAWS;  // numbers of as many edges as fit a vector
  const Words seed = dropout.seed_state - Words{}, threshold = dropout.threshold - Words{};
  const Words count = {0, 1, 2, 3, 4, 5, 6, 7};
  alignas(64) T keep[BATCH];
  for (int64_t at = begin; at < end; at += BATCH) {
    const uint64_t edge = uint64_t(at) / DRAWS;  // a multiple of WORDS: the upper half is that of all
    const Words states =
        absorb(absorb(seed, count + uint32_t(edge)), uint32_t(edge >> 32) - Words{});
    for (int e = 0; e < WORDS; e++) {
      const Words state = states[e] - Words{};
      for (int h = 0; h < DRAWS; h += WORDS) {
        const Words hash = absorb(state, count + uint32_t(h));
        store<T, WORDS>(keep + e * DRAWS + h,  // -1 becomes 1 / (1 - p)
                        __builtin_convertvector(hash >= threshold, Vec<T, WORDS>) *
                            -T(dropout.keep_scale));
      }
    }
    const int n = end - at < BATCH ? int(end - at) : BATCH;
    for (int i = 0; i < n; i++) to[at + i] = from[at + i] * keep[i];
  }
}

// COUNT vectors of a row of the result, from column `at` on.
template <class T, int W, int COUNT>
INLINE void multiply_tile(const Product<T>& p, int64_t begin, int64_t end, int64_t at, T* out) {
  constexpr int64_t TOGETHER = 1024;  // the longer a sum, the more it rounds
  using V = Vec<T, W>;
  const int64_t last = p.entries.pointer[p.entries.num] - 1;
  V total[COUNT] = {};
  for (int64_t e = begin; e < end;) {
    V sum[COUNT] = {};
    for (const int64_t stop = end - e < TOGETHER ? end : e + TOGETHER; e < stop; e++) {
      if (p.far) {
        const int64_t next = e + AHEAD < last ? e + AHEAD : last;
        prefetch<T, COUNT * W>(p.dense[p.entries.other[next]] + at);
      }
      const T value = p.values[p.entries.place[e]];
      const T* row = p.dense[p.entries.other[e]] + at;
      for (int t = 0; t < COUNT; t++) sum[t] += value * load<T, W>(row + t * W);
    }
    for (int t = 0; t < COUNT; t++) total[t] += sum[t];
  }
  for (int t = 0; t < COUNT; t++) store<T, W>(out + at + t * W, total[t]);
}

template <class T>
void multiply(const Product<T>& p, int64_t begin, int64_t end) {
  constexpr int W = WIDEST<T>;
  for (int64_t row = begin; row < end; row++) {
    const int64_t first = p.entries.pointer[row], stop = p.entries.pointer[row + 1];
    T* out = p.out[row];
    int64_t at = 0;
    for (; at + 4 * W <= p.width; at += 4 * W) multiply_tile<T, W, 4>(p, first, stop, at, out);
    for (; at + W <= p.width; at += W) multiply_tile<T, W, 1>(p, first, stop, at, out);
    for (; at < p.width; at += 4) multiply_tile<T, 4, 1>(p, first, stop, at, out);
  }
}

}  // namespace attn::VARIANT
