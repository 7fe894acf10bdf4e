// The nearest-neighbour search's shared logic: what a distance is, and how candidates are ordered while they are
// only known in fp32. Compiles for the host and for CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace imbal {

// d^2 grows by one column: difference, square and sum are each rounded once (no fused multiply-add).
IMBAL_HOST_DEVICE double add_square(double sum, double a, double b) {
#if defined(__CUDA_ARCH__)
  const double difference = __dadd_rn(a, -b);
  return __dadd_rn(sum, __dmul_rn(difference, difference));
#else
  const double difference = a - b;
  double square = difference * difference;
#if defined(__x86_64__)
  asm("" : "+x"(square));  // hides that it could be fused into the sum, whatever -ffp-contract says
#else
  volatile double kept = square;
  square = kept;
#endif
  return sum + square;
#endif
}

// The definition: the sum over ascending columns in fp64. A and B convert to double.
template <class A, class B>
IMBAL_HOST_DEVICE double squared_distance(const A* a, const B* b, int64_t columns) {
  double sum = 0;
  for (int64_t j = 0; j < columns; ++j) sum = add_square(sum, (double)a[j], (double)b[j]);
  return sum;
}

// Whether (d, i) comes before (e, j) in the final order; a NaN comes last.
IMBAL_HOST_DEVICE bool before(double d, int64_t i, double e, int64_t j) {
  if (d < e) return true;
  if (e < d) return false;
  const bool d_nan = d != d, e_nan = e != e;
  return d_nan == e_nan ? i < j : e_nan;
}

// fp32 bits as an unsigned number with the same order, negative numbers included; NaN comes last.
IMBAL_HOST_DEVICE uint32_t ordered_bits(float v) {
  uint32_t bits;
#if defined(__CUDA_ARCH__)
  bits = __float_as_uint(v);
#else
  std::memcpy(&bits, &v, sizeof bits);
#endif
  return v != v ? 0xffffffffu : bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

IMBAL_HOST_DEVICE float from_ordered_bits(uint32_t ordered) {
  const uint32_t bits = ordered ^ ((ordered >> 31) ? 0x80000000u : 0xffffffffu);
  float v;
#if defined(__CUDA_ARCH__)
  v = __uint_as_float(bits);
#else
  std::memcpy(&v, &bits, sizeof v);
#endif
  return v;
}

// A candidate of the fast pass: its fp32 distance, then its index inside the segment (below 2^32).
IMBAL_HOST_DEVICE uint64_t candidate_key(float distance, uint32_t index) {
  return ((uint64_t)ordered_bits(distance) << 32) | index;
}

IMBAL_HOST_DEVICE uint32_t key_index(uint64_t key) { return (uint32_t)key; }
IMBAL_HOST_DEVICE float key_distance(uint64_t key) { return from_ordered_bits((uint32_t)(key >> 32)); }

}  // namespace imbal
