// Pairs sorted by one of their ends, in time O(pairs + nodes).
#pragma once
#include <cstdint>

namespace attn {

// Pairs as they are given: two rows of node numbers, each `step` apart.
template <class I>
struct Listed {
  const I *nodes = nullptr, *others = nullptr;  // the end to sort by, and the other one
  int64_t step = 1, count = 0;
  int64_t num = 0, num_others = 0;  // how many nodes there are at each end
  // Where it is not 0, pairs of a node with itself are left out, and behind all others each of the
  // first `loops` nodes has one, whose place is count + node.
  int64_t loops = 0;
  bool holes = false;  // pairs of negative numbers are not there
};

// Where the pairs of each node begin [num + 1]; of each sorted pair, the other end and its place in
// the list [count + loops].
template <class P>
struct Sorted {
  int64_t* pointer = nullptr;
  int32_t* other = nullptr;
  P* place = nullptr;
};

template <class P>
Sorted<P> order_of(int64_t* pointer, int32_t* other, P* place) {
  return {pointer, other, place};
}

// Stable, and so the same for any number of threads. Returns how many pairs there are; -1 where a
// number is out of range.
template <class I, class P>
int64_t sort_pairs(const Listed<I>& pairs, const Sorted<P>& sorted, int threads);

}  // namespace attn
