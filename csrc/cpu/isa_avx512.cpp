#include "isa.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
#define IMBAL_ISA avx512
#define IMBAL_AVX512
#define IMBAL_BYTES 64
#include "isa_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
const imbal::Backend* const imbal::kAvx512 = &imbal::avx512::backend;
#else
const imbal::Backend* const imbal::kAvx512 = nullptr;
#endif
