#include "maps.h"

#include <algorithm>

#include "dispatch.h"
#include "memory.h"
#include "parallel.h"

namespace attn {
namespace {

// A matrix of a Map, in its panels.
template <class T, class Number>
std::vector<T> packed(int64_t from, int64_t width, const T* bias, Number number) {
  const int64_t two = 2 * chosen<T>().lanes;
  std::vector<T> matrix(size_t((width + two - 1) / two * two * (from + 1)));
  for (int64_t c = 0; c < width; c++) {
    T* const column = matrix.data() + c / two * two * (from + 1) + c % two;
    for (int64_t k = 0; k < from; k++) column[k * two] = number(k, c);
    if (bias) column[from * two] = bias[c];
  }
  return matrix;
}

// Calls work(begin, end, task) for the rows of each task, a few at a time: their numbers stay in a
// core's cache from one map to the next.
template <class T, class Work>
void few_rows(const std::vector<T>& maps, int threads, Work work) {
  constexpr int64_t FEW = 256;
  int64_t rows = 0;
  for (const T& one : maps) rows = std::max(rows, one.map.rows);
  each_task(rows, threads, [&](int64_t begin, int64_t end, int64_t task) {
    for (int64_t row = begin; row < end; row += FEW) work(row, std::min(end, row + FEW), task);
  });
}

}  // namespace

template <class T>
void apply(const std::vector<Applied<T>>& maps, int threads) {
  std::vector<std::vector<T>> matrices;
  std::vector<Map<T>> found;
  for (const auto& [map, to, plus] : maps) {
    const Linear<T>& own = map;
    matrices.push_back(packed<T>(map.from, map.width, map.bias, [&](int64_t k, int64_t c) {
      return own.weight[c * own.from + k];
    }));
    found.push_back({map.x, matrices.back().data(), map.from, map.width, to, plus});
  }
  const auto& kernels = chosen<T>();
  few_rows(maps, threads, [&](int64_t begin, int64_t end, int64_t) {
    for (size_t i = 0; i < maps.size(); i++) {
      const int64_t stop = std::min(end, maps[i].map.rows);
      if (begin < stop) kernels.map(found[i], begin, stop);
    }
  });
}

template <class T>
void hand_back(const std::vector<HandedBack<T>>& maps, int threads) {
  struct Both {
    std::vector<T> matrix;
    Map<T> of_x;
    MapGradient<T> of_weight;
    int64_t size = 0;
    Room<T> parts;  // a sum for each task, [from + 1, width] with the bias last
  };
  std::vector<Both> found;
  for (const HandedBack<T>& one : maps) {
    const int64_t from = one.map.from, width = one.map.width;
    Both& own = found.emplace_back();
    if (one.grad_x) {
      own.matrix = packed<T>(width, from, nullptr, [&](int64_t c, int64_t k) {
        return one.map.weight[c * from + k];
      });
      own.of_x = {one.grad, own.matrix.data(), width, from, one.grad_x,
                  one.adds ? one.grad_x : nullptr};
    }
    if (one.grad_weight || one.grad_bias) {
      own.of_weight = {one.map.x, one.grad, one.grad_weight ? from : 0, width};
      own.size = (own.of_weight.from + 1) * width;
      own.parts = Room<T>(tasks_of(one.map.rows) * own.size);
    }
  }
  const auto& kernels = chosen<T>();
  few_rows(maps, threads, [&](int64_t begin, int64_t end, int64_t task) {
    for (size_t i = 0; i < maps.size(); i++) {
      const Both& own = found[i];
      const int64_t stop = std::min(end, maps[i].map.rows);
      if (begin >= stop) continue;
      if (maps[i].grad_x) kernels.map(own.of_x, begin, stop);
      if (!own.size) continue;
      T* const part = own.parts.get() + task * own.size;
      if (begin % TASK == 0) std::fill_n(part, own.size, T(0));
      kernels.map_gradient(own.of_weight, begin, stop, part);
    }
  });
  share(int64_t(maps.size()), threads, [&](int64_t i, int) {
    const Both& own = found[size_t(i)];
    const int64_t from = own.of_weight.from, width = own.of_weight.width;
    std::vector<double> sums(size_t(own.size), 0.0);
    for (int64_t task = 0; own.size && task < tasks_of(maps[i].map.rows); task++) {
      const T* const part = own.parts.get() + task * own.size;
      for (int64_t at = 0; at < own.size; at++) sums[size_t(at)] += double(part[at]);
    }
    for (int64_t c = 0; c < width; c++) {
      for (int64_t k = 0; k < from; k++) {
        maps[i].grad_weight[c * from + k] = T(sums[size_t(k * width + c)]);
      }
      if (maps[i].grad_bias) maps[i].grad_bias[c] = T(sums[size_t(from * width + c)]);
    }
  });
}

template void apply<float>(const std::vector<Applied<float>>&, int);
template void apply<double>(const std::vector<Applied<double>>&, int);
template void hand_back<float>(const std::vector<HandedBack<float>>&, int);
template void hand_back<double>(const std::vector<HandedBack<double>>&, int);

}  // namespace attn
