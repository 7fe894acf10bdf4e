// exp, log and the two building blocks of every sigmoid loss, to about 1e-7 relative in fp32.
//
// Included inside `namespace IMBAL_ISA`, after simd.h. The fp32 polynomials are minimax fits of the
// named function on the named interval; the figure beside each is its largest relative error with
// coefficients rounded to fp32. fp64 goes through libm lane by lane: it is there for gradient
// checks, not for speed. Denormals are flushed by the caller (FlushDenormals), so they cost nothing.

// 2^f on |f| <= 1/2: 9.4e-8
template <class T>
inline T exp2_polynomial(T f) {
  T p = f * 0.0013264694716781378f + 0.009671534411609173f;
  p = p * f + 0.05550733953714371f;
  p = p * f + 0.24022242426872253f;
  p = p * f + 0.6931470036506653f;
  return p * f + 1.0f;
}

// 1.5 * 2^23 rounds a small number to an integer in the low bits; 127 more makes those a biased exponent.
constexpr float kRound = 12582912.0f + 127.0f;
inline VF to_power_of_two(VF rounded) { return (VF)((IF)rounded << 23); }
inline Pair<VF> to_power_of_two(Pair<VF> r) { return {to_power_of_two(r.a), to_power_of_two(r.b)}; }

constexpr float kLog2E = 1.44269504f;

// x log2(e) - n to full precision, given y = x log2(e) rounded.
inline VF remainder(VF x, VF y, VF n) {
  // Written as a fused operation, or the compiler takes x * kLog2E for y and what rounding lost for 0.
#if defined(IMBAL_AVX512)
  return (y - n) + (VF)_mm512_fmsub_ps((__m512)x, _mm512_set1_ps(kLog2E), (__m512)y);
#elif defined(IMBAL_AVX2)
  return (y - n) + (VF)_mm256_fmsub_ps((__m256)x, _mm256_set1_ps(kLog2E), (__m256)y);
#else
  return ((x - n * 0.693359375f) + n * 2.12194440e-4f) * kLog2E;
#endif
}
inline Pair<VF> remainder(Pair<VF> x, Pair<VF> y, Pair<VF> n) {
  return {remainder(x.a, y.a, n.a), remainder(x.b, y.b, n.b)};
}

// 2^up exp(hi + lo), |lo| small against the rounding of hi; 0 where that is no longer a normal number.
inline VF exp_sum(VF hi, VF lo, float up) {
  const VF least = VF{} - (87.336f + up * 0.6931472f);
  const VF rounded = vmax(least, at_most(0.0f, hi + lo)) * kLog2E + kRound, n = rounded - kRound;
  const VF f = ((hi - n * 0.693359375f) + (n * 2.12194440e-4f + lo)) * kLog2E;
  return hi + lo < least ? VF{} : exp2_polynomial(f) * to_power_of_two(rounded + up);
}

// Where exp(-x) leaves the normal numbers.
constexpr float largest_exponent(float) { return 87.3f; }
constexpr double largest_exponent(double) { return 708.0; }

// exp(x) for x clamped to [-87.3, 88]
template <class T>
inline T exp_clamped(T x) {
  x = at_least(-87.3f, at_most(88.0f, x));
  const T y = x * kLog2E, rounded = y + kRound, n = rounded - kRound;
  const T f = remainder(x, y, n);
  return exp2_polynomial(f) * to_power_of_two(rounded);
}

// -log(1 - y) for y in [0, 1/2]: 1.6e-7
template <class T>
inline T neg_log1m(T y) {
  T p = y * 1.1606124639511108f - 1.0361649990081787f;
  p = p * y + 7.516146898269653e-1f;
  p = p * y + 5.0824109464883804e-2f;
  p = p * y + 2.6966285705566406e-1f;
  p = p * y + 3.3212924003601074e-1f;
  p = p * y + 5.000246167182922e-1f;
  p = p * y + 1.0f;
  return p * y;
}

// log(x) for a positive normal x, by atanh of (m - 1) / (m + 1): 1.5e-7
inline VF log_normal(VF x) {
  const IF bits = (IF)x - 0x3f3504f3;  // sqrt(1/2): mantissa in [sqrt(1/2), sqrt(2))
  const VF n = __builtin_convertvector(bits >> 23, VF);
  const VF m = (VF)((bits & 0x007fffff) + 0x3f3504f3);
  const VF s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  const VF p = s2 * (s2 * 2.060161679983139e-1f + 3.3327800035476685e-1f) + 1.0f;
  return n * 0.693359375f + (2.0f * s * p - n * 2.12194440e-4f);
}

template <class F>
inline VD lanes(VD x, F f) {
  for (int i = 0; i < Simd<double>::W; ++i) x[i] = f(x[i]);
  return x;
}
inline VD exp_sum(VD hi, VD lo, double up) { return lanes(hi + lo, ::exp) * ::exp2(up); }
inline VD exp_clamped(VD x) { return lanes(at_most(700.0, x), ::exp); }
inline VD neg_log1m(VD y) { return -lanes(-y, ::log1p); }
inline Pair<VD> exp_clamped(Pair<VD> x) { return {exp_clamped(x.a), exp_clamped(x.b)}; }
inline Pair<VD> neg_log1m(Pair<VD> y) { return {neg_log1m(y.a), neg_log1m(y.b)}; }
inline VD log_normal(VD x) { return lanes(x, ::log); }

// For a factor that is below 1e-38 wherever v is above 1e30: 0 * inf stays 0. A NaN stays one.
template <class T>
inline T finite(T v) { return at_most(1e30f, v); }

// w v, and 0 where w is, even for an infinite v. A NaN stays one.
template <class V>
inline V weigh(V w, V v) { return w * (w == 0 ? finite(v) : v); }

// gamma split so that `gamma * a` is exact in two parts without a fused multiply-add.
template <class A>
struct Exponent {
  A whole, high, low;
};

inline VF high_half(VF a) { return (VF)((IF)a & (int32_t)0xfffff000); }
inline VD high_half(VD a) { return (VD)((ID)a & (int64_t)0xfffffffff8000000LL); }

// 2^up exp(gamma * (a - b)) for a <= 0 exact and b in [0, ln 2]: the rounding of a large gamma * a would
// otherwise be the largest error of the whole formula.
template <class A>
inline Vec<A> exp_scaled(Vec<A> a, Vec<A> b, Exponent<A> gamma, A up) {
  a = at_least(A(-1e30), a);
  const Vec<A> high = high_half(a), low = a - high;
  return exp_sum(gamma.high * high, gamma.high * low + gamma.low * a - gamma.whole * b, up);
}
