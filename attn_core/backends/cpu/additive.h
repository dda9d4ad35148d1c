// Additive scores of all pairs of a sequence, and their gradients: hidden vectors stay in registers.
//
// Keys are met 32 at a time. They are copied first, to lie vector by vector, [padded / W, 32, W],
// with zeros behind the last key and the last channel. Where that is exact enough, tanh is taken
// apart: tanh(q + k) = 1 - 2h with h = 1 / (1 + e^2q e^2k) and the slope 4 (h - h²), so that the
// exponentials are taken once for each query and each key.
#pragma once
#include "score.h"

namespace attn::VARIANT {

enum Way { BENT, CURVED, FACTORED };  // leaky_relu, tanh, tanh taken apart

template <class T>
constexpr int TILE_QUERIES = REGISTER == 64 ? 4 : 2;

// What is summed of a pair's channels, h.
template <class T, int W, Way X>
INLINE Vec<T, W> hidden(Vec<T, W> query, Vec<T, W> key, T slope) {
  if constexpr (X == FACTORED) return reciprocal<T, W>(query * key + T(1));
  return activate<T, W, X == CURVED ? TANH : LEAKY_RELU>(query + key, slope);
}

// What its gradient is a multiple of.
template <class T, int W, Way X>
INLINE Vec<T, W> slope_of(Vec<T, W> query, Vec<T, W> key, Vec<T, W> hidden, T slope) {
  if constexpr (X == FACTORED) return hidden - hidden * hidden;
  return derivative<T, W, X == CURVED ? TANH : LEAKY_RELU>(query + key, hidden, slope);
}

// A vector of whose numbers only n are there; the others are 0.
template <class T, int W>
INLINE Vec<T, W> load_some(const T* from, int64_t n) {
  if (n >= W) return load<T, W>(from);
  Vec<T, W> x = {};
  for (int i = 0; i < n; i++) x[i] = from[i];
  return x;
}
template <class T, int W>
INLINE void store_some(T* to, int64_t n, Vec<T, W> x) {
  if (n >= W) return store<T, W>(to, x);
  for (int i = 0; i < n; i++) to[i] = x[i];
}

// Whether all numbers are of a size, and the largest of these sizes.
template <class T>
INLINE bool within(const Batch<const T>& x, int64_t b, int64_t num, int64_t width, T limit,
                   T& most) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  V largest = {}, beyond = {};
  for (int64_t i = 0; i < num; i++) {
    const T* row = x.at(b, i);
    for (int64_t c = 0; c < width; c += W) {
      const V number = load_some<T, W>(row + c, width - c), size = number < T(0) ? -number : number;
      largest = size > largest ? size : largest;
      beyond = size <= limit ? beyond : all<T, W>(T(1));  // NaN is
    }
  }
  bool all_within = true;
  for (int i = 0; i < W; i++) {
    most = largest[i] > most ? largest[i] : most;
    all_within &= beyond[i] == T(0);
  }
  return all_within;
}

// Whether tanh can be taken apart: exponentials and their products are numbers, 1 - 2h has not lost
// its digits to cancellation, and there are enough queries to share a key's exponentials.
template <class T>
bool is_factored(const Additive<T>& a, int64_t b) {
  if (a.kind != TANH || a.queries < 3 || a.keys < 3) return false;
  const T limit = sizeof(T) == 4 ? 40 : 300, together = sizeof(T) == 4 ? 43 : 340;
  T query = 0, key = 0, sum = 0;
  if (!within(a.query, b, a.queries, a.width, limit, query)) return false;
  if (!within(a.key, b, a.keys, a.width, limit, key)) return false;
  for (int64_t c = 0; c < a.width; c++) sum += a.vector[b * a.width + c];
  return query + key <= together && query + key >= T(0.0625) && sum - sum == T(0);
}

template <class T>
void additive_prepare(const Additive<T>& a, int64_t b) {
  constexpr int W = WIDEST<T>;
  const bool factored = a.factored[b] = is_factored(a, b);
  const T* vector = a.vector + b * a.width;
  T *sums = a.made_vector + 2 * b * a.padded, *slopes = sums + a.padded, sum = 0;
  for (int64_t c = 0; c < a.padded; c++) {
    const T v = c < a.width ? vector[c] : T(0);
    sum += v;
    sums[c] = factored ? -2 * v : v;
    slopes[c] = factored ? 4 * v : v;
  }
  a.shift[b] = factored ? sum : T(0);
  for (int64_t i = 0; i < a.queries; i++) {
    const T* from = a.query.at(b, i);
    T* to = a.made_query + (b * a.queries + i) * a.padded;
    for (int64_t c = 0; c < a.padded; c += W) {
      const Vec<T, W> x = load_some<T, W>(from + c, a.width - c);
      store<T, W>(to + c, factored ? exp<T, W>(x + x) : x);
    }
  }
}

// The keys [key, key + n) as they are met.
template <class T>
void pack_keys(const Additive<T>& a, int64_t b, int64_t key, int n, T* packed) {
  constexpr int W = WIDEST<T>;
  const bool factored = a.factored[b];
  for (int j = 0; j < TILE_KEYS; j++) {
    const T* from = a.key.at(b, key + j);
    for (int64_t c = 0; c < a.padded; c += W) {
      const Vec<T, W> x = j < n ? load_some<T, W>(from + c, a.width - c) : Vec<T, W>{};
      store<T, W>(packed + c * TILE_KEYS + j * W, factored ? exp<T, W>(x + x) : x);
    }
  }
}

// The logits of I queries with four keys.
template <class T, Way X, int I>
INLINE void score_tile(const Additive<T>& a, const T* query, const T* keys, const T* vector,
                       Vec<T, 4>* out) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  V sum[I][4] = {};
  for (int64_t c = 0; c < a.padded; c += W) {
    const V v = load<T, W>(vector + c);
    V key[4];
    for (int j = 0; j < 4; j++) key[j] = load<T, W>(keys + c * TILE_KEYS + j * W);
    for (int i = 0; i < I; i++) {
      const V q = load<T, W>(query + i * a.padded + c);
      for (int j = 0; j < 4; j++) sum[i][j] += v * hidden<T, W, X>(q, key[j], a.slope);
    }
  }
  for (int i = 0; i < I; i++) out[i] = sums<T, W>(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
}

template <class T, Way X, int I>
INLINE void score_queries(const Additive<T>& a, const Span& span, int64_t query, int64_t key, int n,
                          const T* keys) {
  constexpr int W = WIDEST<T>;
  const T* vector = a.made_vector + 2 * span.b * a.padded;
  const T* rows = a.made_query + (span.b * a.queries + query) * a.padded;
  T* logits = a.logits + (span.b * a.queries + query) * a.keys + key;
  for (int j = 0; j < n; j += 4) {
    Vec<T, 4> out[I];
    score_tile<T, X, I>(a, rows, keys + j * W, vector, out);
    for (int i = 0; i < I; i++) {
      store_some<T, 4>(logits + i * a.keys + j, n - j, out[i] + a.shift[span.b]);
    }
  }
}

template <class T, Way X>
void score_span(const Additive<T>& a, const Span& span, T* packed) {
  constexpr int I = X == FACTORED ? TILE_QUERIES<T> : 2;  // tanh itself takes registers
  for (int64_t key = span.key; key < span.key_end; key += TILE_KEYS) {
    const int n = span.key_end - key < TILE_KEYS ? int(span.key_end - key) : TILE_KEYS;
    pack_keys(a, span.b, key, n, packed);
    int64_t i = span.query;
    for (; i + I <= span.query_end; i += I) score_queries<T, X, I>(a, span, i, key, n, packed);
    for (; i < span.query_end; i++) score_queries<T, X, 1>(a, span, i, key, n, packed);
  }
}

// A single query, a step of decoding, meets its keys where they lie: J of them from `key` on.
template <class T, Way X, int J>
INLINE void score_step(const Additive<T>& a, int64_t b, int64_t key, T* logits) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  const T *query = a.made_query + b * a.padded, *vector = a.made_vector + 2 * b * a.padded;
  V sum[4] = {};
  for (int64_t c = 0; c < a.width; c += W) {
    const V q = load<T, W>(query + c), v = load<T, W>(vector + c);
    for (int j = 0; j < J; j++) {
      const V k = load_some<T, W>(a.key.at(b, key + j) + c, a.width - c);
      sum[j] += v * hidden<T, W, X>(q, k, a.slope);
    }
  }
  store_some<T, 4>(logits, J, sums<T, W>(sum[0], sum[1], sum[2], sum[3]));
}
template <class T, Way X>
void score_steps(const Additive<T>& a, const Span& span) {
  T* logits = a.logits + span.b * a.keys;
  int64_t j = span.key;
  for (; j + 4 <= span.key_end; j += 4) score_step<T, X, 4>(a, span.b, j, logits + j);
  for (; j < span.key_end; j++) score_step<T, X, 1>(a, span.b, j, logits + j);
}

template <class T>
void additive_forward(const Additive<T>& a, const Span& span, T* memory) {
  if (a.queries == 1) {
    return a.kind == TANH ? score_steps<T, CURVED>(a, span) : score_steps<T, BENT>(a, span);
  }
  if (a.kind == LEAKY_RELU) return score_span<T, BENT>(a, span, memory);
  if (a.factored[span.b]) return score_span<T, FACTORED>(a, span, memory);
  score_span<T, CURVED>(a, span, memory);
}

// What I queries and n keys have of each other: Σ g h of the vector, Σ g h' of queries and keys.
template <class T, Way X, int I>
INLINE void meet(const Additive<T>& a, const Span& span, int64_t query, int64_t key, int n,
                 bool first, const T* keys, T* of_keys, T* of_queries, T* of_vector) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  const T* rows = a.made_query + (span.b * a.queries + query) * a.padded;
  const T* grad = a.grad + (span.b * a.queries + query) * a.keys + key;
  for (int64_t c = 0; c < a.padded; c += W) {
    V q[I], of_query[I] = {}, values[I] = {};
    for (int i = 0; i < I; i++) q[i] = load<T, W>(rows + i * a.padded + c);
    const T* own = keys + c * TILE_KEYS;
    T* of_own = of_keys + c * TILE_KEYS;
    for (int j = 0; j < n; j++) {
      const V k = load<T, W>(own + j * W);
      V of_key = load<T, W>(of_own + j * W);
      for (int i = 0; i < I; i++) {
        const T g = grad[i * a.keys + j];
        const V h = hidden<T, W, X>(q[i], k, a.slope);
        const V slope = slope_of<T, W, X>(q[i], k, h, a.slope);
        of_query[i] += g * slope;
        of_key += g * slope;
        values[i] += g * h;
      }
      store<T, W>(of_own + j * W, of_key);
    }
    V value = values[0];
    for (int i = 1; i < I; i++) value += values[i];
    store<T, W>(of_vector + c, load<T, W>(of_vector + c) + value);
    for (int i = 0; i < I; i++) {
      T* to = of_queries + i * a.padded + c;
      store<T, W>(to, first ? of_query[i] : load<T, W>(to) + of_query[i]);
    }
  }
}

template <class T, Way X>
void differentiate_span(const Additive<T>& a, const Span& span, int64_t key_span,
                        int64_t query_span, T* packed) {
  constexpr int W = WIDEST<T>, I = TILE_QUERIES<T>;
  const T *vector = a.made_vector + 2 * span.b * a.padded, *slopes = vector + a.padded;
  T* of_keys = packed + TILE_KEYS * a.padded;
  T* of_query = a.of_query + (key_span * a.batch + span.b) * a.queries * a.padded;
  T* of_vector = a.of_vector +
                 ((span.b * a.key_spans + key_span) * a.query_spans + query_span) * a.padded;
  for (int64_t c = 0; c < a.padded; c++) of_vector[c] = 0;
  for (int64_t key = span.key; key < span.key_end; key += TILE_KEYS) {
    const int n = span.key_end - key < TILE_KEYS ? int(span.key_end - key) : TILE_KEYS;
    pack_keys(a, span.b, key, n, packed);
    for (int64_t c = 0; c < TILE_KEYS * a.padded; c++) of_keys[c] = 0;
    const bool first = key == span.key;
    int64_t i = span.query;
    for (; i + I <= span.query_end; i += I) {
      meet<T, X, I>(a, span, i, key, n, first, packed, of_keys, of_query + i * a.padded, of_vector);
    }
    for (; i < span.query_end; i++) {
      meet<T, X, 1>(a, span, i, key, n, first, packed, of_keys, of_query + i * a.padded, of_vector);
    }
    T* to = a.of_key + ((query_span * a.batch + span.b) * a.keys + key) * a.width;
    for (int j = 0; j < n; j++) {
      for (int64_t c = 0; c < a.width; c += W) {
        const Vec<T, W> x = load<T, W>(of_keys + c * TILE_KEYS + j * W);
        store_some<T, W>(to + j * a.width + c, a.width - c, x * load<T, W>(slopes + c));
      }
    }
  }
  for (int64_t i = span.query; i < span.query_end; i++) {
    for (int64_t c = 0; c < a.padded; c += W) {
      T* at = of_query + i * a.padded + c;
      store<T, W>(at, load<T, W>(at) * load<T, W>(slopes + c));
    }
  }
  double share = 0;  // of the constant in 1 - 2h
  for (int64_t i = span.query; X == FACTORED && i < span.query_end; i++) {
    const T* grad = a.grad + (span.b * a.queries + i) * a.keys;
    for (int64_t j = span.key; j < span.key_end; j++) share += grad[j];
  }
  for (int64_t c = 0; X == FACTORED && c < a.padded; c++) {
    of_vector[c] = T(share - 2 * double(of_vector[c]));
  }
}

template <class T, Way X, int J>
INLINE void meet_step(const Additive<T>& a, int64_t b, int64_t key, T* of_query, T* of_vector) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  const T *query = a.made_query + b * a.padded, *vector = a.made_vector + 2 * b * a.padded;
  const T* grad = a.grad + b * a.keys + key;
  T* of_key = a.of_key + (b * a.keys + key) * a.width;
  for (int64_t c = 0; c < a.width; c += W) {
    const V q = load<T, W>(query + c), v = load<T, W>(vector + c);
    V slopes = {}, values = {};
    for (int j = 0; j < J; j++) {
      const V k = load_some<T, W>(a.key.at(b, key + j) + c, a.width - c);
      const V h = hidden<T, W, X>(q, k, a.slope);
      const V slope = grad[j] * slope_of<T, W, X>(q, k, h, a.slope);
      slopes += slope;
      values += grad[j] * h;
      store_some<T, W>(of_key + j * a.width + c, a.width - c, v * slope);
    }
    store<T, W>(of_query + c, load<T, W>(of_query + c) + v * slopes);
    store<T, W>(of_vector + c, load<T, W>(of_vector + c) + values);
  }
}
template <class T, Way X>
void meet_steps(const Additive<T>& a, const Span& span, int64_t key_span) {
  T* of_query = a.of_query + (key_span * a.batch + span.b) * a.padded;
  T* of_vector = a.of_vector + (span.b * a.key_spans + key_span) * a.padded;
  for (int64_t c = 0; c < a.padded; c++) of_query[c] = of_vector[c] = 0;
  int64_t j = span.key;
  for (; j + 4 <= span.key_end; j += 4) meet_step<T, X, 4>(a, span.b, j, of_query, of_vector);
  for (; j < span.key_end; j++) meet_step<T, X, 1>(a, span.b, j, of_query, of_vector);
}

template <class T>
void additive_backward(const Additive<T>& a, const Span& span, int64_t key_span,
                       int64_t query_span, T* memory) {
  if (a.queries == 1) {
    return a.kind == TANH ? meet_steps<T, CURVED>(a, span, key_span)
                          : meet_steps<T, BENT>(a, span, key_span);
  }
  const auto run = a.kind == LEAKY_RELU      ? differentiate_span<T, BENT>
                   : a.factored[span.b] ? differentiate_span<T, FACTORED>
                                        : differentiate_span<T, CURVED>;
  run(a, span, key_span, query_span, memory);
}

}  // namespace attn::VARIANT
