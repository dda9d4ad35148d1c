// What Python calls. Every array is checked here, so that no kernel meets an index or a shape that
// it cannot serve; nothing is converted silently (`noconvert`).
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "arrays.h"
#include "dispatch.h"
#include "edge_call.h"
#include "entmax_bindings.h"
#include "graph_bindings.h"
#include "layer_bindings.h"
#include "pairs_bindings.h"
#include "parallel.h"
#include "problem.h"
#include "sample_bindings.h"

using namespace nb::literals;
using namespace arrays;

namespace {

// Either of `output` and `rounded` may be missing. The first array tells T: no other overload looks at
// the next ones, of which some may be kept in 16 bits.
template <class T>
void forward(const Array<T>& log_sum_exp, const Array<T>& maximum, const Array<T>& total,
             const AnyArray& query, const AnyArray& key, const AnyArray& value,
             const Maybe<const T>& vector, const Maybe<const T>& bias,
             const Maybe<const T>& pair_key, const Maybe<const T>& pair_value, const Index& pointer,
             const Column& other, const Places& place,
             const std::optional<Index>& pair_id, int kind, double constant, double dropout,
             int64_t seed, int64_t num_rows, int threads, const Maybe<T>& output,
             const MaybeAny& rounded) {
  nb::gil_scoped_release released;
  EdgeCall<T> call(query, key, value, vector, bias, pair_key, pair_value, pointer, other, place,
               pair_id, kind, constant, dropout, seed, num_rows, false);
  auto& p = call.problem;
  if (!output && !rounded) refuse("output", "is missing");
  p.output = rows<T>("output", output, call.num_queries, p.heads, p.value_width);
  p.rounded = any_rows<T>("rounded", rounded, call.num_queries, p.heads, p.value_width);
  if (rounded && p.rounded.stored == attn::FULL) refuse("rounded", "is not of 16 bits");
  p.log_sum_exp = rows<T>("log_sum_exp", log_sum_exp, call.num_queries, p.heads, 0, true);
  p.maximum = rows<T>("maximum", maximum, call.num_queries, p.heads, 0, true);
  p.total = rows<T>("total", total, call.num_queries, p.heads, 0, true);
  apart({{"output", output}, {"rounded", rounded}, {"log_sum_exp", log_sum_exp},
         {"maximum", maximum}, {"total", total}},
        {{"query", query}, {"key", key}, {"value", value}, {"vector", vector}, {"bias", bias},
         {"pair_key", pair_key}, {"pair_value", pair_value}, {"pointer", pointer}, {"other", other},
         {"place", place}, {"pair_id", pair_id}});
  if (output) attn::use_large_pages(output->data(), int64_t(output->nbytes()));
  if (rounded) attn::use_large_pages(rounded->data(), int64_t(rounded->nbytes()));
  attn::run(p, attn::FORWARD, threads, static_cast<T*>(nullptr));
}

template <class T>
void backward(const Array<T>& output, const Array<T>& maximum, const Array<T>& total,
              const AnyArray& query, const AnyArray& key, const AnyArray& value,
              const Maybe<const T>& vector, const Maybe<const T>& bias,
              const Maybe<const T>& pair_key, const Maybe<const T>& pair_value,
              const Index& pointer, const Column& other, const Places& place,
              const std::optional<Index>& pair_id, int kind,
              double constant, double dropout, int64_t seed, int64_t num_rows, int threads,
              const Index& key_pointer, const Column& key_other, const Places& key_place,
              const AnyArray& grad_output, const Array<const T>& grad_log_sum_exp,
              const MaybeAny& grad_query, const MaybeAny& grad_key, const MaybeAny& grad_value,
              const Maybe<T>& grad_vector, const Maybe<T>& grad_bias,
              const Maybe<T>& grad_pair_key, const Maybe<T>& grad_pair_value) {
  nb::gil_scoped_release released;
  EdgeCall<T> call(query, key, value, vector, bias, pair_key, pair_value, pointer, other, place,
               pair_id, kind, constant, dropout, seed, num_rows, true);
  auto& p = call.problem;
  const int64_t nq = call.num_queries;
  p.output = rows<T>("output", output, nq, p.heads, p.value_width);
  p.maximum = rows<T>("maximum", maximum, nq, p.heads, 0, true);
  p.total = rows<T>("total", total, nq, p.heads, 0, true);
  p.grad_output = any_rows<const T>("grad_output", grad_output, nq, p.heads, p.value_width);
  p.grad_log_sum_exp = rows<const T>("grad_log_sum_exp", grad_log_sum_exp, nq, p.heads, 0, true);
  if (p.pair_value && p.grad_output.stored != attn::FULL) {
    refuse("grad_output", "is kept in 16 bits beside vectors of pairs");
  }
  T* of_vector = call.wants(grad_query, grad_key, grad_value, grad_vector, grad_bias, grad_pair_key,
                            grad_pair_value);
  apart({{"grad_query", grad_query}, {"grad_key", grad_key}, {"grad_value", grad_value},
         {"grad_vector", grad_vector}, {"grad_bias", grad_bias}, {"grad_pair_key", grad_pair_key},
         {"grad_pair_value", grad_pair_value}},
        {{"query", query}, {"key", key}, {"value", value}, {"vector", vector}, {"bias", bias},
         {"pair_key", pair_key}, {"pair_value", pair_value}, {"pointer", pointer}, {"other", other},
         {"place", place}, {"pair_id", pair_id}, {"output", output},
         {"maximum", maximum}, {"total", total}, {"key_pointer", key_pointer}, {"key_other", key_other},
         {"key_place", key_place}, {"grad_output", grad_output},
         {"grad_log_sum_exp", grad_log_sum_exp}});
  const bool by_key = p.grad_key || p.grad_value || p.numbers();
  if (by_key) call.turned(key_pointer, key_other, key_place);
  attn::differentiate(p, call.pairs, num_rows, threads, of_vector);
}

// So many bytes without a value, whose memory is kept for the next ones.
nb::ndarray<nb::pytorch, uint8_t, nb::ndim<1>, nb::device::cpu> room(int64_t bytes) {
  auto* const own = new attn::Room<uint8_t>(bytes);
  const nb::capsule owner(own, [](void* at) noexcept { delete static_cast<attn::Room<uint8_t>*>(at); });
  return {own->get(), {size_t(bytes)}, owner};
}

template <class T>
void drop(const Array<const T>& from, double p, int64_t seed, int threads, const Array<T>& to) {
  nb::gil_scoped_release released;
  const int64_t size = from.size(), task = 128 * attn::DRAWS;
  if (from.ndim() != 1 || to.ndim() != 1 || int64_t(to.size()) != size ||
      (size > 1 && (from.stride(0) != 1 || to.stride(0) != 1))) {
    refuse("from", "or to is not [N], packed");
  }
  is_probability(p);
  apart({{"to", to}}, {{"from", from}});
  const attn::Dropout dropout = attn::dropout_of(p, seed);
  const auto& kernels = attn::chosen<T>();
  attn::share((size + task - 1) / task, threads, [&](int64_t i, int) {
    kernels.drop(dropout, from.data(), i * task, std::min(size, (i + 1) * task), to.data());
  });
}

template <class T>
void multiply(const Array<const T>& values, const Index& pointer, const Column& column,
              const Places& place, const Array<const T>& dense, int threads, const Array<T>& out) {
  nb::gil_scoped_release released;
  const int64_t num = int64_t(pointer.size()) - 1;
  if (num < 0) refuse("pointer", "is empty");
  if (dense.ndim() != 2 || dense.shape(1) % 4) refuse("dense", "is no matrix of 4n columns");
  if (values.ndim() != 1 || (values.size() > 1 && values.stride(0) != 1)) {
    refuse("values", "is not [E], packed");
  }
  if (values.size() != place.size()) refuse("values", "has another length than its places");
  attn::Product<T> p;
  p.width = int64_t(dense.shape(1));
  p.entries = graph("entries", pointer, column, place, num, int64_t(dense.shape(0)), int64_t(place.size()));
  p.values = values.data();
  p.dense = rows<const T>("dense", dense, dense.shape(0), p.width, 0, true);
  p.out = rows<T>("out", out, num, p.width, 0, true);
  apart({{"out", out}}, {{"values", values}, {"pointer", pointer}, {"column", column},
                         {"place", place}, {"dense", dense}});
  p.far = is_far<T>((num + int64_t(dense.shape(0))) * p.width);
  const int64_t most = std::max<int64_t>(1024, int64_t(place.size()) / 64);
  const auto begins = attn::cut_rows(p.entries.pointer, num, most);
  const auto& kernels = attn::chosen<T>();
  attn::share(int64_t(begins.size()) - 1, threads, [&](int64_t i, int) {
    kernels.multiply(p, begins[size_t(i)], begins[size_t(i) + 1]);
  });
}

template <class T>
void define(nb::module_& m) {
  m.def("multiply", &multiply<T>, "values"_a.noconvert(), "pointer"_a.noconvert(),
        "column"_a.noconvert(), "place"_a.noconvert(), "dense"_a.noconvert(), "threads"_a,
        "out"_a.noconvert());
  m.def("drop", &drop<T>, "from"_a.noconvert(), "p"_a, "seed"_a, "threads"_a, "to"_a.noconvert());
  m.def("forward", &forward<T>, "log_sum_exp"_a.noconvert(), "maximum"_a.noconvert(),
        "total"_a.noconvert(), "query"_a.noconvert(), "key"_a.noconvert(), "value"_a.noconvert(),
        "vector"_a.noconvert().none(), "bias"_a.noconvert().none(),
        "pair_key"_a.noconvert().none(), "pair_value"_a.noconvert().none(),
        "pointer"_a.noconvert(), "other"_a.noconvert(), "place"_a.noconvert(),
        "pair_id"_a.noconvert().none(), "kind"_a, "constant"_a,
        "dropout"_a, "seed"_a, "num_rows"_a, "threads"_a, "output"_a.noconvert().none(),
        "rounded"_a.noconvert() = nb::none());
  m.def("backward", &backward<T>, "output"_a.noconvert(), "maximum"_a.noconvert(),
        "total"_a.noconvert(), "query"_a.noconvert(), "key"_a.noconvert(),
        "value"_a.noconvert(), "vector"_a.noconvert().none(), "bias"_a.noconvert().none(),
        "pair_key"_a.noconvert().none(), "pair_value"_a.noconvert().none(),
        "pointer"_a.noconvert(), "other"_a.noconvert(), "place"_a.noconvert(),
        "pair_id"_a.noconvert().none(), "kind"_a, "constant"_a,
        "dropout"_a, "seed"_a, "num_rows"_a, "threads"_a, "key_pointer"_a.noconvert(),
        "key_other"_a.noconvert(), "key_place"_a.noconvert(), "grad_output"_a.noconvert(),
        "grad_log_sum_exp"_a.noconvert(),
        "grad_query"_a.noconvert().none(),
        "grad_key"_a.noconvert().none(), "grad_value"_a.noconvert().none(),
        "grad_vector"_a.noconvert().none(), "grad_bias"_a.noconvert().none(),
        "grad_pair_key"_a.noconvert().none(), "grad_pair_value"_a.noconvert().none());
}

}  // namespace

NB_MODULE(_cpu, m) {
  nb::set_leak_warnings(false);  // what is known of tensors lives until the process ends
  define<float>(m);
  define<double>(m);
  attn::define_pairs(m);
  attn::define_entmax(m);
  attn::define_additive(m);
  attn::define_graphs(m);
  attn::define_layers(m);
  attn::define_samples(m);
  m.def("instruction_set", &attn::instruction_set);
  m.def("instruction_sets", &attn::instruction_sets);
  m.def("choose_instruction_set", [](const std::string& name) {
    return attn::choose_instruction_set(name.c_str());
  });
  m.def("is_amd", &attn::is_amd);
  m.def("let_go", &attn::let_go);
  m.def("room", &room);
  m.def("threading", &attn::threading);
}
