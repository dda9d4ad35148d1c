// Logits of a block of pairs that share one end, and the gradients of additive ones.
// `rows` are the vectors of the other ends, kept as numbers S, `fixed` that of the shared end; what is said of pair e
// and head h lies at [e * p.lanes + h]. `next` are rows that will be needed soon: they are asked
// for while there is something to compute (null: there are none). Both go on for 4 more than there are pairs.
#pragma once
#include <type_traits>

#include "problem.h"
#include "simd.h"

namespace attn::VARIANT {

template <class T, int W, Kind K>
INLINE Vec<T, W> activate(Vec<T, W> x, T slope) {
  if constexpr (K == TANH) return tanh<T, W>(x);
  return x > T(0) ? x : x * slope;
}
// The slope of the activation, given its argument and its value.
template <class T, int W, Kind K>
INLINE Vec<T, W> derivative(Vec<T, W> x, Vec<T, W> active, T slope) {
  if constexpr (K == TANH) return T(1) - active * active;
  return x > T(0) ? all<T, W>(T(1)) : all<T, W>(slope);
}

// A row that may be kept in 16 bits, and its numbers.
using Row = const void*;
template <class S>
INLINE const S* as(Row row) {
  return static_cast<const S*>(row);
}

template <int N>
struct Int {
  static constexpr int value = N;
};

// Ask for N numbers.
template <class S, int N>
INLINE void prefetch(const S* row) {
  for (int c = 0; c < N; c += 64 / int(sizeof(S))) __builtin_prefetch(row + c, 0, 2);
}

// What a vector of channels adds to a logit.
template <class T, int W, Kind K>
INLINE Vec<T, W> term(const Problem<T>& p, Vec<T, W> x, Vec<T, W> fixed, Vec<T, W> vector) {
  if constexpr (K == DOT) return x * fixed;
  return vector * activate<T, W, K>(x + fixed, p.slope);
}

// D is the width where it is known, else 0.
template <class T, class S, int W, int D, Kind K>
void score(const Problem<T>& p, const Row* rows, const Row* next, int n, const T* fixed, int width,
           T* out) {
  using V = Vec<T, W>;
  if constexpr (D > 0) width = D;
  int h = 0;
  for (; h + 4 <= p.heads; h += 4) {  // four heads of one pair together
    const int at = h * width;
    if constexpr (D == W) {
      V f[4], v[4] = {};
      for (int u = 0; u < 4; u++) {
        f[u] = load<T, W>(fixed + at + u * W);
        if constexpr (K != DOT) v[u] = load<T, W>(p.vector + at + u * W);
      }
      for (int e = 0; e < n; e++) {
        if (next) prefetch<S, 4 * W>(as<S>(next[e]) + at);
        V x[4];
        for (int u = 0; u < 4; u++) {
          x[u] = term<T, W, K>(p, load<T, W>(as<S>(rows[e]) + at + u * W), f[u], v[u]);
        }
        store<T, 4>(out + e * p.lanes + h, sums<T, W>(x[0], x[1], x[2], x[3]));
      }
    } else {
      for (int e = 0; e < n; e++) {
        V part[4] = {};
        for (int c = 0; c < width; c += W) {
          for (int u = 0; u < 4; u++) {
            const int i = at + u * width + c;
            if (next) prefetch<S, W>(as<S>(next[e]) + i);
            const V v = K == DOT ? V{} : load<T, W>(p.vector + i);
            part[u] += term<T, W, K>(p, load<T, W>(as<S>(rows[e]) + i), load<T, W>(fixed + i), v);
          }
        }
        store<T, 4>(out + e * p.lanes + h, sums<T, W>(part[0], part[1], part[2], part[3]));
      }
    }
  }
  for (; h < p.heads; h++) {  // one head of four pairs
    for (int e = 0; e < n; e += 4) {
      V part[4] = {};
      for (int c = h * width; c < (h + 1) * width; c += W) {
        const V f = load<T, W>(fixed + c), v = K == DOT ? V{} : load<T, W>(p.vector + c);
        for (int u = 0; u < 4; u++) {
          if (next) prefetch<S, W>(as<S>(next[e + u]) + c);
          part[u] += term<T, W, K>(p, load<T, W>(as<S>(rows[e + u]) + c), f, v);
        }
      }
      const Vec<T, 4> sum = sums<T, W>(part[0], part[1], part[2], part[3]);
      for (int u = 0; u < 4 && e + u < n; u++) out[(e + u) * p.lanes + h] = sum[u];
    }
  }
}

// The vectors [begin, end) of a row, EACH to a head: acc = scale * acc + Σ_e weight_e row_e; without
// a scale, acc is new.
template <class T, class S, int W, int COUNT, int EACH>
INLINE void gather_tile(const Row* rows, const Row* next, int n, const T* weights, int lanes,
                        const T* scale, int at, T* acc) {
  using V = Vec<T, W>;
  V sum[COUNT] = {};
  for (int e = 0; e < n; e++) {
    if (next) prefetch<S, COUNT * W>(as<S>(next[e]) + at);
    for (int t = 0; t < COUNT; t++) {
      sum[t] += weights[e * lanes + t / EACH] * load<T, W>(as<S>(rows[e]) + at + t * W);
    }
  }
  for (int t = 0; t < COUNT; t++) {
    if (scale) sum[t] += scale[t / EACH] * load<T, W>(acc + at + t * W);
    store<T, W>(acc + at + t * W, sum[t]);
  }
}

template <class T, class S, int W, int D>
void gather(const Problem<T>& p, const Row* rows, const Row* next, int n, const T* weights,
            const T* scale, int width, T* acc) {
  constexpr int TILE = REGISTER == 64 ? 8 : 4;  // vectors that are summed at once
  const int lanes = p.lanes;
  const auto of = [scale](int h) { return scale ? scale + h : nullptr; };
  if constexpr (D > 0 && D <= 2 * W) {
    constexpr int EACH = D / W, TOGETHER = TILE / EACH;  // heads in a tile
    int h = 0;
    for (; h + TOGETHER <= p.heads; h += TOGETHER) {
      gather_tile<T, S, W, TILE, EACH>(rows, next, n, weights + h, lanes, of(h), h * D, acc);
    }
    for (; h < p.heads; h++) {
      gather_tile<T, S, W, EACH, EACH>(rows, next, n, weights + h, lanes, of(h), h * D, acc);
    }
  } else {
    if constexpr (D > 0) width = D;
    for (int h = 0; h < p.heads; h++) {
      int c = h * width;
      const int end = c + width;
      for (; c + TILE * W <= end; c += TILE * W) {
        gather_tile<T, S, W, TILE, TILE>(rows, next, n, weights + h, lanes, of(h), c, acc);
      }
      if constexpr (TILE > 4) {
        for (; c + 4 * W <= end; c += 4 * W) {
          gather_tile<T, S, W, 4, 4>(rows, next, n, weights + h, lanes, of(h), c, acc);
        }
      }
      for (; c + 2 * W <= end; c += 2 * W) {
        gather_tile<T, S, W, 2, 2>(rows, next, n, weights + h, lanes, of(h), c, acc);
      }
      if (c < end) gather_tile<T, S, W, 1, 1>(rows, next, n, weights + h, lanes, of(h), c, acc);
    }
  }
}

// Bits of `signs`, as many as a vector has numbers.
template <int W>
using Bits = std::conditional_t<(W > 8), uint16_t, uint8_t>;

enum Also { NOTHING, VECTOR, SIGNS };  // beside acc: grad_vector; both that and signs

// COUNT vectors of a row, EACH to a head, from `at` on: acc += Σ_e grad_e v φ'(x_e), and of the vector
// v, grad_vector += Σ_e grad_e φ(x_e); signs, of each pair, are those of x_e.
template <class T, class S, int W, int COUNT, int EACH, Kind K, Also A>
INLINE void gradient_tile(const Problem<T>& p, const Row* rows, const Row* next, int n,
                          const T* fixed, const T* grad, int at, T* acc, T* grad_vector,
                          uint8_t* signs_of) {
  using V = Vec<T, W>;
  V shared[COUNT], slopes[COUNT] = {}, values[COUNT] = {};
  for (int t = 0; t < COUNT; t++) shared[t] = load<T, W>(fixed + at + t * W);
  for (int e = 0; e < n; e++) {
    if (next) prefetch<S, COUNT * W>(as<S>(next[e]) + at);
    for (int t = 0; t < COUNT; t++) {
      const V x = load<T, W>(as<S>(rows[e]) + at + t * W) + shared[t];
      const V g = all<T, W>(grad[e * p.lanes + t / EACH]);
      if constexpr (K == TANH) {
        const V active = activate<T, W, K>(x, p.slope);
        slopes[t] += g * derivative<T, W, K>(x, active, p.slope);
        if constexpr (A != NOTHING) values[t] += g * active;
      } else {
        const V bent = x > T(0) ? g : g * p.slope;
        slopes[t] += bent;
        if constexpr (A != NOTHING) values[t] += bent * x;
        if constexpr (A == SIGNS) {
          reinterpret_cast<Bits<W>*>(signs_of + e * p.sign_bytes)[at / W + t] =
              Bits<W>(signs<T, W>(x));
        }
      }
    }
  }
  for (int t = 0; t < COUNT; t++) {
    const int c = at + t * W;
    store<T, W>(acc + c, load<T, W>(acc + c) + slopes[t] * load<T, W>(p.vector + c));
    if constexpr (A != NOTHING) {
      store<T, W>(grad_vector + c, load<T, W>(grad_vector + c) + values[t]);
    }
  }
}

// Calls tile(vectors, vectors of a head, head, where) for tiles of at most TILE vectors.
template <int W, int D, int TILE, class F>
INLINE void tile_heads(int heads, int width, F tile) {
  if constexpr (D > 0 && D <= TILE * W) {
    constexpr int S = D / W, TOGETHER = TILE / S;  // heads in a tile
    int h = 0;
    for (; h + TOGETHER <= heads; h += TOGETHER) tile(Int<TILE>(), Int<S>(), h, h * D);
    for (; h < heads; h++) tile(Int<S>(), Int<S>(), h, h * D);
  } else {
    if constexpr (D > 0) width = D;
    for (int h = 0; h < heads; h++) {
      int c = h * width;
      const int end = c + width;
      for (; c + TILE * W <= end; c += TILE * W) tile(Int<TILE>(), Int<TILE>(), h, c);
      if constexpr (TILE > 4) {
        for (; c + 4 * W <= end; c += 4 * W) tile(Int<4>(), Int<4>(), h, c);
      }
      if constexpr (TILE > 2) {
        for (; c + 2 * W <= end; c += 2 * W) tile(Int<2>(), Int<2>(), h, c);
      }
      for (; c < end; c += W) tile(Int<1>(), Int<1>(), h, c);
    }
  }
}

template <class T, class S, int W, int D, Kind K, Also A>
INLINE void score_gradient_also(const Problem<T>& p, const Row* rows, const Row* next, int n,
                                const T* fixed, const T* grad, T* acc, T* grad_vector,
                                uint8_t* signs) {
  constexpr int TILE = K == TANH ? 2 : REGISTER == 64 ? 8 : 4;
  tile_heads<W, D, TILE>(p.heads, p.width, [&](auto count, auto per_head, int h, int at) {
    gradient_tile<T, S, W, decltype(count)::value, decltype(per_head)::value, K, A>(
        p, rows, next, n, fixed, grad + h, at, acc, grad_vector, signs);
  });
}
template <class T, class S, int W, int D, Kind K>
void score_gradient(const Problem<T>& p, const Row* rows, const Row* next, int n, const T* fixed,
                    const T* grad, T* acc, T* grad_vector, uint8_t* signs) {
  if (signs) {
    score_gradient_also<T, S, W, D, K, SIGNS>(p, rows, next, n, fixed, grad, acc, grad_vector, signs);
  } else if (grad_vector) {
    score_gradient_also<T, S, W, D, K, VECTOR>(p, rows, next, n, fixed, grad, acc, grad_vector, signs);
  } else {
    score_gradient_also<T, S, W, D, K, NOTHING>(p, rows, next, n, fixed, grad, acc, nullptr, signs);
  }
}

// acc += Σ_e grad_e φ'(x_e) of leaky_relu, where the signs of x_e are known.
template <class T, int W, int D>
void sum_signs(const Problem<T>& p, const uint8_t* const* signs, int n, const T* grad, T* acc) {
  using V = Vec<T, W>;
  constexpr int TILE = REGISTER == 64 ? 8 : 4;
  tile_heads<W, D, TILE>(p.heads, p.width, [&](auto count, auto per_head, int h, int at) {
    constexpr int COUNT = decltype(count)::value, S = decltype(per_head)::value;
    V sum[COUNT];
    for (int t = 0; t < COUNT; t++) sum[t] = load<T, W>(acc + at + t * W);
    for (int e = 0; e < n; e++) {
      const auto* bits = reinterpret_cast<const Bits<W>*>(signs[e]) + at / W;
      for (int t = 0; t < COUNT; t++) {
        const T g = grad[e * p.lanes + h + t / S];
        sum[t] += where_set<T, W>(bits[t], all<T, W>(g), all<T, W>(g * p.slope));
      }
    }
    for (int t = 0; t < COUNT; t++) store<T, W>(acc + at + t * W, sum[t]);
  });
}

// Of one pair: out = grad v φ'(x), or grad · fixed.
template <class T, int W, Kind K>
void pair_gradient(const Problem<T>& p, const T* row, const T* fixed, const T* grad, T* out) {
  using V = Vec<T, W>;
  for (int h = 0; h < p.heads; h++) {
    for (int c = h * p.width; c < (h + 1) * p.width; c += W) {
      const V f = load<T, W>(fixed + c);
      if constexpr (K == DOT) {
        store<T, W>(out + c, grad[h] * f);
      } else {
        const V x = load<T, W>(row + c) + f;
        const V slope = derivative<T, W, K>(x, activate<T, W, K>(x, p.slope), p.slope);
        store<T, W>(out + c, grad[h] * slope * load<T, W>(p.vector + c));
      }
    }
  }
}

// The numbers of all heads of one pair.
template <class T>
INLINE void copy_heads(const T* from, int heads, T* to) {
  int h = 0;
  for (; h + 8 <= heads; h += 8) store<T, 8>(to + h, load<T, 8>(from + h));
  for (; h + 4 <= heads; h += 4) store<T, 4>(to + h, load<T, 4>(from + h));
  for (; h < heads; h++) to[h] = from[h];
}

// Numbers of all heads, over and over until whole vectors are full, are `repeated`: so they meet
// the numbers of several pairs at once. Their count:
template <class T>
INLINE int period(const Problem<T>& p) {
  return p.lanes > WIDEST<T> ? p.lanes : WIDEST<T>;
}
template <class T>
INLINE void repeat(const Problem<T>& p, const T* from, T* to) {
  for (int i = 0; i < period(p); i += p.lanes) copy_heads(from, p.heads, to + i);
}

// For rows of one number per head, as GAT has them: x = row + fixed and out = vector · φ(x), where
// `fixed` and `vector` are repeated.
template <class T, Kind K>
void score_numbers(const Problem<T>& p, const Row* rows, int n, const T* fixed,
                   const T* vector, T* x, T* out) {
  constexpr int W = WIDEST<T>;
  for (int e = 0; e < n; e++) copy_heads(as<T>(rows[e]), p.heads, x + e * p.lanes);
  const int step = period(p), end = n * p.lanes;
  for (int at = 0; at < step; at += W) {
    const Vec<T, W> f = load<T, W>(fixed + at), v = load<T, W>(vector + at);
    for (int i = at; i < end; i += step) {
      const Vec<T, W> sum = load<T, W>(x + i) + f;
      store<T, W>(x + i, sum);
      store<T, W>(out + i, v * activate<T, W, K>(sum, p.slope));
    }
  }
}

// grad = grad v φ'(x), and grad_vector += Σ_e grad_e φ(x_e).
template <class T, Kind K>
void number_gradient(const Problem<T>& p, int n, const T* x, const T* vector, T* grad,
                     T* grad_vector) {
  constexpr int W = WIDEST<T>;
  using V = Vec<T, W>;
  if (grad_vector) {
    for (int e = 0; e < n; e++) {
      for (int h = 0; h < p.heads; h++) {
        const int i = e * p.lanes + h;
        grad_vector[h] += grad[i] * activate<T, 4, K>(all<T, 4>(x[i]), p.slope)[0];
      }
    }
  }
  const int step = period(p), end = n * p.lanes;
  for (int at = 0; at < step; at += W) {
    const V v = load<T, W>(vector + at);
    for (int i = at; i < end; i += step) {
      const V here = load<T, W>(x + i), active = activate<T, W, K>(here, p.slope);
      const V slope = derivative<T, W, K>(here, active, p.slope);
      store<T, W>(grad + i, load<T, W>(grad + i) * v * slope);
    }
  }
}

}  // namespace attn::VARIANT
