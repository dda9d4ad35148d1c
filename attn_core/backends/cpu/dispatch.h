// Which instruction set the kernels use on this machine.
#pragma once
#include <string>
#include <vector>

#include "problem.h"

namespace attn {

template <class T>
const Kernels<T>& chosen();

// Those that this machine has of "avx512", "avx2" and "baseline", the best first.
std::vector<std::string> instruction_sets();

const char* instruction_set();

// Take another one of those that this machine has; returns whether it has it.
bool choose_instruction_set(const char* name);

// Whether AMD has made the processor.
bool is_amd();

}  // namespace attn
