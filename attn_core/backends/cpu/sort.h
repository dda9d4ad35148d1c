// Pairs sorted by one of their ends, in time O(pairs + nodes).
#pragma once
#include <cstdint>

namespace attn {

// Writes where the pairs of each node begin, `pointer` [num + 1]; the position of each sorted pair
// in the list, `place` [count]; and its other end, `other` [count]. Stable. Returns whether all
// nodes lie in [0, num) and all others fit.
bool sort_pairs(const int64_t* nodes, const int64_t* others, int64_t count, int64_t num,
                int64_t* pointer, int64_t* place, int32_t* other);

}  // namespace attn
