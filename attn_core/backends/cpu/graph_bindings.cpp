#include "graph_bindings.h"

#include <memory>
#include <utility>
#include <vector>

#include "arrays.h"
#include "checksum.h"
#include "parallel.h"
#include "sort.h"
#include "sorted.h"

using namespace nb::literals;
using namespace arrays;

namespace {

template <class T>
using Out = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutPlaces = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;  // int32 or int64

// Calls work(p) with the places as numbers of their width. (Not an overload: a capsule that one of
// them has looked into is spent for the next.)
template <class Work>
auto by_width(const OutPlaces& place, Work work) {
  if (place.dtype() == nb::dtype<int32_t>()) return work(static_cast<int32_t*>(place.data()));
  if (place.dtype() != nb::dtype<int64_t>()) refuse("place", "is neither int32 nor int64");
  return work(static_cast<int64_t*>(place.data()));
}

// An order that is written: `pointer` [num + 1], `other` and `place` [room].
void check_room(const Out<int64_t>& pointer, const Out<int32_t>& other, const OutPlaces& place,
                int64_t num, int64_t room) {
  if (int64_t(pointer.size()) != num + 1) refuse("pointer", "has another length than nodes + 1");
  if (int64_t(other.size()) != room || int64_t(place.size()) != room) {
    refuse("other", "or place has another length than the pairs");
  }
}

void check_sizes(int64_t count, int64_t num_nodes, int64_t num_others, int64_t loops, bool narrow) {
  constexpr int64_t most = int64_t(1) << 31;
  if (num_nodes < 0 || num_others < 0 || num_nodes > most || num_others > most) {
    refuse("num", "is no number of nodes that the kernels know");
  }
  if (loops < 0 || loops > std::min(num_nodes, num_others)) {
    refuse("loops", "are more than the nodes");
  }
  if (narrow && count + loops >= most) refuse("place", "has too few bits for so many pairs");
}

bool is_narrow(const OutPlaces& place) { return place.itemsize() == 4; }

// Entries by their group; `other` is what stands beside each.
int64_t sort(const nb::ndarray<const int64_t, nb::ndim<1>, nb::device::cpu>& nodes,
             const nb::ndarray<const int64_t, nb::ndim<1>, nb::device::cpu>& others,
             int64_t num_others, int threads, const Out<int64_t>& pointer,
             const Out<int32_t>& other, const OutPlaces& place) {
  nb::gil_scoped_release released;
  const auto count = int64_t(nodes.size()), num = int64_t(pointer.size()) - 1;
  const bool alike = count < 2 || nodes.stride(0) == others.stride(0);
  if (int64_t(others.size()) != count || !alike) refuse("others", "do not lie as nodes do");
  check_sizes(count, num, num_others, 0, is_narrow(place));
  check_room(pointer, other, place, num, count);
  apart({{"pointer", pointer}, {"place", place}, {"other", other}},
        {{"nodes", nodes}, {"others", others}});
  const int64_t step = count < 2 ? 1 : nodes.stride(0);
  const attn::Listed<int64_t> listed{nodes.data(), others.data(), step, count, num, num_others};
  return by_width(place, [&](auto* to) {
    return attn::sort_pairs(listed, attn::order_of(pointer.data(), other.data(), to), threads);
  });
}

// Room for an order, in memory of our own: one block, which Python frees.
struct Room {
  int64_t num, room;
  bool narrow;

  int64_t bytes() const {  // `pointer` first: the rest needs no more to be aligned
    const int64_t used = (num + 1) * 8 + room * (4 + (narrow ? 4 : 8));
    return (used + 7) / 8 * 8;
  }
  int64_t* pointer(char* at) const { return reinterpret_cast<int64_t*>(at); }
  char* place(char* at) const { return at + (num + 1) * 8; }
  int32_t* other(char* at) const {
    return reinterpret_cast<int32_t*>(place(at) + room * (narrow ? 4 : 8));
  }
  nb::dlpack::dtype dtype() const { return narrow ? nb::dtype<int32_t>() : nb::dtype<int64_t>(); }

  attn::SortedEnd end(char* at, nb::handle owner) const {
    const auto nodes = size_t(num + 1), pairs = size_t(room);
    return {Index(pointer(at), 1, &nodes, owner), Column(other(at), 1, &pairs, owner),
            Places(place(at), 1, &pairs, owner, nullptr, dtype())};
  }
  // The same as arrays that Python may read.
  nb::tuple arrays(char* at, nb::handle owner) const {
    const auto nodes = size_t(num + 1), pairs = size_t(room);
    return nb::make_tuple(
        nb::ndarray<int64_t, nb::ndim<1>, nb::device::cpu>(pointer(at), 1, &nodes, owner),
        nb::ndarray<int32_t, nb::ndim<1>, nb::device::cpu>(other(at), 1, &pairs, owner),
        nb::ndarray<nb::ndim<1>, nb::device::cpu>(place(at), 1, &pairs, owner, nullptr, dtype()));
  }
};

// Rooms of the orders by query and by key.
std::pair<Room, Room> rooms(const attn::SortedPairs& pairs, bool narrow) {
  return {{pairs.num_queries, pairs.places, narrow}, {pairs.num_keys, pairs.places, narrow}};
}

// The pairs [2, E] of (key, query) by query and, if it is asked for, by key; behind them, in the
// order by query, those that were left out. Places are `narrow`, of 32 bits, or of 64. None: a number
// is out of range.
template <class I>
std::optional<attn::SortedPairs> sort_ends(
    const nb::ndarray<const I, nb::ndim<2>, nb::device::cpu>& pairs, int64_t num_keys,
    int64_t num_queries, int64_t loops, bool narrow, int threads, bool wants_key) {
  if (pairs.shape(0) != 2) refuse("pairs", "is not [2, E]");
  const auto count = int64_t(pairs.shape(1));
  check_sizes(count, num_keys, num_queries, loops, narrow);
  const int64_t room = count + loops;
  attn::SortedPairs made{num_keys, num_queries, 0, room, {}, std::nullopt, {}};
  const auto [by_query, by_key] = rooms(made, narrow);
  const int64_t bytes = by_query.bytes();
  char* at = new char[size_t(bytes + (wants_key ? by_key.bytes() : 0))];
  made.memory = nb::capsule(at, [](void* memory) noexcept { delete[] static_cast<char*>(memory); });
  made.by_query = by_query.end(at, made.memory);
  if (wants_key) made.by_key = by_key.end(at + bytes, made.memory);
  made.made_key = wants_key;
  const I *keys = pairs.data(), *queries = keys + pairs.stride(0);
  const int64_t step = pairs.stride(1);
  const auto sort_both = [&](auto place) {  // of the type of places
    using P = decltype(place);
    P* to = reinterpret_cast<P*>(by_query.place(at));
    const int64_t found = attn::sort_pairs(
        attn::Listed<I>{queries, keys, step, count, num_queries, num_keys, loops},
        attn::order_of(by_query.pointer(at), by_query.other(at), to), threads);
    int64_t next = found;
    for (int64_t e = 0; next >= 0 && next < room; e++) {
      if (keys[e * step] != queries[e * step]) continue;
      by_query.other(at)[next] = int32_t(keys[e * step]);
      to[next++] = P(e);
    }
    if (found >= 0 && wants_key) {
      char* behind = at + bytes;
      attn::sort_pairs(attn::Listed<I>{keys, queries, step, count, num_keys, num_queries, loops},
                       attn::order_of(by_key.pointer(behind), by_key.other(behind),
                                      reinterpret_cast<P*>(by_key.place(behind))),
                       threads);
    }
    return found;
  };
  {
    nb::gil_scoped_release released;
    made.count = narrow ? sort_both(int32_t()) : sort_both(int64_t());
  }
  if (made.count < 0) return std::nullopt;
  return made;
}

// What sort_ends has made, as arrays (pointer, other, place); None where it made no such order.
std::optional<nb::tuple> order(const attn::SortedPairs& pairs, bool of_keys) {
  if (!pairs.memory.is_valid() || (of_keys && !pairs.made_key)) return std::nullopt;
  const auto [by_query, by_key] = rooms(pairs, pairs.by_query.place.itemsize() == 4);
  auto* at = static_cast<char*>(nb::cast<nb::capsule>(pairs.memory).data());
  return of_keys ? by_key.arrays(at + by_query.bytes(), pairs.memory)
                 : by_query.arrays(at, pairs.memory);
}

// From an order by one end that by the other, each node's pairs in the order of their places.
int64_t turn(const Index& pointer, const Column& other, const Places& place, int64_t places,
             int threads, const Out<int64_t>& to_pointer, const Out<int32_t>& to_other,
             const OutPlaces& to_place) {
  nb::gil_scoped_release released;
  const auto num = int64_t(pointer.size()) - 1, num_others = int64_t(to_pointer.size()) - 1;
  const auto count = int64_t(place.size());
  check_sizes(places, num, num_others, 0, is_narrow(to_place));
  if (places < count) refuse("places", "are fewer than the pairs");
  const attn::Graph given = graph("order", pointer, other, place, num, num_others, places);
  check_room(to_pointer, to_other, to_place, num_others, count);
  apart({{"to_pointer", to_pointer}, {"to_other", to_other}, {"to_place", to_place}},
        {{"pointer", pointer}, {"other", other}, {"place", place}});
  const std::unique_ptr<int32_t[]> nodes(new int32_t[size_t(places)]), others(new int32_t[size_t(places)]);
  if (places > count) std::fill_n(nodes.get(), places, -1);
  for (int64_t node = 0; node < num; node++) {
    for (int64_t e = given.pointer[node]; e < given.pointer[node + 1]; e++) {
      nodes[given.place[e]] = given.other[e];
      others[given.place[e]] = int32_t(node);
    }
  }
  attn::Listed<int32_t> listed{nodes.get(), others.get(), 1, places, num_others, num};
  listed.holes = places > count;
  return by_width(to_place, [&](auto* to) {
    return attn::sort_pairs(listed, attn::order_of(to_pointer.data(), to_other.data(), to), threads);
  });
}

template <class I>
uint64_t checksum(const Array<const I>& x, int threads) {
  constexpr int64_t TASK = 1 << 16;
  nb::gil_scoped_release released;
  if (x.ndim() != 1 && x.ndim() != 2) refuse("x", "is not [E] or [N, E]");
  const int64_t rows = x.ndim() == 1 ? 1 : int64_t(x.shape(0));
  const int64_t count = int64_t(x.shape(x.ndim() - 1)), step = x.stride(x.ndim() - 1);
  const int64_t cuts = (count + TASK - 1) / TASK;
  std::vector<uint64_t> sums(size_t(rows * cuts));
  attn::share(rows * cuts, threads, [&](int64_t i, int) {
    const int64_t first = i % cuts * TASK;
    const I* begin = x.data() + i / cuts * x.stride(0) + first * step;
    sums[size_t(i)] = attn::checksum(begin, std::min(TASK, count - first), step, 0);
  });
  const auto* all = reinterpret_cast<const int64_t*>(sums.data());
  return attn::checksum(all, int64_t(sums.size()), 1, uint64_t(count));
}

template <class I>
void define(nb::module_& m) {
  m.def("sort_ends", &sort_ends<I>, "pairs"_a.noconvert(), "num_keys"_a, "num_queries"_a, "loops"_a,
        "narrow"_a, "threads"_a, "wants_key"_a);
  m.def("checksum", &checksum<I>, "x"_a.noconvert(), "threads"_a);
}

}  // namespace

void attn::define_graphs(nb::module_& m) {
  nb::class_<SortedPairs>(m, "SortedPairs")
      .def("__init__", [](SortedPairs* made, int64_t num_keys, int64_t num_queries, int64_t places,
                          const Index& pointer, const Column& other, const arrays::Places& place) {
        check_sizes(int64_t(other.size()), num_keys, num_queries, 0, false);
        if (places < 0) refuse("places", "is no number of places");
        new (made) SortedPairs{num_keys, num_queries, int64_t(other.size()), places,
                               {pointer, other, place}, std::nullopt, {}};
      })
      .def("set_by_key", [](SortedPairs& pairs, const Index& pointer, const Column& other,
                            const arrays::Places& place) { pairs.by_key = SortedEnd{pointer, other, place}; })
      .def("order", &::order, "of_keys"_a)
      .def_prop_ro("has_key", [](const SortedPairs& pairs) { return pairs.by_key.has_value(); })
      .def_ro("count", &SortedPairs::count);
  ::define<int32_t>(m);
  ::define<int64_t>(m);
  m.def("sort", &::sort, "nodes"_a.noconvert(), "others"_a.noconvert(), "num_others"_a, "threads"_a,
        "pointer"_a.noconvert(), "other"_a.noconvert(), "place"_a.noconvert());
  m.def("turn", &::turn, "pointer"_a.noconvert(), "other"_a.noconvert(), "place"_a.noconvert(),
        "places"_a, "threads"_a, "to_pointer"_a.noconvert(), "to_other"_a.noconvert(),
        "to_place"_a.noconvert());
}
