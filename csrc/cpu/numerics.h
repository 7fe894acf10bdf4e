// exp, log and the two building blocks of every sigmoid loss, to about 1e-7 relative in fp32.
//
// Included inside `namespace IMBAL_ISA`, after simd.h. The fp32 polynomials are minimax fits of the
// named function on the named interval; the figure beside each is its largest relative error with
// coefficients rounded to fp32. fp64 goes through libm lane by lane: it is there for gradient
// checks, not for speed. Denormals are flushed by the caller (FlushDenormals), so they cost nothing.

// 1.5 * 2^23 rounds a small number to an integer in the low bits; 127 more makes those a biased exponent.
constexpr float kRound = 12582912.0f + 127.0f;
constexpr float kLog2E = 1.44269504f;
inline VF to_power_of_two(VF rounded) { return (VF)((IF)rounded << 23); }

// x - n ln 2. Without fused operations ln 2 goes in two parts, the first short enough for n times it to be
// exact; with them its rounding is all that is lost, n * 2e-9.
inline VF remainder(VF x, VF n) {
  if constexpr (kFused) return x - n * 0.693147181f;
  else return (x - n * 0.693359375f) + n * 2.12194440e-4f;
}

// exp(r) on |r| <= ln(2) / 2: 9.4e-8
inline VF exp_polynomial(VF r) {
  VF p = r * 8.290229365229607e-3f + 4.189838841557503e-2f;
  p = p * r + 0.16667640209197998f;
  p = p * r + 0.49999144673347473f;
  p = p * r + 0.9999997019767761f;
  return p * r + 1.0f;
}

// 2^up exp(hi + lo), |lo| small against the rounding of hi; 0 where that is no longer a normal number.
inline VF exp_sum(VF hi, VF lo, float up) {
  const VF least = VF{} - (87.336f + up * 0.6931472f);
  const VF rounded = vmax(least, at_most(0.0f, hi + lo)) * kLog2E + kRound;
  const VF r = remainder(hi, rounded - kRound) + lo;
  return hi + lo < least ? VF{} : exp_polynomial(r) * to_power_of_two(rounded + up);
}

// exp(-|x|), 0 where that is no longer a normal number
inline VF exp_negative_abs(VF x) {
  x = at_least(-87.5f, -magnitude(x));
  const VF rounded = x * kLog2E + kRound;
  return exp_polynomial(remainder(x, rounded - kRound)) * to_power_of_two(rounded);
}

// 1 / d for d in [1, 2]
inline VF reciprocal(VF d) {
#if defined(IMBAL_AVX512)
  // An approximation to 14 bits and a Newton step: a division of this width takes 16 cycles on some processors.
  const VF r = (VF)_mm512_rcp14_ps((__m512)d);
  return r + r * (1.0f - r * d);
#else
  return 1.0f / d;
#endif
}

// log1p(e) for e in [0, 1]: 2.1e-7
inline VF log1p_unit(VF e) {
  VF p = e * -8.539209142327309e-3f + 4.408963397145271e-2f;
  p = p * e - 1.0768171399831772e-1f;
  p = p * e + 1.7745241522789001e-1f;
  p = p * e - 2.4495461583137512e-1f;
  p = p * e + 3.3275479078292847e-1f;
  p = p * e - 4.999740719795227e-1f;
  p = p * e + 9.999998211860657e-1f;
  return p * e;
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
inline VD exp_negative_abs(VD x) { return lanes(-magnitude(x), ::exp); }
inline VD reciprocal(VD d) { return 1.0 / d; }
inline VD log1p_unit(VD e) { return lanes(e, ::log1p); }
inline VD log_normal(VD x) { return lanes(x, ::log); }

// For a factor that is below 1e-38 wherever v is above 1e30: 0 * inf stays 0. A NaN stays one.
template <class T>
inline T finite(T v) { return at_most(1e30f, v); }

// w v, and 0 where w is, even for an infinite v. A NaN stays one.
template <class V>
inline V weigh(V w, V v) { return w * (w == 0 ? finite(v) : v); }

inline VF high_half(VF a) { return (VF)((IF)a & (int32_t)0xfffff000); }
inline VD high_half(VD a) { return (VD)((ID)a & (int64_t)0xfffffffff8000000LL); }

// gamma in two parts, each times the first part of a split `a` exact.
template <class A>
struct Exponent {
  A whole, high, low;
  explicit Exponent(A gamma) : whole(gamma), high(high_half(Vec<A>{} + gamma)[0]), low(gamma - high) {}
};

// gamma * a as a sum of two, the second small.
template <class A>
struct Product {
  Vec<A> hi, lo;
};
template <class A>
inline Product<A> product(Exponent<A> gamma, Vec<A> a) {
  const Vec<A> high = high_half(a), low = a - high;
  return {gamma.high * high, gamma.high * low + gamma.low * a};
}
#if defined(IMBAL_AVX512) || defined(IMBAL_AVX2)
inline Product<float> product(Exponent<float> gamma, VF a) {
  const VF g = VF{} + gamma.whole, hi = g * a;
  return {hi, lost(g, a, hi)};
}
#endif

// 2^up exp(gamma * (a - b)) for a <= 0 exact and b in [0, ln 2]: the rounding of a large gamma * a would
// otherwise be the largest error of the whole formula.
template <class A>
inline Vec<A> exp_scaled(Vec<A> a, Vec<A> b, Exponent<A> gamma, A up) {
  const Product<A> p = product(gamma, at_least(A(-1e30), a));
  return exp_sum(p.hi, p.lo - gamma.whole * b, up);
}
