// Logits of a block of pairs that share one end, and the gradients of additive ones.
// `rows` are the vectors of the other ends, `fixed` that of the shared end; what is said of pair e
// and head h lies at [h * BLOCK + e].
#pragma once
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

// D is the width where it is known, else 0.
template <class T, int W, int D, Kind K>
void score(const Problem<T>& p, const T* const* rows, int n, const T* fixed, int width, T* out) {
  using V = Vec<T, W>;
  if constexpr (D > 0) width = D;
  for (int h = 0; h < p.heads; h++) {
    const int at = h * width;
    for (int e = 0; e < n; e += 4) {  // rows are there up to the next multiple of 4
      V part[4] = {};
      for (int c = at; c < at + width; c += W) {
        const V f = load<T, W>(fixed + c);
        for (int u = 0; u < 4; u++) {
          const V x = load<T, W>(rows[e + u] + c);
          if constexpr (K == DOT) {
            part[u] += x * f;
          } else {
            part[u] += load<T, W>(p.vector + c) * activate<T, W, K>(x + f, p.slope);
          }
        }
      }
      store<T, 4>(out + h * BLOCK + e, sums<T>(fold<T, W>(part[0]), fold<T, W>(part[1]),
                                               fold<T, W>(part[2]), fold<T, W>(part[3])));
    }
  }
}

// acc = scale * acc + Σ_e weight_e row_e; without a scale, acc is new.
template <class T, int W, int D>
void gather(const T* const* rows, int n, const T* weights, const T* scale, int heads, int width,
            T* acc) {
  using V = Vec<T, W>;
  constexpr int TILE = 4;  // vectors that are summed at once
  if constexpr (D > 0 && D <= 2 * W) {
    constexpr int STEP = D / W, TOGETHER = TILE / STEP;  // heads in a tile
    int h = 0;
    for (; h + TOGETHER <= heads; h += TOGETHER) {
      V sum[TILE] = {};
      for (int e = 0; e < n; e++) {
        const T* row = rows[e] + h * D;
        for (int t = 0; t < TILE; t++) {
          sum[t] += weights[(h + t / STEP) * BLOCK + e] * load<T, W>(row + t * W);
        }
      }
      for (int t = 0; t < TILE; t++) {
        T* at = acc + h * D + t * W;
        if (scale) sum[t] += scale[h + t / STEP] * load<T, W>(at);
        store<T, W>(at, sum[t]);
      }
    }
    if (h == heads) return;
    for (; h < heads; h++) {
      V sum[STEP] = {};
      for (int e = 0; e < n; e++) {
        for (int t = 0; t < STEP; t++) {
          sum[t] += weights[h * BLOCK + e] * load<T, W>(rows[e] + h * D + t * W);
        }
      }
      for (int t = 0; t < STEP; t++) {
        T* at = acc + h * D + t * W;
        if (scale) sum[t] += scale[h] * load<T, W>(at);
        store<T, W>(at, sum[t]);
      }
    }
  } else {
    if constexpr (D > 0) width = D;
    for (int h = 0; h < heads; h++) {
      const T* weight = weights + h * BLOCK;
      int c = h * width;
      const int end = c + width;
      for (; c + TILE * W <= end; c += TILE * W) {
        V sum[TILE] = {};
        for (int e = 0; e < n; e++) {
          for (int t = 0; t < TILE; t++) sum[t] += weight[e] * load<T, W>(rows[e] + c + t * W);
        }
        for (int t = 0; t < TILE; t++) {
          if (scale) sum[t] += scale[h] * load<T, W>(acc + c + t * W);
          store<T, W>(acc + c + t * W, sum[t]);
        }
      }
      for (; c < end; c += W) {
        V sum = {};
        for (int e = 0; e < n; e++) sum += weight[e] * load<T, W>(rows[e] + c);
        if (scale) sum += scale[h] * load<T, W>(acc + c);
        store<T, W>(acc + c, sum);
      }
    }
  }
}

// Of an additive score: acc += Σ_e grad_e v φ'(x_e), and grad_vector += Σ_e grad_e φ(x_e).
template <class T, int W, int D, Kind K>
void score_gradient(const Problem<T>& p, const T* const* rows, int n, const T* fixed, const T* grad,
                    T* acc, T* grad_vector) {
  using V = Vec<T, W>;
  const int width = D > 0 ? D : p.width;
  for (int h = 0; h < p.heads; h++) {
    for (int c = h * width; c < (h + 1) * width; c += W) {
      const V f = load<T, W>(fixed + c);
      V slopes = {}, values = {};
      for (int e = 0; e < n; e++) {
        const V x = load<T, W>(rows[e] + c) + f;
        const V active = activate<T, W, K>(x, p.slope);
        slopes += grad[h * BLOCK + e] * derivative<T, W, K>(x, active, p.slope);
        values += grad[h * BLOCK + e] * active;
      }
      store<T, W>(acc + c, load<T, W>(acc + c) + slopes * load<T, W>(p.vector + c));
      if (grad_vector) store<T, W>(grad_vector + c, load<T, W>(grad_vector + c) + values);
    }
  }
}

// Of one pair: out = grad v φ'(x), or grad · fixed.
template <class T, int W, Kind K>
void pair_gradient(const Problem<T>& p, const T* row, const T* fixed, const T* grad, T* out) {
  using V = Vec<T, W>;
  for (int h = 0; h < p.heads; h++) {
    for (int c = h * p.width; c < (h + 1) * p.width; c += W) {
      const V f = load<T, W>(fixed + c);
      if constexpr (K == DOT) {
        store<T, W>(out + c, grad[h * BLOCK] * f);
      } else {
        const V x = load<T, W>(row + c) + f;
        const V slope = derivative<T, W, K>(x, activate<T, W, K>(x, p.slope), p.slope);
        store<T, W>(out + c, grad[h * BLOCK] * slope * load<T, W>(p.vector + c));
      }
    }
  }
}

// The same for rows of one number per head, as GAT has them: here the pairs lie side by side.

// From rows of numbers, one per head, to [h * BLOCK + e]. Rows are there up to a multiple of 4.
template <class T>
INLINE void spread(const T* const* rows, int n, int heads, T* out) {
  int h = 0;
  for (; h + 4 <= heads; h += 4) {
    for (int e = 0; e < n; e += 4) {
      Vec<T, 4> x[4];
      for (int u = 0; u < 4; u++) x[u] = load<T, 4>(rows[e + u] + h);
      transpose<T>(x[0], x[1], x[2], x[3]);
      for (int u = 0; u < 4; u++) store<T, 4>(out + (h + u) * BLOCK + e, x[u]);
    }
  }
  for (; h < heads; h++) {
    for (int e = 0; e < n; e++) out[h * BLOCK + e] = rows[e][h];
  }
}

// And back.
template <class T>
INLINE void collect(const T* in, int n, int heads, T* const* rows) {
  int h = 0;
  for (; h + 4 <= heads; h += 4) {
    for (int e = 0; e < n; e += 4) {
      Vec<T, 4> x[4];
      for (int u = 0; u < 4; u++) x[u] = load<T, 4>(in + (h + u) * BLOCK + e);
      transpose<T>(x[0], x[1], x[2], x[3]);
      for (int u = 0; u < 4 && e + u < n; u++) store<T, 4>(rows[e + u] + h, x[u]);
    }
  }
  for (; h < heads; h++) {
    for (int e = 0; e < n; e++) rows[e][h] = in[h * BLOCK + e];
  }
}

template <class T, Kind K>
void score_numbers(const Problem<T>& p, const T* const* rows, int n, const T* fixed, int, T* out) {
  constexpr int W = WIDEST<T>;
  spread(rows, n, p.heads, out);
  for (int h = 0; h < p.heads; h++) {
    T* at = out + h * BLOCK;
    for (int e = 0; e < n; e += W) {  // what lies behind the last pair is of no account
      const Vec<T, W> x = load<T, W>(at + e) + fixed[h];
      store<T, W>(at + e, p.vector[h] * activate<T, W, K>(x, p.slope));
    }
  }
}

template <class T, Kind K>
void number_gradient(const Problem<T>& p, const T* const* rows, int n, const T* fixed,
                     const T* grad, T* acc, T* grad_vector) {
  constexpr int W = WIDEST<T>, TOGETHER = 4;
  using V = Vec<T, W>;
  alignas(64) T hidden[TOGETHER * BLOCK];
  for (int h = 0; h < p.heads; h += TOGETHER) {
    const int heads = p.heads - h < TOGETHER ? p.heads - h : TOGETHER;
    const T* moved[BLOCK];
    for (int e = 0; e < (n + 3) / 4 * 4; e++) moved[e] = rows[e] + h;
    spread(moved, n, heads, hidden);
    for (int u = 0; u < heads; u++) {
      V slopes = {}, values = {};
      for (int e = 0; e < n; e += W) {  // grad is zero behind the last pair
        const V x = e + W <= n ? load<T, W>(hidden + u * BLOCK + e) + fixed[h + u]
                               : first<T, W>(hidden + u * BLOCK + e, n - e) + fixed[h + u];
        const V g = load<T, W>(grad + (h + u) * BLOCK + e);
        const V active = activate<T, W, K>(x, p.slope);
        slopes += g * derivative<T, W, K>(x, active, p.slope);
        values += g * active;
      }
      acc[h + u] += p.vector[h + u] * sum<T, W>(slopes);
      if (grad_vector) grad_vector[h + u] += sum<T, W>(values);
    }
  }
}

template <class T, Kind K>
void number_pair_gradient(const Problem<T>& p, const T* row, const T* fixed, const T* grad,
                          T* out) {
  for (int h = 0; h < p.heads; h++) {
    const T number = row[h] + fixed[h];
    const Vec<T, 4> x = all<T, 4>(number), y = activate<T, 4, K>(x, p.slope);
    out[h] = grad[h * BLOCK] * p.vector[h] * derivative<T, 4, K>(x, y, p.slope)[0];
  }
}

}  // namespace attn::VARIANT
