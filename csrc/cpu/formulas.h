// The element formulas: (logit, target) -> loss and dloss/dlogit, before any class or row factor.
//
// Included inside `namespace IMBAL_ISA`, after numerics.h. A new sigmoid loss is a new struct like Focal.

// How k^gamma is computed: by multiplication for the powers in wide use, else through exp.
enum Power { kPower0, kPower1, kPower2, kPower3, kPower4, kPowerAny };

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
  if constexpr (P == kPower4) return k * k * (k * k);
  if constexpr (P == kPowerAny) return exp_scaled(a, b, gamma, A(0));
}

// k^gamma v, right where k^gamma alone would be flushed to 0 and the product is not.
template <int P, class V, class A>
inline V times_power(V v, V k, V a, V b, Exponent<A> gamma) {
  if constexpr (P == kPowerAny) return weigh(exp_scaled(a, b, gamma, A(32)), v * A(0x1p-32));
  if constexpr (P == kPower4) return k * (k * (k * weigh(k, v)));
  if constexpr (P == kPower3) return k * (k * weigh(k, v));
  if constexpr (P == kPower2) return k * weigh(k, v);
  if constexpr (P == kPower1) return weigh(k, v);
  return v;
}

// What every formula starts from: a logit with e = exp(-x) and r = 1 / (1 + e) = sigmoid(x); of confident background,
// where x is in [-87, -1], e = exp(x) and r = sigmoid(-x).
template <class V>
struct Logit {
  V x, e, r;
};

// A loss with the factor m^gamma kept apart, which takes the weights in one multiplication.
template <class V>
struct Modulated {
  V modulation, loss, grad;
};

// A formula has two forms: for background, which where it mirrors serves positives too, and for any target. Where
// kConfident is set, the first has a cheaper one for confident background, of numbers that are all normal and finite.
template <class T, int P>
struct Focal {
  static constexpr bool kMirrors = true, kConfident = sizeof(T) == 4;
  using A = T;
  using V = Vec<A>;
  Exponent<A> gamma;
  A smoothing;

  explicit Focal(const SigmoidLoss& s) : gamma(A(s.gamma)), smoothing(A(s.smoothing)) {}

  // softplus(x) - max(x, 0) = softplus(-x) - max(-x, 0), from p = sigmoid(x) and q = 1 - p. A higher power is
  // allowed a larger error.
  template <bool Confident = false>
  static V log_term(V p, V q) {
    if constexpr (Confident) return minus_log1m_small<P == kPower0>(p);
    else return minus_log1m<P == kPower0>(vmin(p, q));
  }

  // t = 0, or a positive by the negated logit; m = sigmoid(x), c = 1 - m:
  //   loss = m^g softplus(x);  dloss/dx = m^g (m + g c softplus(x))
  template <bool Confident = false>
  Modulated<V> background(Logit<V> l) const {
    const V m = Confident ? l.e * l.r : l.r, c = Confident ? l.r : l.e * l.r, b = log_term<Confident>(m, c);
    const V sp = Confident ? b : b + at_least(A(0), l.x);
    const V mg = power<P>(m, Confident ? l.x : at_most(A(0), l.x), b, gamma);
    if constexpr (P == kPower0) return {mg, sp, m};
    const V gc = P == kPower1 ? c : P == kPower2 ? c + c : c * gamma.whole;
    return {mg, sp, m + gc * (Confident ? sp : finite(sp))};
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
      ratio = (one - A(2) * t) * (neg ? q : pos ? p : p * q / k);
    }
    const V slope = us * p - pw * ts * q + ratio * finite(gamma.whole * finite(B));
    return {times_power<P>(B, base, log_a, log_b, gamma), times_power<P>(slope, base, log_a, log_b, gamma)};
  }
};

// What a soft target starts from: p, q, softplus(x), softplus(-x), pos_weight t' and 1 - t', B and dB/dx.
template <class V, class A>
struct Entropy {
  V p, q, tail, sp, sn, ts, us, B, slope;

  Entropy(Logit<V> l, V t, V pw, A smoothing) {
    const V one = V{} + A(1);
    p = l.r;
    q = p == 0 ? one : l.e * p;  // where p is 0, e was limited
    tail = minus_log1m<true>(vmin(p, q));
    sp = tail + at_least(A(0), l.x);
    sn = tail + at_least(A(0), -l.x);
    ts = pw * (t * (A(1) - smoothing) + A(0.5) * smoothing);
    us = (one - t) * (A(1) - smoothing) + A(0.5) * smoothing;
    B = weigh(ts, sn) + weigh(us, sp);
    slope = us * p - ts * q;
  }
};

// d = p - t;  loss = |d|^b B;  dloss/dx = |d|^b [B' + b (p q / d) B]. Hard targets are focal loss.
template <class T, int P>
struct QualityFocal : Focal<T, P> {
  using A = T;
  using V = Vec<A>;
  using Focal<T, P>::Focal;

  Element<V> soft(Logit<V> l, V t, V pw) const {
    const V zero = V{}, one = zero + A(1);
    const Entropy<V, A> s(l, t, pw, this->smoothing);
    // From the smaller of p and q: exact for a hard target.
    const V d = l.x < 0 ? s.p - t : (one - t) - s.q, k = d < 0 ? -d : d, normal = at_least(A(1e-37), k);
    const auto neg = t == zero, pos = t == one;
    V log_a = zero, log_b = zero;
    if constexpr (P == kPowerAny) {
      log_a = neg ? at_most(A(0), l.x) : pos ? at_most(A(0), -l.x) : log_normal(normal);
      log_b = (neg | pos) ? s.tail : zero;
    }
    const V size = neg ? s.q : pos ? s.p : s.p * s.q / normal;
    const V ratio = this->gamma.whole * (d == 0 ? zero : d < 0 ? -size : size);
    const V slope = s.slope + ratio * finite(s.B);
    return {times_power<P>(s.B, k, log_a, log_b, this->gamma), times_power<P>(slope, k, log_a, log_b, this->gamma)};
  }
};

// t > 0: loss = t B;  t = 0: loss = a p^g B, dloss/dx = a p^g [B' + g q B]
template <class T, int P>
struct Varifocal : Focal<T, P> {
  using A = T;
  using V = Vec<A>;
  static constexpr bool kMirrors = false;
  A alpha;

  explicit Varifocal(const SigmoidLoss& s) : Focal<T, P>(s), alpha(A(s.negatives)) {}

  template <bool Confident = false>
  Modulated<V> background(Logit<V> l) const {
    const Modulated<V> m = Focal<T, P>::template background<Confident>(l);
    return {m.modulation * alpha, alpha == 0 ? finite(m.loss) : m.loss, m.grad};
  }

  Element<V> soft(Logit<V> l, V t, V pw) const {
    const Entropy<V, A> s(l, t, pw, this->smoothing);
    const V log_p = at_most(A(0), l.x), slope = s.slope + this->gamma.whole * s.q * finite(s.B);
    const auto neg = t == V{};
    const V loss = weigh(V{} + alpha, times_power<P>(s.B, s.p, log_p, s.tail, this->gamma));
    const V grad = alpha * times_power<P>(slope, s.p, log_p, s.tail, this->gamma);
    return {neg ? loss : t * s.B, neg ? grad : t * s.slope};
  }
};

// t = 0: y = max(p - c, 0), u = -log(1 - y), loss = y^g u, dloss/dx = y^g p q (g u / y + 1 / (1 - y)), 0 where y is;
// t = 1: focal loss's with an exponent of its own;  any t: pos_weight t' and 1 - t' times these.
template <class T, int P>
struct Asymmetric {
  using A = T;
  using V = Vec<A>;
  static constexpr bool kMirrors = false, kConfident = false;
  Exponent<A> gamma, gamma_pos;
  A smoothing, clip;

  explicit Asymmetric(const SigmoidLoss& s)
      : gamma(A(s.gamma)), gamma_pos(A(s.gamma_pos)), smoothing(A(s.smoothing)), clip(A(s.clip)) {}

  Modulated<V> background(Logit<V> l) const {
    const V p = l.r, q = p == 0 ? V{} + A(1) : l.e * p;
    if (clip > 0) return clipped(l.x, p, q);
    const V tail = minus_log1m<true>(vmin(p, q)), sp = tail + at_least(A(0), l.x);
    return {power<P>(p, at_most(A(0), l.x), tail, gamma), sp, p + gamma.whole * q * finite(sp)};
  }

  Modulated<V> clipped(V x, V p, V q) const {
    const V zero = V{}, half = zero + A(0.5);
    const V above = x < 0 ? p - clip : (A(1) - clip) - q, y = at_least(A(0), above), normal = at_least(A(1e-37), y);
    const V rest = q + clip;  // 1 - y, where y is not 0
    const V u = y > half ? -log_normal(at_least(A(1e-37), rest)) : minus_log1m<true>(at_most(A(0.5), y));
    V log_y = zero;
    if constexpr (P == kPowerAny) log_y = log_normal(normal);
    const V slope = p * q * (gamma.whole * u / normal + A(1) / rest);
    return {power<P>(y, log_y, zero, gamma), u, above <= zero ? zero : slope};
  }

  Element<V> soft(Logit<V> l, V t, V pw) const {
    const Entropy<V, A> s(l, t, pw, smoothing);
    V hit = V{} + A(1);
    if (gamma_pos.whole == 1) hit = s.q;
    else if (gamma_pos.whole != 0) hit = exp_scaled(at_most(A(0), -l.x), s.tail, gamma_pos, A(0));
    const Modulated<V> miss = background(l);
    const V loss = weigh(s.ts, weigh(hit, s.sn)) + weigh(s.us, weigh(miss.modulation, miss.loss));
    const V slope = s.q + gamma_pos.whole * s.p * finite(s.sn);
    return {loss, s.us * (miss.modulation * miss.grad) - s.ts * (hit * slope)};
  }
};
