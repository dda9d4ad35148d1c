// The kernels for one instruction set; CMakeLists.txt compiles this file for several.
#include "additive.h"
#include "dense.h"
#include "ends.h"
#include "entmax_backward.h"
#include "features.h"
#include "pairs.h"
#include "segments.h"

namespace attn::VARIANT {

template <class T>
Functions<T> functions(const Problem<T>& p, Pass pass) {
  Functions<T> f = choose(p, &p.graph(pass) == &p.by_key);
  f.normalise = choose_normalise<T>(p.lanes);
  return f;
}

template <class T>
void rows(const Problem<T>& p, Pass pass, int64_t begin, int64_t end, T* memory, T* grad_vector) {
  const Functions<T> f = functions(p, pass);
  Scratch<T> s(p, memory);
  for (int64_t row = begin; row < end; row++) {
    switch (pass) {
      case FORWARD: forward_row(p, f, row, s); break;
      case BY_QUERY: by_query_row(p, f, row, s, grad_vector); break;
      case BY_KEY: by_key_row(p, f, row, s, grad_vector); break;
      case STATISTICS: statistics_row(p, f, row, s); break;
      case SUM_QUERY: sum_query_row(p, f, row, s); break;
      case SCORES: make_scores_row(p, f, row, s); break;
      case SUMS: make_sums_row(p, f, row, s, grad_vector); break;
      case SOFTMAX: softmax_row(p, f, row, s); break;
      case GRADIENT: gradient_row(p, row, s); break;
      case SOFTMAX_PARTS: break;  // whole rows are done
      case GRADIENT_PARTS: break;
      case ENTMAX: entmax_row(p, f, row, s); break;
      case ENTMAX_PARTS: break;
      case ENTMAX_QUERY: entmax_query_row(p, f, row, s, grad_vector); break;
      case ENTMAX_QUERY_PARTS: break;
      case ENTMAX_KEY: entmax_key_row(p, f, row, s); break;
    }
  }
}

template <class T>
void part(const Problem<T>& p, Pass pass, int64_t row, int64_t begin, int64_t end, T* memory,
          T* partial, T* grad_vector) {
  const Functions<T> f = functions(p, pass);
  Scratch<T> s(p, memory);
  T* of_key = p.grad_key ? partial : nullptr;
  T* of_value = p.grad_value ? partial + int64_t(p.heads) * p.width : nullptr;
  switch (pass) {
    case FORWARD: forward_part(p, f, row, begin, end, s, partial); break;
    case BY_QUERY:
      by_query_pairs(p, f, row, begin, end, s, p.grad_query ? partial : nullptr, grad_vector);
      break;
    case BY_KEY:
      by_key_pairs(p, f, row, begin, end, s, of_key, of_value, grad_vector);
      break;
    case SUM_QUERY: sum_query_pairs(p, f, row, begin, end, s, partial); break;
    case STATISTICS: break;  // has no parts
    case SCORES: make_scores(p, f, row, begin, end, s); break;
    case SUMS:
      make_sums(p, f, row, begin, end, s, p.grad_query ? partial : nullptr, grad_vector);
      break;
    case SOFTMAX: softmax_part(p, f, begin, end, s, partial); break;
    case SOFTMAX_PARTS: softmax_write(p, row, begin, end, s); break;
    case GRADIENT: gradient_part(p, begin, end, partial); break;
    case GRADIENT_PARTS: gradient_write(p, begin, end, p.row_numbers[row]); break;
    case ENTMAX: entmax_score_part(p, f, row, begin, end, s); break;
    case ENTMAX_PARTS: entmax_sum_part(p, f, row, begin, end, s, partial); break;
    case ENTMAX_QUERY: entmax_means_part(p, f, row, begin, end, s, partial); break;
    case ENTMAX_QUERY_PARTS:
      entmax_gradients(p, f, row, begin, end, s, kept_part(p, row, begin, s), p.row_numbers[row],
                       p.grad_query ? partial : nullptr, grad_vector);
      break;
    case ENTMAX_KEY: entmax_key_pairs(p, f, row, begin, end, s, of_key, of_value); break;
  }
}

template <class T>
void merge(const Problem<T>& p, Pass pass, int64_t row, const T* partials, int64_t count,
           T* memory) {
  Scratch<T> s(p, memory);
  const int64_t step = p.partial_size(pass), size = int64_t(p.heads) * p.width;
  if (pass == FORWARD) {
    forward_merge(p, row, partials, count, s);
  } else if (pass == SOFTMAX) {
    softmax_merge(p, row, partials, count, s);
  } else if (pass == ENTMAX) {
    entmax_merge(p, row, s);
  } else if (pass == ENTMAX_PARTS) {
    if (!p.made) add_parts(p.output[row], partials, count, step, step);
  } else if (pass == GRADIENT || pass == ENTMAX_QUERY) {
    add_parts(p.row_numbers[row], partials, count, step, step);
  } else if (pass == BY_KEY || pass == ENTMAX_KEY) {
    merge_sums(p.grad_key, row, partials, count, step, size, s.row_key);
    merge_sums(p.grad_value, row, partials + size, count, step, int64_t(p.heads) * p.value_width,
               s.row_value);
  } else {
    merge_sums(p.grad_query, row, partials, count, step, size, s.row_key);
  }
}

template <class T>
constexpr Kernels<T> KERNELS = {
    rows<T>, part<T>, merge<T>, multiply<T>, drop<T>, WIDEST<T>, additive_prepare<T>,
    additive_forward<T>, additive_backward<T>, ends<T>, ends_backward<T>, map<T>, map_gradient<T>,
};
extern const Kernels<float> float_kernels = KERNELS<float>;
extern const Kernels<double> double_kernels = KERNELS<double>;

}  // namespace attn::VARIANT
