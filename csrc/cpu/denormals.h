// What a thread does with denormals while a kernel runs, whatever its caller has set.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace imbal {

template <bool Flush>
struct Denormals {
#if defined(__SSE2__)
  static constexpr unsigned int kBits = 0x8040;  // results and operands that are denormal count as 0
  unsigned int saved = _mm_getcsr();
  Denormals() { _mm_setcsr(Flush ? saved | kBits : saved & ~kBits); }
  ~Denormals() { _mm_setcsr(saved); }
#else
  Denormals() {}
#endif
};

// They cost a hundred cycles each on x86 and carry nothing a gradient needs.
using FlushDenormals = Denormals<true>;
// The definition of a distance has them, and so must every thread.
using KeepDenormals = Denormals<false>;

}  // namespace imbal
