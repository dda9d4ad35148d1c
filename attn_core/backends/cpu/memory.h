// Memory that is written for the first time.
#pragma once
#include <cstdint>

namespace attn {

// Asks for large pages, where the system has them on demand: a result of many megabytes is then
// there after a few page faults instead of thousands, each of which costs as much as the work of
// hundreds of edges.
void use_large_pages(void* at, int64_t bytes);

}  // namespace attn
