// The streaming loss: the flattened logits a block at a time, in two steps. Decoding (decode.h) turns labels
// and factors into values in L1; the formula then runs over whole vectors and knows of neither.
//
// Included inside `namespace IMBAL_ISA`, last.

// Factors where no tensor takes part in them.
template <class A>
struct Scalars {
  A negative, positive, pos_weight, grad_scale;

  explicit Scalars(const SigmoidLoss& s)
      : negative(A(s.alpha < 0 ? s.scale : s.scale * (1 - s.alpha))),
        positive(A(s.alpha < 0 ? s.scale : s.scale * s.alpha)),
        pos_weight(A(s.pos_weight)),
        grad_scale(A(s.grad_scale)) {}
};

// One block with its sources and destinations resolved to the compute type.
template <class A>
struct Operands {
  const A* x;
  const A* t;           // null: background throughout
  const A* factor;      // or null: scale and alpha say it all
  const A* pos_weight;  // or null
  const A* upstream;    // or null
  A* loss;              // or null
  A* grad;              // or null
  bool past_caches;
};

// e and r of some vectors, before all else: three loops with short chains of dependent operations leave a core
// more to do at once than a single loop with a long one.
template <class A>
struct Prepared {
  Vec<A> e[kBlock / Simd<A>::W], r[kBlock / Simd<A>::W];

  // logit(v): vector v.
  template <class F>
  Prepared(int64_t first, int64_t last, F logit) {
    for (int64_t v = first; v < last; ++v) e[v - first] = exp_minus(logit(v));
    for (int64_t v = 0; v < last - first; ++v) r[v] = reciprocal(A(1) + e[v]);
  }
};

// Vectors that are looked at together: longer runs are less often confident throughout, shorter ones pay for the look.
constexpr int kGroup = 16;

// Whether every logit of a group is in [-87, -1], where the exponential needs no limits and the softplus no cases. Bits
// of negative numbers grow with their size, those of a NaN and of an infinity beyond all others.
inline bool confident(const float* x, int64_t vectors) {
  typedef uint32_t Bits __attribute__((vector_size(IMBAL_BYTES)));
  constexpr uint32_t least = 0xbf800000, most = 0xc2ae0000;
  Bits top = {};
  for (int64_t v = 0; v < vectors; ++v) {
    const Bits above = (Bits)load(x + v * Simd<float>::W) - least;
    top = above > top ? above : top;
  }
  return !any<float>((IF)(top > most - least));
}

// Vectors of nothing but background: nearly all of a detector's outputs. Plain: with no factor but the scalars, and no
// loss of single elements.
template <bool Plain, class F, class A = typename F::A>
Vec<A> background(const F formula, const Scalars<A> k, const Operands<A> o, int64_t first, int64_t last) {
  using V = Vec<A>;
  constexpr int W = Simd<A>::W;
  const A grad_factor = k.negative * k.grad_scale;
  V sum = {}, run;  // of all groups and of one: adding few numbers at a time rounds off less
  auto take = [&](int64_t v, Modulated<V> m) {
    const int64_t i = v * W;
    if constexpr (Plain) {
      run += m.modulation * m.loss;
      if (o.grad) store(o.grad + i, V(m.modulation * grad_factor * m.grad), o.past_caches);
    } else {
      const V f = m.modulation * (o.factor ? load(o.factor + i) : V{} + k.negative), loss = weigh(f, m.loss);
      const V up = o.upstream ? load(o.upstream + i) * k.grad_scale : V{} + k.grad_scale;
      run += loss;
      if (o.loss) store(o.loss + i, loss, o.past_caches);
      if (o.grad) store(o.grad + i, V(f * up * m.grad), o.past_caches);
    }
  };
  auto logit = [&](int64_t v) { return load_ahead(o.x + v * W); };
  for (int64_t next; first < last; first = next, sum += run) {
    next = first + kGroup < last ? first + kGroup : last;
    run = V{};
    if constexpr (F::kConfident) {
      const int64_t count = next - first;
      if (confident(o.x + first * W, count)) {
        V e[kGroup], r[kGroup];
        // Unrolled: beside another thread on its core this one is given half of what is decoded in a cycle.
#pragma GCC unroll 4
        for (int64_t i = 0; i < count; ++i) e[i] = exp_within(logit(first + i));
#pragma GCC unroll 4
        for (int64_t i = 0; i < count; ++i) r[i] = reciprocal(A(1) + e[i]);
#pragma GCC unroll 4
        for (int64_t i = 0; i < count; ++i)
          take(first + i, formula.template background<true>({load(o.x + (first + i) * W), e[i], r[i]}));
        continue;
      }
    }
    const Prepared<A> p(first, next, logit);
    for (int64_t v = first; v < next; ++v)
      take(v, formula.background({load(o.x + v * W), p.e[v - first], p.r[v - first]}));
  }
  return Plain ? weigh(V{} + k.negative, sum) : sum;
}

// Vectors of anything: background, hard or soft targets, with every factor.
template <bool Soft, class F, class A = typename F::A>
Vec<A> anything(const F formula, const Scalars<A> k, const Operands<A> o, int64_t first, int64_t last) {
  using V = Vec<A>;
  constexpr int W = Simd<A>::W;
  const V zero = {}, one = zero + A(1);
  auto target = [&](int64_t v) { return load(o.t + v * W); };
  // A positive at x is a negative at -x.
  auto turned = [&](int64_t v, V x) { return Soft ? x : target(v) == one ? -x : x; };
  const Prepared<A> p(first, last, [&](int64_t v) { return turned(v, load_ahead(o.x + v * W)); });
  V sum = {};
  for (int64_t v = first; v < last; ++v) {
    const int64_t i = v * W;
    const V t = target(v), pw = o.pos_weight ? load(o.pos_weight + i) : zero + k.pos_weight;
    const V up = o.upstream ? load(o.upstream + i) * k.grad_scale : zero + k.grad_scale;
    const auto is_pos = t == one, ignored = t == zero + A(kIgnored);
    V f;
    Element<V> e;
    if constexpr (Soft) {
      f = o.factor ? load(o.factor + i) : t * k.positive + (one - t) * k.negative;
      e = formula.soft({load(o.x + i), p.e[v - first], p.r[v - first]}, t, pw);
    } else {
      const auto m = formula.background({turned(v, load(o.x + i)), p.e[v - first], p.r[v - first]});
      f = o.factor ? load(o.factor + i) : is_pos ? zero + k.positive : zero + k.negative;
      f *= m.modulation * (is_pos ? pw : one);
      e = {m.loss, is_pos ? -m.grad : m.grad};
    }
    const V loss = ignored ? zero : weigh(f, e.loss);
    sum += loss;
    if (o.loss) store(o.loss + i, loss, o.past_caches);
    if (o.grad) store(o.grad + i, V(ignored ? zero : f * up * e.grad), o.past_caches);
  }
  return sum;
}

template <class F, class A = typename F::A>
Vec<A> run_block(const F& formula, const Scalars<A>& k, Targets targets, const Operands<A>& o, int64_t vectors) {
  constexpr int64_t most = kBlock / Simd<A>::W;  // that Prepared holds
  const bool plain = !o.factor && !o.upstream && !o.loss, soft = targets.soft || !F::kMirrors;
  Vec<A> sum = {};
  auto between = [&](int64_t first, int64_t last) {
    sum += plain ? background<true>(formula, k, o, first, last) : background<false>(formula, k, o, first, last);
  };
  auto inside = [&](int64_t first, int64_t last) {
    for (int64_t next; first < last; first = next) {
      next = std::min(first + most, last);
      sum += soft ? anything<true>(formula, k, o, first, next) : anything<false>(formula, k, o, first, next);
    }
  };
  int64_t done = 0;
  for (int64_t i = 0; i < targets.count; ++i) {
    const Span s = targets.spans[i];
    between(done, s.first);
    inside(s.first, s.last);
    done = s.last;
  }
  between(done, vectors);
  return sum;
}

// A block's sums of the elements of one class.
template <class A>
struct OfClass {
  Sum sums[kSums];

  void add(Vec<A> t, Vec<A> loss, Vec<A> grad) {
    const Vec<A> zero = {}, size = grad < zero ? -grad : grad;
    const auto positive = t > zero;
    sums[0].add(positive ? zero + A(1) : zero);
    sums[1].add(loss);
    sums[2].add(positive ? size : zero);
    sums[3].add(positive ? zero : size);
  }
};

// Adds a block's losses and gradients to the sums of their classes.
template <class A>
void add_by_class(const SigmoidLoss& s, const Operands<A>& o, Place at, int64_t n) {
  constexpr int W = Simd<A>::W;
  auto add_one = [&](int64_t c, int64_t i) {
    const bool positive = o.t && o.t[i] > 0;
    s.by_class[c] += positive;
    s.by_class[s.classes + c] += o.loss[i];
    s.by_class[(positive ? 2 : 3) * s.classes + c] += o.grad[i] < 0 ? -o.grad[i] : o.grad[i];
  };
  for_each_piece(at, n, [&](int64_t i, int64_t piece, int64_t line, int64_t offset) {
    if (!s.positions) {
      for (int64_t j = 0; j < piece; ++j) add_one(offset + j, i + j);
      return;
    }
    const int64_t c = line % s.classes;
    OfClass<A> all;
    int64_t j = 0;
    for (; j + W <= piece; j += W)
      all.add(o.t ? load(o.t + i + j) : Vec<A>{}, load(o.loss + i + j), load(o.grad + i + j));
    for (int64_t k = 0; k < kSums; ++k) s.by_class[k * s.classes + c] += all.sums[k].total();
    for (; j < piece; ++j) add_one(c, i + j);
  });
}

// Chunks first to last - 1; the first bad target, or -1.
template <class F, class A = typename F::A>
int64_t run_chunks(const SigmoidLoss& s, int64_t first, int64_t last) {
  constexpr Type own = sizeof(A) == 4 ? Type::kF32 : Type::kF64;
  constexpr int W = Simd<A>::W;
  static thread_local Buffers<A> b;
  const FlushDenormals flush;
  const F formula(s);
  const Scalars<A> k(s);
  const int64_t total = s.rows * s.classes, end = last * kChunk < total ? last * kChunk : total;
  const bool factors = s.weight.data || s.alphas.data, whole = s.smoothing != 0 || factors || s.by_class;
  const bool can_be_long = s.class_ids && s.dtype == own && !s.pos_weights.data && !s.upstream && !s.loss && !whole;
  static_assert(kLongBlock<A> % kBlock == 0 && kChunk % kLongBlock<A> == 0 && kBlock % W == 0);
  int64_t bad = -1;
  Busy busy;
  Sum sum;
  Place at(s, first * kChunk);
  for (int64_t begin = first * kChunk, block; begin < end; begin += block, at.advance(block)) {
    block = can_be_long && end - begin >= kLongBlock<A> ? kLongBlock<A> : kBlock;
    const int64_t n = end - begin < block ? end - begin : block;
    const Targets targets =
        s.class_ids ? decode_ids(s, busy, b, at, n, whole, bad) : decode_values(s, b, begin, n, bad);
    // Whole vectors of the compute type are read and written in place, all else by way of L1.
    const bool in_place = s.dtype == own && n % W == 0, grad_in_place = in_place && !s.by_class;
    const bool loss_in_place = grad_in_place && s.loss_type == own;
    if (!in_place) read(s.dtype, s.input, begin, n, b.x);
    if (factors) decode_factors(s, b, at, targets.count == 0, n);
    if (s.pos_weights.data) decode_pos_weights(s, b, at, n);
    if (s.upstream) read(s.upstream_type, s.upstream, begin, n, b.upstream);
    Operands<A> o;
    o.x = in_place ? (const A*)s.input + begin : b.x;
    o.t = targets.count == 0 ? nullptr : b.t;
    o.factor = factors ? b.factor : nullptr;
    o.pos_weight = s.pos_weights.data ? b.pos_weight : nullptr;
    o.upstream = s.upstream ? b.upstream : nullptr;
    o.loss = !s.loss && !s.by_class ? nullptr : loss_in_place ? (A*)s.loss + begin : b.loss;
    o.grad = !s.grad && !s.by_class ? nullptr : grad_in_place ? (A*)s.grad + begin : b.grad;
    o.past_caches = s.past_caches && grad_in_place && (!s.loss || loss_in_place);
    sum.add(run_block(formula, k, targets, o, vectors_of<A>(n)));
    if (s.by_class) add_by_class(s, o, at, n);
    if (s.loss && !loss_in_place) write(s.loss_type, b.loss, begin, n, s.loss);
    if (s.grad && !grad_in_place) write(s.dtype, b.grad, begin, n, s.grad);
    if ((begin + n) % kChunk == 0 || begin + n == end) {
      if (s.partial_sums) s.partial_sums[begin / kChunk] = sum.total();
      sum = {};
    }
  }
#if defined(IMBAL_AVX512) || defined(IMBAL_AVX2)
  if (s.past_caches) _mm_sfence();
#endif
  return bad;
}

template <class A>
int64_t run_focal(const SigmoidLoss& s, int64_t first, int64_t last) {
  if (s.gamma == 0) return run_chunks<Focal<A, kPower0>>(s, first, last);
  if (s.gamma == 1) return run_chunks<Focal<A, kPower1>>(s, first, last);
  if (s.gamma == 2) return run_chunks<Focal<A, kPower2>>(s, first, last);
  if (s.gamma == 3) return run_chunks<Focal<A, kPower3>>(s, first, last);
  return run_chunks<Focal<A, kPowerAny>>(s, first, last);
}

template <class A>
int64_t run_formula(const SigmoidLoss& s, int64_t first, int64_t last) {
  switch (s.formula) {
    case Formula::kFocal: return run_focal<A>(s, first, last);
    case Formula::kQualityFocal:
      if (s.gamma == 1) return run_chunks<QualityFocal<A, kPower1>>(s, first, last);
      if (s.gamma == 2) return run_chunks<QualityFocal<A, kPower2>>(s, first, last);
      return run_chunks<QualityFocal<A, kPowerAny>>(s, first, last);
    case Formula::kVarifocal:
      if (s.gamma == 0) return run_chunks<Varifocal<A, kPower0>>(s, first, last);
      if (s.gamma == 2) return run_chunks<Varifocal<A, kPower2>>(s, first, last);
      return run_chunks<Varifocal<A, kPowerAny>>(s, first, last);
    default:
      if (s.gamma == 4) return run_chunks<Asymmetric<A, kPower4>>(s, first, last);
      return run_chunks<Asymmetric<A, kPowerAny>>(s, first, last);
  }
}

int64_t sigmoid_loss(const SigmoidLoss& s, int64_t first, int64_t last) {
  return s.dtype == Type::kF64 ? run_formula<double>(s, first, last) : run_formula<float>(s, first, last);
}
