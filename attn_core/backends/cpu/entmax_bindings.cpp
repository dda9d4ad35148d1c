#include "entmax_bindings.h"

#include "edge_call.h"

using namespace nb::literals;
using namespace arrays;

namespace {

// α of thresholds, which softmax has none of.
template <class T>
void set_sparse_alpha(attn::Problem<T>& p, double alpha) {
  if (alpha == 1) refuse("alpha", "is 1, which is softmax");
  set_alpha(p, alpha);
}

// The largest score and λ of each row, [N, 2, H].
template <class T>
void set_thresholds(attn::Problem<T>& p, const Array<double>& x, int64_t num) {
  p.thresholds = rows<double>("thresholds", x, num, 2, p.heads);
}

template <class T>
void entmax_forward(const Array<const T>& query, const Array<const T>& key,
                    const Array<const T>& value, const Maybe<const T>& vector,
                    const Maybe<const T>& bias, const Maybe<const T>& pair_key,
                    const Maybe<const T>& pair_value, const Index& pointer, const Column& other,
                    const Places& place, const std::optional<Index>& pair_id, int kind,
                    double constant, double dropout, int64_t seed, int64_t num_rows, int threads,
                    double alpha, const Array<T>& output, const Array<double>& thresholds) {
  nb::gil_scoped_release released;
  EdgeCall<T> call(query, key, value, vector, bias, pair_key, pair_value, pointer, other, place,
                   pair_id, kind, constant, dropout, seed, num_rows, false);
  auto& p = call.problem;
  set_sparse_alpha(p, alpha);
  set_thresholds(p, thresholds, call.num_queries);
  p.output = rows<T>("output", output, call.num_queries, p.heads, p.value_width);
  apart({{"output", output}, {"thresholds", thresholds}},
        {{"query", query}, {"key", key}, {"value", value}, {"vector", vector}, {"bias", bias},
         {"pair_key", pair_key}, {"pair_value", pair_value}, {"pointer", pointer}, {"other", other},
         {"place", place}, {"pair_id", pair_id}});
  attn::use_large_pages(output.data(), int64_t(output.nbytes()));
  attn::attend_entmax(p, call.num_keys, num_rows, threads);
}

template <class T>
void entmax_backward(
    const Array<const T>& query, const Array<const T>& key, const Array<const T>& value,
    const Maybe<const T>& vector, const Maybe<const T>& bias, const Maybe<const T>& pair_key,
    const Maybe<const T>& pair_value, const Index& pointer, const Column& other,
    const Places& place, const std::optional<Index>& pair_id, int kind, double constant,
    double dropout, int64_t seed, int64_t num_rows, int threads, double alpha,
    const Array<double>& thresholds, const Index& key_pointer, const Column& key_other,
    const Places& key_place, const Array<const T>& grad_output, const Maybe<T>& grad_query,
    const Maybe<T>& grad_key, const Maybe<T>& grad_value, const Maybe<T>& grad_vector,
    const Maybe<T>& grad_bias, const Maybe<T>& grad_pair_key, const Maybe<T>& grad_pair_value) {
  nb::gil_scoped_release released;
  EdgeCall<T> call(query, key, value, vector, bias, pair_key, pair_value, pointer, other, place,
                   pair_id, kind, constant, dropout, seed, num_rows, true);
  auto& p = call.problem;
  set_sparse_alpha(p, alpha);
  set_thresholds(p, thresholds, call.num_queries);
  p.grad_output = rows<const T>("grad_output", grad_output, call.num_queries, p.heads, p.value_width);
  T* of_vector = call.wants(grad_query, grad_key, grad_value, grad_vector, grad_bias, grad_pair_key,
                            grad_pair_value);
  apart({{"grad_query", grad_query}, {"grad_key", grad_key}, {"grad_value", grad_value},
         {"grad_vector", grad_vector}, {"grad_bias", grad_bias}, {"grad_pair_key", grad_pair_key},
         {"grad_pair_value", grad_pair_value}},
        {{"query", query}, {"key", key}, {"value", value}, {"vector", vector}, {"bias", bias},
         {"pair_key", pair_key}, {"pair_value", pair_value}, {"pointer", pointer}, {"other", other},
         {"place", place}, {"pair_id", pair_id}, {"thresholds", thresholds},
         {"key_pointer", key_pointer}, {"key_other", key_other}, {"key_place", key_place},
         {"grad_output", grad_output}});
  if (p.grad_key || p.grad_value) call.turned(key_pointer, key_other, key_place);
  attn::differentiate_entmax(p, call.pairs, call.num_keys, num_rows, threads, of_vector);
}

template <class T>
void segment_entmax(const Array<const T>& scores, const Index& pointer, const Places& place,
                    double alpha, int threads, const Array<T>& weights) {
  nb::gil_scoped_release released;
  auto p = segments<T>(scores, pointer, place);
  p.made = rows<T>("weights", weights, place.size(), p.heads, 0, true);
  set_sparse_alpha(p, alpha);
  apart({{"weights", weights}}, {{"scores", scores}, {"pointer", pointer}, {"place", place}});
  attn::attend_entmax(p, 0, 0, threads);
}

template <class T>
void define(nb::module_& m) {
  m.def("entmax_forward", &entmax_forward<T>, "query"_a.noconvert(), "key"_a.noconvert(),
        "value"_a.noconvert(), "vector"_a.noconvert().none(), "bias"_a.noconvert().none(),
        "pair_key"_a.noconvert().none(), "pair_value"_a.noconvert().none(),
        "pointer"_a.noconvert(), "other"_a.noconvert(), "place"_a.noconvert(),
        "pair_id"_a.noconvert().none(), "kind"_a, "constant"_a, "dropout"_a, "seed"_a,
        "num_rows"_a, "threads"_a, "alpha"_a, "output"_a.noconvert(), "thresholds"_a.noconvert());
  m.def("entmax_backward", &entmax_backward<T>, "query"_a.noconvert(), "key"_a.noconvert(),
        "value"_a.noconvert(), "vector"_a.noconvert().none(), "bias"_a.noconvert().none(),
        "pair_key"_a.noconvert().none(), "pair_value"_a.noconvert().none(),
        "pointer"_a.noconvert(), "other"_a.noconvert(), "place"_a.noconvert(),
        "pair_id"_a.noconvert().none(), "kind"_a, "constant"_a, "dropout"_a, "seed"_a,
        "num_rows"_a, "threads"_a, "alpha"_a, "thresholds"_a.noconvert(),
        "key_pointer"_a.noconvert(), "key_other"_a.noconvert(), "key_place"_a.noconvert(),
        "grad_output"_a.noconvert(), "grad_query"_a.noconvert().none(),
        "grad_key"_a.noconvert().none(), "grad_value"_a.noconvert().none(),
        "grad_vector"_a.noconvert().none(), "grad_bias"_a.noconvert().none(),
        "grad_pair_key"_a.noconvert().none(), "grad_pair_value"_a.noconvert().none());
  m.def("segment_entmax", &segment_entmax<T>, "scores"_a.noconvert(), "pointer"_a.noconvert(),
        "place"_a.noconvert(), "alpha"_a, "threads"_a, "weights"_a.noconvert());
}

}  // namespace

void attn::define_entmax(nb::module_& m) {
  define<float>(m);
  define<double>(m);
}
