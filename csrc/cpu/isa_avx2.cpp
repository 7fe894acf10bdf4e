#include "isa.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define IMBAL_ISA avx2
#define IMBAL_AVX2
#define IMBAL_BYTES 32
#include "isa_body.h"
const imbal::Backend* const imbal::kAvx2 = &imbal::avx2::backend;
#else
const imbal::Backend* const imbal::kAvx2 = nullptr;
#endif
