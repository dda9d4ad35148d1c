#include "sort.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "memory.h"
#include "parallel.h"

namespace attn {
namespace {

// What becomes of a pair.
enum Fate { KEPT, LEFT_OUT, WRONG };

template <class I>
inline Fate fate(const Listed<I>& pairs, I node, I other) {
  if (uint64_t(node) >= uint64_t(pairs.num) || uint64_t(other) >= uint64_t(pairs.num_others)) {
    return pairs.holes && node < 0 ? LEFT_OUT : WRONG;
  }
  return pairs.loops && node == other ? LEFT_OUT : KEPT;
}

// Counts to each node, then lets every pair go to the place of its node: at best where the places
// that are written to fit the cache.
template <class I, class P>
int64_t by_counting(const Listed<I>& pairs, const Sorted<P>& out) {
  int64_t* pointer = out.pointer;
  std::memset(pointer, 0, sizeof(int64_t) * size_t(pairs.num + 1));
  bool sorted = pairs.loops == 0 && !pairs.holes;
  I last = 0;
  for (int64_t e = 0; e < pairs.count; e++) {
    const I node = pairs.nodes[e * pairs.step];
    const Fate what = fate(pairs, node, pairs.others[e * pairs.step]);
    if (what == WRONG) return -1;
    if (what == LEFT_OUT) continue;
    pointer[node]++;
    sorted &= node >= last;
    last = node;
  }
  int64_t total = 0;
  for (int64_t i = 0; i <= pairs.num; i++) {
    const int64_t here = pointer[i] + (i < pairs.loops);
    pointer[i] = total;
    total += here;
  }
  if (sorted) {
    for (int64_t e = 0; e < pairs.count; e++) {
      out.place[e] = P(e);
      out.other[e] = int32_t(pairs.others[e * pairs.step]);
    }
    return total;
  }
  for (int64_t e = 0; e < pairs.count; e++) {
    const I node = pairs.nodes[e * pairs.step], other = pairs.others[e * pairs.step];
    if (fate(pairs, node, other) != KEPT) continue;
    const int64_t slot = pointer[node]++;
    out.place[slot] = P(e);
    out.other[slot] = int32_t(other);
  }
  for (int64_t node = 0; node < pairs.loops; node++) {
    const int64_t slot = pointer[node]++;
    out.place[slot] = P(pairs.count + node);
    out.other[slot] = int32_t(node);
  }
  std::memmove(pointer + 1, pointer, sizeof(int64_t) * size_t(pairs.num));  // each went to the next
  pointer[0] = 0;
  return total;
}

// First to the range of nodes that a pair belongs to, then within each range by counting: what is
// written at one time fits the cache.
template <class I, class P>
int64_t by_ranges(const Listed<I>& pairs, const Sorted<P>& out, int threads) {
  struct Pair {
    int32_t node, other;
    P place;
  };
  constexpr int64_t RANGES = 2048, TASK = 1 << 18;
  int shift = 0;
  while ((pairs.num - 1) >> shift >= RANGES) shift++;
  const int64_t ranges = ((pairs.num - 1) >> shift) + 1, tasks = (pairs.count + TASK - 1) / TASK;
  std::vector<int64_t> begins(size_t(tasks * ranges));
  std::atomic<bool> wrong{false};
  const auto each = [&](int64_t task, auto&& take) {
    const int64_t end = std::min(pairs.count, (task + 1) * TASK);
    for (int64_t e = task * TASK; e < end; e++) {
      const I node = pairs.nodes[e * pairs.step], other = pairs.others[e * pairs.step];
      const Fate what = fate(pairs, node, other);
      if (what == KEPT) take(e, node, other);
      if (what == WRONG) wrong.store(true, std::memory_order_relaxed);
    }
  };
  share(tasks, threads, [&](int64_t task, int) {
    int64_t* counts = begins.data() + task * ranges;
    each(task, [&](int64_t, I node, I) { counts[node >> shift]++; });
  });
  if (wrong) return -1;
  std::vector<int64_t> starts(size_t(ranges + 1));
  int64_t total = 0;
  for (int64_t range = 0; range < ranges; range++) {
    starts[size_t(range)] = total;
    for (int64_t task = 0; task < tasks; task++) {
      int64_t& here = begins[size_t(task * ranges + range)];
      const int64_t size = here;
      here = total;
      total += size;
    }
  }
  starts[size_t(ranges)] = total;
  std::unique_ptr<Pair[]> apart(new Pair[size_t(total)]);
  use_large_pages(apart.get(), total * int64_t(sizeof(Pair)));
  use_large_pages(out.other, (total + pairs.loops) * int64_t(sizeof(int32_t)));
  use_large_pages(out.place, (total + pairs.loops) * int64_t(sizeof(P)));
  share(tasks, threads, [&](int64_t task, int) {
    int64_t* next = begins.data() + task * ranges;
    each(task, [&](int64_t e, I node, I other) {
      apart[size_t(next[node >> shift]++)] = {int32_t(node), int32_t(other), P(e)};
    });
  });
  share(ranges, threads, [&](int64_t range, int) {
    const int64_t first = range << shift, end = std::min(pairs.num, first + (int64_t(1) << shift));
    const Pair *from = apart.get() + starts[size_t(range)],
               *to = apart.get() + starts[size_t(range) + 1];
    int64_t* pointer = out.pointer + 1;  // of the node, the end in the end
    for (int64_t node = first; node < end; node++) pointer[node] = 0;
    for (const Pair* pair = from; pair != to; pair++) pointer[pair->node]++;
    int64_t at = starts[size_t(range)] + std::min(first, pairs.loops);
    for (int64_t node = first; node < end; node++) {
      const int64_t here = pointer[node] + (node < pairs.loops);
      pointer[node] = at;
      at += here;
    }
    for (const Pair* pair = from; pair != to; pair++) {
      const int64_t slot = pointer[pair->node]++;
      out.other[slot] = pair->other;
      out.place[slot] = pair->place;
    }
    for (int64_t node = first; node < std::min(end, pairs.loops); node++) {
      const int64_t slot = pointer[node]++;
      out.other[slot] = int32_t(node);
      out.place[slot] = P(pairs.count + node);
    }
  });
  out.pointer[0] = 0;
  return total + pairs.loops;
}

}  // namespace

template <class I, class P>
int64_t sort_pairs(const Listed<I>& pairs, const Sorted<P>& out, int threads) {
  constexpr int64_t FEW_PAIRS = 1 << 17, FEW_NODES = 1 << 12;
  const bool few = pairs.count < FEW_PAIRS || pairs.num < FEW_NODES;
  return few ? by_counting(pairs, out) : by_ranges(pairs, out, threads);
}

template int64_t sort_pairs(const Listed<int32_t>&, const Sorted<int32_t>&, int);
template int64_t sort_pairs(const Listed<int32_t>&, const Sorted<int64_t>&, int);
template int64_t sort_pairs(const Listed<int64_t>&, const Sorted<int32_t>&, int);
template int64_t sort_pairs(const Listed<int64_t>&, const Sorted<int64_t>&, int);

}  // namespace attn
