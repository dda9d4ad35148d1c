// What is done with a block of pairs at a time. Its scores and weights are [H, kBlock]: the pairs
// of one head lie side by side, so that one vector holds several of them.
#pragma once

#include "problem.h"
#include "simd.h"

namespace attn::ATTN_ISA {

// The other ends of a block of pairs: pointers to a row of each. Those behind the last pair repeat
// it, up to a whole vector.
template <class T>
using Rows = const T* const*;

inline int padded(int n, int lanes) { return (n + lanes - 1) / lanes * lanes; }

// Calls what(width) with a width the compiler knows, or 0 for one that it does not.
template <class What>
inline void with_width(int width, What&& what) {
  switch (width) {
    case 1: return what(std::integral_constant<int, 1>{});
    case 4: return what(std::integral_constant<int, 4>{});
    case 8: return what(std::integral_constant<int, 8>{});
    case 16: return what(std::integral_constant<int, 16>{});
    case 32: return what(std::integral_constant<int, 32>{});
    case 64: return what(std::integral_constant<int, 64>{});
    default: return what(std::integral_constant<int, 0>{});
  }
}

template <class T, int D>
constexpr int lanes_of = D < kLanes<T> ? D : kLanes<T>;

// to[h, e] = from[e][h]
template <class T>
inline void transpose(T* to, Rows<T> from, int n, int heads) {
  for (int e = 0; e < n; ++e) {
    const T* row = from[e];
    for (int h = 0; h < heads; ++h) to[h * kBlock + e] = row[h];
  }
}

// scores[h, e] = factor · fixed[h] · (rows[e][h] + extra[e][h])
template <class T, int D>
void dots(T* scores, const T* fixed, Rows<T> rows, Rows<T> extra, int n, int heads, int width,
          T factor) {
  if constexpr (D >= 4) {
    constexpr int N = lanes_of<T, D>, R = D / N;
    using V = Vec<T, N>;
    for (int h = 0; h < heads; ++h) {
      V own[R];
      for (int r = 0; r < R; ++r) own[r] = load<T, N>(fixed + h * D + r * N) * factor;
      for (int start = 0; start < n; start += N) {
        V part[N];
#pragma GCC unroll 16
        for (int e = 0; e < N; ++e) {
          const T* row = rows[start + e] + h * D;
          V total = V{};
          for (int r = 0; r < R; ++r) {
            V x = load<T, N>(row + r * N);
            if (extra) x += load<T, N>(extra[start + e] + h * D + r * N);
            total += own[r] * x;
          }
          part[e] = total;
        }
        store<T, N>(scores + h * kBlock + start, sums<T, N>(part));
      }
    }
  } else {
    for (int e = 0; e < n; ++e)
      for (int h = 0; h < heads; ++h) {
        const T *own = fixed + h * width, *row = rows[e] + h * width;
        const T* more = extra ? extra[e] + h * width : nullptr;
        T total = 0;
        for (int d = 0; d < width; ++d) total += own[d] * (more ? row[d] + more[d] : row[d]);
        scores[h * kBlock + e] = factor * total;
      }
  }
}

// scores[h, e] += factor · rows[e][h] · extra[e][h]
template <class T>
void add_pair_dots(T* scores, Rows<T> rows, Rows<T> extra, int n, int heads, int width, T factor) {
  for (int e = 0; e < n; ++e)
    for (int h = 0; h < heads; ++h) {
      const T *row = rows[e] + h * width, *more = extra[e] + h * width;
      T total = 0;
      for (int d = 0; d < width; ++d) total += row[d] * more[d];
      scores[h * kBlock + e] += factor * total;
    }
}

template <class T, int N, Kind kind>
inline Vec<T, N> activate(Vec<T, N> x, T slope) {
  if constexpr (kind == Kind::tanh) return tanh<T, N>(x);
  return x > T(0) ? x : x * slope;
}

// The derivative at x.
template <class T, int N, Kind kind>
inline Vec<T, N> derivative(Vec<T, N> x, T slope) {
  using V = Vec<T, N>;
  if constexpr (kind == Kind::tanh) {
    const V y = tanh<T, N>(x);
    return T(1) - y * y;
  }
  return x > T(0) ? V{} + T(1) : V{} + slope;
}

// The D numbers from `d` on (N of them) of fixed[h] + rows[e][h] + extra[e][h].
template <class T, int N>
inline Vec<T, N> hidden(const T* fixed, const T* row, const T* extra, int at) {
  Vec<T, N> x = load<T, N>(row + at);
  if (fixed) x += load<T, N>(fixed + at);
  if (extra) x += load<T, N>(extra + at);
  return x;
}

// scores[h, e] = vector[h] · activate(fixed[h] + rows[e][h] + extra[e][h])
template <class T, int D, Kind kind>
void additive(T* scores, const T* fixed, Rows<T> rows, Rows<T> extra, const T* vector, int n,
              int heads, int width, T slope) {
  constexpr int N = D >= 4 ? lanes_of<T, D> : 1;
  if constexpr (D == 1) {
    constexpr int L = kLanes<T>;
    transpose(scores, rows, n, heads);
    if (extra)
      for (int e = 0; e < n; ++e)
        for (int h = 0; h < heads; ++h) scores[h * kBlock + e] += extra[e][h];
    for (int h = 0; h < heads; ++h) {
      const T own = fixed ? fixed[h] : T(0), factor = vector ? vector[h] : T(1);
      for (int e = 0; e < n; e += L) {
        T* at = scores + h * kBlock + e;
        store<T, L>(at, activate<T, L, kind>(load<T, L>(at) + own, slope) * factor);
      }
    }
  } else if constexpr (D >= 4) {
    using V = Vec<T, N>;
    for (int h = 0; h < heads; ++h)
      for (int start = 0; start < n; start += N) {
        V part[N];
#pragma GCC unroll 16
        for (int e = 0; e < N; ++e) {
          V total = V{};
          for (int at = h * D; at < (h + 1) * D; at += N) {
            const T* more = extra ? extra[start + e] : nullptr;
            const V x = activate<T, N, kind>(hidden<T, N>(fixed, rows[start + e], more, at), slope);
            total += vector ? x * load<T, N>(vector + at) : x;
          }
          part[e] = total;
        }
        store<T, N>(scores + h * kBlock + start, sums<T, N>(part));
      }
  } else {
    for (int e = 0; e < n; ++e)
      for (int h = 0; h < heads; ++h) {
        T total = 0;
        for (int at = h * width; at < (h + 1) * width; ++at) {
          const auto x = hidden<T, 1>(fixed, rows[e], extra ? extra[e] : nullptr, at);
          total += activate<T, 1, kind>(x, slope)[0] * (vector ? vector[at] : T(1));
        }
        scores[h * kBlock + e] = total;
      }
  }
}

// total[h] += Σ_e weights[h, e] · (rows[e][h] + extra[e][h])
template <class T, int D>
void accumulate(T* total, const T* weights, Rows<T> rows, Rows<T> extra, int n, int heads,
                int width) {
  if constexpr (D >= 4) {
    constexpr int N = lanes_of<T, D>, R = D / N;
    using V = Vec<T, N>;
    // Several heads at once: their sums do not wait for each other
    const auto group = [&](int first, auto size) {
      constexpr int G = size;
      V sum[G][R];
      for (int g = 0; g < G; ++g)
        for (int r = 0; r < R; ++r) sum[g][r] = load<T, N>(total + (first + g) * D + r * N);
      for (int e = 0; e < n; ++e) {
        const T *row = rows[e] + first * D, *more = extra ? extra[e] + first * D : nullptr;
        for (int g = 0; g < G; ++g) {
          const T weight = weights[(first + g) * kBlock + e];
          for (int r = 0; r < R; ++r) {
            V x = load<T, N>(row + g * D + r * N);
            if (more) x += load<T, N>(more + g * D + r * N);
            sum[g][r] += weight * x;
          }
        }
      }
      for (int g = 0; g < G; ++g)
        for (int r = 0; r < R; ++r) store<T, N>(total + (first + g) * D + r * N, sum[g][r]);
    };
    int h = 0;
    if constexpr (R <= 2)
      for (; h + 4 <= heads; h += 4) group(h, std::integral_constant<int, 4>{});
    for (; h < heads; ++h) group(h, std::integral_constant<int, 1>{});
  } else {
    for (int e = 0; e < n; ++e)
      for (int h = 0; h < heads; ++h) {
        const T weight = weights[h * kBlock + e];
        const T* row = rows[e] + h * width;
        const T* more = extra ? extra[e] + h * width : nullptr;
        T* to = total + h * width;
        for (int d = 0; d < width; ++d) to[d] += weight * (more ? row[d] + more[d] : row[d]);
      }
  }
}

// to[e][h] = weights[h, e] · fixed[h]
template <class T>
void outer(T* const* to, const T* weights, const T* fixed, int n, int heads, int width) {
  for (int e = 0; e < n; ++e)
    for (int h = 0; h < heads; ++h) {
      const T weight = weights[h * kBlock + e];
      for (int at = h * width; at < (h + 1) * width; ++at) to[e][at] = weight * fixed[at];
    }
}

// The gradients of an additive score, from those of the scores, with x = fixed + rows[e] + extra[e]:
// own[h] += Σ_e grad[h, e] · activate'(x), which the caller multiplies by the vector,
// of_vector[h] += Σ_e grad[h, e] · activate(x), of_pair[e][h] = grad[h, e] · activate'(x) · vector
template <class T, int D, Kind kind>
void additive_backward(T* own, T* of_vector, T* const* of_pair, const T* grad, const T* fixed,
                       Rows<T> rows, Rows<T> extra, const T* vector, int n, int heads, int width,
                       T slope) {
  constexpr int N = D >= 4 ? lanes_of<T, D> : 1;
  for (int h = 0; h < heads; ++h)
    for (int at = h * width; at < (h + 1) * width; at += N) {
      auto sum = load<T, N>(own + at), vector_sum = Vec<T, N>{};
      for (int e = 0; e < n; ++e) {
        const T weight = grad[h * kBlock + e];
        const auto x = hidden<T, N>(fixed, rows[e], extra ? extra[e] : nullptr, at);
        const auto slopes = derivative<T, N, kind>(x, slope) * weight;
        sum += slopes;
        if (of_vector) vector_sum += activate<T, N, kind>(x, slope) * weight;
        if (of_pair)
          store<T, N>(of_pair[e] + at, vector ? slopes * load<T, N>(vector + at) : slopes);
      }
      store<T, N>(own + at, sum);
      if (of_vector) store<T, N>(of_vector + at, load<T, N>(of_vector + at) + vector_sum);
    }
}

// The integer finaliser "lowbias32", as in attn_core/dropout.py.
template <class U>
inline U mix(U x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}

// keep[h, e]: what dropout multiplies the weight of each pair with.
template <class T>
void draw(T* keep, const Problem<T>& p, const int64_t* number, int n) {
  uint32_t state[kBlock];
  for (int e = 0; e < n; ++e) {
    const uint64_t id = p.id ? p.id[number[e]] : number[e];
    uint32_t x = mix(p.seed[0] ^ 0x9E3779B9u);
    for (uint32_t word : {p.seed[1], uint32_t(id), uint32_t(id >> 32)})
      x = mix((x + word * 0x85EBCA6Bu) ^ 0xC2B2AE35u);
    state[e] = x;
  }
  for (int h = 0; h < p.heads; ++h)
    for (int e = 0; e < n; ++e) {
      const uint32_t bits = mix((state[e] + uint32_t(h) * 0x85EBCA6Bu) ^ 0xC2B2AE35u);
      keep[h * kBlock + e] = bits >= p.threshold ? p.keep_scale : T(0);
    }
}

}  // namespace attn::ATTN_ISA
