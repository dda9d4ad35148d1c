// Functions that generated scores call, each without a branch, so that loops of them become vectors.
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#define INLINE inline __attribute__((always_inline))
#define APART __attribute__((noinline))
#define INFINITE __builtin_inf()
#define NOT_A_NUMBER __builtin_nan("")

namespace {

INLINE T as_number(int x) { return T(x); }
INLINE bool truth(int x) { return x; }
INLINE bool inverse(bool x) { return !x; }
INLINE T choose(bool condition, T x, T y) { return condition ? x : y; }
INLINE T larger(T x, T y) { return x > y || x != x ? x : y; }
INLINE T smaller(T x, T y) { return x < y || x != x ? x : y; }
INLINE T size(T x) { return x < 0 ? -x : x; }
INLINE T sign(T x) { return x > 0 ? T(1) : x < 0 ? T(-1) : x; }
INLINE float root(float x) { return __builtin_sqrtf(x); }
INLINE double root(double x) { return __builtin_sqrt(x); }
INLINE float logarithm(float x) { return __builtin_logf(x); }
INLINE double logarithm(double x) { return __builtin_log(x); }
INLINE float power(float x, float y) { return __builtin_powf(x, y); }
INLINE double power(double x, double y) { return __builtin_pow(x, y); }
INLINE float sine(float x) { return __builtin_sinf(x); }
INLINE double sine(double x) { return __builtin_sin(x); }
INLINE float cosine(float x) { return __builtin_cosf(x); }
INLINE double cosine(double x) { return __builtin_cos(x); }
INLINE float hyperbolic(float x) { return __builtin_tanhf(x); }
INLINE double hyperbolic(double x) { return __builtin_tanh(x); }
INLINE T exp_minus_1(T x) { return T(__builtin_expm1(x)); }
INLINE T log_plus_1(T x) { return T(__builtin_log1p(x)); }
INLINE T binary_logarithm(T x) { return T(__builtin_log2(x)); }
INLINE T error_function(T x) { return T(__builtin_erf(x)); }
INLINE T arctangent(T x) { return T(__builtin_atan(x)); }
INLINE T rounded_down(T x) { return T(__builtin_floor(x)); }

// e^x to the last digits; NaN stays NaN.
INLINE float exponential(float x) {
  float y = x < -86.f ? -86.f : x;
  y = y > 88.f ? 88.f : y;
  float n = y * 1.4426950408889634f + 12582912.f;  // 1.5 · 2^23: the sum is rounded
  int32_t shift;
  __builtin_memcpy(&shift, &n, 4);
  n -= 12582912.f;
  float r = y - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  int32_t bits;
  __builtin_memcpy(&bits, &p, 4);
  bits += int32_t(uint32_t(shift) << 23);
  float result;
  __builtin_memcpy(&result, &bits, 4);
  result = x < -86.f ? 0.f : result;
  result = x > 88.f ? __builtin_inff() : result;
  return x == x ? result : x;
}
INLINE double exponential(double x) {
  double y = x < -700. ? -700. : x;
  y = y > 709. ? 709. : y;
  double n = y * 1.4426950408889634 + 6755399441055744.;  // 1.5 · 2^52
  int64_t shift;
  __builtin_memcpy(&shift, &n, 8);
  n -= 6755399441055744.;
  double r = y - n * 0.693145751953125;
  r = r - n * 1.42860682030941723212e-6;
  double p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r * r + r + 1.;
  int64_t bits;
  __builtin_memcpy(&bits, &p, 8);
  bits += int64_t(uint64_t(shift) << 52);
  double result;
  __builtin_memcpy(&result, &bits, 8);
  result = x < -700. ? 0. : result;
  result = x > 709. ? __builtin_inf() : result;
  return x == x ? result : x;
}
