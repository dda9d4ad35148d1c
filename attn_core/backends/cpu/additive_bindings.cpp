// Additive scores over dense supports, for Python: cut into tasks that do not depend on the number
// of threads.
#include <memory>
#include <vector>

#include "arrays.h"
#include "dispatch.h"
#include "memory.h"
#include "pairs_bindings.h"
#include "parallel.h"

using namespace nb::literals;
using namespace arrays;

namespace {

// [batch, num, width], each vector packed.
template <class T>
attn::Batch<T> batch(const char* name, const Array<T>& x, int64_t count, int64_t num,
                     int64_t width) {
  if (x.ndim() != 3 || int64_t(x.shape(0)) != count || int64_t(x.shape(1)) != num ||
      int64_t(x.shape(2)) != width) {
    refuse(name, "has a shape that does not fit the others");
  }
  if (width > 1 && x.size() && x.stride(2) != 1) {
    refuse(name, "has vectors that are not packed: call .contiguous()");
  }
  return {x.data(), x.stride(0), x.stride(1)};
}
template <class T>
T* whole(const char* name, const Array<T>& x, int64_t count, int64_t num, int64_t width) {
  const auto found = batch<T>(name, x, count, num, width);
  if ((num > 1 && found.step != width) || (count > 1 && found.far != num * width)) {
    refuse(name, "is not packed: call .contiguous()");
  }
  return found.data;
}

template <class T>
struct Scores {
  attn::Additive<T> a;
  std::unique_ptr<T[]> memory;
  std::unique_ptr<bool[]> factored;

  Scores(const Array<const T>& query, const Array<const T>& key, const Array<const T>& vector,
         int kind, double constant) {
    if (query.ndim() != 3 || key.ndim() != 3) refuse("query", "or key is not [B, T, D]");
    if (kind != attn::LEAKY_RELU && kind != attn::TANH) refuse("kind", "is not known");
    a.kind = attn::Kind(kind);
    a.slope = T(constant);
    a.batch = query.shape(0);
    a.queries = query.shape(1);
    a.keys = key.shape(1);
    a.width = query.shape(2);
    if (query.size() == 0 || key.size() == 0 || a.width > (1 << 20)) {
      refuse("query", "or key has no numbers, or too many channels");
    }
    a.query = batch<const T>("query", query, a.batch, a.queries, a.width);
    a.key = batch<const T>("key", key, a.batch, a.keys, a.width);
    a.vector = packed<const T>("vector", vector, a.batch, a.width);
    const int64_t lanes = attn::chosen<T>().lanes;
    a.padded = (a.width + lanes - 1) / lanes * lanes;
    const int64_t queries = a.batch * a.queries * a.padded, vectors = 2 * a.batch * a.padded;
    memory.reset(new T[queries + vectors + a.batch]);
    factored.reset(new bool[a.batch]);
    a.made_query = memory.get();
    a.made_vector = a.made_query + queries;
    a.shift = a.made_vector + vectors;
    a.factored = factored.get();
  }

  // Many small tasks are handed out several at a time: `each` is the numbers that one of them meets.
  template <class F>
  static void share(int64_t tasks, int64_t each, int threads, F work) {
    const int64_t together = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(each, 1));
    attn::share((tasks + together - 1) / together, threads, [&](int64_t i, int worker) {
      const int64_t end = std::min(tasks, (i + 1) * together);
      for (int64_t task = i * together; task < end; task++) work(task, worker);
    });
  }
  void prepare(int threads) {
    const auto& kernels = attn::chosen<T>();
    const int64_t tokens = a.queries < 3 ? a.queries : a.queries + a.keys;
    share(a.batch, tokens * a.width, threads,
          [&](int64_t b, int) { kernels.additive_prepare(a, b); });
  }
  std::unique_ptr<T[]> of_threads(int threads, int64_t tasks) const {
    const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(threads, tasks));
    return std::unique_ptr<T[]>(new T[workers * attn::additive_memory(a)]);
  }
};

// How many spans a range is cut into, and the length of each: whole tiles.
struct Cut {
  int64_t count, length;
  Cut(int64_t num, int64_t wanted, int64_t tile) {
    const int64_t tiles = (num + tile - 1) / tile;
    length = (tiles + wanted - 1) / wanted * tile;
    count = (num + length - 1) / length;
  }
  int64_t end(int64_t i, int64_t num) const { return std::min(num, (i + 1) * length); }
};

template <class T>
void scores(const Array<const T>& query, const Array<const T>& key, const Array<const T>& vector,
            int kind, double constant, int threads, const Array<T>& logits) {
  nb::gil_scoped_release released;
  Scores<T> call(query, key, vector, kind, constant);
  auto& a = call.a;
  a.logits = whole<T>("logits", logits, a.batch, a.queries, a.keys);
  apart({{"logits", logits}}, {{"query", query}, {"key", key}, {"vector", vector}});
  call.prepare(threads);
  const Cut keys(a.keys, a.keys, attn::TILE_KEYS), queries(a.queries, a.queries, 256);
  const auto& kernels = attn::chosen<T>();
  const int64_t each = keys.count * queries.count;
  const auto own = call.of_threads(threads, a.batch * each);
  call.share(a.batch * each, keys.length * std::min(queries.length, a.queries) * a.width, threads,
             [&](int64_t task, int worker) {
    const int64_t i = task % each / keys.count, j = task % keys.count;
    kernels.additive_forward(a, {task / each, i * queries.length, queries.end(i, a.queries),
                                 j * keys.length, keys.end(j, a.keys)},
                             own.get() + worker * attn::additive_memory(a));
  });
}

template <class T>
void gradients(const Array<const T>& grad, const Array<const T>& query, const Array<const T>& key,
               const Array<const T>& vector, int kind, double constant, int threads,
               const Array<T>& grad_query, const Array<T>& grad_key, const Array<T>& grad_vector) {
  constexpr int64_t TASKS = 16;  // for a single sequence; each span has sums of its own
  nb::gil_scoped_release released;
  Scores<T> call(query, key, vector, kind, constant);
  auto& a = call.a;
  a.grad = whole<const T>("grad", grad, a.batch, a.queries, a.keys);
  T* of_query = whole<T>("grad_query", grad_query, a.batch, a.queries, a.width);
  T* of_key = whole<T>("grad_key", grad_key, a.batch, a.keys, a.width);
  T* of_vector = packed<T>("grad_vector", grad_vector, a.batch, a.width);
  apart({{"grad_query", grad_query}, {"grad_key", grad_key}, {"grad_vector", grad_vector}},
        {{"grad", grad}, {"query", query}, {"key", key}, {"vector", vector}});
  call.prepare(threads);
  const int64_t wanted = (TASKS + a.batch - 1) / a.batch;
  int64_t side = 1;
  while (side * side < wanted) side++;
  const Cut keys(a.keys, side, attn::TILE_KEYS);
  const Cut queries(a.queries, (wanted + keys.count - 1) / keys.count, attn::TILE_KEYS);
  const int64_t each = keys.count * queries.count, padded = a.padded;
  const int64_t query_size = a.batch * a.queries * padded, key_size = a.batch * a.keys * a.width;
  std::unique_ptr<T[]> sums(new T[keys.count * query_size + a.batch * each * padded]), of_keys;
  a.key_spans = keys.count;
  a.query_spans = queries.count;
  a.of_query = sums.get();
  a.of_vector = a.of_query + keys.count * query_size;
  a.of_key = of_key;
  if (queries.count > 1) {
    of_keys.reset(new T[queries.count * key_size]);
    a.of_key = of_keys.get();
  }
  attn::use_large_pages(of_key, key_size * int64_t(sizeof(T)));
  const auto own = call.of_threads(threads, a.batch * each);
  const auto& kernels = attn::chosen<T>();
  call.share(a.batch * each, a.queries * a.keys * a.width / each, threads,
             [&](int64_t task, int worker) {
    const int64_t i = task % each / keys.count, j = task % keys.count;
    kernels.additive_backward(a, {task / each, i * queries.length, queries.end(i, a.queries),
                                  j * keys.length, keys.end(j, a.keys)},
                              j, i, own.get() + worker * attn::additive_memory(a));
  });
  call.share(a.batch * a.queries, padded * keys.count, threads, [&](int64_t row, int) {
    for (int64_t c = 0; c < a.width; c++) {
      T sum = a.of_query[row * padded + c];
      for (int64_t s = 1; s < keys.count; s++) sum += a.of_query[s * query_size + row * padded + c];
      of_query[row * a.width + c] = sum;
    }
  });
  if (queries.count > 1) {
    call.share(a.batch * a.keys, a.width * queries.count, threads, [&](int64_t row, int) {
      for (int64_t c = row * a.width; c < (row + 1) * a.width; c++) {
        T sum = a.of_key[c];
        for (int64_t s = 1; s < queries.count; s++) sum += a.of_key[s * key_size + c];
        of_key[c] = sum;
      }
    });
  }
  for (int64_t b = 0; b < a.batch; b++) {
    for (int64_t c = 0; c < a.width; c++) {
      double sum = 0;
      for (int64_t s = 0; s < each; s++) sum += double(a.of_vector[(b * each + s) * padded + c]);
      of_vector[b * a.width + c] = T(sum);
    }
  }
}

template <class T>
void define(nb::module_& m) {
  m.def("additive_scores", &scores<T>, "query"_a.noconvert(), "key"_a.noconvert(),
        "vector"_a.noconvert(), "kind"_a, "constant"_a, "threads"_a, "logits"_a.noconvert());
  m.def("additive_gradients", &gradients<T>, "grad"_a.noconvert(), "query"_a.noconvert(),
        "key"_a.noconvert(), "vector"_a.noconvert(), "kind"_a, "constant"_a, "threads"_a,
        "grad_query"_a.noconvert(), "grad_key"_a.noconvert(), "grad_vector"_a.noconvert());
}

}  // namespace

namespace attn {

void define_additive(nanobind::module_& m) {
  define<float>(m);
  define<double>(m);
}

}  // namespace attn
