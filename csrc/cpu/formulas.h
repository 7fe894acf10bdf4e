// The element formulas: (logit, target) -> loss and dloss/dlogit, before any class or row factor.
//
// Included inside `namespace IMBAL_ISA`, after numerics.h. A new sigmoid loss is a new function here.

// How k^gamma is computed: by multiplication for the powers in wide use, else through exp.
enum Power { kPower0, kPower1, kPower2, kPower3, kPowerAny };

template <class A>
struct Element {
  Vec<A> loss, grad;
};

// k^gamma where log k = a - b, as exp_scaled takes it.
template <class A, int P>
inline Vec<A> power(Vec<A> k, Vec<A> a, Vec<A> b, Exponent<A> gamma) {
  if constexpr (P == kPower0) return Vec<A>{} + A(1);
  if constexpr (P == kPower1) return k;
  if constexpr (P == kPower2) return k * k;
  if constexpr (P == kPower3) return k * k * k;
  return exp_scaled<A>(a, b, gamma);
}

// Hard targets, written for a negative (t = 0); a positive is the same at z = -x with grad negated.
//   m = sigmoid(z);  loss = m^g softplus(z);  dloss/dz = m^g (m + g (1 - m) softplus(z))
template <class A, int P>
inline Element<A> hard_formula(Vec<A> z, Exponent<A> gamma) {
  const Vec<A> e = exp_clamped(Vec<A>{} - z);
  const Vec<A> m = A(1) / (A(1) + e);                                 // sigmoid(z)
  const Vec<A> c = m * vmin(Vec<A>{} + largest_exp(A(0)), e);         // 1 - m, without cancellation
  const Vec<A> b = neg_log1m(vmin(c, m));                             // log1p(exp(-|z|))
  const Vec<A> sp = b + vmax(Vec<A>{}, z);
  const Vec<A> mg = power<A, P>(m, vmin(Vec<A>{}, z), b, gamma);
  const Vec<A> slope = P == kPower0 ? m : m + gamma.whole * c * finite(sp);
  return {mg * sp, mg * slope};
}

// Soft targets, label smoothing: k = t + p - 2tp, t' = t (1 - eps) + eps / 2,
//   B = pw t' softplus(-x) + (1 - t') softplus(x);  loss = k^g B
//   dloss/dx = k^g [(1 - t') p - pw t' q + g (1 - 2t) (p q / k) B]
template <class A, int P>
inline Element<A> soft_formula(Vec<A> x, Vec<A> t, Vec<A> pw, A eps, Exponent<A> gamma) {
  using V = Vec<A>;
  const V zero = V{}, one = zero + A(1);
  const V ax = x < 0 ? -x : x;
  const V e = exp_clamped(-ax);
  const V r = one / (one + e), er = e * r;
  const V p = x < 0 ? er : r, q = x < 0 ? r : er;
  const V b = neg_log1m(er);
  const V sp = b + vmax(zero, x), sn = b + vmax(zero, -x);  // softplus(x), softplus(-x)
  const V ts = t * (A(1) - eps) + A(0.5) * eps, us = (one - t) * (A(1) - eps) + A(0.5) * eps;
  // A term with weight 0 is 0 even where its softplus is infinite.
  const V B = (ts == zero ? zero : pw * ts * sn) + (us == zero ? zero : us * sp);
  const V k = vmax(zero + A(1e-37), t * q + (one - t) * p);
  V kg = one, ratio = zero;
  if constexpr (P != kPower0) {
    const auto neg = t == zero, pos = t == one;
    // log k, exact for hard targets: log p = min(x, 0) - b, log q = min(-x, 0) - b
    V log_a = zero, log_b = zero;
    if constexpr (P == kPowerAny) {
      log_a = neg ? vmin(zero, x) : pos ? vmin(zero, -x) : log_normal(k);
      log_b = (neg | pos) ? b : zero;
    }
    const V base = neg ? p : pos ? q : k;
    kg = power<A, P>(base, log_a, log_b, gamma);
    ratio = gamma.whole * (one - A(2) * t) * (neg ? q : pos ? p : p * q / k);
  }
  return {kg * B, kg * (us * p - pw * ts * q + ratio * finite(B))};
}
