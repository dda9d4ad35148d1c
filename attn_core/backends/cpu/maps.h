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

// A map, where its result [N, width] goes, and what is added to that, if anything: `to`, perhaps.
template <class T>
struct Applied {
  Linear<T> map;
  T* to;
  const T* plus = nullptr;
};

// A map, the gradient [N, width] of its result, and where those of its parts go; what is null is not
// asked for. That of x is written, or `adds` to what is there.
template <class T>
struct HandedBack {
  Linear<T> map;
  const T* grad;
  T *grad_x, *grad_weight, *grad_bias;
  bool adds = false;
};

// Maps of the same rows are at work together, as long as those are at hand.
template <class T>
void apply(const std::vector<Applied<T>>& maps, int threads);
template <class T>
void hand_back(const std::vector<HandedBack<T>>& maps, int threads);

}  // namespace attn
