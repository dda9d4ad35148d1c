// A probability and a seed as the hash of attn_core/dropout.py wants them; that hash for one number.
#pragma once
#include "problem.h"

namespace attn {

inline uint32_t hash_mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}

inline uint32_t hash_absorb(uint32_t state, uint32_t word) {
  return hash_mix((state + word * 0x85EBCA6Bu) ^ 0xC2B2AE35u);
}

inline uint32_t hash_seed(int64_t seed) {
  const uint32_t low = uint32_t(uint64_t(seed)), high = uint32_t(uint64_t(seed) >> 32);
  return hash_absorb(hash_mix(low ^ 0x9E3779B9u), high);
}

inline Dropout dropout_of(double p, int64_t seed) {
  Dropout dropout;
  dropout.seed_state = hash_seed(seed);
  dropout.threshold = p < 1 ? uint32_t(p * 4294967296.0) : 0;
  dropout.keep_scale = p < 1 ? float(1 / (1 - p)) : 0;
  return dropout;
}

}  // namespace attn
