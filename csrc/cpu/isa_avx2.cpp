#include "isa.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define IMBAL_ISA avx2
#define IMBAL_AVX2
#define IMBAL_BYTES 32
#include "isa_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
const imbal::Backend* const imbal::kAvx2 = &imbal::avx2::backend;
#else
const imbal::Backend* const imbal::kAvx2 = nullptr;
#endif
