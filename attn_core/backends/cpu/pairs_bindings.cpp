#include "pairs_bindings.h"

#include <memory>

#include "edge_call.h"

using namespace nb::literals;
using namespace arrays;

namespace {

// What scores and sums are told alike; `other` are the vectors of the other ends, `num` the rows.
template <class T>
attn::Problem<T> pairs(const Maybe<const T>& row, const Array<const T>& other,
                       const Maybe<const T>& vector, const Maybe<const T>& pair,
                       const Index& pointer, const Column& column, const Places& place, int kind,
                       double constant) {
  if (other.ndim() != 3) refuse("other", "is not [N, H, D]");
  const int64_t heads = other.shape(1), width = other.shape(2), count = column.size();
  const int64_t num = int64_t(pointer.size()) - 1;
  if (num < 0) refuse("pointer", "is empty");
  if (heads < 1 || heads > (1 << 16) || width < 1 || width > (1 << 20)) {
    refuse("other", "has no heads or channels, or too many");
  }
  if (kind < attn::DOT || kind > attn::TANH) refuse("kind", "is not known");
  if (width % 4 && !(width == 1 && kind != attn::DOT)) {
    refuse("other", "has a width that is no multiple of 4");
  }
  attn::Problem<T> p;
  p.kind = attn::Kind(kind);
  p.scale = p.slope = T(constant);
  p.heads = int(heads);
  p.lanes = attn::lanes_of(heads);
  p.width = int(width);
  p.far = is_far<T>((num + int64_t(other.shape(0))) * heads * width);
  p.query = rows<const T>("row", row, num, heads, width);
  p.key = rows<const T>("other", other, other.shape(0), heads, width);
  p.pair_key = rows<const T>("pair", pair, count, heads, width);
  if (kind != attn::DOT) {
    if (!vector) refuse("vector", "is missing");
    p.vector = packed<const T>("vector", *vector, heads, width);
  }
  p.by_query = graph("pairs", pointer, column, place, num, int64_t(other.shape(0)),
                     int64_t(place.size()));
  return p;
}

template <class T>
void pair_scores(const Array<const T>& row, const Array<const T>& other,
                 const Maybe<const T>& vector, const Maybe<const T>& pair, const Index& pointer,
                 const Column& column, const Places& place, int kind, double constant, int threads,
                 const Array<T>& scores) {
  nb::gil_scoped_release released;
  auto p = pairs<T>(row, other, vector, pair, pointer, column, place, kind, constant);
  p.made = rows<T>("scores", scores, column.size(), p.heads, 0, true);
  apart({{"scores", scores}}, {{"row", row}, {"other", other}, {"vector", vector}, {"pair", pair},
                               {"pointer", pointer}, {"column", column}, {"place", place}});
  attn::run(p, attn::SCORES, threads, static_cast<T*>(nullptr));
}

template <class T>
void pair_sums(const Array<const T>& given, const Maybe<const T>& row, const Array<const T>& other,
               const Maybe<const T>& vector, const Maybe<const T>& pair, const Index& pointer,
               const Column& column, const Places& place, int kind, double constant, int threads,
               const Maybe<T>& sums, const Maybe<T>& of_vector, const Maybe<T>& of_pair) {
  nb::gil_scoped_release released;
  auto p = pairs<T>(row, other, vector, pair, pointer, column, place, kind, constant);
  p.given = rows<const T>("given", given, column.size(), p.heads, 0, true);
  p.grad_query = rows<T>("sums", sums, p.by_query.num, p.heads, p.width);
  p.grad_pair_key = rows<T>("of_pair", of_pair, column.size(), p.heads, p.width);
  if (!row && (kind != attn::DOT || of_pair)) refuse("row", "is missing");
  T* into_vector = nullptr;
  if (of_vector) {
    if (kind == attn::DOT) refuse("of_vector", "is asked for, but a dot product has no vector");
    into_vector = packed<T>("of_vector", *of_vector, p.heads, p.width);
    p.need_vector = true;
  }
  apart({{"sums", sums}, {"of_vector", of_vector}, {"of_pair", of_pair}},
        {{"given", given}, {"row", row}, {"other", other}, {"vector", vector}, {"pair", pair},
         {"pointer", pointer}, {"column", column}, {"place", place}});
  attn::run(p, attn::SUMS, threads, into_vector);
}

// Room for what is found of rows that are read in parts, if there are any.
template <class T>
std::unique_ptr<T[]> long_rows(attn::Problem<T>& p) {
  const auto& graph = p.by_query;
  bool any = false;
  for (int64_t i = 0; i < graph.num; i++) {
    any |= graph.pointer[i + 1] - graph.pointer[i] > attn::CHUNK;
  }
  if (!any) return nullptr;
  std::unique_ptr<T[]> memory(new T[size_t(graph.num * 2 * p.heads)]);
  p.row_numbers = {memory.get(), 2 * p.heads};
  return memory;
}

template <class T>
void segment_softmax(const Array<const T>& scores, const Index& pointer, const Places& place,
                     int threads, const Maybe<T>& weights, const Maybe<T>& log_sum_exp) {
  nb::gil_scoped_release released;
  auto p = segments<T>(scores, pointer, place);
  p.made = rows<T>("weights", weights, place.size(), p.heads, 0, true);
  p.log_sum_exp = rows<T>("log_sum_exp", log_sum_exp, p.by_query.num, p.heads, 0, true);
  apart({{"weights", weights}, {"log_sum_exp", log_sum_exp}},
        {{"scores", scores}, {"pointer", pointer}, {"place", place}});
  const auto memory = long_rows(p);
  attn::run(p, attn::SOFTMAX, threads, static_cast<T*>(nullptr));
  if (memory && p.made) attn::run(p, attn::SOFTMAX_PARTS, threads, static_cast<T*>(nullptr));
}

template <class T>
void segment_gradient(const Array<const T>& grad, const Array<const T>& weights,
                      const Index& pointer, const Places& place, double alpha, int threads,
                      const Array<T>& of_scores) {
  nb::gil_scoped_release released;
  auto p = segments<T>(grad, pointer, place);
  p.weights = rows<const T>("weights", weights, place.size(), p.heads, 0, true);
  p.made = rows<T>("of_scores", of_scores, place.size(), p.heads, 0, true);
  set_alpha(p, alpha);
  apart({{"of_scores", of_scores}},
        {{"grad", grad}, {"weights", weights}, {"pointer", pointer}, {"place", place}});
  const auto memory = long_rows(p);
  attn::run(p, attn::GRADIENT, threads, static_cast<T*>(nullptr));
  if (memory) attn::run(p, attn::GRADIENT_PARTS, threads, static_cast<T*>(nullptr));
}

template <class T>
void define(nb::module_& m) {
  m.def("pair_scores", &pair_scores<T>, "row"_a.noconvert(), "other"_a.noconvert(),
        "vector"_a.noconvert().none(), "pair"_a.noconvert().none(), "pointer"_a.noconvert(),
        "column"_a.noconvert(), "place"_a.noconvert(), "kind"_a, "constant"_a, "threads"_a,
        "scores"_a.noconvert());
  m.def("pair_sums", &pair_sums<T>, "given"_a.noconvert(), "row"_a.noconvert().none(),
        "other"_a.noconvert(), "vector"_a.noconvert().none(), "pair"_a.noconvert().none(),
        "pointer"_a.noconvert(), "column"_a.noconvert(), "place"_a.noconvert(), "kind"_a,
        "constant"_a, "threads"_a, "sums"_a.noconvert().none(), "of_vector"_a.noconvert().none(),
        "of_pair"_a.noconvert().none());
  m.def("segment_softmax", &segment_softmax<T>, "scores"_a.noconvert(), "pointer"_a.noconvert(),
        "place"_a.noconvert(), "threads"_a, "weights"_a.noconvert().none(),
        "log_sum_exp"_a.noconvert().none());
  m.def("segment_gradient", &segment_gradient<T>, "grad"_a.noconvert(), "weights"_a.noconvert(),
        "pointer"_a.noconvert(), "place"_a.noconvert(), "alpha"_a, "threads"_a,
        "of_scores"_a.noconvert());
}

}  // namespace

void attn::define_pairs(nb::module_& m) {
  define<float>(m);
  define<double>(m);
}
