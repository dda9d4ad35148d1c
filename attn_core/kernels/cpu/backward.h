// The backward pass: by query for the gradients of logits, queries and pairs, then by key.
// Between the two, each pair leaves two numbers per head: the gradient of its logit and its weight.
#pragma once
#include "block.h"

namespace attn::VARIANT {

// Zeros behind the last pair, up to whole vectors.
template <class T>
INLINE void clear_rest(const Problem<T>& p, int n, T* x) {
  for (int e = n; e % WIDEST<T>; e++) {
    for (int h = 0; h < p.heads; h++) x[h * BLOCK + e] = 0;
  }
}

template <class T>
void by_query_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                    int64_t end, Scratch<T>& s, T* grad_query, T* grad_vector) {
  constexpr int W = WIDEST<T>;
  const int64_t size = int64_t(p.heads) * p.width, value_size = int64_t(p.heads) * p.value_width;
  const bool same = p.key.data == p.value.data && p.key.step == p.value.step && !p.pair_key &&
                    !p.pair_value && p.width == p.value_width;
  const T *keys[BLOCK], *values[BLOCK];
  const T *query = p.query[row], *grad = p.grad_output[row];
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    prefetch(p.value, p.by_query, at + n, n, value_size);
    if (!same && size > 64) prefetch(p.key, p.by_query, at + n, n, size);
    if (p.coefficients) {
      for (int e = 0; e < n; e++) {
        const T* next = p.coefficients + 2 * p.heads * p.by_query.place[at + e];
        for (int c = 0; c < 2 * p.heads; c += 64 / int(sizeof(T))) __builtin_prefetch(next + c, 1);
      }
    }
    find_rows(p.key, p.pair_key, p, p.by_query, at, n, size, s.made_key, keys);
    find_rows(p.value, p.pair_value, p, p.by_query, at, n, value_size, s.made_value, values);
    f.score(p, keys, n, query, p.width, s.weights);
    add_bias(p, at, n, s.weights);
    f.dot(p, values, n, grad, p.value_width, s.grads);
    if (p.drops) draw(p, at, n, s.keep);
    for (int h = 0; h < p.heads; h++) {
      T *weights = s.weights + h * BLOCK, *grads = s.grads + h * BLOCK;
      const T *keep = s.keep + h * BLOCK, lse = p.log_sum_exp[row][h];
      const T shift = lse == -infinity(T()) ? T(0) : lse, mean = s.mean[h];
      for (int e = 0; e < n; e += W) {
        const Vec<T, W> weight = exp<T, W>(load<T, W>(weights + e) - shift);
        Vec<T, W> of_weight = load<T, W>(grads + e), dropped = weight;
        if (p.drops) {
          const Vec<T, W> kept = load<T, W>(keep + e);
          of_weight *= kept;
          dropped *= kept;
        }
        store<T, W>(grads + e, weight * (of_weight - mean));
        store<T, W>(weights + e, dropped);
      }
    }
    T* out[BLOCK];
    if (p.grad_bias) {
      for (int e = 0; e < n; e++) out[e] = p.grad_bias[p.row(p.by_query.place[at + e])];
      collect(s.grads, n, p.heads, out);
    }
    if (p.kind == DOT) {
      for (int i = 0; i < p.heads * BLOCK; i++) s.grads[i] *= p.scale;
    }
    if (p.width == 1) clear_rest(p, n, s.grads);
    if (p.coefficients) {
      for (int e = 0; e < n; e++) {
        out[e] = p.coefficients + 2 * p.heads * p.by_query.place[at + e];
      }
      collect(s.grads, n, p.heads, out);
      for (int e = 0; e < n; e++) out[e] += p.heads;
      collect(s.weights, n, p.heads, out);
    }
    if (p.grad_pair_key) {
      for (int e = 0; e < n; e++) {
        f.pair_gradient(p, keys[e], query, s.grads + e,
                        p.grad_pair_key[p.row(p.by_query.place[at + e])]);
      }
    }
    if (p.grad_pair_value) {
      for (int e = 0; e < n; e++) {
        T* out = p.grad_pair_value[p.row(p.by_query.place[at + e])];
        for (int h = 0; h < p.heads; h++) {
          const T weight = s.weights[h * BLOCK + e];
          const int64_t c = int64_t(h) * p.value_width;
          for (int d = 0; d < p.value_width; d++) out[c + d] = weight * grad[c + d];
        }
      }
    }
    if (p.kind == DOT) {
      if (grad_query) {
        f.gather_key(keys, n, s.grads, at == begin ? nullptr : s.scale, p.heads, p.width,
                     grad_query);
      }
    } else if (grad_query || grad_vector) {
      T* sums = grad_query ? grad_query : s.row_key;
      if (at == begin) {
        for (int64_t c = 0; c < size; c++) sums[c] = 0;
      }
      f.score_gradient(p, keys, n, query, s.grads, sums, grad_vector);
    }
  }
}

template <class T>
INLINE void begin_query(const Problem<T>& p, int64_t row, Scratch<T>& s) {
  const T *grad = p.grad_output[row], *output = p.output[row];
  for (int h = 0; h < p.heads; h++) {
    T mean = -p.grad_log_sum_exp[row][h];
#pragma omp simd reduction(+ : mean)
    for (int c = h * p.value_width; c < (h + 1) * p.value_width; c++) mean += grad[c] * output[c];
    s.mean[h] = mean;
    s.scale[h] = 1;
  }
}

template <class T>
void by_query_part(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                   int64_t end, Scratch<T>& s, T* grad_query, T* grad_vector) {
  begin_query(p, row, s);
  by_query_pairs(p, f, row, begin, end, s, grad_query, grad_vector);
}

template <class T>
void by_query_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s,
                  T* grad_vector) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  T* grad_query = p.grad_query ? p.grad_query[row] : nullptr;
  if (begin < end) {
    by_query_part(p, f, row, begin, end, s, grad_query, grad_vector);
  } else if (grad_query) {
    for (int64_t c = 0; c < int64_t(p.heads) * p.width; c++) grad_query[c] = 0;
  }
}

template <class T>
void by_key_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                  int64_t end, Scratch<T>& s, T* grad_key, T* grad_value) {
  const int64_t size = int64_t(p.heads) * p.width, value_size = int64_t(p.heads) * p.value_width;
  const T *queries[BLOCK], *grads[BLOCK];
  for (int h = 0; h < p.heads; h++) s.scale[h] = 1;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    for (int64_t e = at + n; e < at + 2 * n && e < p.by_key.pointer[p.by_key.num]; e++) {
      const T* next = p.coefficients + 2 * p.heads * p.by_key.place[e];
      for (int c = 0; c < 2 * p.heads; c += 64 / int(sizeof(T))) __builtin_prefetch(next + c);
    }
    if (grad_value) prefetch(p.grad_output, p.by_key, at + n, n, value_size);
    if (grad_key && (p.kind == DOT || size > 64)) prefetch(p.query, p.by_key, at + n, n, size);
    const T* in[BLOCK];
    for (int e = 0; e < n; e++) in[e] = p.coefficients + 2 * p.heads * p.by_key.place[at + e];
    for (int e = n; e % 4; e++) in[e] = in[0];
    if (grad_key) spread(in, n, p.heads, s.grads);
    for (int e = 0; e < (n + 3) / 4 * 4; e++) in[e] += p.heads;
    if (grad_value) spread(in, n, p.heads, s.weights);
    if (grad_value) {
      find_rows(p.grad_output, Rows<const T>(), p, p.by_key, at, n, value_size, s.made_value,
                grads);
      f.gather_value(grads, n, s.weights, at == begin ? nullptr : s.scale, p.heads, p.value_width,
                     grad_value);
    }
    if (!grad_key) continue;
    if (p.kind == DOT) {
      find_rows(p.query, Rows<const T>(), p, p.by_key, at, n, size, s.made_key, queries);
      f.gather_key(queries, n, s.grads, at == begin ? nullptr : s.scale, p.heads, p.width,
                   grad_key);
    } else {
      find_rows(p.query, p.pair_key, p, p.by_key, at, n, size, s.made_key, queries);
      if (at == begin) {
        for (int64_t c = 0; c < size; c++) grad_key[c] = 0;
      }
      if (p.width == 1) clear_rest(p, n, s.grads);
      f.score_gradient(p, queries, n, p.key[row], s.grads, grad_key, nullptr);
    }
  }
}

template <class T>
void by_key_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  const int64_t begin = p.by_key.pointer[row], end = p.by_key.pointer[row + 1];
  T* grad_key = p.grad_key ? p.grad_key[row] : nullptr;
  T* grad_value = p.grad_value ? p.grad_value[row] : nullptr;
  if (begin < end) {
    by_key_pairs(p, f, row, begin, end, s, grad_key, grad_value);
    return;
  }
  for (int64_t c = 0; grad_key && c < int64_t(p.heads) * p.width; c++) grad_key[c] = 0;
  for (int64_t c = 0; grad_value && c < int64_t(p.heads) * p.value_width; c++) grad_value[c] = 0;
}

// Parts are [key, value] or [query]; missing ones are there, but not read.
template <class T>
INLINE void add_parts(T* out, const T* parts, int64_t count, int64_t step, int64_t size) {
  if (!out) return;
  for (int64_t c = 0; c < size; c++) out[c] = 0;
  for (int64_t i = 0; i < count; i++) {
    for (int64_t c = 0; c < size; c++) out[c] += parts[i * step + c];
  }
}

}  // namespace attn::VARIANT
