// The kernels for one instruction set; CMakeLists.txt compiles this file for several.
#include "backward.h"
#include "forward.h"
#include "pairs.h"
#include "segments.h"

namespace attn::VARIANT {

template <class T>
void rows(const Problem<T>& p, Pass pass, int64_t begin, int64_t end, T* memory, T* grad_vector) {
  const Functions<T> f = choose(p);
  Scratch<T> s(p, memory);
  for (int64_t row = begin; row < end; row++) {
    if (pass == FORWARD) forward_row(p, f, row, s);
    if (pass == BY_QUERY) by_query_row(p, f, row, s, grad_vector);
    if (pass == BY_KEY) by_key_row(p, f, row, s);
    if (pass == SCORES) score_row(p, f, row, s);
    if (pass == SUMS) sum_row(p, f, row, s, grad_vector);
    if (pass == SOFTMAX) softmax_row(p, row, s);
    if (pass == GRADIENT) gradient_row(p, row, s);
  }
}

template <class T>
void part(const Problem<T>& p, Pass pass, int64_t row, int64_t begin, int64_t end, T* memory,
          T* partial, T* grad_vector) {
  const Functions<T> f = choose(p);
  Scratch<T> s(p, memory);
  if (pass == FORWARD) forward_part(p, f, row, begin, end, s, partial);
  if (pass == BY_QUERY) {
    by_query_part(p, f, row, begin, end, s, p.grad_query ? partial : nullptr, grad_vector);
  }
  if (pass == BY_KEY) {
    by_key_pairs(p, f, row, begin, end, s, p.grad_key ? partial : nullptr,
                 p.grad_value ? partial + int64_t(p.heads) * p.width : nullptr);
  }
  if (pass == SCORES) score_pairs(p, f, row, begin, end, s);
  if (pass == SUMS) {
    sum_pairs(p, f, row, begin, end, s, p.grad_query ? partial : nullptr, grad_vector);
  }
  if (pass == SOFTMAX) softmax_part(p, begin, end, s, partial);
  if (pass == SOFTMAX_PARTS) softmax_write(p, row, begin, end, s);
  if (pass == GRADIENT) gradient_part(p, begin, end, partial);
  if (pass == GRADIENT_PARTS) gradient_write(p, begin, end, p.row_numbers[row]);
}

template <class T>
void merge(const Problem<T>& p, Pass pass, int64_t row, const T* partials, int64_t count,
           T* memory) {
  Scratch<T> s(p, memory);
  const int64_t step = p.partial_size(pass), size = int64_t(p.heads) * p.width;
  if (pass == FORWARD) forward_merge(p, row, partials, count, s);
  if ((pass == BY_QUERY || pass == SUMS) && p.grad_query) {
    add_parts(p.grad_query[row], partials, count, step, size);
  }
  if (pass == SOFTMAX) softmax_merge(p, row, partials, count, s);
  if (pass == GRADIENT) add_parts(p.row_numbers[row], partials, count, step, step);
  if (pass == BY_KEY) {
    if (p.grad_key) add_parts(p.grad_key[row], partials, count, step, size);
    if (p.grad_value) {
      add_parts(p.grad_value[row], partials + size, count, step,
                int64_t(p.heads) * p.value_width);
    }
  }
}

extern const Kernels<float> float_kernels = {rows<float>, part<float>, merge<float>};
extern const Kernels<double> double_kernels = {rows<double>, part<double>, merge<double>};

}  // namespace attn::VARIANT
