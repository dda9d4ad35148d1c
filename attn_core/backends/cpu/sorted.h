// The pairs of a graph as Python holds them for the kernels: sorted arrays, each checked at each use.
#pragma once
#include "arrays.h"

namespace attn {

// Pairs sorted by one end. The arrays may have room behind the `count` pairs that there are.
struct SortedEnd {
  arrays::Index pointer;
  arrays::Column other;
  arrays::Places place;

  Graph checked(const char* name, int64_t count, int64_t num, int64_t others, int64_t places,
                bool reads_place) const {
    if (int64_t(pointer.size()) != num + 1 || int64_t(other.size()) < count ||
        int64_t(place.size()) < count) {
      arrays::refuse(name, "has a shape that does not fit the others");
    }
    Graph found = arrays::graph(name, pointer.data(), arrays::places_of(name, place), count, num,
                                places, reads_place);
    arrays::within(name, other.data(), count, others);
    found.other = other.data();
    return found;
  }
};

// Places lie below `places`: numbers of the caller's edges, then of the self-loops of nodes.
struct SortedPairs {
  int64_t num_keys, num_queries, count, places;
  SortedEnd by_query;
  std::optional<SortedEnd> by_key;
  nb::object memory;  // in which the module has sorted them, if it did
  bool made_key = false;  // by key too

  Graph query_graph(bool reads_place) const {
    return by_query.checked("by_query", count, num_queries, num_keys, places, reads_place);
  }
  Graph key_graph() const {
    if (!by_key) arrays::refuse("by_key", "was not made");
    return by_key->checked("by_key", count, num_keys, num_queries, places, true);
  }
};

}  // namespace attn
