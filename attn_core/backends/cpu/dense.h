// Linear maps of rows, and their gradients. The matrices are those of a layer: all of one stays in a
// core's cache, so that tiles of the result are all the order there is.
#pragma once
#include "problem.h"
#include "simd.h"

namespace attn::VARIANT {

// Σ of `count` outer products: R numbers, `far` apart, with V vectors. All sums stay in registers.
template <class T, int W, int V, int R>
INLINE void outer(const T* left, int64_t far, int64_t left_step, const T* right, int64_t right_step,
                  int64_t count, Vec<T, W> (&sums)[R][V]) {
  for (int64_t i = 0; i < count; i++, left += left_step, right += right_step) {
    Vec<T, W> x[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) x[v] = load<T, W>(right + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Vec<T, W> y = all<T, W>(left[r * far]);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[r][v] += y * x[v];
    }
  }
}

// R rows of a map, V vectors of columns from `at` on, of a panel's first.
template <class T, int V, int R>
INLINE void map_tile(const Map<T>& p, int64_t row, int64_t at) {
  constexpr int W = WIDEST<T>;
  const T* panel = p.matrix + at * (p.from + 1);
  Vec<T, W> sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[r][v] = load<T, W>(panel + p.from * 2 * W + v * W);
  }
  outer<T, W, V, R>(p.rows + row * p.from, p.from, 1, panel, 2 * W, p.from, sums);
  T* to = p.to + row * p.width + at;
  const T* plus = p.plus ? p.plus + row * p.width + at : nullptr;
  if (at + V * W <= p.width) {
    for (int r = 0; plus && r < R; r++) {
      for (int v = 0; v < V; v++) sums[r][v] += load<T, W>(plus + r * p.width + v * W);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++, to += p.width) {
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) store<T, W>(to + v * W, sums[r][v]);
    }
    return;
  }
  T numbers[R * V * W];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store<T, W>(numbers + (r * V + v) * W, sums[r][v]);
  }
  for (int r = 0; r < R; r++, to += p.width) {
    for (int64_t c = 0; c < p.width - at; c++) {
      to[c] = plus ? plus[r * p.width + c] + numbers[r * V * W + c] : numbers[r * V * W + c];
    }
  }
}

template <class T, int V>
INLINE void map_columns(const Map<T>& p, int64_t begin, int64_t end, int64_t at) {
  int64_t row = begin;
  for (; row + 6 <= end; row += 6) map_tile<T, V, 6>(p, row, at);
  for (; row + 2 <= end; row += 2) map_tile<T, V, 2>(p, row, at);
  for (; row < end; row++) map_tile<T, V, 1>(p, row, at);
}

template <class T>
void map(const Map<T>& p, int64_t begin, int64_t end) {
  constexpr int W = WIDEST<T>;
  constexpr int64_t FEW = 96;  // rows that all columns meet while they are at hand
  for (int64_t row = begin; row < end; row += FEW) {
    const int64_t stop = end - row < FEW ? end : row + FEW;
    int64_t at = 0;
    for (; at + W < p.width; at += 2 * W) map_columns<T, 2>(p, row, stop, at);
    if (at < p.width) map_columns<T, 1>(p, row, stop, at);
  }
}

// Rows whose gradients the first-level cache holds. Each such block has a sum of its own, so that no
// sum of many rows loses digits one by one.
constexpr int64_t TOGETHER = 128;

// Of the gradient of a matrix, R rows and V vectors of columns: those of the panel.
template <class T, int W, int V, int R>
INLINE void gradient_tile(const MapGradient<T>& p, const T* panel, int64_t begin, int64_t end,
                          int64_t k, T* to) {
  Vec<T, W> sums[R][V] = {};
  to += k * p.width;
  outer<T, W, V, R>(p.rows + begin * p.from + k, 1, p.from, panel, V * W, end - begin, sums);
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      T* sum = to + r * p.width + v * W;
      store<T, W>(sum, load<T, W>(sum) + sums[r][v]);
    }
  }
}

template <class T, int W, int V>
INLINE void gradient_columns(const MapGradient<T>& p, int64_t begin, int64_t end, int64_t at, T* to) {
  T panel[TOGETHER * V * W];  // side by side: so far apart, they would share few places of the cache
  Vec<T, W> sums[V] = {};
  for (int64_t row = begin; row < end; row++) {
    for (int v = 0; v < V; v++) {
      const Vec<T, W> x = load<T, W>(p.grad + row * p.width + at + v * W);
      store<T, W>(panel + ((row - begin) * V + v) * W, x);
      sums[v] += x;
    }
  }
  to += at;
  int64_t k = 0;
  for (; k + 6 <= p.from; k += 6) gradient_tile<T, W, V, 6>(p, panel, begin, end, k, to);
  for (; k + 2 <= p.from; k += 2) gradient_tile<T, W, V, 2>(p, panel, begin, end, k, to);
  for (; k < p.from; k++) gradient_tile<T, W, V, 1>(p, panel, begin, end, k, to);
  to += p.from * p.width;
  for (int v = 0; v < V; v++) store<T, W>(to + v * W, load<T, W>(to + v * W) + sums[v]);
}

template <class T>
void map_gradient(const MapGradient<T>& p, int64_t begin, int64_t end, T* to) {
  constexpr int W = WIDEST<T>;
  for (int64_t row = begin; row < end; row += TOGETHER) {
    const int64_t stop = end - row < TOGETHER ? end : row + TOGETHER;
    int64_t at = 0;
    for (; at + 2 * W <= p.width; at += 2 * W) gradient_columns<T, W, 2>(p, row, stop, at, to);
    for (; at + W <= p.width; at += W) gradient_columns<T, W, 1>(p, row, stop, at, to);
    for (; at < p.width; at += 4) gradient_columns<T, 4, 1>(p, row, stop, at, to);
  }
}

}  // namespace attn::VARIANT
