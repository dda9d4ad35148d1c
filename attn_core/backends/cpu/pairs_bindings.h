// Scores of pairs, sums over them, and softmax and its like over the pairs of each row, for Python;
// additive scores over dense supports.
#pragma once
#include <nanobind/nanobind.h>

namespace attn {

void define_pairs(nanobind::module_& m);
void define_additive(nanobind::module_& m);

}  // namespace attn
