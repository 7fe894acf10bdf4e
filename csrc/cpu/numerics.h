// exp, log and the two building blocks of every sigmoid loss, to about 1e-7 relative in fp32.
//
// Included inside `namespace IMBAL_ISA`, after simd.h. The fp32 polynomials are minimax fits of the
// named function on the named interval; the figure beside each is its largest relative error with
// coefficients rounded to fp32. fp64 goes through libm lane by lane: it is there for gradient
// checks, not for speed. Denormals are flushed by the caller (FlushDenormals), so they cost nothing.

// exp(r) on |r| <= ln(2)/2: 9.5e-8. Both polynomials are evaluated by halves (Estrin): the loop is bound
// by the length of its chain of dependent operations, not by their number.
inline VF exp_polynomial(VF r) {
  const VF r2 = r * r;
  const VF low = r * 9.999997019767761e-1f + 1.0f;
  const VF mid = r * 1.666763722896576e-1f + 4.999915063381195e-1f;
  const VF high = r * 8.290302939713001e-3f + 4.18979786336422e-2f;
  return (high * r2 + mid) * r2 + low;
}

// exp(hi + lo), |lo| small against the rounding of hi. 0 below -87, at most exp(88).
inline VF exp_sum(VF hi, VF lo) {
  const VF s = vmax(VF{} - 87.0f, vmin(VF{} + 88.0f, hi + lo));
  // 1.5 * 2^23 rounds to an integer in the low bits; 127 more makes them a biased exponent.
  const VF shifted = s * 1.44269504f + (12582912.0f + 127.0f);
  const VF n = shifted - (12582912.0f + 127.0f);
  const VF r = (hi - n * 0.693359375f) + (n * 2.12194440e-4f + lo);
  const VF p = exp_polynomial(r);
  return hi + lo < -87.0f ? VF{} : p * (VF)((IF)shifted << 23);
}

// exp(x) for x clamped to [-87, 88]: exact enough at the ends for a sigmoid, and one operation less.
inline VF exp_clamped(VF x) {
  x = vmax(VF{} - 87.0f, vmin(VF{} + 88.0f, x));
  const VF shifted = x * 1.44269504f + (12582912.0f + 127.0f);
  const VF n = shifted - (12582912.0f + 127.0f);
  const VF r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const VF p = exp_polynomial(r);
  return p * (VF)((IF)shifted << 23);
}

// -log(1 - y) for y in [0, 1/2]: 1.6e-7
inline VF neg_log1m(VF y) {
  const VF y2 = y * y, y4 = y2 * y2;
  const VF a = y * 5.000246167182922e-1f + 1.0f;
  const VF b = y * 2.6966285705566406e-1f + 3.3212924003601074e-1f;
  const VF c = y * 7.516146898269653e-1f + 5.0824109464883804e-2f;
  const VF d = y * 1.1606124639511108f - 1.0361649990081787f;
  return ((d * y2 + c) * y4 + (b * y2 + a)) * y;
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
inline VD exp_sum(VD hi, VD lo) { return lanes(hi + lo, ::exp); }
inline VD exp_clamped(VD x) { return lanes(x, ::exp); }
inline VD neg_log1m(VD y) {
  return VD{} - lanes(VD{} - y, ::log1p);
}
inline VD log_normal(VD x) { return lanes(x, ::log); }

// A factor times a value that may be infinite: the clamp keeps 0 * inf at 0 and changes nothing else
// (the factor is below 1e-38 wherever the clamp bites).
inline VF finite(VF v) { return vmin(VF{} + 1e30f, v); }
inline VD finite(VD v) { return vmin(VD{} + 1e300, v); }
inline constexpr float largest_exp(float) { return 8.5e37f; }    // 2^126
inline constexpr double largest_exp(double) { return 8.9e307; }  // 2^1023

// gamma split so that `gamma * a` is exact in two parts without a fused multiply-add.
template <class A>
struct Exponent {
  A whole, high, low;
};

inline VF high_half(VF a) { return (VF)((IF)a & (int32_t)0xfffff000); }
inline VD high_half(VD a) { return (VD)((ID)a & (int64_t)0xfffffffff8000000LL); }

// exp(gamma * (a - b)) for a <= 0 exact and b in [0, ln 2]: the rounding of a large gamma * a would
// otherwise be the largest error of the whole formula.
template <class A>
inline Vec<A> exp_scaled(Vec<A> a, Vec<A> b, Exponent<A> gamma) {
  a = vmax(Vec<A>{} - A(1e30), a);
  const Vec<A> high = high_half(a), low = a - high;
  return exp_sum(gamma.high * high, gamma.high * low + gamma.low * a - gamma.whole * b);
}
