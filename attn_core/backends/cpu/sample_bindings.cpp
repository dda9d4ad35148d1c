#include "sample_bindings.h"

#include "arrays.h"
#include "sample.h"

using namespace nb::literals;
using namespace arrays;

namespace {

template <class T>
using Out = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr int64_t MOST = (int64_t(1) << 31) - 1;  // numbers of nodes have 31 bits

attn::Unchecked unchecked(const Index& pointer, int64_t count) {
  if (pointer.size() == 0) refuse("pointer", "is empty");
  return {{pointer.data(), nullptr, {}, int64_t(pointer.size()) - 1}, count};
}

[[noreturn]] void refuse_node() {
  throw nb::index_error("nodes has an index out of range, or pointer does not rise");
}

int64_t count_drawn(const Index& pointer, int64_t pairs, const Index& nodes, int64_t most,
                    const Out<int64_t>& begins) {
  const attn::Unchecked graph = unchecked(pointer, pairs);
  if (begins.size() != nodes.size() + 1) refuse("begins", "has another length than nodes + 1");
  apart({{"begins", begins}}, {{"pointer", pointer}, {"nodes", nodes}});
  int64_t total = -1;
  {
    nb::gil_scoped_release released;
    total = attn::count_drawn(graph, nodes.data(), int64_t(nodes.size()), most, begins.data());
  }
  if (total < 0) refuse_node();
  return total;
}

void draw_pairs(const Index& pointer, const Column& other, const Places& place, const Index& nodes,
                int64_t most, int64_t seed, const Index& begins, int threads,
                const Out<int32_t>& sources, const Out<int64_t>& places) {
  if (other.size() != place.size()) refuse("other", "has another length than place");
  if (begins.size() != nodes.size() + 1) refuse("begins", "has another length than nodes + 1");
  if (sources.size() != places.size()) refuse("sources", "has another length than places");
  apart({{"sources", sources}, {"places", places}},
        {{"pointer", pointer}, {"other", other}, {"place", place}, {"nodes", nodes},
         {"begins", begins}});
  attn::Unchecked pairs = unchecked(pointer, int64_t(other.size()));
  pairs.graph.other = other.data();
  pairs.graph.place = places_of("place", place);
  bool right = false;
  {
    nb::gil_scoped_release released;
    const int64_t* at = begins.data();
    const size_t count = nodes.size();
    right = at[0] == 0 && at[count] == int64_t(places.size());
    for (size_t i = 0; i < count; i++) right &= at[i] <= at[i + 1];
    right = right && attn::draw_pairs(pairs, nodes.data(), int64_t(count), most, seed, at, threads,
                                      sources.data(), places.data());
  }
  if (!right) refuse("begins", "is not what count_drawn wrote for these nodes");
}

void check_room(const Out<int32_t>& numbers, int64_t first, int64_t count) {
  if (int64_t(numbers.size()) > MOST) refuse("numbers", "are more than 31 bits can tell apart");
  if (first < 0 || first > MOST - count) refuse("first", "leaves too few numbers of 31 bits");
}

void give_numbers(const Index& nodes, const Out<int32_t>& numbers) {
  const auto count = int64_t(nodes.size());
  check_room(numbers, 0, count);
  apart({{"numbers", numbers}}, {{"nodes", nodes}});
  if (!attn::give_numbers(nodes.data(), count, numbers.data(), int64_t(numbers.size()))) {
    refuse_node();
  }
}

void take_numbers(const Index& nodes, const Out<int32_t>& numbers) {
  apart({{"numbers", numbers}}, {{"nodes", nodes}});
  if (!attn::take_numbers(nodes.data(), int64_t(nodes.size()), numbers.data(),
                          int64_t(numbers.size()))) {
    refuse_node();
  }
}

int64_t number_nodes(const Column& nodes, int64_t first, const Out<int32_t>& numbers, int threads,
                     const Out<int64_t>& fresh, const Out<int32_t>& to) {
  const auto count = int64_t(nodes.size());
  check_room(numbers, first, count);
  if (int64_t(fresh.size()) < std::min(count, int64_t(numbers.size()))) {
    refuse("fresh", "has no room for all nodes");
  }
  if (to.size() != nodes.size()) refuse("to", "has another length than nodes");
  apart({{"numbers", numbers}, {"fresh", fresh}, {"to", to}}, {{"nodes", nodes}});
  int64_t found = -1;
  {
    nb::gil_scoped_release released;
    found = attn::number_nodes(nodes.data(), count, first, numbers.data(),
                               int64_t(numbers.size()), threads, fresh.data(), to.data());
  }
  if (found < 0) refuse_node();
  return found;
}

}  // namespace

void attn::define_samples(nb::module_& m) {
  m.def("count_drawn", &::count_drawn, "pointer"_a.noconvert(), "pairs"_a, "nodes"_a.noconvert(),
        "most"_a, "begins"_a.noconvert());
  m.def("draw_pairs", &::draw_pairs, "pointer"_a.noconvert(), "other"_a.noconvert(),
        "place"_a.noconvert(), "nodes"_a.noconvert(), "most"_a, "seed"_a, "begins"_a.noconvert(),
        "threads"_a, "sources"_a.noconvert(), "places"_a.noconvert());
  m.def("give_numbers", &::give_numbers, "nodes"_a.noconvert(), "numbers"_a.noconvert());
  m.def("take_numbers", &::take_numbers, "nodes"_a.noconvert(), "numbers"_a.noconvert());
  m.def("number_nodes", &::number_nodes, "nodes"_a.noconvert(), "first"_a, "numbers"_a.noconvert(),
        "threads"_a, "fresh"_a.noconvert(), "to"_a.noconvert());
}
