// The element formulas: (logit, target) -> loss and dloss/dlogit, before any class or row factor.
//
// Included inside `namespace IMBAL_ISA`, after numerics.h. A new sigmoid loss is a new struct like Focal.

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

// What every formula starts from: a logit with e = exp(-x) and r = 1 / (1 + e) = sigmoid(x).
template <class V>
struct Logit {
  V x, e, r;
};

// A loss with the factor m^gamma kept apart, which takes the weights in one multiplication.
template <class V>
struct Modulated {
  V modulation, loss, grad;
};

// A formula has two forms: for background, which serves positives too, and for any target.
template <class T, int P>
struct Focal {
  using A = T;
  using V = Vec<A>;
  Exponent<A> gamma;
  A smoothing;

  explicit Focal(const SigmoidLoss& s) : gamma(A(s.gamma)), smoothing(A(s.smoothing)) {}

  // softplus(x) - max(x, 0) = softplus(-x) - max(-x, 0), from p = sigmoid(x) and q = 1 - p. A higher power is
  // allowed a larger error.
  static V log_term(V p, V q) { return minus_log1m<P == kPower0>(vmin(p, q)); }

  // t = 0, or a positive by the negated logit; m = sigmoid(x), c = 1 - m:
  //   loss = m^g softplus(x);  dloss/dx = m^g (m + g c softplus(x))
  Modulated<V> background(Logit<V> l) const {
    const V m = l.r, c = l.e * l.r, b = log_term(m, c);
    const V sp = b + at_least(A(0), l.x);
    const V mg = power<P>(m, at_most(A(0), l.x), b, gamma);
    if constexpr (P == kPower0) return {mg, sp, m};
    const V gc = P == kPower1 ? c : P == kPower2 ? c + c : c * gamma.whole;
    return {mg, sp, m + gc * finite(sp)};
  }

  // Soft targets, label smoothing: k = t + p - 2tp, t' = t (1 - eps) + eps / 2,
  //   B = pw t' softplus(-x) + (1 - t') softplus(x);  loss = k^g B
  //   dloss/dx = k^g [(1 - t') p - pw t' q + g (1 - 2t) (p q / k) B]
  Element<V> soft(Logit<V> l, V t, V pw) const {
    const V zero = V{}, one = zero + A(1), x = l.x, p = l.r;
    const V q = p == 0 ? one : l.e * p;  // where p is 0, e was limited
    const V b = log_term(p, q);
    const V sp = b + at_least(A(0), x), sn = b + at_least(A(0), -x);  // softplus(x), softplus(-x)
    const V ts = t * (A(1) - smoothing) + A(0.5) * smoothing;
    const V us = (one - t) * (A(1) - smoothing) + A(0.5) * smoothing;
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
};
