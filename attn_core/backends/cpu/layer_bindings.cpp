// Attention over edges with what a graph layer does around it, for attn_core/ops/edge_layer.py:
// linear maps and GAT's scores of nodes before it, the merging of heads and what is added behind it.
#include "layer_bindings.h"

#include <nanobind/stl/array.h>

#include <array>
#include <memory>
#include <vector>

#include "dispatch.h"
#include "dropout.h"
#include "maps.h"
#include "memory.h"
#include "parallel.h"
#include "sorted.h"

using namespace nb::literals;
using namespace arrays;

namespace {

template <class T>
using Packed = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
template <class T>
using Maybe = std::optional<Packed<T>>;

// What a layer is computed of, and in the same order what its gradients are of.
enum Name {
  QUERY, KEY, VALUE, VECTOR, OF_QUERY, OF_KEY, PAIR_KEY, PAIR_VALUE, ADD,
  X, X_QUERY, WEIGHT_QUERY, BIAS_QUERY, WEIGHT_KEY, BIAS_KEY, WEIGHT_VALUE, BIAS_VALUE,
  WEIGHT_ADD, BIAS_ADD, NAMES
};
constexpr const char* NAME[] = {
    "query", "key", "value", "vector", "of_query", "of_key", "pair_key", "pair_value", "add",
    "x", "x_query", "weight_query", "bias_query", "weight_key", "bias_key", "weight_value",
    "bias_value", "weight_add", "bias_add"};
template <class T>
using Tensors = std::array<Maybe<T>, NAMES>;

constexpr int MOST = 1 << 20;  // channels of a head

// Whether x has rows × step numbers, a product that may be more than 64 bits hold.
void sized(const char* name, int64_t size, int64_t rows, int64_t step = 1) {
  if (size % step || size / step != rows) refuse(name, "has a shape that does not fit the others");
}

template <class T>
std::vector<Span> spans(const Tensors<T>& tensors) {
  std::vector<Span> found;
  for (int i = 0; i < NAMES; i++) {
    if (tensors[size_t(i)]) found.emplace_back(NAME[i], tensors[size_t(i)]);
  }
  return found;
}

// What is written must not be the order of the pairs, of which all the rest is read.
void apart_from(const attn::SortedPairs& pairs, const std::vector<Span>& written) {
  for (const attn::SortedEnd* end : {&pairs.by_query, pairs.by_key ? &*pairs.by_key : nullptr}) {
    if (!end) continue;
    apart(written, {{"pointer", end->pointer}, {"other", end->other}, {"place", end->place}});
  }
}

// Rows [N, H, D] that were given, or that a map has made.
template <class T>
struct Heads {
  const T* data = nullptr;
  int64_t rows = 0, heads = 0, width = 0;
  bool is_there = false;

  static Heads of(Name name, const Tensors<const T>& tensors) {
    const auto& x = tensors[name];
    if (!x) return {};
    if (x->ndim() != 3) refuse(NAME[name], "is not [N, H, D]");
    return {x->data(), int64_t(x->shape(0)), int64_t(x->shape(1)), int64_t(x->shape(2)), true};
  }
};

// The linear maps x Wᵀ + b of which query, key, value and what is added are made. Without one of its
// own the value is the key, and so is the query. Queries are of x_query, if that is given, or of x.
template <class T>
struct Maps {
  attn::Linear<T> query, key, value, add;
  Heads<T> queries, keys, values;  // what they make, in `hidden`

  Maps(const attn::SortedPairs& pairs, const Tensors<const T>& given, int64_t heads,
       const Maybe<T>& hidden) {
    const bool of_ends = bool(given[OF_QUERY]);
    queries = Heads<T>::of(QUERY, given);
    keys = Heads<T>::of(KEY, given);
    values = Heads<T>::of(VALUE, given);
    if (!given[X]) return;
    if (!hidden) refuse("hidden", "is missing");
    if (heads < 1) refuse("heads", "is no number of heads");
    if (queries.is_there || keys.is_there || values.is_there) refuse("x", "is given beside its maps");
    const Name of_queries = given[X_QUERY] ? X_QUERY : X;
    query = linear(given, of_queries, WEIGHT_QUERY, pairs.num_queries);
    key = linear(given, X, WEIGHT_KEY, pairs.num_keys);
    value = linear(given, X, WEIGHT_VALUE, pairs.num_keys);
    add = linear(given, of_queries, WEIGHT_ADD, pairs.num_queries);
    if (of_ends ? query || key || !value : !key) refuse("weight_key", "and others fit no layer");
    const T* at = hidden->data();
    int64_t left = int64_t(hidden->size());
    const auto take = [&](const attn::Linear<T>& map, const Heads<T>& other) {
      if (!map) return other;
      if (map.width % heads) refuse("heads", "do not divide the rows of a weight");
      const Heads<T> found{at, map.rows, heads, map.width / heads, true};
      left -= map.rows * map.width;
      at += map.rows * map.width;
      return found;
    };
    keys = take(key, {});
    values = take(value, keys);
    queries = take(query, keys);
    if (left) refuse("hidden", "has a shape that does not fit the others");
  }

  static attn::Linear<T> linear(const Tensors<const T>& given, Name x, Name weight, int64_t rows) {
    const auto &of = given[x], &by = given[weight], &bias = given[weight + 1];
    if (!by) return {};
    if (of->ndim() != 2 || by->ndim() != 2 || int64_t(of->shape(0)) != rows ||
        of->shape(1) != by->shape(1) || by->shape(0) % 4 || by->shape(0) == 0) {
      refuse(NAME[weight], "has a shape that does not fit what it maps");
    }
    const auto width = int64_t(by->shape(0));
    if (bias) sized(NAME[weight + 1], int64_t(bias->size()), width);
    return {of->data(), by->data(), bias ? bias->data() : nullptr, rows, int64_t(of->shape(1)), width};
  }
};

// What the forward and the backward pass of a layer have in common.
template <class T>
struct Layer {
  Maps<T> maps;
  attn::Problem<T> p;
  attn::Ends<T> ends;
  int64_t num_queries, num_keys, wide, width;  // numbers in a row of the output, and of the result
  bool of_ends, concat;
  std::vector<T> ones;

  Layer(const attn::SortedPairs& pairs, const Tensors<const T>& given, int kind, double constant,
        double dropout, int64_t seed, bool concat, int64_t heads_of_maps, bool backward,
        const Maybe<T>& hidden, const Packed<T>& output, const Packed<T>& numbers)
      : maps(pairs, given, heads_of_maps, hidden), num_queries(pairs.num_queries),
        num_keys(pairs.num_keys), of_ends(given[OF_QUERY]), concat(concat) {
    const Heads<T>&query = maps.queries, &key = maps.keys, &value = maps.values;
    if (!value.is_there) refuse("value", "is missing");
    if (kind < attn::DOT || kind > attn::TANH) refuse("kind", "is not known");
    if (of_ends != bool(given[OF_KEY]) || of_ends == key.is_there || of_ends == query.is_there) {
      refuse("query", "and key must be given, or the vectors of which they are made");
    }
    const int64_t heads = value.heads;
    p.kind = attn::Kind(kind);
    p.scale = p.slope = T(constant);
    p.heads = int(heads);
    p.width = of_ends ? 1 : int(std::min<int64_t>(key.width, MOST + 1));
    p.value_width = int(std::min<int64_t>(value.width, MOST + 1));
    if (heads < 1 || heads > (1 << 16) || std::min(p.width, p.value_width) < 1 ||
        std::max(p.width, p.value_width) > MOST || p.value_width % 4 ||
        (p.width % 4 && !p.numbers())) {
      refuse("key", "or value has heads or channels that the kernels do not serve");
    }
    p.lanes = attn::lanes_of(heads);
    wide = heads * p.value_width;
    width = concat ? wide : p.value_width;
    const int64_t statistics = num_queries * heads, size = heads * p.width;
    const auto check = [&](Name name, int64_t rows, int64_t step) {
      sized(NAME[name], int64_t(given[name]->size()), rows, step);
      return given[name]->data();
    };
    const auto fits = [&](const char* name, const Heads<T>& x, int64_t rows, int64_t channels) {
      if (x.rows != rows || x.heads != heads || x.width != channels) {
        refuse(name, "has a shape that does not fit the others");
      }
    };
    fits("value", value, num_keys, p.value_width);
    sized("output", int64_t(output.size()), num_queries, wide);
    sized("numbers", int64_t(numbers.size()),
          3 * statistics + (of_ends ? statistics + num_keys * heads : 0));
    p.value = {value.data, wide};
    p.output = {output.data(), wide};
    T* at = numbers.data();
    p.log_sum_exp = {at, heads};
    p.maximum = {at + statistics, heads};
    p.total = {at + 2 * statistics, heads};
    if (of_ends) {
      if (num_queries != num_keys) refuse("of_query", "is for as many queries as keys");
      ends = {value.data, check(OF_QUERY, wide, 1), check(OF_KEY, wide, 1), at + 3 * statistics,
              at + 4 * statistics, nullptr, heads, p.value_width};
      p.query = {ends.queries, heads};
      p.key = {ends.keys, heads};
    } else {
      fits("query", query, num_queries, p.width);
      fits("key", key, num_keys, p.width);
      p.query = {query.data, size};
      p.key = {key.data, size};
    }
    if (given[VECTOR]) {
      p.vector = check(VECTOR, size, 1);
    } else if (p.kind != attn::DOT) {
      ones.assign(size_t(size), T(1));
      p.vector = ones.data();
    }
    if (given[PAIR_KEY]) p.pair_key = {check(PAIR_KEY, pairs.places, size), size};
    if (given[PAIR_VALUE]) p.pair_value = {check(PAIR_VALUE, pairs.places, wide), wide};
    if (maps.add) {
      if (maps.add.width != width) refuse("weight_add", "has a shape that does not fit the others");
      if (given[ADD]) refuse("add", "is given beside its map");
    } else if (given[ADD]) {
      check(ADD, given[ADD]->ndim() == 2 ? num_queries * width : width, 1);
    }
    p.drops = dropout > 0;
    if (!(dropout >= 0 && dropout <= 1)) refuse("dropout", "is no probability");
    if (p.drops) p.dropout = attn::dropout_of(dropout, seed);
    const bool reads_place = backward || p.drops || given[PAIR_KEY] || given[PAIR_VALUE];
    p.by_query = pairs.query_graph(reads_place);
    p.far = is_far<T>((num_queries + num_keys) * heads * (p.width + p.value_width));
  }
};

// merged = output with its heads side by side, or their mean, plus `add`, [W] or [Nq, W].
template <class T>
void merge(const Layer<T>& layer, const T* output, const Maybe<const T>& add, int threads, T* merged) {
  const int64_t heads = layer.p.heads, size = layer.p.value_width, width = layer.width;
  const int64_t step = add && add->ndim() == 2 ? width : 0;
  attn::each_task(layer.num_queries, threads, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t row = begin; row < end; row++) {
      const T* from = output + row * layer.wide;
      T* to = merged + row * width;
      for (int64_t c = 0; c < width; c++) to[c] = from[c];
      if (!layer.concat) {
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

// `merged` is written where it is given; where it is not, the output is what is returned, and what
// there is to add is added to it.
template <class T>
void layer_forward(const attn::SortedPairs& pairs, const Tensors<const T>& given, int kind,
                   double constant, double dropout, int64_t seed, bool concat, int64_t heads,
                   int threads, const Maybe<T>& hidden, const Packed<T>& output,
                   const Packed<T>& numbers, const Maybe<T>& merged) {
  nb::gil_scoped_release released;
  Layer<T> layer(pairs, given, kind, constant, dropout, seed, concat, heads, false, hidden, output,
                 numbers);
  const Maps<T>& maps = layer.maps;
  if (merged) sized("merged", int64_t(merged->size()), layer.num_queries * layer.width);
  if (!merged && !concat) refuse("merged", "is missing");
  const std::vector<Span> written{
      {"hidden", hidden}, {"output", output}, {"numbers", numbers}, {"merged", merged}};
  apart(written, spans(given));
  apart_from(pairs, written);
  attn::use_large_pages(output.data(), int64_t(output.nbytes()));
  if (hidden) {
    std::vector<attn::Applied<T>> made;
    const auto make = [&](const attn::Linear<T>& map, const Heads<T>& to) {
      if (map) made.push_back({map, const_cast<T*>(to.data)});
    };
    make(maps.key, maps.keys);
    make(maps.value, maps.values);
    make(maps.query, maps.queries);
    attn::apply(made, threads);
  }
  if (layer.of_ends) {
    const auto& kernels = attn::chosen<T>();
    attn::each_task(layer.num_keys, threads, [&](int64_t begin, int64_t end, int64_t) {
      kernels.ends(layer.ends, begin, end);
    });
  }
  attn::run(layer.p, attn::FORWARD, threads, static_cast<T*>(nullptr));
  T* result = merged ? merged->data() : output.data();
  if (merged) attn::use_large_pages(merged->data(), int64_t(merged->nbytes()));
  const bool joins = maps.add && concat;  // the output with what the map adds, as that is made
  if ((merged && !joins) || given[ADD]) merge(layer, output.data(), given[ADD], threads, result);
  if (maps.add) attn::apply<T>({{maps.add, result, joins ? output.data() : result}}, threads);
}

template <class T>
void add_up(const std::vector<T>& parts, int64_t length, T* to) {
  for (int64_t c = 0; c < length; c++) {
    double sum = 0;
    for (size_t at = size_t(c); at < parts.size(); at += size_t(length)) sum += double(parts[at]);
    to[c] = T(sum);
  }
}

template <class T>
void layer_backward(const attn::SortedPairs& pairs, const Tensors<const T>& given, int kind,
                    double constant, double dropout, int64_t seed, bool concat, int64_t heads_of_maps,
                    int threads, const Maybe<T>& hidden, const Packed<T>& output,
                    const Packed<T>& numbers, const Packed<const T>& grad, const Tensors<T>& grads) {
  nb::gil_scoped_release released;
  Layer<T> layer(pairs, given, kind, constant, dropout, seed, concat, heads_of_maps, true, hidden,
                 output, numbers);
  const Maps<T>& maps = layer.maps;
  attn::Problem<T>& p = layer.p;
  const int64_t heads = p.heads, wide = layer.wide, num = layer.num_queries, width = layer.width;
  const int64_t size = heads * p.width;
  sized("grad", int64_t(grad.size()), num * width);
  const std::vector<Span> written = spans(grads);
  std::vector<Span> read = spans(given);
  for (const Span& more : {Span("hidden", hidden), Span("output", output), Span("numbers", numbers),
                           Span("grad", grad)}) {
    read.push_back(more);
  }
  apart(written, read);
  apart_from(pairs, written);
  std::vector<attn::Room<T>> memory;
  const auto scratch = [&](int64_t count) { return memory.emplace_back(count).get(); };
  // Where a gradient goes; one that a map needs alone, into memory of our own
  const auto write = [&](Name name, int64_t rows, int64_t step, bool of_map = false) {
    const auto& x = grads[name];
    if (!x) return attn::Rows<T>{of_map ? scratch(rows * step) : nullptr, step};
    sized(NAME[name], int64_t(x->size()), rows, step);
    attn::use_large_pages(x->data(), int64_t(x->nbytes()));
    return attn::Rows<T>{x->data(), step};
  };
  const auto of_map = [&](Name x, Name weight) {
    return given[weight] && (grads[x] || grads[weight] || grads[weight + 1]);
  };
  p.grad_output = {grad.data(), wide};
  if (!concat) {
    T* spread = scratch(num * wide);
    for (int64_t row = 0; row < num; row++) {
      for (int64_t c = 0; c < wide; c++) {
        spread[row * wide + c] = grad.data()[row * width + c % width] / T(heads);
      }
    }
    p.grad_output = {spread, wide};
  }
  const std::vector<T> zeros(size_t(heads), T(0));
  p.grad_log_sum_exp = {zeros.data(), 0};
  const Name of_queries = given[X_QUERY] ? X_QUERY : X;
  const bool maps_key = of_map(X, WEIGHT_KEY), maps_value = of_map(X, WEIGHT_VALUE);
  const bool is_query = maps.key && !maps.query, is_value = maps.key && !maps.value;
  p.grad_query = write(QUERY, num, size, of_map(of_queries, WEIGHT_QUERY) || (maps_key && is_query));
  p.grad_key = write(KEY, layer.num_keys, size, maps_key);
  const bool by_ends =
      layer.of_ends && (grads[VALUE] || maps_value || grads[OF_QUERY] || grads[OF_KEY]);
  p.grad_value = write(VALUE, layer.num_keys, wide, maps_value || (maps_key && is_value) || by_ends);
  p.grad_pair_key = write(PAIR_KEY, pairs.places, size);
  p.grad_pair_value = write(PAIR_VALUE, pairs.places, wide);
  if (by_ends) {
    p.grad_query = {scratch(num * heads), heads};
    p.grad_key = {scratch(layer.num_keys * heads), heads};
  }
  T* of_vector = write(VECTOR, size, 1).data;
  p.need_vector = of_vector != nullptr;
  if (p.grad_key || p.grad_value || p.numbers()) p.by_key = pairs.key_graph();
  attn::differentiate(p, pairs.count, pairs.places, threads, of_vector);
  if (by_ends) {
    attn::Ends<T> ends = layer.ends;
    ends.queries = p.grad_query.full(0);
    ends.keys = p.grad_key.full(0);
    ends.grad_nodes = p.grad_value.full(0);
    std::vector<T> parts(size_t(attn::tasks_of(num) * 2 * wide)), sums(size_t(2 * wide));
    const auto& kernels = attn::chosen<T>();
    attn::each_task(num, threads, [&](int64_t begin, int64_t end, int64_t task) {
      kernels.ends_backward(ends, begin, end, parts.data() + task * 2 * wide);
    });
    add_up(parts, 2 * wide, sums.data());
    for (const auto& [name, at] : {std::pair(OF_QUERY, int64_t(0)), std::pair(OF_KEY, wide)}) {
      if (T* to = write(name, wide, 1).data) std::copy_n(sums.data() + at, wide, to);
    }
  }
  if (grads[ADD]) {
    T* to = write(ADD, width, 1).data;
    std::vector<T> parts(size_t(attn::tasks_of(num) * width));
    attn::each_task(num, threads, [&](int64_t begin, int64_t end, int64_t task) {
      T* sum = parts.data() + task * width;
      for (int64_t row = begin; row < end; row++) {
        for (int64_t c = 0; c < width; c++) sum[c] += grad.data()[row * width + c];
      }
    });
    add_up(parts, width, to);
  }
  if (!maps.key && !maps.value && !maps.add) return;
  const auto join = [&](const attn::AnyRows<T>& more) {
    attn::each_task(layer.num_keys, threads, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin * size; i < end * size; i++) p.grad_key.full(0)[i] += more.full(0)[i];
    });
  };
  if (maps_key && is_value) join(p.grad_value);
  if (maps_key && is_query) join(p.grad_query);
  for (const Name x : {X, X_QUERY}) {
    if (!grads[x]) continue;
    sized(NAME[x], int64_t(grads[x]->size()), int64_t(given[x]->size()));
  }
  std::vector<attn::HandedBack<T>> back;
  std::array<bool, NAMES> is_written{};
  const auto hand_back = [&](const attn::Linear<T>& map, Name x, Name weight, const T* of) {
    if (!map || !of_map(x, weight)) return;
    back.push_back({map, of, grads[x] ? grads[x]->data() : nullptr,
                    write(weight, map.width, map.from).data,
                    given[weight + 1] ? write(Name(weight + 1), map.width, 1).data : nullptr,
                    is_written[x]});
    is_written[x] = true;
  };
  hand_back(maps.key, X, WEIGHT_KEY, p.grad_key.full(0));
  hand_back(maps.value, X, WEIGHT_VALUE, p.grad_value.full(0));
  hand_back(maps.query, of_queries, WEIGHT_QUERY, p.grad_query.full(0));
  hand_back(maps.add, of_queries, WEIGHT_ADD, grad.data());
  for (const Name x : {X, X_QUERY}) {
    if (grads[x] && !is_written[x]) std::fill_n(grads[x]->data(), grads[x]->size(), T(0));
  }
  attn::hand_back(back, threads);
}

template <class T>
void define(nb::module_& m) {
  m.def("layer_forward", &layer_forward<T>, "pairs"_a, "given"_a.noconvert(), "kind"_a, "constant"_a,
        "dropout"_a, "seed"_a, "concat"_a, "heads"_a, "threads"_a, "hidden"_a.noconvert().none(),
        "output"_a.noconvert(), "numbers"_a.noconvert(), "merged"_a.noconvert().none());
  m.def("layer_backward", &layer_backward<T>, "pairs"_a, "given"_a.noconvert(), "kind"_a,
        "constant"_a, "dropout"_a, "seed"_a, "concat"_a, "heads"_a, "threads"_a,
        "hidden"_a.noconvert().none(), "output"_a.noconvert(), "numbers"_a.noconvert(),
        "grad"_a.noconvert(), "grads"_a.noconvert());
}

}  // namespace

void attn::define_layers(nb::module_& m) {
  ::define<float>(m);
  ::define<double>(m);
}
