#include "isa.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define IMBAL_ISA avx512
#define IMBAL_AVX512
#define IMBAL_BYTES 64
#include "isa_body.h"
const imbal::Backend* const imbal::kAvx512 = &imbal::avx512::backend;
#else
const imbal::Backend* const imbal::kAvx512 = nullptr;
#endif
