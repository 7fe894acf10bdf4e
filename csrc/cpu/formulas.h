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

// What every formula starts from: a logit with e = exp(-|x|) and r = 1 / (1 + e).
template <class V>
struct Logit {
  V x, e, r;
};

// A loss with the factor m^gamma kept apart, which takes the weights in one multiplication.
template <class V>
struct Modulated {
  V modulation, loss, grad;
};

// A formula has three forms. `background` and `hard` leave pos_weight to the caller; a positive's grad is by x.
template <class T, int P>
struct Focal {
  using A = T;
  using V = Vec<A>;
  using Mask = typename Simd<A>::I;
  Exponent<A> gamma;
  A smoothing;

  explicit Focal(const SigmoidLoss& s) : gamma(A(s.gamma)), smoothing(A(s.smoothing)) {}

  // t = 0: m = sigmoid(z);  loss = m^g softplus(z);  dloss/dz = m^g (m + g (1 - m) softplus(z))
  Modulated<V> negative(V z, V e, V r) const {
    const V er = e * r;
    const auto below = z < 0;
    const V m = below ? er : r;
    const V c = below ? r : er;  // 1 - m, without cancellation
    const V b = log1p_unit(e);
    const V sp = b + at_least(A(0), z);
    const V mg = power<P>(m, at_most(A(0), z), b, gamma);
    if constexpr (P == kPower0) return {mg, sp, m};
    else return {mg, sp, m + c * gamma.whole * finite(sp)};
  }

  Modulated<V> background(Logit<V> l) const { return negative(l.x, l.e, l.r); }

  // t = 0 or 1: a positive is a negative at z = -x.
  Modulated<V> hard(Logit<V> l, Mask positive) const {
    Modulated<V> m = negative(positive ? -l.x : l.x, l.e, l.r);
    m.grad = positive ? -m.grad : m.grad;
    return m;
  }

  // Soft targets, label smoothing: k = t + p - 2tp, t' = t (1 - eps) + eps / 2,
  //   B = pw t' softplus(-x) + (1 - t') softplus(x);  loss = k^g B
  //   dloss/dx = k^g [(1 - t') p - pw t' q + g (1 - 2t) (p q / k) B]
  Element<V> soft(Logit<V> l, V t, V pw) const {
    const V zero = V{}, one = zero + A(1), x = l.x, er = l.e * l.r;
    const V p = x < 0 ? er : l.r, q = x < 0 ? l.r : er;
    const V b = log1p_unit(l.e);
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
