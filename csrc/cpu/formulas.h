// The element formulas: (logit, target) -> loss and dloss/dlogit, before any class or row factor.
//
// Included inside `namespace IMBAL_ISA`, after numerics.h. A new sigmoid loss is a new function here.

// How k^gamma is computed: by multiplication for the powers in wide use, else through exp.
enum Power { kPower0, kPower1, kPower2, kPower3, kPowerAny };

template <class T>
struct Element {
  T loss, grad;
};

// k^gamma where log k = a - b, as exp_scaled takes it.
template <int P, class T, class A>
inline T power(T k, T a, T b, Exponent<A> gamma) {
  if constexpr (P == kPower0) return T{} + A(1);
  if constexpr (P == kPower1) return k;
  if constexpr (P == kPower2) return k * k;
  if constexpr (P == kPower3) return k * k * k;
  if constexpr (P == kPowerAny) return exp_scaled(a, b, gamma, A(0));
}

// k^gamma v, right where k^gamma alone would be flushed to 0 and the product is not.
template <int P, class V, class A>
inline V times_power(V v, V k, V a, V b, Exponent<A> gamma) {
  if constexpr (P == kPowerAny) return weigh(exp_scaled(a, b, gamma, A(32)), v * A(0x1p-32));
  if constexpr (P == kPower3) return k * (k * weigh(k, v));
  if constexpr (P == kPower2) return k * weigh(k, v);
  if constexpr (P == kPower1) return weigh(k, v);
  return v;
}

// Both formulas take the one exponential that they need ready made: see run_formula.

// Hard targets, written for a negative (t = 0); a positive is the same at z = -x with grad negated.
//   m = sigmoid(z);  loss = m^g softplus(z);  dloss/dz = m^g (m + g (1 - m) softplus(z))
// Returned without the factor m^g (kept apart: it takes the weights in one multiplication).
template <class V>
struct Hard {
  V modulation, loss, grad;
};

// e = exp(-z)
template <int P, class V, class A>
inline Hard<V> hard_formula(V z, V e, Exponent<A> gamma) {
  const V m = A(1) / (A(1) + e);            // sigmoid(z)
  const V c = m * e;                        // 1 - m, without cancellation
  const V b = neg_log1m(vmin(c, m));        // log1p(exp(-|z|))
  const V sp = b + at_least(A(0), z);
  const V mg = power<P>(m, at_most(A(0), z), b, gamma);
  if constexpr (P == kPower0) return {mg, sp, m};
  else return {mg, sp, m + c * gamma.whole * finite(sp)};
}

// Soft targets, label smoothing: k = t + p - 2tp, t' = t (1 - eps) + eps / 2,
//   B = pw t' softplus(-x) + (1 - t') softplus(x);  loss = k^g B
//   dloss/dx = k^g [(1 - t') p - pw t' q + g (1 - 2t) (p q / k) B]
// e = exp(-|x|), 0 where that is no longer a normal number
template <class V>
inline V soft_exponential(V x) {
  const V ax = x < 0 ? -x : x;
  return ax > largest_exponent(x[0]) ? V{} : exp_clamped(-ax);
}
template <int P, class V, class A>
inline Element<V> soft_formula(V x, V e, V t, V pw, A eps, Exponent<A> gamma) {
  const V zero = V{}, one = zero + A(1);
  const V r = one / (one + e), er = e * r;
  const V p = x < 0 ? er : r, q = x < 0 ? r : er;
  const V b = neg_log1m(er);
  const V sp = b + at_least(A(0), x), sn = b + at_least(A(0), -x);  // softplus(x), softplus(-x)
  const V ts = t * (A(1) - eps) + A(0.5) * eps, us = (one - t) * (A(1) - eps) + A(0.5) * eps;
  const V B = weigh(V(pw * ts), sn) + weigh(us, sp);
  const V k = at_least(A(1e-37), t * q + (one - t) * p);
  V base = one, log_a = zero, log_b = zero, ratio = zero;
  if constexpr (P != kPower0) {
    const auto neg = t == zero, pos = t == one;
    base = neg ? p : pos ? q : k;
    // log k, exact for hard targets: log p = min(x, 0) - b, log q = min(-x, 0) - b
    if constexpr (P == kPowerAny) {
      log_a = neg ? at_most(A(0), x) : pos ? at_most(A(0), -x) : log_normal(k);
      log_b = (neg | pos) ? b : zero;
    }
    ratio = gamma.whole * (one - A(2) * t) * (neg ? q : pos ? p : p * q / k);
  }
  const V slope = us * p - pw * ts * q + ratio * finite(B);
  return {times_power<P>(B, base, log_a, log_b, gamma), times_power<P>(slope, base, log_a, log_b, gamma)};
}
