// The linear maps of a layer, x Wᵀ + b, and their gradients, shared among threads.
#pragma once
#include <cstdint>
#include <vector>

namespace attn {

template <class T>
struct Linear {
  const T *x = nullptr, *weight = nullptr, *bias = nullptr;  // [N, from], [width, from], [width]
  int64_t rows = 0, from = 0, width = 0;                     // width: a multiple of 4
  explicit operator bool() const { return weight != nullptr; }
};

// to [N, width] = x Wᵀ + b, or that added to what is there.
template <class T>
void apply(const Linear<T>& map, T* to, bool adds, int threads);

// What a map hands back of the gradient [N, width] of its result; what is null is not asked for.
// That of x is added to what is there.
template <class T>
void hand_back(const Linear<T>& map, const T* grad, T* grad_x, T* grad_weight, T* grad_bias,
               int threads);

}  // namespace attn
