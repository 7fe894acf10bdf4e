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

// The same of memory that is read from front to back, while what lies `ahead` elements further on is prefetched: the
// hardware's prefetcher stops at each page.
template <class A>
inline Vec<A> load_ahead(const A* p, int64_t ahead = 1024) {
  __builtin_prefetch(p + ahead);
  return load(p);
}

template <class A>
inline void store(A* p, Vec<A> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Whether a * b + c is one operation, rounded once (-ffp-contract).
#if defined(IMBAL_AVX512) || defined(IMBAL_AVX2)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

// What rounding took from ab = a * b.
#if defined(IMBAL_AVX512)
inline VF lost(VF a, VF b, VF ab) { return (VF)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)ab); }
#elif defined(IMBAL_AVX2)
inline VF lost(VF a, VF b, VF ab) { return (VF)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)ab); }
#endif

// Both return b when either is NaN, as the x86 instructions do: pass the data second.
#if defined(IMBAL_AVX512)
inline VF vmin(VF a, VF b) { return (VF)_mm512_min_ps((__m512)a, (__m512)b); }
inline VF vmax(VF a, VF b) { return (VF)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(IMBAL_AVX2)
inline VF vmin(VF a, VF b) { return (VF)_mm256_min_ps((__m256)a, (__m256)b); }
inline VF vmax(VF a, VF b) { return (VF)_mm256_max_ps((__m256)a, (__m256)b); }
#else
inline VF vmin(VF a, VF b) { return a < b ? a : b; }
inline VF vmax(VF a, VF b) { return a > b ? a : b; }
#endif
inline VD vmin(VD a, VD b) { return a < b ? a : b; }
inline VD vmax(VD a, VD b) { return a > b ? a : b; }

// Whether a lane of a comparison's result is set.
template <class A>
inline bool any(typename Simd<A>::I m) {
#if defined(IMBAL_AVX512)
  return _mm512_test_epi64_mask((__m512i)m, (__m512i)m) != 0;
#elif defined(IMBAL_AVX2)
  return !_mm256_testz_si256((__m256i)m, (__m256i)m);
#else
  int r = 0;
  for (int i = 0; i < Simd<A>::W; ++i) r += m[i] != 0;
  return r != 0;
#endif
}

// 0, 1, 2, ...
template <class A, int... J>
inline typename Simd<A>::I count_lanes(std::integer_sequence<int, J...>) {
  return typename Simd<A>::I{J...};
}
template <class A>
inline typename Simd<A>::I lane_numbers() {
  return count_lanes<A>(std::make_integer_sequence<int, Simd<A>::W>());
}

// All lanes of a vector as one by f, which takes vectors and numbers: halves first.
template <class A, int N>
struct Lanes {
  typedef A V __attribute__((vector_size(N * sizeof(A))));
};
template <class A, int N = Simd<A>::W, class F>
inline A across(typename Lanes<A, N>::V v, F f) {
  if constexpr (N == 2) {
    return f(v[0], v[1]);
  } else {
    typename Lanes<A, N / 2>::V halves[2];
    __builtin_memcpy(halves, &v, sizeof v);
    return across<A, N / 2>(f(halves[0], halves[1]), f);
  }
}

// Lanes by number: 0 to W - 1 are those of a, W to 2 W - 1 those of b.
template <class A, int... From>
inline Vec<A> shuffle(Vec<A> a, Vec<A> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, From...);
#else
  return __builtin_shuffle(a, b, typename Simd<A>::I{From...});
#endif
}

// Lanes whose index has the bit `Half` change places between two vectors: the low ones of b with the high ones of a.
template <class A, int Half, int... J>
inline void swap_lanes(Vec<A>& a, Vec<A>& b, std::integer_sequence<int, J...>) {
  constexpr int W = Simd<A>::W;
  const Vec<A> low = shuffle<A, (J & Half ? W + J - Half : J)...>(a, b);
  b = shuffle<A, (J & Half ? W + J : J + Half)...>(a, b);
  a = low;
}

// As many vectors as they have lanes: lane j of vector i changes places with lane i of vector j.
template <class A, int Half = Simd<A>::W / 2>
inline void transpose(Vec<A>* v) {
  constexpr int W = Simd<A>::W;
  for (int i = 0; i < W; ++i)
    if (!(i & Half)) swap_lanes<A, Half>(v[i], v[i + Half], std::make_integer_sequence<int, W>());
  if constexpr (Half > 1) transpose<A, Half / 2>(v);
}

// Each of W vectors as one number by f, which takes vectors: that of vector i is lane i of the result. Overwrites v.
template <class A, int Half = Simd<A>::W / 2, class F>
inline Vec<A> across_each(Vec<A>* v, F f) {
  for (int i = 0; i < Half; ++i) {
    swap_lanes<A, Half>(v[i], v[i + Half], std::make_integer_sequence<int, Simd<A>::W>());
    v[i] = f(v[i], v[i + Half]);
  }
  if constexpr (Half > 1) return across_each<A, Half / 2>(v, f);
  else return v[0];
}

// For regroup, below: where lane `to` of vector `out` comes from.
struct Origin {
  int vector, lane;
};
template <int N, bool kBack>
constexpr Origin origin(int lanes, int out, int to) {
  const int i = kBack ? out * lanes + to : to * N + out;
  return kBack ? Origin{i % N, i / N} : Origin{i / lanes, i % lanes};
}

// Vector `kOut`, from the first kIn + 1 vectors; one more at a time.
template <class A, int N, bool kBack, int kOut, int kIn, int... J>
inline Vec<A> gathered(const Vec<A>* in, std::integer_sequence<int, J...> lanes) {
  constexpr int W = Simd<A>::W;
  constexpr auto from = [](int to) {
    const Origin o = origin<N, kBack>(W, kOut, to);
    return o.vector == kIn ? W + o.lane : kIn == 1 ? o.lane : to;
  };
  if constexpr (kIn == 1) return shuffle<A, from(J)...>(in[0], in[1]);
  else return shuffle<A, from(J)...>(gathered<A, N, kBack, kOut, kIn - 1>(in, lanes), in[kIn]);
}

// W rows of N numbers, one after the other in N vectors, as N vectors of W numbers each; or, kBack, those as rows.
template <class A, bool kBack, int... Out>
inline void regroup(const Vec<A>* in, Vec<A>* out, std::integer_sequence<int, Out...>) {
  constexpr int N = sizeof...(Out);
  static_assert(N > 1);
  ((out[Out] = gathered<A, N, kBack, Out, N - 1>(in, std::make_integer_sequence<int, Simd<A>::W>())), ...);
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

// Limits of a vector against a number; a NaN in v stays.
template <class S, class V>
inline V at_most(S limit, V v) { return vmin(V{} + limit, v); }
template <class S, class V>
inline V at_least(S limit, V v) { return vmax(V{} + limit, v); }

// A store that goes past the caches where `past` is set: p is then aligned to a vector.
inline void store(float* p, VF v, bool past) {
#if defined(IMBAL_AVX512)
  if (past) return _mm512_stream_ps(p, (__m512)v);
#elif defined(IMBAL_AVX2)
  if (past) return _mm256_stream_ps(p, (__m256)v);
#endif
  store(p, v);
}
inline void store(double* p, VD v, bool) { store(p, v); }
