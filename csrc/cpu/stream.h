// The streaming loss: one chunk of the flattened logits at a time, in two steps. Decoding turns labels
// and factors into values in L1; the formula then runs over whole vectors and knows of neither.
//
// Included inside `namespace IMBAL_ISA`, last.

// What a vector of targets holds; the cheapest formula that fits is chosen per vector.
enum Kind : uint8_t { kBackground, kHard, kSoft };

template <class A>
struct Buffers {
  alignas(64) A x[kChunk], t[kChunk], factor[kChunk], pos_weight[kChunk], upstream[kChunk];
  alignas(64) A loss[kChunk], grad[kChunk];
  Kind kind[kChunk / Simd<A>::W];
};

// Marks an ignored element. Valid targets are in [0, 1], so it can't be mistaken.
constexpr int kIgnored = -1;

template <class A>
inline void zero_vector(Buffers<A>& b, int64_t v) {
  store(b.t + v * Simd<A>::W, Vec<A>{});
}

// Class ids: only vectors that hold a positive or an ignored element have their targets written.
template <class A>
int64_t decode_ids(const SigmoidLoss& s, Buffers<A>& b, int64_t begin, int64_t n) {
  constexpr int W = Simd<A>::W;
  const Kind other = s.smoothing != 0 ? kSoft : kBackground, touched = s.smoothing != 0 ? kSoft : kHard;
  const int64_t vectors = (n + W - 1) / W;
  for (int64_t v = 0; v < vectors; ++v) b.kind[v] = other;
  if (other == kSoft)
    for (int64_t v = 0; v < vectors; ++v) zero_vector(b, v);
  auto touch = [&](int64_t i, A value) {
    const int64_t v = i / W;
    if (b.kind[v] == kBackground) zero_vector(b, v);
    b.kind[v] = touched;
    b.t[i] = value;
  };
  int64_t bad = -1;
  for (int64_t row = begin / s.classes; row * s.classes < begin + n; ++row) {
    const int64_t id = read_integer(s.target_type, s.target, row), first = row * s.classes - begin;
    if (id == s.ignore_index) {
      const int64_t last = first + s.classes;
      for (int64_t i = first > 0 ? first : 0; i < (last < n ? last : n); ++i) touch(i, kIgnored);
    } else if (id >= 0 && id < s.classes) {
      if (first + id >= 0 && first + id < n) touch(first + id, 1);
    } else if (id != -1 && id != s.classes && bad < 0) {
      bad = row;
    }
  }
  for (int64_t i = n; i % W != 0; ++i) touch(i, kIgnored);
  return bad;
}

// Dense values: copied, checked and classified.
template <class A>
int64_t decode_values(const SigmoidLoss& s, Buffers<A>& b, int64_t begin, int64_t n) {
  using V = Vec<A>;
  constexpr int W = Simd<A>::W;
  read(s.target_type, s.target, begin, n, b.t);
  for (int64_t i = n; i % W != 0; ++i) b.t[i] = A(s.ignore_index);
  const V zero = {}, one = zero + A(1), ignored = zero + A(s.ignore_index), mark = zero + A(kIgnored);
  int64_t bad = -1;
  for (int64_t v = 0; v * W < n; ++v) {
    const V t = load(b.t + v * W);
    const auto skip = t == ignored, hard = (t == zero) | (t == one) | skip;
    if (bad < 0 && any<A>(((t < zero) | (t > one)) & ~skip)) {
      for (int64_t i = v * W; bad < 0; ++i)
        if (b.t[i] != A(s.ignore_index) && (b.t[i] < 0 || b.t[i] > 1)) bad = begin + i;
    }
    store(b.t + v * W, V(skip ? mark : t));
    b.kind[v] = s.smoothing != 0 || any<A>(~hard) ? kSoft : any<A>(t != zero) ? kHard : kBackground;
    if (any<A>(skip) && b.kind[v] == kBackground) b.kind[v] = kHard;  // ignore_index = 0
  }
  return bad;
}

// Calls f(i, n, row, col) for every run of one row inside the chunk.
template <class F>
inline void for_each_row(const SigmoidLoss& s, int64_t begin, int64_t n, F f) {
  int64_t row = begin / s.classes, col = begin % s.classes;
  for (int64_t i = 0; i < n; ++row, col = 0) {
    const int64_t run = n - i < s.classes - col ? n - i : s.classes - col;
    f(i, run, row, col);
    i += run;
  }
}

template <class A, class F>
inline void apply(const Factor& factor, int64_t row, int64_t col, int64_t n, F f) {
  const A* p = (const A*)factor.data + row * factor.row_stride + col * factor.col_stride;
  if (factor.col_stride == 0) {
    for (int64_t i = 0; i < n; ++i) f(i, *p);
  } else {
    for (int64_t i = 0; i < n; ++i) f(i, p[i]);
  }
}

// factor = scale * weight * alpha_t, where a tensor takes part in it.
template <class A>
void decode_factors(const SigmoidLoss& s, Buffers<A>& b, int64_t begin, int64_t n) {
  constexpr int W = Simd<A>::W;
  for_each_row(s, begin, n, [&](int64_t i, int64_t run, int64_t row, int64_t col) {
    A* f = b.factor + i;
    for (int64_t j = 0; j < run; ++j) f[j] = A(s.scale);
    if (s.weight.data) apply<A>(s.weight, row, col, run, [&](int64_t j, A w) { f[j] *= w; });
  });
  auto target = [&](int64_t i) { return b.kind[i / W] == kBackground ? A(0) : b.t[i]; };
  auto alpha_t = [](A a, A t) { return a < 0 ? A(1) : a * t + (A(1) - a) * (A(1) - t); };
  if (s.alphas.data) {
    for_each_row(s, begin, n, [&](int64_t i, int64_t run, int64_t row, int64_t col) {
      apply<A>(s.alphas, row, col, run,
               [&](int64_t j, A a) { b.factor[i + j] *= alpha_t(a, target(i + j)); });
    });
  } else if (s.alpha >= 0) {
    for (int64_t i = 0; i < n; ++i) b.factor[i] *= alpha_t(A(s.alpha), target(i));
  }
}

template <class A>
void decode_pos_weights(const SigmoidLoss& s, Buffers<A>& b, int64_t begin, int64_t n) {
  for_each_row(s, begin, n, [&](int64_t i, int64_t run, int64_t row, int64_t col) {
    apply<A>(s.pos_weights, row, col, run, [&](int64_t j, A w) { b.pos_weight[i + j] = w; });
  });
}

// One chunk with its sources and destinations resolved to the compute type.
template <class A>
struct Chunk {
  const A* x;
  const A* factor;      // or null: scale and alpha say it all
  const A* pos_weight;  // or null
  const A* upstream;    // or null
  A* loss;              // or null
  A* grad;              // or null
  int64_t vectors;
};

// Factors of a negative and of a positive, where no tensor takes part in them.
template <class A>
struct Scalars {
  A negative, positive, pos_weight, smoothing, grad_scale;
  Exponent<A> gamma;

  explicit Scalars(const SigmoidLoss& s) {
    negative = A(s.alpha < 0 ? s.scale : s.scale * (1 - s.alpha));
    positive = A(s.alpha < 0 ? s.scale : s.scale * s.alpha);
    pos_weight = A(s.pos_weight);
    smoothing = A(s.smoothing);
    grad_scale = A(s.grad_scale);
    gamma.whole = A(s.gamma);
    gamma.high = high_half(Vec<A>{} + gamma.whole)[0];
    gamma.low = gamma.whole - gamma.high;
  }
};

// A hard target's logit as its formula takes it: negated at the positives.
template <class A>
inline Vec<A> hard_argument(const Buffers<A>& b, int64_t v, Vec<A> x) {
  if (b.kind[v] == kBackground) return x;
  return load(b.t + v * Simd<A>::W) == A(1) ? -x : x;
}

template <class A>
inline Vec<A> exponential(const Buffers<A>& b, const Chunk<A>& c, int64_t v) {
  const Vec<A> x = load(c.x + v * Simd<A>::W);
  return b.kind[v] == kSoft ? soft_exponential(x) : exp_clamped(-hard_argument(b, v, x));
}

// One vector of anything: background, hard or soft targets, with every factor.
template <class A, int P>
inline Element<Vec<A>> one_vector(const Scalars<A>& k, const Buffers<A>& b, const Chunk<A>& c, int64_t v,
                                  Vec<A> exponential) {
  using V = Vec<A>;
  const V zero = {}, one = zero + A(1);
  const int64_t i = v * Simd<A>::W;
  const V x = load(c.x + i), up = c.upstream ? load(c.upstream + i) * k.grad_scale : zero + k.grad_scale;
  if (b.kind[v] == kBackground) {
    const Hard<V> e = hard_formula<P>(x, exponential, k.gamma);
    const V f = (c.factor ? load(c.factor + i) : zero + k.negative) * e.modulation;
    return {weigh(f, e.loss), f * up * e.grad};
  }
  const V t = load(b.t + i), pw = c.pos_weight ? load(c.pos_weight + i) : zero + k.pos_weight;
  const auto is_pos = t == one, ignored = t == zero + A(kIgnored);
  V f = c.factor ? load(c.factor + i) : is_pos ? zero + k.positive : t * k.positive + (one - t) * k.negative;
  Element<V> e;
  if (b.kind[v] == kSoft) {
    e = soft_formula<P>(x, exponential, t, pw, k.smoothing, k.gamma);
  } else {
    const Hard<V> h = hard_formula<P>(hard_argument(b, v, x), exponential, k.gamma);
    e = {h.modulation * h.loss, h.modulation * (is_pos ? -h.grad : h.grad)};
    f *= is_pos ? pw : one;
  }
  return {ignored ? zero : weigh(f, e.loss), ignored ? zero : f * up * e.grad};
}

// Vectors worked on at a time: first the exponentials of all, then the rest, because two short chains of
// dependent operations leave a core more to do at once than one long chain. They are summed in the
// compute type before they go to fp64.
constexpr int kBlock = 64;

// Elements from here to what is fetched from memory meanwhile: a hardware prefetcher stops at each page.
constexpr int kAhead = 1024;

// A block of nothing but background and no factor but the scalars: nearly all of a detector's outputs.
template <class A, int P>
inline Vec<A> background_block(const A* x, A* grad, Exponent<A> gamma, A factor, A grad_factor) {
  using V = Vec<A>;
  constexpr int W = Simd<A>::W;
  V exponentials[kBlock], sum = {};
  for (int v = 0; v < kBlock; ++v) {
    __builtin_prefetch(x + v * W + kAhead);
    if (grad) __builtin_prefetch(grad + v * W + kAhead, 1);
    exponentials[v] = exp_clamped(-load(x + v * W));
  }
  for (int v = 0; v < kBlock; ++v) {
    const Hard<V> e = hard_formula<P>(load(x + v * W), exponentials[v], gamma);
    sum += e.modulation * e.loss;
    if (grad) store(grad + v * W, V(e.modulation * grad_factor * e.grad));
  }
  return weigh(V{} + factor, sum);
}

template <class A, int P>
inline Vec<A> any_block(const Scalars<A>& k, const Buffers<A>& b, const Chunk<A>& c, int64_t v0, int n) {
  constexpr int W = Simd<A>::W;
  Vec<A> exponentials[kBlock], sum = {};
  for (int v = 0; v < n; ++v) exponentials[v] = exponential(b, c, v0 + v);
  for (int v = 0; v < n; ++v) {
    const Element<Vec<A>> e = one_vector<A, P>(k, b, c, v0 + v, exponentials[v]);
    sum += e.loss;
    if (c.loss) store(c.loss + (v0 + v) * W, e.loss);
    if (c.grad) store(c.grad + (v0 + v) * W, e.grad);
  }
  return sum;
}

template <class A, int P>
double run_formula(const SigmoidLoss& s, const Buffers<A>& b, const Chunk<A>& c) {
  constexpr int W = Simd<A>::W;
  const Scalars<A> k(s);
  const bool plain = !c.factor && !c.upstream && !c.loss;
  Sum sum;
  for (int64_t v = 0; v < c.vectors; v += kBlock) {
    const int n = c.vectors - v < kBlock ? c.vectors - v : kBlock;
    int kinds = kBackground;
    for (int i = 0; i < n; ++i) kinds |= b.kind[v + i];
    if (plain && kinds == kBackground && n == kBlock)
      sum.add(background_block<A, P>(c.x + v * W, c.grad ? c.grad + v * W : nullptr, k.gamma, k.negative,
                                     k.negative * k.grad_scale));
    else
      sum.add(any_block<A, P>(k, b, c, v, n));
  }
  return sum.total();
}

// Denormals cost a hundred cycles each on x86 and carry nothing a gradient needs.
struct FlushDenormals {
#if defined(__SSE2__)
  unsigned int saved = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(saved | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved); }
#else
  FlushDenormals() {}
#endif
};

template <class A>
double run_power(const SigmoidLoss& s, const Buffers<A>& b, const Chunk<A>& c) {
  if (s.gamma == 0) return run_formula<A, kPower0>(s, b, c);
  if (s.gamma == 1) return run_formula<A, kPower1>(s, b, c);
  if (s.gamma == 2) return run_formula<A, kPower2>(s, b, c);
  if (s.gamma == 3) return run_formula<A, kPower3>(s, b, c);
  return run_formula<A, kPowerAny>(s, b, c);
}

template <class A>
int64_t run_chunk(const SigmoidLoss& s, int64_t chunk) {
  constexpr Type own = sizeof(A) == 4 ? Type::kF32 : Type::kF64;
  constexpr int W = Simd<A>::W;
  static thread_local Buffers<A> b;
  const int64_t begin = chunk * kChunk, total = s.rows * s.classes;
  const int64_t n = total - begin < kChunk ? total - begin : kChunk;

  const int64_t bad = s.class_ids ? decode_ids<A>(s, b, begin, n) : decode_values<A>(s, b, begin, n);
  Chunk<A> c{};
  c.vectors = (n + W - 1) / W;
  if (s.weight.data || s.alphas.data) {
    decode_factors(s, b, begin, n);
    c.factor = b.factor;
  }
  if (s.pos_weights.data) {
    decode_pos_weights(s, b, begin, n);
    c.pos_weight = b.pos_weight;
  }
  if (s.upstream) {
    read(s.upstream_type, s.upstream, begin, n, b.upstream);
    c.upstream = b.upstream;
  }
  // Whole vectors of the compute type are read and written in place, all else by way of L1.
  const bool in_place = s.dtype == own && n % W == 0, loss_in_place = in_place && s.loss_type == own;
  if (!in_place) read(s.dtype, s.input, begin, n, b.x);
  c.x = in_place ? (const A*)s.input + begin : b.x;
  if (s.loss) c.loss = loss_in_place ? (A*)s.loss + begin : b.loss;
  if (s.grad) c.grad = in_place ? (A*)s.grad + begin : b.grad;
  {
    const FlushDenormals flush;
    const double sum = run_power(s, b, c);
    if (s.partial_sums) s.partial_sums[chunk] = sum;
  }
  if (s.loss && !loss_in_place) write(s.loss_type, b.loss, begin, n, s.loss);
  if (s.grad && !in_place) write(s.dtype, b.grad, begin, n, s.grad);
  return bad;
}

int64_t sigmoid_loss(const SigmoidLoss& s, int64_t chunk) {
  return s.dtype == Type::kF64 ? run_chunk<double>(s, chunk) : run_chunk<float>(s, chunk);
}
