// One attention over edges as the kernels see it: plain pointers, all checked by bindings.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

// Inlined always: a copy compiled for one instruction set must not serve the others.
#define ATTN_INLINE inline __attribute__((always_inline))

namespace attn {

constexpr int BLOCK = 32;        // pairs that are scored, normalised and summed together
constexpr int64_t CHUNK = 4096;  // pairs of one row that are summed by one task

enum Kind { DOT = 0, LEAKY_RELU = 1, TANH = 2 };
// The derivative of weights w = α-entmax(s): u g - u Σ u g / Σ u with u = w^(2 - α).
enum Power { ONE = 0, ROOT = 1, ZERO = 2 };  // 2 - α is 1 for softmax, ½, 0 for sparsemax
enum Pass {
  FORWARD,  // attention
  BY_QUERY,
  BY_KEY,
  SCORES,  // pairs.h
  SUMS,
  SOFTMAX,  // segments.h
  SOFTMAX_PARTS,
  GRADIENT,
  GRADIENT_PARTS,
};

// Rows [num, heads, channels], packed but for the step from row to row.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t step = 0;
  ATTN_INLINE T* operator[](int64_t i) const { return data + i * step; }
  ATTN_INLINE explicit operator bool() const { return data != nullptr; }
};

// Pairs sorted by one of their ends.
struct Graph {
  const int64_t* pointer = nullptr;  // [num + 1]
  const int32_t* other = nullptr;    // [E], the other end
  const int64_t* place = nullptr;    // [E], position in the unsorted list
  int64_t num = 0;
};

template <class T>
struct Problem {
  Kind kind = DOT;
  T scale = 1;  // of dot
  T slope = 0;  // of leaky_relu
  int heads = 0, width = 0, value_width = 0;
  Rows<const T> query, key, value;
  const T* vector = nullptr;  // [H, D]
  Rows<const T> bias, pair_key, pair_value;
  const int64_t* source = nullptr;   // [E], the row of each pair in bias, pair_key and pair_value
  const int64_t* pair_id = nullptr;  // [E], by which dropout knows each pair
  bool drops = false;
  uint32_t seed_state = 0, threshold = 0;
  T keep_scale = 1;
  Graph by_query, by_key;
  Rows<T> output, log_sum_exp;  // the results of the forward pass, later its inputs
  // Backward
  Rows<const T> grad_output, grad_log_sum_exp;
  T* coefficients = nullptr;  // [E, 2, H]: gradient of each logit (scaled), weight after dropout
  Rows<T> grad_query, grad_key, grad_value, grad_bias, grad_pair_key, grad_pair_value;
  bool need_vector = false;
  // The other passes: one number per pair and head, [E, H], given and made
  Rows<const T> given, weights;
  Rows<T> made;
  Power power = ONE;
  Rows<T> row_numbers;  // [Nq, 2, H], what was found of each long row

  ATTN_INLINE int64_t row(int64_t place) const { return source ? source[place] : place; }
  ATTN_INLINE int64_t id(int64_t place) const { return pair_id ? pair_id[place] : row(place); }
  ATTN_INLINE const Graph& graph(Pass pass) const { return pass == BY_KEY ? by_key : by_query; }

  // Numbers in what a task hands on of a row that it has seen a part of.
  ATTN_INLINE int64_t partial_size(Pass pass) const {
    int64_t h = heads;
    if (pass == FORWARD) return h * (2 + value_width);
    if (pass == BY_KEY) return h * (width + value_width);
    return pass == BY_QUERY || pass == SUMS ? h * width : 2 * h;
  }
  ATTN_INLINE int64_t scratch_size() const {
    int64_t h = (heads + 3) / 4 * 4;
    return h * BLOCK * (5 + width + value_width) + h * (6 + 2 * width + value_width) + 64;
  }
};

// What each instruction set provides.
template <class T>
struct Kernels {
  // Whole rows [begin, end).
  void (*rows)(const Problem<T>&, Pass, int64_t begin, int64_t end, T* scratch, T* grad_vector);
  // The pairs [begin, end) of a long row.
  void (*part)(const Problem<T>&, Pass, int64_t row, int64_t begin, int64_t end, T* scratch,
               T* partial, T* grad_vector);
  // The parts of a long row, in their order.
  void (*merge)(const Problem<T>&, Pass, int64_t row, const T* partials, int64_t count, T* scratch);
};

template <class T>
void run(const Problem<T>& problem, Pass pass, int threads, T* grad_vector);

}  // namespace attn
