#include "dispatch.h"

#include <atomic>
#include <cstring>

#ifdef ATTN_X86
#include <cpuid.h>
#endif

namespace attn {

#define DECLARE(variant)                     \
  namespace variant {                        \
  extern const Kernels<float> float_kernels;  \
  extern const Kernels<double> double_kernels; \
  }
DECLARE(baseline)
#ifdef ATTN_X86
DECLARE(avx2)
DECLARE(avx512)
#endif

namespace {

struct Variant {
  const char* name;
  bool available;
  const Kernels<float>* single;
  const Kernels<double>* wide;
};

#ifdef ATTN_X86
// Whether it converts numbers of 16 bits: every processor with AVX2 does, but not each is asked by name
// by older compilers.
bool has_f16c() {
  unsigned a, b, c = 0, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// The best first.
const Variant* variants() {
  static const Variant all[] = {
#ifdef ATTN_X86
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma") && has_f16c(),
       &avx512::float_kernels, &avx512::double_kernels},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(),
       &avx2::float_kernels, &avx2::double_kernels},
#endif
      {"baseline", true, &baseline::float_kernels, &baseline::double_kernels},
  };
  return all;
}

std::atomic<const Variant*>& current() {
  static std::atomic<const Variant*> one{[] {
    const Variant* best = variants();
    while (!best->available) best++;
    return best;
  }()};
  return one;
}

}  // namespace

template <>
const Kernels<float>& chosen<float>() { return *current().load()->single; }
template <>
const Kernels<double>& chosen<double>() { return *current().load()->wide; }

const char* instruction_set() { return current().load()->name; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  const Variant* one = variants();
  for (; std::strcmp(one->name, "baseline") != 0; one++)
    if (one->available) names.push_back(one->name);
  names.push_back(one->name);
  return names;
}

bool choose_instruction_set(const char* name) {
  for (const Variant* one = variants();; one++) {
    if (std::strcmp(one->name, name) == 0 && one->available) {
      current() = one;
      return true;
    }
    if (std::strcmp(one->name, "baseline") == 0) return false;
  }
}

bool is_amd() {
#ifdef ATTN_X86
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

}  // namespace attn
