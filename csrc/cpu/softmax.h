// The softmax losses: a tile of positions at a time, in three sweeps over logits that stay in L1 or L2.
//
// Included inside `namespace IMBAL_ISA`, after decode.h. Two layouts share the sweeps: with `by_rows` a vector holds
// logits of one position, else those of one class at as many positions. What is done once a position is done on
// vectors of positions in both.
//
// Class id y, with m the largest logit, a = exp(x_y - m) and d = sum of e_j = exp(x_j - m) over j != y:
//   p = a / (a + d), q = d / (a + d), u = -log p = log1p(d / a); nothing cancels, however confident the position.
//   B = w_y (1 - s) u + f sum_c w_c (lse - x_c),  f = s / C, s the label smoothing;  loss = q^g B
//   dloss/dx_j = q^g [e_j (T q + g p B) / d - f w_j],  T = w_y (1 - s) + f sum_c w_c
//   dloss/dx_y = q^g [f (sum_c w_c - w_y) p - (w_y (1 - s) + f w_y) q - g p B]
// Probabilities t, with a_c = w_c (t_c (1 - s) + f), T = sum a_c, h = sum t_c p_c, k = sum t_c (1 - p_c):
//   B = sum_c a_c (lse - x_c);  loss = k^g B
//   dloss/dx_j = k^g [p_j (T - a_j) - a_j (1 - p_j)] + g k^(g-1) B p_j (h - t_j)

// exp(x) for x <= 0, 0 where that is no longer a normal number: the scale of the smallest x has no exponent left.
inline VF exp_below(VF x) {
  x = at_least(-88.0f, x);
  const VF rounded = x * kLog2E + kRound;
  return exp_polynomial(remainder(x, rounded - kRound)) * to_power_of_two(rounded);
}
inline VD exp_below(VD x) { return lanes(x, ::exp); }

// q^gamma for q in [0, 1]; the whole multiples of log 2 in log q are kept apart, and exact.
inline VF raise(VF q, Exponent<float> gamma) {
  const IF bits = (IF)q - 0x3f3504f3;
  const VF whole = __builtin_convertvector(bits >> 23, VF) * 0.693359375f;
  return q > 0 ? exp_scaled(whole, VF(whole - log_normal(q)), gamma, 0.0f) : q;
}
inline VD raise(VD q, Exponent<double> gamma) {
  return lanes(q, [&](double v) { return v > 0 ? ::pow(v, gamma.whole) : v; });
}

template <class V, class A>
inline V softmax_power(V q, Exponent<A> gamma) {
  if (gamma.whole == 0) return V{} + A(1);
  if (gamma.whole == 1) return q;
  if (gamma.whole == 2) return q * q;
  if (gamma.whole == 3) return q * q * q;
  return raise(q, gamma);
}

// A sum lane by lane that loses no more for being long.
template <class V>
struct LaneSum {
  V high = {}, low = {};
  void add(V v) {
    const V sum = high + v, part = sum - high;
    low += (high - (sum - part)) + (v - part);
    high = sum;
  }
  V total() const { return high + (low == low ? low : V{}); }  // an infinite sum has no low part
};

// What is known of each position of a tile, and then what its gradient is made of.
template <class A>
struct Positions {
  alignas(64) A top[kPositions], own[kPositions], weight[kPositions], counted[kPositions], upstream[kPositions];
  alignas(64) A others[kPositions], deficit[kPositions];
  alignas(64) A tops[kPositions], hit[kPositions], mass[kPositions], rest_mass[kPositions], top_mass[kPositions];
  alignas(64) A loss[kPositions], slope[kPositions], flat[kPositions], at_label[kPositions];
  alignas(64) A inverse[kPositions], rest[kPositions], bend[kPositions];
  alignas(64) A label[kPositions];  // a class id; -1 where none counts
  const A* row[kPositions];  // the logits, where classes lie in the lanes of a vector
  alignas(64) A by_lane[SoftmaxLoss::kRows * Simd<A>::W];  // there a vector for each row, to become one number

  // Each row's vector as one number by f, for n rows, a multiple of W.
  template <class F>
  void across_rows(int64_t n, A* values, F f) const {
    constexpr int W = Simd<A>::W;
    for (int64_t i = 0; i < n; i += W) {
      Vec<A> v[W];
      for (int64_t j = 0; j < W; ++j) v[j] = load(by_lane + (i + j) * W);
      store(values + i, across_each<A>(v, f));
    }
  }
};

// One vector of a tile's positions, class by class; or by rows one position, a vector of classes at a time.
template <class A, bool kRows>
struct Sweep {
  using V = Vec<A>;
  static constexpr int W = Simd<A>::W;
  static constexpr int kStep = kRows ? W : 1;  // classes that a vector holds
  const A* logits;
  A* x;        // their exponentials
  const A* t;  // probabilities, or null
  const A* w;  // weights
  int64_t classes, stride;

  int64_t offset(int64_t c) const { return kRows ? c : c * stride; }
  // What follows the logits of a row can be read, and is none.
  V logit(int64_t c) const {
    const V v = load(logits + offset(c));
    return kRows && c + W > classes ? V(lane_numbers<A>() < int(classes - c) ? v : V{} - A(INFINITY)) : v;
  }
  V weight(int64_t c) const { return kRows ? load(w + c) : V{} + w[c]; }
  // One number a position: the same for a whole row, else a lane's own.
  static V of(const A* values, int64_t i) { return kRows ? V{} + values[i] : load(values + i); }
  static void keep(A* values, int64_t i, V v) {
    if constexpr (kRows) {
      values[i] = across<A>(v, [](auto a, auto b) { return a + b; });
    } else {
      store(values + i, v);
    }
  }

  // f(first, last) for every run of classes that are summed before the sum is added to the others.
  template <class F>
  void for_each_run(F f) const {
    constexpr int64_t run = 32 * kStep;
    for (int64_t first = 0; first < classes; first += run) f(first, first + run < classes ? first + run : classes);
  }

  // Lanes whose label is class c; by rows the label of the one position is looked up instead.
  static auto is_label(const Positions<A>& p, int64_t i, int64_t c) { return load(p.label + i) == A(c); }

  // The largest logit, or by rows the largest in each lane, and the label's logit, 0 without a label.
  void find_top(Positions<A>& p, int64_t i) const {
    V a = V{} - A(INFINITY), b = a;
    if constexpr (kRows) {
      int64_t c = 0;
      for (; c + 2 * W <= classes; c += 2 * W) {
        a = vmax(load(logits + c), a);
        b = vmax(load(logits + c + W), b);
      }
      for (; c < classes; c += W) a = vmax(logit(c), a);
      store(p.by_lane + i * W, vmax(a, b));
      p.own[i] = p.label[i] < 0 ? A(0) : logits[(int64_t)p.label[i]];
    } else {
      V own = {};
      for (int64_t c = 0; c < classes; ++c) {
        const V v = logit(c);
        a = vmax(v, a);
        own = is_label(p, i, c) ? v : own;
      }
      store(p.top + i, a);
      store(p.own + i, own);
    }
  }

  // Sum of w_c (m - x_c)
  void find_deficit(Positions<A>& p, int64_t i) const {
    const V top = of(p.top, i);
    LaneSum<V> sum;
    for_each_run([&](int64_t first, int64_t last) {
      V run = {};
      for (int64_t c = first; c < last; c += kStep) run += weigh(weight(c), V(top - logit(c)));
      sum.add(run);
    });
    keep(p.deficit, i, sum.total());
  }

  // Exponentials, and the sum of all but the label's, or by rows of each lane. There `ahead` is fetched meanwhile.
  void exponentiate(Positions<A>& p, int64_t i, const char* ahead, int64_t size) const {
    const V top = of(p.top, i);
    const int64_t label = kRows ? (int64_t)p.label[i] : -1;
    LaneSum<V> sum;
    for_each_run([&](int64_t first, int64_t last) {
      V run = {};
      const auto add_all = [&](auto has_label) {
        const auto add = [&](int64_t c, V v) {
          if constexpr (kRows) __builtin_prefetch(ahead + c * size);
          const V e = exp_below(V(v - top));
          store(x + offset(c), e);
          if constexpr (!has_label) run += e;
          else if constexpr (kRows) run += lane_numbers<A>() == int(label - c) ? V{} : e;
          else run += is_label(p, i, c) ? V{} : e;
        };
        int64_t c = first;
#pragma GCC unroll 4
        for (; c + kStep <= last; c += kStep) add(c, load(logits + offset(c)));
        if (c < last) add(c, logit(c));
      };
      if (kRows && (label < first || label >= last)) add_all(std::false_type());
      else add_all(std::true_type());
      sum.add(run);
    });
    store(kRows ? p.by_lane + i * W : p.others + i, sum.total());
  }

  // The same with probabilities. The largest logits, e = 1, stay out of the sums that their own would cancel in.
  void exponentiate_probabilities(const SoftmaxLoss& s, Positions<A>& p, int64_t i) const {
    const V top = of(p.top, i), zero = {}, one = zero + A(1);
    const A keep_t = A(1 - s.smoothing), flat = A(s.smoothing / s.classes);
    LaneSum<V> others, tops, hit, mass, rest_mass, top_mass, deficit;
    for_each_run([&](int64_t first, int64_t last) {
      V others_run = {}, tops_run = {}, hit_run = {}, mass_run = {}, rest_run = {}, top_run = {}, deficit_run = {};
      for (int64_t c = first; c < last; c += kStep) {
        const V gap = top - logit(c), e = exp_below(V(-gap)), tc = load(t + offset(c));
        const V a = weight(c) * (tc * keep_t + flat);
        const auto is_top = e == one;
        store(x + offset(c), e);
        others_run += is_top ? zero : e;
        tops_run += is_top ? one : zero;
        hit_run += is_top ? zero : tc * e;
        rest_run += is_top ? zero : tc;
        top_run += is_top ? tc : zero;
        mass_run += a;
        deficit_run += weigh(a, gap);
      }
      others.add(others_run), tops.add(tops_run), hit.add(hit_run), mass.add(mass_run);
      rest_mass.add(rest_run), top_mass.add(top_run), deficit.add(deficit_run);
    });
    keep(p.others, i, others.total()), keep(p.tops, i, tops.total()), keep(p.hit, i, hit.total());
    keep(p.mass, i, mass.total()), keep(p.rest_mass, i, rest_mass.total());
    keep(p.top_mass, i, top_mass.total()), keep(p.deficit, i, deficit.total());
  }

  // gradient(c) for every vector, to `out`, and what is known of the label's in its place. A row's last vector may run
  // over what follows it. With `past` they go past the caches.
  template <class F>
  void write(const Positions<A>& p, int64_t i, A* out, bool past, F gradient) const {
    if constexpr (!kRows) {
      const V at_label = load(p.at_label + i);
#pragma GCC unroll 4
      for (int64_t c = 0; c < classes; ++c)
        store(out + offset(c), V(is_label(p, i, c) ? at_label : gradient(c)));
      return;
    }
    const auto write_to = [&](int64_t c, int64_t end) {
#pragma GCC unroll 4
      for (; c < end; c += W) store(out + c, gradient(c), past);
    };
    const int64_t label = p.label[i];
    if (label >= 0 && past) {  // once, or the line would have to be fetched
      const int64_t own = label / W * W;
      const V mine = gradient(own);
      write_to(0, own);
      store(out + own, V(lane_numbers<A>() == int(label - own) ? V{} + p.at_label[i] : mine), true);
      write_to(own + W, classes);
    } else {
      write_to(0, classes);
      if (label >= 0) out[label] = p.at_label[i];
    }
  }

  void differentiate(const SoftmaxLoss& s, const Positions<A>& p, int64_t i, A* out, bool past) const {
    const V slope = of(p.slope, i);
    if (s.smoothing == 0)
      return write(p, i, out, past, [&](int64_t c) { return V(load(x + offset(c)) * slope); });
    const V flat = of(p.flat, i);
    write(p, i, out, past, [&](int64_t c) { return V(load(x + offset(c)) * slope - flat * weight(c)); });
  }

  void differentiate_probabilities(const SoftmaxLoss& s, const Positions<A>& p, int64_t i, A* out, bool past) const {
    const V zero = {}, one = zero + A(1);
    const V slope = of(p.slope, i), bend = of(p.bend, i), inverse = of(p.inverse, i), rest = of(p.rest, i);
    const V mass = of(p.mass, i), hit = of(p.hit, i), k = of(p.flat, i);
    const V targets = of(p.rest_mass, i) + of(p.top_mass, i);
    const A keep_t = A(1 - s.smoothing), flat = A(s.smoothing / s.classes);
    write(p, i, out, past, [&](int64_t c) {
      const V e = load(x + offset(c)), tc = load(t + offset(c)), a = weight(c) * (tc * keep_t + flat);
      const V prob = e * inverse, other = e == one ? rest : one - prob;
      const V turn = tc > A(0.5) * targets ? (targets - tc) - k : hit - tc;  // h - t_j, as h = sum t - k
      return V(slope * (prob * (mass - a) - a * other) + bend * prob * turn);
    });
  }
};

// From sums to loss and slopes, for vectors of positions with a class id.
template <class A>
void finish_ids(const SoftmaxLoss& s, Positions<A>& p, int64_t n) {
  using V = Vec<A>;
  const V zero = {}, one = zero + A(1);
  const Exponent<A> gamma{A(s.gamma)};
  const A flat = A(s.smoothing / s.classes), keep = A(1 - s.smoothing);
  const A total_weight = s.smoothing == 0 ? A(0) : A(s.total_weight);
  for (int64_t i = 0; i < n; i += Simd<A>::W) {
    const V gap = load(p.top + i) - load(p.own + i), d = load(p.others + i), w = load(p.weight + i);
    const V a = exp_below(V(-gap)), sum = a + d, inverse = one / sum;
    const V prob = a * inverse, q = d * inverse;
    const V u = (d <= a ? minus_log1m<true>(q) : log_normal(sum) + gap) + (sum - sum);  // a NaN stays one
    V b = weigh(V(w * keep), u), mass = w * keep;
    if (s.smoothing != 0) {
      b += flat * (load(p.deficit + i) + total_weight * log_normal(sum));
      mass += flat * total_weight;
    }
    const V power = softmax_power(q, gamma), bend = finite(gamma.whole * prob * finite(b));
    const V counted = load(p.counted + i), scale = A(s.scale) * (load(p.upstream + i) * A(s.grad_scale));
    // bend / d alone can pass all numbers where d is least; q^gamma / q can't.
    const V factor = power * scale, slope = (mass * power + (q == zero ? zero : power / q) * bend) * inverse;
    const V label = flat * (total_weight - w) * prob - (keep + flat) * w * q - bend;
    const auto skip = counted == zero;
    store(p.loss + i, V(skip ? zero : weigh(power, b) * A(s.scale)));
    store(p.slope + i, V(skip ? zero : weigh(scale, slope)));
    store(p.flat + i, V(skip ? zero : factor * flat));
    store(p.at_label + i, V(skip ? zero : weigh(factor, label)));
  }
}

template <class A>
void finish_probabilities(const SoftmaxLoss& s, Positions<A>& p, int64_t n) {
  using V = Vec<A>;
  const V zero = {}, one = zero + A(1);
  const Exponent<A> gamma{A(s.gamma)};
  for (int64_t i = 0; i < n; i += Simd<A>::W) {
    const V beyond = load(p.others + i) + (load(p.tops + i) - one), inverse = one / (one + beyond);
    const V rest = beyond * inverse;
    const V level = (beyond <= one ? minus_log1m<true>(rest) : log_normal(one + beyond)) + (beyond - beyond);
    const V b = load(p.deficit + i) + load(p.mass + i) * level;
    const V hit = load(p.hit + i), top_mass = load(p.top_mass + i);
    const V k = at_least(A(0), load(p.rest_mass + i) - hit * inverse + top_mass * rest);
    const V power = softmax_power(k, gamma), counted = load(p.counted + i);
    const V factor = A(s.scale) * (load(p.upstream + i) * A(s.grad_scale)), bend = finite(gamma.whole * finite(b)) * power / k;
    const auto skip = counted == zero;
    store(p.loss + i, V(skip ? zero : weigh(power, b) * A(s.scale)));
    store(p.slope + i, V(skip ? zero : power * factor));
    store(p.bend + i, V((skip | (k == zero)) ? zero : bend * factor));
    store(p.inverse + i, inverse);
    store(p.rest + i, rest);
    store(p.hit + i, V((hit + top_mass) * inverse));
    store(p.flat + i, k);
  }
}
