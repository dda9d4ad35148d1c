#include "checksum.h"

namespace attn {
namespace {

constexpr int LANES = 8;
constexpr uint64_t STEP = 0x9E3779B97F4A7C15;  // odd: no key comes again

// Σ of the products of the two halves of number ⊕ key, as XXH3 does, with a key for each place.
template <class I>
uint64_t sum_up(const I* x, int64_t count, int64_t step, uint64_t before) {
  uint64_t keys[LANES], sums[LANES] = {};
  for (int l = 0; l < LANES; l++) keys[l] = (before | 1) + STEP * uint64_t(l + 1);
  const auto add = [&](int l, int64_t e) {
    const uint64_t number = uint64_t(int64_t(x[e * step])), mixed = number ^ keys[l];
    sums[l] += number + (mixed & 0xFFFFFFFF) * (mixed >> 32);
    keys[l] += STEP * LANES;
  };
  int64_t e = 0;
  for (; e + LANES <= count; e += LANES) {
    for (int l = 0; l < LANES; l++) add(l, e + l);
  }
  for (int l = 0; e < count; e++, l++) add(l, e);
  uint64_t all = before ^ uint64_t(count);
  for (const uint64_t sum : sums) {
    all = (all ^ sum) * STEP;
    all ^= all >> 29;
  }
  return all;
}

}  // namespace

template <class I>
uint64_t checksum(const I* x, int64_t count, int64_t step, uint64_t before) {
  return step == 1 ? sum_up(x, count, 1, before) : sum_up(x, count, step, before);
}

template uint64_t checksum<int32_t>(const int32_t*, int64_t, int64_t, uint64_t);
template uint64_t checksum<int64_t>(const int64_t*, int64_t, int64_t, uint64_t);

}  // namespace attn
