// Whether numbers are still what they were.
#pragma once
#include <cstdint>

namespace attn {

// Changes, but for one case in some 2³², with any of `count` numbers that lie `step` apart and with
// their order; `before` is the checksum of what came before them.
template <class I>
uint64_t checksum(const I* x, int64_t count, int64_t step, uint64_t before);

}  // namespace attn
