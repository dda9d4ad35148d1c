// Sparsemax and 1.5-entmax over the pairs of each row.
#pragma once
#include "problem.h"

namespace attn {

// Weights [E, H] of the scores `given`, to `made`; power is that of their derivatives.
template <class T>
void sparse_weights(const Problem<T>& problem, int threads);

}  // namespace attn
