// A whole graph layer behind its linear maps.
#pragma once
#include <nanobind/nanobind.h>

namespace attn {

void define_layers(nanobind::module_& m);

}  // namespace attn
