#include "maps.h"

#include <algorithm>
#include <memory>

#include "dispatch.h"
#include "parallel.h"

namespace attn {
namespace {

template <class T>
int64_t padded(int64_t width) {
  const int64_t two = 2 * chosen<T>().lanes;
  return (width + two - 1) / two * two;
}

template <class T>
void multiply(const T* rows, int64_t num, const T* matrix, int64_t from, int64_t width, T* to,
              bool adds, int threads) {
  const Map<T> map{rows, matrix, from, width, padded<T>(width), to, adds};
  const auto& kernels = chosen<T>();
  each_task(num, threads, [&](int64_t begin, int64_t end, int64_t) { kernels.map(map, begin, end); });
}

}  // namespace

template <class T>
void apply(const Linear<T>& map, T* to, bool adds, int threads) {
  const int64_t from = map.from, width = map.width, wide = padded<T>(width);
  const std::unique_ptr<T[]> matrix(new T[size_t((from + 1) * wide)]());
  for (int64_t c = 0; c < width; c++) {
    for (int64_t k = 0; k < from; k++) matrix[size_t(k * wide + c)] = map.weight[c * from + k];
    if (map.bias) matrix[size_t(from * wide + c)] = map.bias[c];
  }
  multiply(map.x, map.rows, matrix.get(), from, width, to, adds, threads);
}

template <class T>
void hand_back(const Linear<T>& map, const T* grad, T* grad_x, T* grad_weight, T* grad_bias,
               int threads) {
  const int64_t from = map.from, width = map.width;
  if (grad_x) {
    const int64_t wide = padded<T>(from);
    const std::unique_ptr<T[]> matrix(new T[size_t((width + 1) * wide)]());
    for (int64_t c = 0; c < width; c++) {
      std::copy(map.weight + c * from, map.weight + (c + 1) * from, matrix.get() + c * wide);
    }
    multiply(grad, map.rows, matrix.get(), width, from, grad_x, true, threads);
  }
  if (!grad_weight && !grad_bias) return;
  const int64_t size = (from + 1) * width, tasks = tasks_of(map.rows);
  std::vector<T> parts(size_t(std::max<int64_t>(tasks, 1) * size));
  const MapGradient<T> gradient{map.x, grad, grad_weight ? from : 0, width};
  const auto& kernels = chosen<T>();
  each_task(map.rows, threads, [&](int64_t begin, int64_t end, int64_t task) {
    kernels.map_gradient(gradient, begin, end, parts.data() + task * size);
  });
  const auto sum = [&](int64_t at) {
    double all = 0;
    for (int64_t task = 0; task < tasks; task++) all += double(parts[size_t(task * size + at)]);
    return T(all);
  };
  for (int64_t c = 0; c < width; c++) {
    if (grad_weight) {
      for (int64_t k = 0; k < from; k++) grad_weight[c * from + k] = sum(k * width + c);
    }
    if (grad_bias) grad_bias[c] = sum(gradient.from * width + c);
  }
}

template void apply<float>(const Linear<float>&, float*, bool, int);
template void apply<double>(const Linear<double>&, double*, bool, int);
template void hand_back<float>(const Linear<float>&, const float*, float*, float*, float*, int);
template void hand_back<double>(const Linear<double>&, const double*, double*, double*, double*, int);

}  // namespace attn
