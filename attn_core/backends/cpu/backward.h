// The backward pass: by query for the gradients of queries and pairs, by key for those of keys and
// values. Both make weights anew, of logits that have the bits of the forward pass (the same code,
// in which row and shared end are equals, adds up the same numbers in the same order), so that none
// exceeds its row's maximum. Where pairs have no vectors of their own, or where a logit depends on
// single numbers of query and key, the pass by key does everything but the sums by query, for which
// each pair leaves one number per head, and one bit per channel where leaky_relu was not bent: to
// read these costs much less than the rows of keys and values.
#pragma once
#include "forward.h"

namespace attn::VARIANT {

// Weights, dropped ones, from logits; gradients of logits from those of weights. The statistics are
// those of one query, repeated, or of EACH pair; without a rest, all of these are 0.
template <bool EACH, class T>
INLINE void differentiate(const Problem<T>& p, int n, const T* largest, const T* scale,
                          const T* mean, const T* rest, Scratch<T>& s) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  const int end = fill_rest(p, n, -infinity(T()), s.weights), step = period(p);
  fill_rest(p, n, T(0), s.grads);
  for (int at = 0; at < step; at += W) {
    for (int i = at; i < end; i += step) {
      const int row = EACH ? i : at;
      const V power = exp<T, W>(load<T, W>(s.weights + i) - load<T, W>(largest + row));
      const V weight = power * load<T, W>(scale + row);
      V of_weight = load<T, W>(s.grads + i), dropped = weight;
      if (p.drops) {
        const V kept = load<T, W>(s.keep + i);
        of_weight *= kept;
        dropped *= kept;
      }
      V apart = of_weight - load<T, W>(mean + row);
      if (rest) apart -= load<T, W>(rest + row);
      store<T, W>(s.grads + i, weight * apart);
      store<T, W>(s.weights + i, dropped);
    }
  }
}

// acc += Σ_e numbers_e.
template <class T>
INLINE void sum_pairs(const Problem<T>& p, int n, T* numbers, T* acc) {
  constexpr int W = WIDEST<T>;
  const int step = period(p), end = fill_rest(p, n, T(0), numbers);
  for (int at = 0; at < step; at += W) {
    Vec<T, W> sum = {};
    for (int i = at; i < end; i += step) sum += load<T, W>(numbers + i);
    int lanes = W;  // below W, those of a pair are a power of 2
    for (; lanes > p.lanes; lanes /= 2) {
      for (int i = 0; i < lanes / 2; i++) sum[i] += sum[i + lanes / 2];
    }
    for (int i = 0; i < lanes && at + i < p.heads; i++) acc[at + i] += sum[i];
  }
}

// The mean gradient of a query's weights, weighted by them.
template <class T>
INLINE void mean_gradient(const Problem<T>& p, const Functions<T>& f, int64_t row, const T* grad,
                          T* mean) {
  const Row output = p.output[row], outputs[] = {output, output, output, output};
  f.dot_output(p, outputs, nullptr, 1, grad, p.value_width, mean);
  for (int h = 0; h < p.heads; h++) mean[h] -= p.grad_log_sum_exp[row][h];
}

// The numbers of each pair go to where the caller has it.
template <class T, class Row>
INLINE void hand_out(const Problem<T>& p, const Graph& graph, int64_t begin, int n,
                     const T* numbers, Row row) {
  for (int e = 0; e < n; e++) {
    copy_heads(numbers + e * p.lanes, p.heads, row(graph.place[begin + e]));
  }
}

// Gradients of values of pairs: the weight times the query's gradient, `grads` or the one of all.
template <class T>
void value_gradients(const Problem<T>& p, const Graph& graph, int64_t begin, int n,
                     const T* weights, const Row* grads, const T* grad) {
  for (int e = 0; e < n; e++) {
    T* out = p.grad_pair_value[graph.place[begin + e]];
    if (grads) grad = as<T>(grads[e]);
    for (int h = 0; h < p.heads; h++) {
      const T weight = weights[e * p.lanes + h];
      const int64_t c = int64_t(h) * p.value_width;
      for (int d = 0; d < p.value_width; d++) out[c + d] = weight * grad[c + d];
    }
  }
}

template <class T>
INLINE void repeat_statistics(const Problem<T>& p, int64_t row, Scratch<T>& s) {
  const T* statistics = p.statistics + NUMBERS * p.heads * row;
  repeat(p, statistics, s.largest);
  repeat(p, statistics + p.heads, s.scale);
  repeat(p, statistics + 2 * p.heads, s.mean);
  if (p.rests) repeat(p, p.rests + p.heads * row, s.rest);
}

// For a block of a query's pairs: their keys, dropped weights, and gradients of logits.
template <class T>
INLINE void gradients_of_logits(const Problem<T>& p, const Functions<T>& f,
                                const T* query, const T* grad, int64_t begin, int n, Scratch<T>& s,
                                Row* keys) {
  const int64_t value_size = int64_t(p.heads) * p.value_width;
  Row values[ROWS], next[ROWS];
  const Row *with = keys, *later = nullptr;
  score_pairs(p, f, begin, n, query, s, keys, s.weights);
  if (!is_shared(p)) {
    find_rows(p.value, p.pair_value, p, p.by_query, begin, n, value_size, s.made_value, values);
    with = values;
    later = find_next(p, p.value, p.by_query, begin, n, next);
  }
  f.dot(p, with, later, n, grad, p.value_width, s.grads);
  if (p.drops) draw(p, p.by_query, begin, n, s.keep);
  differentiate<false>(p, n, s.largest, s.scale, s.mean, p.rests ? s.rest : nullptr, s);
}

template <class T>
void by_query_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                    int64_t end, Scratch<T>& s, T* grad_query, T* grad_vector) {
  const int64_t size = int64_t(p.heads) * p.width;
  const T* query = widened(p.query, row, size, s.fixed_key);
  const T* grad = widened(p.grad_output, row, int64_t(p.heads) * p.value_width, s.fixed_value);
  Row keys[ROWS];
  T* sums = grad_query ? grad_query : s.row_key;
  repeat_statistics(p, row, s);
  if (p.kind != DOT) {
    for (int64_t c = 0; c < size; c++) sums[c] = 0;
  }
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    gradients_of_logits(p, f, query, grad, at, n, s, keys);
    if (p.grad_bias) {
      hand_out(p, p.by_query, at, n, s.grads, [&](int64_t i) { return p.grad_bias[i]; });
    }
    if (p.kind == DOT) {
      for (int i = 0; i < n * p.lanes; i++) s.grads[i] *= p.scale;
    }
    if (p.grad_pair_value) value_gradients<T>(p, p.by_query, at, n, s.weights, nullptr, grad);
    if (p.grad_pair_key) {
      for (int e = 0; e < n; e++) {
        f.pair_gradient(p, as<T>(keys[e]), query, s.grads + e * p.lanes,
                        p.grad_pair_key[p.by_query.place[at + e]]);
      }
    }
    if (p.kind != DOT) {
      f.score_gradient(p, keys, nullptr, n, query, s.grads, sums, grad_vector, nullptr);
    } else if (grad_query) {
      f.gather_key(p, keys, nullptr, n, s.grads, at == begin ? nullptr : s.ones, p.width, grad_query);
    }
  }
}

template <class T>
void by_query_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s,
                  T* grad_vector) {
  const int64_t begin = p.by_query.pointer[row], end = p.by_query.pointer[row + 1];
  const int64_t size = int64_t(p.heads) * p.width;
  T* grad_query = sums_of(p.grad_query, row, s.row_key);
  if (begin < end) {
    by_query_pairs(p, f, row, begin, end, s, grad_query, grad_vector);
  } else if (grad_query) {
    for (int64_t c = 0; c < size; c++) grad_query[c] = 0;
  }
  put(p.grad_query, row, size, grad_query);
}

// What else there is to say where a logit depends on single numbers.
template <class T>
INLINE void number_gradients(const Problem<T>& p, const Functions<T>& f, int64_t begin, int n,
                             const Row* grads, Scratch<T>& s, T* grad_key, T* grad_vector) {
  const Graph& graph = p.by_key;
  if (p.grad_pair_value) {
    value_gradients<T>(p, graph, begin, n, s.weights, grads, nullptr);
  }
  if (p.grad_bias) {
    hand_out(p, graph, begin, n, s.grads, [&](int64_t i) { return p.grad_bias[i]; });
  }
  f.number_gradient(p, n, s.x, s.vector, s.grads, grad_vector);
  if (p.grad_pair_key) {
    hand_out(p, graph, begin, n, s.grads, [&](int64_t i) { return p.grad_pair_key[i]; });
  }
  if (grad_key) sum_pairs(p, n, s.grads, grad_key);
}

// The gradients of a block's logits, for the sums by query.
template <class T>
INLINE void leave(const Problem<T>& p, int64_t begin, int n, const T* grads) {
  T* to = p.of_queries + p.heads * begin;
  for (int e = 0; e < n; e++) copy_heads(grads + e * p.lanes, p.heads, to + e * p.heads);
}

// What a product of each row with `fixed` gives, to which each pair may add a vector of its own.
template <class T>
INLINE void multiply(const Problem<T>& p, decltype(Functions<T>::dot) dot, const Row* rows,
                     const Row* next, int64_t begin, int n, const T* fixed, int width,
                     const Rows<const T>& pair, T* made, T* out) {
  if (!pair) return dot(p, rows, next, n, fixed, width, out);
  for (int e = 0; e < n; e++) {
    const T* added = pair[p.by_key.place[begin + e]];
    for (int64_t c = 0; c < int64_t(p.heads) * width; c++) made[c] = fixed[c] + added[c];
    dot(p, rows + e, next ? next + e : nullptr, 1, made, width, out + e * p.lanes);
  }
}

template <class T>
void by_key_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                  int64_t end, Scratch<T>& s, T* grad_key, T* grad_value, T* grad_vector) {
  const int64_t size = int64_t(p.heads) * p.width, value_size = int64_t(p.heads) * p.value_width;
  Row queries[ROWS], grads[ROWS], next[ROWS];
  const T* key = widened(p.key, row, size, s.fixed_key);
  const T* value = widened(p.value, row, value_size, s.fixed_value);
  const AnyRows<const T> statistics{p.statistics, NUMBERS * p.heads};
  const Rows<const T> none;
  const bool product = p.kind == DOT;
  // What sums of three vectors are joined with: (key + pair) + query, as in the forward pass
  const T* fixed = !product && p.pair_key ? s.zeros : key;
  if (f.score_numbers) repeat(p, fixed, s.fixed);
  // Who leaves signs, or sums for the vector, also sums what is then of no use
  T* of_vector = p.leaves() ? grad_vector || !p.signs ? grad_vector : s.made_key : nullptr;
  T* slopes = grad_key || !of_vector ? grad_key : s.row_key;
  for (int64_t c = 0; slopes && !product && c < size; c++) slopes[c] = 0;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    const T* ones = at == begin ? nullptr : s.ones;
    prefetch_next(p, statistics, p.by_key, at, n, NUMBERS * p.heads);
    find_rows(p.query, product ? none : p.pair_key, p, p.by_key, at, n, size, s.made_key, queries,
              key);
    if (f.score_numbers) {
      prefetch_next(p, p.query, p.by_key, at, n, size);
      f.score_numbers(p, queries, n, s.fixed, s.vector, s.x, s.weights);
    } else {
      const Row* later = find_next(p, p.query, p.by_key, at, n, next);
      multiply(p, f.score, queries, later, at, n, fixed, p.width, product ? p.pair_key : none,
               s.made_key, s.weights);
    }
    add_bias(p, p.by_key, at, n, s.weights);
    find_rows(p.grad_output, none, p, p.by_key, at, n, value_size, s.made_value, grads);
    const Row* later = find_next(p, p.grad_output, p.by_key, at, n, next);
    // Rows are asked for in two of the four sweeps over them, lest all requests come at once
    multiply(p, f.dot, grads, grad_value ? nullptr : later, at, n, value, p.value_width,
             p.pair_value, s.made_value, s.grads);
    for (int e = 0; e < n; e++) {
      const T* of_query = statistics.full(p.by_key.other[at + e]);
      copy_heads(of_query, p.heads, s.logits + e * p.lanes);
      copy_heads(of_query + p.heads, p.heads, s.scales + e * p.lanes);
      copy_heads(of_query + 2 * p.heads, p.heads, s.means + e * p.lanes);
      if (p.rests) {
        copy_heads(p.rests + p.heads * p.by_key.other[at + e], p.heads, s.rests + e * p.lanes);
      }
    }
    fill_rest(p, n, T(0), s.logits);
    fill_rest(p, n, T(0), s.scales);
    fill_rest(p, n, T(0), s.means);
    if (p.rests) fill_rest(p, n, T(0), s.rests);
    if (p.drops) draw(p, p.by_key, at, n, s.keep);
    differentiate<true>(p, n, s.logits, s.scales, s.means, p.rests ? s.rests : nullptr, s);
    if (grad_value) {
      f.gather_value(p, grads, later, n, s.weights, ones, p.value_width, grad_value);
    }
    if (f.score_numbers) {
      number_gradients(p, f, at, n, grads, s, grad_key, grad_vector);
    } else {
      if (p.leaves() && p.grad_bias) {
        hand_out(p, p.by_key, at, n, s.grads, [&](int64_t i) { return p.grad_bias[i]; });
      }
      for (int i = 0; product && i < n * p.lanes; i++) s.grads[i] *= p.scale;
      if (grad_key && product) {
        f.gather_key(p, queries, nullptr, n, s.grads, ones, p.width, grad_key);
      } else if (!product && slopes) {
        uint8_t* signs = p.signs ? p.signs + p.sign_bytes * at : nullptr;
        f.score_gradient(p, queries, nullptr, n, fixed, s.grads, slopes, of_vector, signs);
      }
    }
    if (p.leaves()) leave(p, at, n, s.grads);
  }
}

template <class T>
void by_key_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s,
                T* grad_vector) {
  const int64_t begin = p.by_key.pointer[row], end = p.by_key.pointer[row + 1];
  const int64_t size = int64_t(p.heads) * p.width, value_size = int64_t(p.heads) * p.value_width;
  T* grad_key = sums_of(p.grad_key, row, s.row_key);
  T* grad_value = sums_of(p.grad_value, row, s.row_value);
  if (begin < end) {
    by_key_pairs(p, f, row, begin, end, s, grad_key, grad_value, grad_vector);
  } else {
    for (int64_t c = 0; grad_key && c < size; c++) grad_key[c] = 0;
    for (int64_t c = 0; grad_value && c < value_size; c++) grad_value[c] = 0;
  }
  put(p.grad_key, row, size, grad_key);
  put(p.grad_value, row, value_size, grad_value);
}

// Gradients of a row's logits sum to that of its log-sum-exp. What they miss it by is the error of
// their mean, which is made of a rounded output. It counts as much as the logits are large, and where
// one weight is above one half: there, gradients are small differences of large numbers.
template <class T>
void centre(const Problem<T>& p, const Functions<T>& f, int64_t row, const T* grad, Scratch<T>& s,
            T* rest) {
  const int64_t end = p.by_query.pointer[row + 1];
  const T* query = widened(p.query, row, int64_t(p.heads) * p.width, s.fixed_key);
  Row keys[ROWS];
  repeat_statistics(p, row, s);
  if (f.score_numbers) repeat(p, query, s.fixed);
  for (int h = 0; h < p.heads; h++) s.total[h] = 0;
  for (int64_t at = p.by_query.pointer[row]; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    gradients_of_logits(p, f, query, grad, at, n, s, keys);
    sum_pairs(p, n, s.grads, s.total);
  }
  for (int h = 0; h < p.heads; h++) rest[h] = s.total[h] - p.grad_log_sum_exp[row][h];
}

// What is subtracted from the logits of a row, what their exponentials are multiplied with, and the
// mean gradient.
template <class T>
void statistics_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  T* out = p.statistics + NUMBERS * p.heads * row;
  bool centred = false;
  for (int h = 0; h < p.heads; h++) {
    const T most = p.maximum[row][h], total = p.total[row][h];
    out[h] = most == -infinity(T()) ? T(0) : most;
    out[p.heads + h] = total == T(0) ? T(0) : T(1) / total;
    centred |= most * most > LARGE * LARGE && total >= T(1) && total < T(2);
  }
  T* rest = p.rests + p.heads * row;
  const T* grad = widened(p.grad_output, row, int64_t(p.heads) * p.value_width, s.fixed_value);
  mean_gradient(p, f, row, grad, out + 2 * p.heads);
  for (int h = 0; h < p.heads; h++) rest[h] = 0;
  if (centred && p.by_query.pointer[row + 1] - p.by_query.pointer[row] > 1) {
    centre(p, f, row, grad, s, rest);
    __atomic_store_n(p.centred, true, __ATOMIC_RELAXED);
  }
}

// The gradient of a query from what the pass by key left of each pair.
template <class T>
void sum_query_pairs(const Problem<T>& p, const Functions<T>& f, int64_t row, int64_t begin,
                     int64_t end, Scratch<T>& s, T* grad_query) {
  const int64_t size = int64_t(p.heads) * p.width, last = p.by_query.pointer[p.by_query.num] - 1;
  const bool ask = p.far || last * p.heads * int64_t(sizeof(T)) > 1 << 20;
  const uint8_t* signs[BLOCK];
  const T* query = widened(p.query, row, size, s.fixed_key);
  Row keys[ROWS], next[ROWS];
  for (int64_t c = 0; c < size; c++) grad_query[c] = 0;
  for (int64_t at = begin; at < end; at += BLOCK) {
    const int n = end - at < BLOCK ? int(end - at) : BLOCK;
    for (int e = 0; e < n; e++) {
      if (ask) {
        const int64_t later = p.from[at + e + AHEAD < last ? at + e + AHEAD : last];
        __builtin_prefetch(p.of_queries + p.heads * later);
        if (p.signs) __builtin_prefetch(p.signs + p.sign_bytes * later);
      }
      copy_heads(p.of_queries + p.heads * int64_t(p.from[at + e]), p.heads, s.grads + e * p.lanes);
    }
    if (p.numbers()) {
      sum_pairs(p, n, s.grads, grad_query);
    } else if (p.signs) {
      for (int e = 0; e < n; e++) signs[e] = p.signs + p.sign_bytes * int64_t(p.from[at + e]);
      f.sum_signs(p, signs, n, s.grads, grad_query);
    } else {
      find_rows(p.key, Rows<const T>(), p, p.by_query, at, n, size, s.made_key, keys);
      const Row* later = find_next(p, p.key, p.by_query, at, n, next);
      if (p.kind == DOT) {
        f.gather_key(p, keys, later, n, s.grads, s.ones, p.width, grad_query);
      } else {
        f.score_gradient(p, keys, later, n, query, s.grads, grad_query, nullptr, nullptr);
      }
    }
  }
  for (int64_t c = 0; p.signs && c < size; c++) grad_query[c] *= p.vector[c];
}

template <class T>
void sum_query_row(const Problem<T>& p, const Functions<T>& f, int64_t row, Scratch<T>& s) {
  T* grad_query = sums_of(p.grad_query, row, s.row_key);
  sum_query_pairs(p, f, row, p.by_query.pointer[row], p.by_query.pointer[row + 1], s, grad_query);
  put(p.grad_query, row, int64_t(p.heads) * p.width, grad_query);
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
template <class T>
INLINE void merge_sums(const AnyRows<T>& rows, int64_t row, const T* parts, int64_t count,
                       int64_t step, int64_t size, T* beside) {
  T* sums = sums_of(rows, row, beside);
  add_parts(sums, parts, count, step, size);
  put(rows, row, size, sums);
}

}  // namespace attn::VARIANT
