// Attention over edges with what a graph layer does around it, for attn_core/ops/edge_layer.py: GAT's
// scores of nodes before it, the merging of heads and what is added behind it.
#include "layer_bindings.h"

#include <memory>
#include <vector>

#include "dispatch.h"
#include "dropout.h"
#include "memory.h"
#include "parallel.h"
#include "sorted.h"

using namespace nb::literals;
using namespace arrays;

namespace {

template <class T>
using Packed = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
template <class T>
using Given = std::optional<Packed<const T>>;
template <class T>
using Wanted = std::optional<Packed<T>>;

constexpr int64_t TASK = 1024;  // rows that are summed one by one: the longer a sum, the more it rounds

// Whether x has rows × step numbers, a product that may be more than 64 bits hold.
template <class A>
void sized(const char* name, const A& x, int64_t rows, int64_t step = 1) {
  const auto size = int64_t(x.size());
  if (size % step || size / step != rows) refuse(name, "has a shape that does not fit the others");
}

// What is written must not be the order of the pairs, of which all the rest is read.
void apart_from(const attn::SortedPairs& pairs, std::initializer_list<Span> written) {
  for (const attn::SortedEnd* end : {&pairs.by_query, pairs.by_key ? &*pairs.by_key : nullptr}) {
    if (!end) continue;
    apart(written, {{"pointer", end->pointer}, {"other", end->other}, {"place", end->place}});
  }
}

// What the forward and the backward pass of a layer have in common.
template <class T>
struct Layer {
  attn::Problem<T> p;
  attn::Ends<T> ends;
  int64_t num_queries, num_keys, wide;  // `wide` numbers in a row of the output
  bool of_ends, concat;
  std::vector<T> ones;

  Layer(const attn::SortedPairs& pairs, const Given<T>& query, const Given<T>& key,
        const Packed<const T>& value, const Given<T>& vector, const Given<T>& of_query,
        const Given<T>& of_key, const Given<T>& pair_key, const Given<T>& pair_value, int kind,
        double constant, double dropout, int64_t seed, bool concat, bool backward,
        const Packed<T>& output, const Packed<T>& numbers)
      : num_queries(pairs.num_queries), num_keys(pairs.num_keys), of_ends(of_query.has_value()),
        concat(concat) {
    if (value.ndim() != 3) refuse("value", "is not [N, H, D]");
    if (kind < attn::DOT || kind > attn::TANH) refuse("kind", "is not known");
    if (of_ends != of_key.has_value() || of_ends == key.has_value() || of_ends == query.has_value()) {
      refuse("query", "and key must be given, or the vectors of which they are made");
    }
    if (!of_ends && (key->ndim() != 3 || query->ndim() != 3)) refuse("key", "is not [N, H, D]");
    const int64_t heads = value.shape(1);
    p.kind = attn::Kind(kind);
    p.scale = p.slope = T(constant);
    p.heads = int(heads);
    p.width = of_ends ? 1 : int(key->shape(2));
    p.value_width = int(value.shape(2));
    if (heads < 1 || heads > (1 << 16) || p.width < 1 || p.width > (1 << 20) || p.value_width < 4 ||
        p.value_width > (1 << 20) || p.value_width % 4 || (p.width % 4 && !p.numbers())) {
      refuse("key", "or value has heads or channels that the kernels do not serve");
    }
    p.lanes = attn::lanes_of(heads);
    wide = heads * p.value_width;
    const int64_t statistics = num_queries * heads, size = heads * p.width;
    sized("value", value, num_keys, wide);
    sized("output", output, num_queries, wide);
    sized("numbers", numbers, 3 * statistics + (of_ends ? statistics + num_keys * heads : 0));
    p.value = {value.data(), wide};
    p.output = {output.data(), wide};
    T* at = numbers.data();
    p.log_sum_exp = {at, heads};
    p.maximum = {at + statistics, heads};
    p.total = {at + 2 * statistics, heads};
    if (of_ends) {
      if (num_queries != num_keys) refuse("of_query", "is for as many queries as keys");
      sized("of_query", *of_query, wide);
      sized("of_key", *of_key, wide);
      ends = {value.data(), of_query->data(), of_key->data(), at + 3 * statistics,
              at + 4 * statistics, nullptr, heads, p.value_width};
      p.query = {ends.queries, heads};
      p.key = {ends.keys, heads};
    } else {
      sized("query", *query, num_queries, size);
      sized("key", *key, num_keys, size);
      p.query = {query->data(), size};
      p.key = {key->data(), size};
    }
    if (vector) {
      sized("vector", *vector, size);
      p.vector = vector->data();
    } else if (p.kind != attn::DOT) {
      ones.assign(size_t(size), T(1));
      p.vector = ones.data();
    }
    if (pair_key) {
      sized("pair_key", *pair_key, pairs.places, size);
      p.pair_key = {pair_key->data(), size};
    }
    if (pair_value) {
      sized("pair_value", *pair_value, pairs.places, wide);
      p.pair_value = {pair_value->data(), wide};
    }
    p.drops = dropout > 0;
    if (!(dropout >= 0 && dropout <= 1)) refuse("dropout", "is no probability");
    if (p.drops) p.dropout = attn::dropout_of(dropout, seed);
    const bool reads_place = backward || p.drops || pair_key || pair_value;
    p.by_query = pairs.query_graph(reads_place);
    p.far = is_far<T>((num_queries + num_keys) * heads * (p.width + p.value_width));
  }
};

// Calls work(begin, end, task) for the rows of each task.
template <class Work>
void each_task(int64_t rows, int threads, Work work) {
  attn::share((rows + TASK - 1) / TASK, threads, [&](int64_t i, int) {
    work(i * TASK, std::min(rows, (i + 1) * TASK), i);
  });
}

// merged = output with its heads side by side, or their mean, plus `add`, [W] or [Nq, W].
template <class T>
void merge(const Layer<T>& layer, const T* output, const Given<T>& add, int threads, T* merged) {
  const int64_t heads = layer.p.heads, size = layer.p.value_width;
  const int64_t width = layer.concat ? layer.wide : size;
  const int64_t step = add && add->ndim() == 2 ? width : 0;
  each_task(layer.num_queries, threads, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t row = begin; row < end; row++) {
      const T* from = output + row * layer.wide;
      T* to = merged + row * width;
      if (layer.concat) {
        for (int64_t c = 0; c < width; c++) to[c] = from[c];
      } else {
        for (int64_t c = 0; c < width; c++) to[c] = from[c];
        for (int64_t h = 1; h < heads; h++) {
          for (int64_t c = 0; c < width; c++) to[c] += from[h * size + c];
        }
        for (int64_t c = 0; c < width; c++) to[c] /= T(heads);
      }
      if (!add) continue;
      const T* more = add->data() + row * step;
      for (int64_t c = 0; c < width; c++) to[c] += more[c];
    }
  });
}

// `merged` is written where it is given; where it is not, the output is what is returned, and `add`
// is added to it.
template <class T>
void layer_forward(const attn::SortedPairs& pairs, const Given<T>& query, const Given<T>& key,
                   const Packed<const T>& value, const Given<T>& vector, const Given<T>& of_query,
                   const Given<T>& of_key, const Given<T>& pair_key, const Given<T>& pair_value,
                   int kind, double constant, double dropout, int64_t seed, bool concat,
                   int threads, const Packed<T>& output, const Packed<T>& numbers,
                   const Given<T>& add, const Wanted<T>& merged) {
  nb::gil_scoped_release released;
  Layer<T> layer(pairs, query, key, value, vector, of_query, of_key, pair_key, pair_value, kind,
                 constant, dropout, seed, concat, false, output, numbers);
  const int64_t width = concat ? layer.wide : layer.p.value_width;
  if (add) sized("add", *add, add->ndim() == 2 ? layer.num_queries * width : width);
  if (merged) sized("merged", *merged, layer.num_queries * width);
  if (!merged && !concat) refuse("merged", "is missing");
  apart({{"output", output}, {"numbers", numbers}, {"merged", merged}},
        {{"query", query}, {"key", key}, {"value", value}, {"vector", vector},
         {"of_query", of_query}, {"of_key", of_key}, {"pair_key", pair_key},
         {"pair_value", pair_value}, {"add", add}});
  apart_from(pairs, {{"output", output}, {"numbers", numbers}, {"merged", merged}});
  attn::use_large_pages(output.data(), int64_t(output.nbytes()));
  if (layer.of_ends) {
    const auto& kernels = attn::chosen<T>();
    each_task(layer.num_keys, threads, [&](int64_t begin, int64_t end, int64_t) {
      kernels.ends(layer.ends, begin, end);
    });
  }
  attn::run(layer.p, attn::FORWARD, threads, static_cast<T*>(nullptr));
  if (merged) {
    attn::use_large_pages(merged->data(), int64_t(merged->nbytes()));
    merge(layer, output.data(), add, threads, merged->data());
  } else if (add) {
    merge(layer, output.data(), add, threads, output.data());
  }
}

template <class T>
void layer_backward(const attn::SortedPairs& pairs, const Given<T>& query, const Given<T>& key,
                    const Packed<const T>& value, const Given<T>& vector, const Given<T>& of_query,
                    const Given<T>& of_key, const Given<T>& pair_key, const Given<T>& pair_value,
                    int kind, double constant, double dropout, int64_t seed, bool concat,
                    int threads, const Packed<T>& output, const Packed<T>& numbers,
                    const Packed<const T>& grad, const Wanted<T>& grad_query,
                    const Wanted<T>& grad_key, const Wanted<T>& grad_value,
                    const Wanted<T>& grad_vector, const Wanted<T>& grad_ends,
                    const Wanted<T>& grad_pair_key, const Wanted<T>& grad_pair_value,
                    const Wanted<T>& grad_add) {
  nb::gil_scoped_release released;
  Layer<T> layer(pairs, query, key, value, vector, of_query, of_key, pair_key, pair_value, kind,
                 constant, dropout, seed, concat, true, output, numbers);
  attn::Problem<T>& p = layer.p;
  const int64_t heads = p.heads, wide = layer.wide, num = layer.num_queries;
  const int64_t width = concat ? wide : p.value_width, size = heads * p.width;
  sized("grad", grad, num * width);
  const std::initializer_list<Span> written = {
      {"grad_query", grad_query}, {"grad_key", grad_key}, {"grad_value", grad_value},
      {"grad_vector", grad_vector}, {"grad_ends", grad_ends}, {"grad_pair_key", grad_pair_key},
      {"grad_pair_value", grad_pair_value}, {"grad_add", grad_add}};
  apart(written,
        {{"query", query}, {"key", key}, {"value", value}, {"vector", vector},
         {"of_query", of_query}, {"of_key", of_key}, {"pair_key", pair_key},
         {"pair_value", pair_value}, {"output", output}, {"numbers", numbers}, {"grad", grad}});
  apart_from(pairs, written);
  const auto write = [](const char* name, const Wanted<T>& x, int64_t rows, int64_t step) {
    if (!x) return attn::Rows<T>{};
    sized(name, *x, rows, step);
    attn::use_large_pages(x->data(), int64_t(x->nbytes()));
    return attn::Rows<T>{x->data(), step};
  };
  std::unique_ptr<T[]> spread, numbers_of_ends;
  p.grad_output = {grad.data(), wide};
  if (!concat) {
    spread.reset(new T[size_t(num * wide)]);
    for (int64_t row = 0; row < num; row++) {
      for (int64_t c = 0; c < wide; c++) {
        spread[size_t(row * wide + c)] = grad.data()[row * width + c % width] / T(heads);
      }
    }
    p.grad_output.data = spread.get();
  }
  const std::vector<T> zeros(size_t(heads), T(0));
  p.grad_log_sum_exp = {zeros.data(), 0};
  p.grad_query = write("grad_query", grad_query, num, size);
  p.grad_key = write("grad_key", grad_key, layer.num_keys, size);
  p.grad_value = write("grad_value", grad_value, layer.num_keys, wide);
  p.grad_pair_key = write("grad_pair_key", grad_pair_key, pairs.places, size);
  p.grad_pair_value = write("grad_pair_value", grad_pair_value, pairs.places, wide);
  const bool by_ends = layer.of_ends && (grad_value || grad_ends);
  if (by_ends) {
    if (!grad_value || !grad_ends) refuse("grad_ends", "and grad_value are made together");
    sized("grad_ends", *grad_ends, 2 * wide);
    numbers_of_ends.reset(new T[size_t((num + layer.num_keys) * heads)]);
    p.grad_query = {numbers_of_ends.get(), heads};
    p.grad_key = {numbers_of_ends.get() + num * heads, heads};
  }
  T* of_vector = nullptr;
  if (grad_vector) {
    sized("grad_vector", *grad_vector, size);
    of_vector = grad_vector->data();
    p.need_vector = true;
  }
  if (p.grad_key || p.grad_value || p.numbers()) p.by_key = pairs.key_graph();
  attn::differentiate(p, pairs.count, pairs.places, threads, of_vector);
  const auto add_up = [&](const std::vector<T>& parts, int64_t length, T* to) {
    for (int64_t c = 0; c < length; c++) {
      double sum = 0;
      for (size_t at = size_t(c); at < parts.size(); at += size_t(length)) sum += double(parts[at]);
      to[c] = T(sum);
    }
  };
  if (by_ends) {
    attn::Ends<T> ends = layer.ends;
    ends.queries = p.grad_query.data;
    ends.keys = p.grad_key.data;
    ends.grad_nodes = grad_value->data();
    std::vector<T> parts(size_t((num + TASK - 1) / TASK * 2 * wide));
    const auto& kernels = attn::chosen<T>();
    each_task(num, threads, [&](int64_t begin, int64_t end, int64_t task) {
      kernels.ends_backward(ends, begin, end, parts.data() + task * 2 * wide);
    });
    add_up(parts, 2 * wide, grad_ends->data());
  }
  if (grad_add) {
    sized("grad_add", *grad_add, width);
    std::vector<T> parts(size_t((num + TASK - 1) / TASK * width));
    each_task(num, threads, [&](int64_t begin, int64_t end, int64_t task) {
      T* sum = parts.data() + task * width;
      for (int64_t row = begin; row < end; row++) {
        for (int64_t c = 0; c < width; c++) sum[c] += grad.data()[row * width + c];
      }
    });
    add_up(parts, width, grad_add->data());
  }
}

template <class T>
void define(nb::module_& m) {
  m.def("layer_forward", &layer_forward<T>, "pairs"_a, "query"_a.noconvert().none(),
        "key"_a.noconvert().none(), "value"_a.noconvert(), "vector"_a.noconvert().none(),
        "of_query"_a.noconvert().none(), "of_key"_a.noconvert().none(),
        "pair_key"_a.noconvert().none(), "pair_value"_a.noconvert().none(), "kind"_a, "constant"_a,
        "dropout"_a, "seed"_a, "concat"_a, "threads"_a, "output"_a.noconvert(),
        "numbers"_a.noconvert(), "add"_a.noconvert().none(), "merged"_a.noconvert().none());
  m.def("layer_backward", &layer_backward<T>, "pairs"_a, "query"_a.noconvert().none(),
        "key"_a.noconvert().none(), "value"_a.noconvert(), "vector"_a.noconvert().none(),
        "of_query"_a.noconvert().none(), "of_key"_a.noconvert().none(),
        "pair_key"_a.noconvert().none(), "pair_value"_a.noconvert().none(), "kind"_a, "constant"_a,
        "dropout"_a, "seed"_a, "concat"_a, "threads"_a, "output"_a.noconvert(),
        "numbers"_a.noconvert(), "grad"_a.noconvert(), "grad_query"_a.noconvert().none(),
        "grad_key"_a.noconvert().none(), "grad_value"_a.noconvert().none(),
        "grad_vector"_a.noconvert().none(), "grad_ends"_a.noconvert().none(),
        "grad_pair_key"_a.noconvert().none(), "grad_pair_value"_a.noconvert().none(),
        "grad_add"_a.noconvert().none());
}

}  // namespace

void attn::define_layers(nb::module_& m) {
  ::define<float>(m);
  ::define<double>(m);
}
