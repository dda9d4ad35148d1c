#include "sort.h"

#include <cstring>
#include <vector>

namespace attn {

bool sort_pairs(const int64_t* nodes, const int64_t* others, int64_t count, int64_t num,
                int64_t* pointer, int64_t* place, int32_t* other) {
  std::memset(pointer, 0, sizeof(int64_t) * size_t(num + 1));
  bool sorted = true;
  int64_t last = 0;
  for (int64_t e = 0; e < count; e++) {
    if (nodes[e] < 0 || nodes[e] >= num || others[e] < 0 || others[e] > INT32_MAX) return false;
    pointer[nodes[e] + 1]++;
    sorted &= nodes[e] >= last;
    last = nodes[e];
  }
  for (int64_t i = 0; i < num; i++) pointer[i + 1] += pointer[i];
  if (sorted) {
    for (int64_t e = 0; e < count; e++) {
      place[e] = e;
      other[e] = int32_t(others[e]);
    }
    return true;
  }
  std::vector<int64_t> next(pointer, pointer + num);
  for (int64_t e = 0; e < count; e++) {
    const int64_t slot = next[size_t(nodes[e])]++;
    place[slot] = e;
    other[slot] = int32_t(others[e]);
  }
  return true;
}

}  // namespace attn
