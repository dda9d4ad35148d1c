// Orders of pairs, and checksums.
#pragma once
#include <nanobind/nanobind.h>

namespace attn {

void define_graphs(nanobind::module_& m);

}  // namespace attn
