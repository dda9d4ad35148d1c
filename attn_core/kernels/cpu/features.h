// Dropout of features, drawn as that of attention weights is.
#pragma once
#include "problem.h"
#include "simd.h"

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

}  // namespace attn::VARIANT
