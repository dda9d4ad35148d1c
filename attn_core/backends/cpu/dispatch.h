// Which instruction set the kernels use on this machine.
#pragma once
#include "problem.h"

namespace attn {

template <class T>
const Kernels<T>& chosen();

// "avx512", "avx2" or "baseline".
const char* instruction_set();

// Take another one of those that this machine has; returns whether it has it.
bool choose_instruction_set(const char* name);

}  // namespace attn
