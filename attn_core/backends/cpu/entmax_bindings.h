// α-entmax over the pairs of each row, and attention over edges with it, for Python.
#pragma once
#include <nanobind/nanobind.h>

namespace attn {

void define_entmax(nanobind::module_& m);

}  // namespace attn
