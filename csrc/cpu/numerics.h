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

// Where exp(-x) leaves the normal numbers.
constexpr float largest_exponent(float) { return 87.3f; }
constexpr double largest_exponent(double) { return 708.0; }

// exp(x) for x clamped to [-87.3, 88]
inline VF exp_clamped(VF x) {
  x = at_least(-87.3f, at_most(88.0f, x));
  const VF rounded = x * kLog2E + kRound;
  return exp_polynomial(remainder(x, rounded - kRound)) * to_power_of_two(rounded);
}

// -log(1 - y) for y in [0, 1/2]: 1.6e-7. In powers of y^2 (Estrin), a shorter chain of operations.
inline VF neg_log1m(VF y) {
  const VF q = y * y;
  VF p = y * 1.1606124639511108f - 1.0361649990081787f;
  p = p * q + (y * 7.516146898269653e-1f + 5.0824109464883804e-2f);
  p = p * q + (y * 2.6966285705566406e-1f + 3.3212924003601074e-1f);
  p = p * q + (y * 5.000246167182922e-1f + 1.0f);
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
