// One vector type per compute type, and the few operations the formulas need.
//
// Included inside `namespace IMBAL_ISA` of a file that fixes the instruction set (isa_*.cpp): no
// include guard, no #include here. IMBAL_BYTES is the width of a register. Arithmetic is written
// with the vector extension of GCC and Clang, so the portable build needs no intrinsics.

template <class A>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(IMBAL_BYTES)));
  typedef int32_t I __attribute__((vector_size(IMBAL_BYTES)));
  static constexpr int W = IMBAL_BYTES / 4;
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(IMBAL_BYTES)));
  typedef int64_t I __attribute__((vector_size(IMBAL_BYTES)));
  static constexpr int W = IMBAL_BYTES / 8;
};

using VF = Simd<float>::V;
using IF = Simd<float>::I;
using VD = Simd<double>::V;
using ID = Simd<double>::I;

template <class A>
using Vec = typename Simd<A>::V;

template <class A>
inline Vec<A> load(const A* p) {
  Vec<A> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class A>
inline void store(A* p, Vec<A> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Both return b when either is NaN, as the x86 instructions do: pass the data second.
#if defined(IMBAL_AVX512)
inline VF vmin(VF a, VF b) { return (VF)_mm512_min_ps((__m512)a, (__m512)b); }
inline VF vmax(VF a, VF b) { return (VF)_mm512_max_ps((__m512)a, (__m512)b); }
inline VF estimate_reciprocal(VF d) { return (VF)_mm512_rcp14_ps((__m512)d); }
inline bool any(IF m) { return _mm512_movepi32_mask((__m512i)m) != 0; }
#elif defined(IMBAL_AVX2)
inline VF vmin(VF a, VF b) { return (VF)_mm256_min_ps((__m256)a, (__m256)b); }
inline VF vmax(VF a, VF b) { return (VF)_mm256_max_ps((__m256)a, (__m256)b); }
inline VF estimate_reciprocal(VF d) { return (VF)_mm256_rcp_ps((__m256)d); }
inline bool any(IF m) { return _mm256_movemask_ps((__m256)m) != 0; }
#else
inline VF vmin(VF a, VF b) { return a < b ? a : b; }
inline VF vmax(VF a, VF b) { return a > b ? a : b; }
inline bool any(IF m) {
  int32_t r = 0;
  for (int i = 0; i < Simd<float>::W; ++i) r |= m[i];
  return r != 0;
}
#endif
inline VD vmin(VD a, VD b) { return a < b ? a : b; }
inline VD vmax(VD a, VD b) { return a > b ? a : b; }
inline bool any(ID m) {
  int64_t r = 0;
  for (int i = 0; i < Simd<double>::W; ++i) r |= m[i];
  return r != 0;
}

// A sum in fp64 of vectors of the compute type.
struct Sum {
  VD low = {}, high = {};

  void add(VF v) {
    typedef float Half __attribute__((vector_size(IMBAL_BYTES / 2)));
    Half halves[2];
    __builtin_memcpy(halves, &v, sizeof v);
    low += __builtin_convertvector(halves[0], VD);
    high += __builtin_convertvector(halves[1], VD);
  }
  void add(VD v) { low += v; }
  double total() const {
    double s = 0;
    for (int i = 0; i < Simd<double>::W; ++i) s += low[i] + high[i];
    return s;
  }
};

// Two vectors worked on at once, operation by operation. The formulas are long chains of dependent
// operations; with two of them in flight a core's pipes have something to do.
template <class V>
struct Pair {
  V a, b;
};
#define IMBAL_PAIR_OPERATOR(op)                                                                   \
  template <class V>                                                                              \
  inline Pair<V> operator op(Pair<V> x, Pair<V> y) { return {x.a op y.a, x.b op y.b}; }           \
  template <class V, class S>                                                                     \
  inline Pair<V> operator op(Pair<V> x, S y) { return {x.a op y, x.b op y}; }                     \
  template <class S, class V>                                                                     \
  inline Pair<V> operator op(S x, Pair<V> y) { return {x op y.a, x op y.b}; }
IMBAL_PAIR_OPERATOR(+)
IMBAL_PAIR_OPERATOR(-)
IMBAL_PAIR_OPERATOR(*)
IMBAL_PAIR_OPERATOR(/)
#undef IMBAL_PAIR_OPERATOR

// Limits of a vector or a pair against a number; a NaN in v stays.
template <class S, class V>
inline V at_most(S limit, V v) { return vmin(V{} + limit, v); }
template <class S, class V>
inline V at_least(S limit, V v) { return vmax(V{} + limit, v); }
template <class S, class V>
inline Pair<V> at_most(S limit, Pair<V> v) { return {at_most(limit, v.a), at_most(limit, v.b)}; }
template <class S, class V>
inline Pair<V> at_least(S limit, Pair<V> v) { return {at_least(limit, v.a), at_least(limit, v.b)}; }

// 1 / d to 1.4e-7: half the pipe slots of a division.
#if defined(IMBAL_AVX512) || defined(IMBAL_AVX2)
inline VF reciprocal(VF d) {
  const VF r = estimate_reciprocal(d);
  return r * (2.0f - d * r);
}
#else
inline VF reciprocal(VF d) { return 1.0f / d; }
#endif
inline VD reciprocal(VD d) { return 1.0 / d; }
template <class V>
inline Pair<V> reciprocal(Pair<V> d) { return {reciprocal(d.a), reciprocal(d.b)}; }

template <class V>
inline Pair<V> vmin(Pair<V> x, Pair<V> y) { return {vmin(x.a, y.a), vmin(x.b, y.b)}; }
