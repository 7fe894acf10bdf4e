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

// exp(-x) where it and its reciprocal are normal numbers; beyond, what makes the smaller of sigmoid(x) and
// sigmoid(-x) 0. A NaN stays one.
inline VF limited(VF x) { return at_most(88.0f, at_least(-88.0f, x)); }

#if defined(IMBAL_AVX512) || defined(IMBAL_AVX2)
// 2^(j/32), and of those the kRoots that a shuffle can look up, less the bits of j that the exponent brings along.
constexpr float kPowers[32] = {
    1.00000000f, 1.02189720f, 1.04427373f, 1.06714046f, 1.09050775f, 1.11438680f, 1.13878858f, 1.16372490f,
    1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
    1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.57598090f, 1.61049032f, 1.64575553f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.83400810f, 1.87416768f, 1.91520655f, 1.95714414f};
constexpr int kRoots = IMBAL_BYTES == 64 ? 32 : 8, kRootBits = IMBAL_BYTES == 64 ? 5 : 3;
struct Roots {
  alignas(64) int32_t bits[kRoots];
  constexpr Roots() : bits{} {
    for (int j = 0; j < kRoots; ++j)
      bits[j] = __builtin_bit_cast(int32_t, kPowers[j * 32 / kRoots]) - (j << (23 - kRootBits));
  }
};
constexpr Roots kRootTable;

// exp(x) for |x| <= 88. x = n ln 2 + r with n a multiple of 1 / kRoots: 2^n from the table, exp(r) by a short
// polynomial (5e-8).
inline VF exp_within(VF x) {
  constexpr float round = 12582912.0f / kRoots;
  const VF rounded = x * kLog2E + round, n = rounded - round;
  const VF r = x - n * 0.693147181f;
#if defined(IMBAL_AVX512)
  const IF power = (IF)_mm512_permutex2var_epi32(_mm512_load_si512(kRootTable.bits), (__m512i)rounded,
                                                 _mm512_load_si512(kRootTable.bits + 16));
  const VF p = 1.00001466f + r * 0.49999633f;
#else
  const IF power = (IF)_mm256_permutevar8x32_epi32(*(const __m256i*)kRootTable.bits, (__m256i)rounded);
  const VF p = 1.0f + r * (0.5000782f + r * 0.16665103f);
#endif
  return (1.0f + p * r) * (VF)(power + ((IF)rounded << (23 - kRootBits)));
}
#else
inline VF exp_within(VF x) {
  const VF rounded = x * kLog2E + kRound;
  return exp_polynomial(remainder(x, rounded - kRound)) * to_power_of_two(rounded);
}
#endif
inline VF exp_minus(VF x) { return exp_within(-limited(x)); }

// 1 / d for d >= 1
inline VF reciprocal(VF d) {
#if defined(IMBAL_AVX512)
  // An approximation to 14 bits and a Newton step: a division of this width takes 16 cycles on some processors.
  const VF r = (VF)_mm512_rcp14_ps((__m512)d);
  return r + r * (1.0f - r * d);
#else
  return 1.0f / d;
#endif
}

// -log(1 - y) for y in [0, 1/2]: 1.8e-7, or 9.9e-7 where that is enough
template <bool Exact>
inline VF minus_log1m(VF y) {
  VF p;
  if constexpr (Exact) {
    p = y * 1.18491185f - 1.08150864f;
    p = p * y + 0.7854113f;
    p = p * y + 0.03802403f;
    p = p * y + 0.27224964f;
    p = p * y + 0.33186269f;
    p = p * y + 0.50003654f;
    p = p * y + 0.99999988f;
  } else {
    p = y * 0.99058008f - 0.63791919f;
    p = p * y + 0.5227443f;
    p = p * y + 0.1875325f;
    p = p * y + 0.33891103f;
    p = p * y + 0.49981675f;
    p = p * y + 1.00000095f;
  }
  return p * y;
}

// The same for y in [0, sigmoid(-1)]: 9.6e-8, or 9.9e-7
template <bool Exact>
inline VF minus_log1m_small(VF y) {
  VF p;
  if constexpr (Exact) {
    p = y * 0.36906988f + 0.12616162f;
    p = p * y + 0.26154268f;
    p = p * y + 0.33253807f;
    p = p * y + 0.50001967f;
    p = p * y + 0.99999994f;
  } else {
    p = y * 0.37414011f + 0.2032696f;
    p = p * y + 0.33811808f;
    p = p * y + 0.49983355f;
    p = p * y + 1.00000095f;
  }
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
inline VD exp_minus(VD x) { return lanes(-at_most(709.0, at_least(-709.0, x)), ::exp); }
inline VD reciprocal(VD d) { return 1.0 / d; }
template <bool>
inline VD minus_log1m(VD y) { return -lanes(-y, ::log1p); }
inline VD log_normal(VD x) { return lanes(x, ::log); }

// For a factor that is below 1e-38 wherever v is above 1e30: 0 * inf stays 0. A NaN stays one.
template <class T>
inline T finite(T v) { return at_most(1e30f, v); }

// w v, and 0 where w is, even for an infinite v. A NaN stays one.
template <class V>
inline V weigh(V w, V v) { return w * (w == 0 ? finite(v) : v); }

inline VF high_half(VF a) { return (VF)((IF)a & (int32_t)0xfffff000); }
inline VD high_half(VD a) { return (VD)((ID)a & (int64_t)0xfffffffff8000000LL); }

// gamma in two parts, each times the first part of a split `a` exact; at `least` gamma * a is finite, its power 0.
template <class A>
struct Exponent {
  A whole, high, low, least;
  explicit Exponent(A gamma)
      : whole(gamma), high(high_half(Vec<A>{} + gamma)[0]), low(gamma - high),
        least(gamma > A(1e7) ? A(-1e37) / gamma : A(-1e30)) {}
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
  const Product<A> p = product(gamma, at_least(gamma.least, a));
  return exp_sum(p.hi, p.lo - gamma.whole * b, up);
}
