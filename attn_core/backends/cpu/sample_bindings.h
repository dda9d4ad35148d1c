// In-edges drawn for some nodes, and nodes numbered anew.
#pragma once
#include <nanobind/nanobind.h>

namespace attn {

void define_samples(nanobind::module_& m);

}  // namespace attn
