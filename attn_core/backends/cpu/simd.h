// Vectors of W numbers, in the vector types of GCC and Clang, which lower them to what there is.
// This header is compiled once for each instruction set, each time in a namespace of its own, and
// uses no function of the standard library that the linker could share between them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace attn::VARIANT {

#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};

template <class T, int W>
struct VecOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
  typedef T loose __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef typename IntOf<T>::type ints __attribute__((vector_size(W * sizeof(T))));
};
template <class T, int W>
using Vec = typename VecOf<T, W>::type;

// The most numbers that one register holds, 4 at least: the compiler splits what is too long.
template <class T>
constexpr int WIDEST = REGISTER / sizeof(T) < 4 ? 4 : REGISTER / sizeof(T);

template <class T, int W>
INLINE Vec<T, W> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T, W>::loose*>(p);
}
template <class T, int W>
INLINE void store(T* p, Vec<T, W> x) {
  *reinterpret_cast<typename VecOf<T, W>::loose*>(p) = x;
}
// Numbers of 16 bits, which vectors of single precision are made of.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
template <int W>
struct BitsOf {
  typedef uint16_t loose __attribute__((vector_size(2 * W), aligned(2), may_alias));
  typedef uint32_t words __attribute__((vector_size(4 * W)));
};
template <int W>
using Bits32 = typename BitsOf<W>::words;

// W numbers of 16 bits, each in a word. (Of what says so in general, GCC 12 makes several steps.)
template <int W>
INLINE Bits32<W> load_words(const void* p) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return (Bits32<W>)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#endif
#if defined(__AVX2__)
  if constexpr (W == 8) return (Bits32<W>)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  if constexpr (W == 4) return (Bits32<W>)_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)p));
#endif
  return __builtin_convertvector(*static_cast<const typename BitsOf<W>::loose*>(p), Bits32<W>);
}

template <class T, int W>
INLINE Vec<T, W> load(const BFloat16* p) {
  return (Vec<T, W>)(load_words<W>(p) << 16);
}

template <class T, int W>
INLINE Vec<T, W> load(const Float16* p) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return (Vec<T, W>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#endif
#if defined(__F16C__)
  if constexpr (W == 8) return (Vec<T, W>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  if constexpr (W == 4) return (Vec<T, W>)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)p));
#endif
  using I = Bits32<W>;
  const I bits = load_words<W>(p), exponent = bits & 0x7c00;
  I size = ((bits & 0x7fff) << 13) + (112u << 23);
  size = exponent == 0x7c00 ? size + (112u << 23) : size;  // infinite, or none
  const Vec<T, W> small = (Vec<T, W>)(size + (1u << 23)) - T(6.103515625e-05);  // 2^-14
  size = exponent == 0 ? (I)small : size;
  return (Vec<T, W>)(size | (bits & 0x8000) << 16);
}

// Four numbers, rounded to the nearest, to even ones from the middle; NaN stays NaN.
template <class T>
INLINE void store(BFloat16* p, Vec<T, 4> x) {
  const Bits32<4> bits = (Bits32<4>)x, odd = bits >> 16 & 1;
  const Bits32<4> rounded = x == x ? (bits + 0x7fff + odd) >> 16 : Bits32<4>{} + 0x7fc0;
  for (int i = 0; i < 4; i++) p[i].bits = uint16_t(rounded[i]);
}
template <class T>
INLINE void store(Float16* p, Vec<T, 4> x) {
#if defined(__F16C__)
  _mm_storel_epi64((__m128i*)p, _mm_cvtps_ph((__m128)x, _MM_FROUND_TO_NEAREST_INT));
#else
  using I = Bits32<4>;
  const I bits = (I)x, size = bits & 0x7fffffff, odd = size >> 13 & 1;
  const I normal = (size - (112u << 23) + 0xfff + odd) >> 13;
  const I small = (I)((Vec<T, 4>)size + T(0.5)) - 0x3f000000;  // the units of 0.5 are those of 2^-14
  I rounded = size < 113u << 23 ? small : normal;
  rounded = size >= 143u << 23 ? I{} + 0x7c00 : rounded;
  rounded = (size > 255u << 23 ? I{} + 0x7e00 : rounded) | (bits >> 16 & 0x8000);
  for (int i = 0; i < 4; i++) p[i].bits = uint16_t(rounded[i]);
#endif
}

template <class T, int W>
INLINE Vec<T, W> all(T x) {
  return x - Vec<T, W>{};  // not +: -0 + 0 is 0
}
INLINE float infinity(float) { return __builtin_inff(); }
INLINE double infinity(double) { return __builtin_inf(); }

// e^x to the last digits; NaN stays NaN.
template <class T, int W>
INLINE Vec<T, W> exp(Vec<T, W> x) {
  using V = Vec<T, W>;
  using I = typename VecOf<T, W>::ints;
  constexpr bool single = sizeof(T) == 4;
  const T low = single ? T(-86) : T(-700), high = single ? T(88) : T(709);
  const T round = single ? T(12582912) : T(6755399441055744);  // 1.5 · 2^(digits - 1)
  V y = x < low ? all<T, W>(low) : x;
  y = y > high ? all<T, W>(high) : y;
  V n = y * T(1.4426950408889634) + round;
  const I shift = (I)n << (single ? 23 : 52);
  n -= round;
  V r, p;
  if constexpr (single) {
    r = y - n * T(0.693359375);
    r = r - n * T(-2.12194440e-4);
    p = r * T(1.9875691500e-4) + T(1.3981999507e-3);
    p = p * r + T(8.3334519073e-3);
    p = p * r + T(4.1665795894e-2);
    p = p * r + T(1.6666665459e-1);
    p = p * r + T(5.0000001201e-1);
  } else {
    r = y - n * T(0.693145751953125);
    r = r - n * T(1.42860682030941723212e-6);
    p = r * T(1.0 / 6227020800.0) + T(1.0 / 479001600.0);
    p = p * r + T(1.0 / 39916800.0);
    p = p * r + T(1.0 / 3628800.0);
    p = p * r + T(1.0 / 362880.0);
    p = p * r + T(1.0 / 40320.0);
    p = p * r + T(1.0 / 5040.0);
    p = p * r + T(1.0 / 720.0);
    p = p * r + T(1.0 / 120.0);
    p = p * r + T(1.0 / 24.0);
    p = p * r + T(1.0 / 6.0);
    p = p * r + T(0.5);
  }
  p = p * r * r + r + T(1);
  V result = (V)((I)p + shift);
  result = x < low ? V{} : result;
  return x > high ? all<T, W>(infinity(T())) : result;
}

// The natural logarithm of 0, of what is at least 2^-126 and finite, and of NaN.
template <class T>
INLINE Vec<T, 4> log(Vec<T, 4> x) {
  using V = Vec<T, 4>;
  if constexpr (sizeof(T) == 8) {
    return V{__builtin_log(x[0]), __builtin_log(x[1]), __builtin_log(x[2]), __builtin_log(x[3])};
  } else {
    using I = typename VecOf<T, 4>::ints;
    // x = m · 2^n with m in [√½, √2)
    const I n = ((I)x - 0x3f3504f3) >> 23;
    const V r = (V)((I)x - (n << 23)) - T(1), m = __builtin_convertvector(n, V), z = r * r;
    V p = r * T(7.0376836292e-2) + T(-1.1514610310e-1);
    p = p * r + T(1.1676998740e-1);
    p = p * r + T(-1.2420140846e-1);
    p = p * r + T(1.4249322787e-1);
    p = p * r + T(-1.6668057665e-1);
    p = p * r + T(2.0000714765e-1);
    p = p * r + T(-2.4999993993e-1);
    p = p * r + T(3.3333331174e-1);
    V y = p * r * z + m * T(-2.12194440e-4) - z * T(0.5);
    y = r + y + m * T(0.693359375);
    y = x == T(0) ? all<T, 4>(-infinity(T())) : y;
    return x == x ? y : x;
  }
}

// Whether a vector of single precision is a whole register of AVX-512, whose own instructions serve.
#if defined(__AVX512F__)
template <class T, int W>
constexpr bool WHOLE = sizeof(T) == 4 && W == 16;
#else
template <class T, int W>
constexpr bool WHOLE = false;
#endif

// The smaller one of x and a number; NaN stays NaN.
template <class T, int W>
INLINE Vec<T, W> at_most(Vec<T, W> x, T limit) {
#if defined(__AVX512F__)
  if constexpr (WHOLE<T, W>) return (Vec<T, W>)_mm512_min_ps(_mm512_set1_ps(limit), (__m512)x);
#endif
  return x > limit ? all<T, W>(limit) : x;
}

// y / x for 2^-126 ≤ x < 2^126. AVX-512 guesses 1 / x to 14 bits, which one step doubles in a
// third of a division's time.
template <class T, int W>
INLINE Vec<T, W> divide(Vec<T, W> y, Vec<T, W> x) {
#if defined(__AVX512F__)
  if constexpr (WHOLE<T, W>) {
    const Vec<T, W> guess = (Vec<T, W>)_mm512_rcp14_ps((__m512)x), quotient = y * guess;
    return (y - x * quotient) * guess + quotient;
  }
#endif
  return y / x;
}
template <class T, int W>
INLINE Vec<T, W> reciprocal(Vec<T, W> x) {
#if defined(__AVX512F__)
  if constexpr (WHOLE<T, W>) {
    const Vec<T, W> guess = (Vec<T, W>)_mm512_rcp14_ps((__m512)x);
    return (T(1) - x * guess) * guess + guess;
  }
#endif
  return T(1) / x;
}

// To 2.5 units in the last place in single precision, to 1.5 in double; NaN stays NaN.
template <class T, int W>
INLINE Vec<T, W> tanh(Vec<T, W> x) {
  using V = Vec<T, W>;
  using I = typename VecOf<T, W>::ints;
  if constexpr (sizeof(T) == 4) {
    const I sign = (I)x & ~0x7fffffff;
    const V size = at_most<T, W>((V)((I)x & 0x7fffffff), T(15));  // whose tanh is 1
    // With h = (e^2x - 1) / 2, tanh(x) = h / (h + 1); e^2x = 2^n e^2s
    V n = size * T(2.8853900817779268) + T(12582912);  // 1.5 · 2^23
    const V power = (V)(((I)n << 23) + 0x3f800000);
    n -= T(12582912);
    const V s = size - n * T(0.34657359027997264);
    V p = s * T(0.0444222197195) + T(0.13387560485);
    p = p * s + T(0.333337831188);
    p = p * s + T(0.666661528439);
    p = p * s + T(0.999999960281);
    p = p * (s * s) + s;  // (e^2s - 1) / 2
    const V h = power * p + (power * T(0.5) - T(0.5));
    return (V)((I)divide<T, W>(h, h + T(1)) | sign);
  } else {
    const V size = x < T(0) ? -x : x;
    const V large = T(1) - T(2) / (exp<T, W>(size + size) + T(1));
    const V z = x * x;
    V p = z * T(-9.64399179425052238628e-1) + T(-9.92877231001918586564e1);
    p = p * z + T(-1.61468768441708447952e3);
    V q = z + T(1.12811678491632931402e2);
    q = q * z + T(2.23548839060100448583e3);
    q = q * z + T(4.84406305325125486048e3);
    const V small = x + x * z * (p / q);
    return size < T(0.625) ? small : (x < T(0) ? -large : large);
  }
}

// A bit for each number above 0, the first one lowest; and of such bits, a number where one is set,
// else another.
template <class T, int W>
INLINE uint32_t signs(Vec<T, W> x) {
#if defined(__AVX512F__)
  if constexpr (WHOLE<T, W>) {
    return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_GT_OQ);
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(T) == 4 && W == 4) return uint32_t(_mm_movemask_ps((__m128)(x > T(0))));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4 && W == 8) return uint32_t(_mm256_movemask_ps((__m256)(x > T(0))));
#endif
  uint32_t bits = 0;
  for (int i = 0; i < W; i++) bits |= uint32_t(x[i] > T(0)) << i;
  return bits;
}
template <class T, int W>
INLINE Vec<T, W> where_set(uint32_t bits, Vec<T, W> set, Vec<T, W> unset) {
  using I = typename VecOf<T, W>::ints;
  I lanes = {};
  for (int i = 0; i < W; i++) lanes[i] = 1 << i;
  return (lanes & typename IntOf<T>::type(bits)) != 0 ? set : unset;
}

// The lanes moved down by S, in a circle.
template <class T, int W, int S, int... I>
INLINE Vec<T, W> rotate(Vec<T, W> x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, (I + S) % W...);
}

// The sum, or the largest, of lanes that are S, 2 S, 3 S, … apart, in each of them.
template <class T, int W, int S>
INLINE Vec<T, W> sum_apart(Vec<T, W> x) {
  if constexpr (S >= W) {
    return x;
  } else {
    x += rotate<T, W, S>(x, std::make_integer_sequence<int, W>());
    return sum_apart<T, W, 2 * S>(x);
  }
}
template <class T, int W, int S>
INLINE Vec<T, W> largest_apart(Vec<T, W> x) {  // NaN may be passed over
  if constexpr (S >= W) {
    return x;
  } else {
    const Vec<T, W> y = rotate<T, W, S>(x, std::make_integer_sequence<int, W>());
    return largest_apart<T, W, 2 * S>(y > x ? y : x);
  }
}

// The sums of four vectors.
template <class T, int W>
INLINE Vec<T, 4> sums(Vec<T, W> a, Vec<T, W> b, Vec<T, W> c, Vec<T, W> d) {
  if constexpr (W == 16) {
    const Vec<T, 16> ab =
        __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
        __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const Vec<T, 16> cd =
        __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
        __builtin_shufflevector(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    Vec<T, 16> x =
        __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
        __builtin_shufflevector(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    x += __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return __builtin_shufflevector(x, x, 0, 4, 8, 12);
  } else if constexpr (W == 8) {
    const Vec<T, 8> ab = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
                         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    const Vec<T, 8> cd = __builtin_shufflevector(c, d, 0, 1, 2, 3, 8, 9, 10, 11) +
                         __builtin_shufflevector(c, d, 4, 5, 6, 7, 12, 13, 14, 15);
    const Vec<T, 8> x = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
                        __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(x, x, 0, 4, 2, 6) + __builtin_shufflevector(x, x, 1, 5, 3, 7);
  } else {
    const Vec<T, 4> ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) +
                         __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Vec<T, 4> cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) +
                         __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) +
           __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  }
}

// The hash of attn_core/dropout.py, of one number or of several at once.
typedef uint32_t Words __attribute__((vector_size(32)));
constexpr int WORDS = 8;

template <class U>
INLINE U mix(U x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}
template <class U>
INLINE U absorb(U state, U word) {
  return mix<U>((state + word * 0x85EBCA6Bu) ^ 0xC2B2AE35u);
}

}  // namespace attn::VARIANT
