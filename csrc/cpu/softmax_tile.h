// A tile of the softmax losses: logits and targets into a thread's scratch memory, the sweeps, and out again.
//
// Included inside `namespace IMBAL_ISA`, after softmax.h.

// data[begin, begin + n) as the compute type, any n.
template <class A>
void read_all(Type type, const void* data, int64_t begin, int64_t n, A* out) {
  for (int64_t i = 0; i < n; i += kBlock) read(type, data, begin + i, n - i < kBlock ? n - i : kBlock, out + i);
}

// The other way; with `past`, vectors of the compute type go past the caches.
template <class A>
void write_all(Type type, const A* in, int64_t begin, int64_t n, void* data, bool past) {
  if (!past || type != (sizeof(A) == 4 ? Type::kF32 : Type::kF64)) return write(type, in, begin, n, data);
  constexpr int W = Simd<A>::W;
  A* out = (A*)data + begin;
  int64_t i = 0;
  for (; i < n && (uintptr_t)(out + i) % sizeof(Vec<A>); ++i) out[i] = in[i];
#pragma GCC unroll 4
  for (; i + W <= n; i += W) store(out + i, load(in + i), true);
  for (; i < n; ++i) out[i] = in[i];
}

// Calls f(i, n, offset) for every run of positions of one sample; their class c begins at offset + c * inner.
template <class F>
inline void for_each_run(const SoftmaxLoss& s, int64_t begin, int64_t count, F f) {
  for (int64_t i = 0; i < count;) {
    const int64_t sample = (begin + i) / s.inner, at = (begin + i) % s.inner;
    const int64_t n = count - i < s.inner - at ? count - i : s.inner - at;
    f(i, n, sample * s.classes * s.inner + at);
    i += n;
  }
}

// One tile in the scratch memory of its thread.
template <class A>
struct SoftmaxTile {
  static constexpr int W = Simd<A>::W;
  static constexpr Type kOwn = sizeof(A) == 4 ? Type::kF32 : Type::kF64;
  const SoftmaxLoss& s;
  Positions<A>& p;
  A *x, *t, *lines;
  int64_t begin, count, lanes;
  bool plain;     // rows need no conversion: logits are read where they are
  bool in_place;  // and vectors of a row are aligned: gradients are made where they are wanted

  SoftmaxTile(const SoftmaxLoss& s, Positions<A>& p, A* scratch, int64_t tile)
      : s(s), p(p), x(scratch),
        plain(s.by_rows && s.dtype == kOwn),
        in_place(plain && s.classes % W == 0) {
    const int64_t size = s.by_rows ? s.tile * s.padded_classes() : s.classes * s.stride();
    t = x + size;
    lines = s.class_ids ? t : t + size;
    begin = tile * s.tile;
    count = s.positions() - begin < s.tile ? s.positions() - begin : s.tile;
    lanes = (count + W - 1) / W * W;
  }

  A* at(A* values, int64_t i, int64_t c) const {
    return values + (s.by_rows ? i * s.padded_classes() + c : c * s.stride() + i);
  }

  A logit(int64_t i, int64_t c) const { return s.by_rows ? p.row[i][c] : *at(x, i, c); }

  // Rows of C as lines of positions, W by W, while what lies `ahead` is fetched. What is read beyond a row is of no
  // class.
  void from_rows(const A* rows, A* out, int64_t ahead) const {
    if (with_few(s.classes, [&](auto few) { from_few<few>(rows, out, ahead); })) return;
    for (int64_t i = 0; i < lanes; i += W)
      for (int64_t c = 0; c < s.classes; c += W) {
        Vec<A> v[W];
        for (int64_t j = 0; j < W; ++j) v[j] = load_ahead(rows + (i + j) * s.classes + c, ahead);
        transpose<A>(v);
        for (int64_t j = 0; j < W && c + j < s.classes; ++j) store(at(out, i, c + j), v[j]);
      }
  }

  // And back. What is written beyond a row belongs to the next, which follows; or to its first classes, which do.
  void to_rows() const {
    if (with_few(s.classes, [&](auto few) { to_few<few>(); })) return;
    for (int64_t i = 0; i < lanes; i += W)
      for (int64_t c = (s.classes - 1) / W * W; c >= 0; c -= W) {
        Vec<A> v[W] = {};
        for (int64_t j = 0; j < W && c + j < s.classes; ++j) v[j] = load(at(x, i, c + j));
        transpose<A>(v);
        for (int64_t j = 0; j < W; ++j) store(lines + (i + j) * s.classes + c, v[j]);
      }
  }

  // The same for 2 to kFew classes: a transposition of W by W would mostly be of nothing.
  static constexpr int kFew = W / 2;
  template <int C = 2, class F>
  static bool with_few(int64_t classes, F f) {
    if constexpr (C > kFew) return false;
    else if (classes == C) return f(std::integral_constant<int, C>()), true;
    else return with_few<C + 1>(classes, f);
  }
  template <int C>
  void from_few(const A* rows, A* out, int64_t ahead) const {
    for (int64_t i = 0; i < lanes; i += W) {
      Vec<A> in[C], v[C];
      for (int64_t c = 0; c < C; ++c) in[c] = load_ahead(rows + i * C + c * W, ahead);
      regroup<A, false>(in, v, std::make_integer_sequence<int, C>());
      for (int64_t c = 0; c < C; ++c) store(at(out, i, c), v[c]);
    }
  }
  template <int C>
  void to_few() const {
    for (int64_t i = 0; i < lanes; i += W) {
      Vec<A> in[C], v[C];
      for (int64_t c = 0; c < C; ++c) in[c] = load(at(x, i, c));
      regroup<A, true>(in, v, std::make_integer_sequence<int, C>());
      for (int64_t c = 0; c < C; ++c) store(lines + i * C + c * W, v[c]);
    }
  }

  void load_values(Type type, const void* data, A* out, A padding) {
    if (s.by_rows) {
      for (int64_t i = 0; i < count; ++i) {
        read_all(type, data, (begin + i) * s.classes, s.classes, at(out, i, 0));
        for (int64_t c = s.classes; c < s.padded_classes(); ++c) *at(out, i, c) = padding;
      }
      return;
    }
    if (s.inner == 1) {
      const A* rows = (const A*)data + begin * s.classes;
      int64_t ahead = s.tile * s.classes;
      if (type != kOwn || (begin + count) * s.classes + W > s.positions() * s.classes) {
        read_all(type, data, begin * s.classes, count * s.classes, lines);
        rows = lines;
        ahead = 0;
      }
      from_rows(rows, out, ahead);
    } else {
      for_each_run(s, begin, count, [&](int64_t i, int64_t n, int64_t offset) {
        for (int64_t c = 0; c < s.classes; ++c) read(type, data, offset + c * s.inner, n, at(out, i, c));
      });
    }
    for (int64_t c = 0; c < s.classes; ++c)
      for (int64_t i = count; i < lanes; ++i) *at(out, i, c) = 0;
  }

  void adjust() {
    const A* adjustment = (const A*)s.adjustment;
    const int64_t lines = s.by_rows ? count : s.classes, n = s.by_rows ? s.padded_classes() : lanes;
    for (int64_t i = 0; i < lines; ++i) {
      A* line = s.by_rows ? at(x, i, 0) : at(x, 0, i);
      for (int64_t j = 0; j < n; ++j) line[j] += adjustment[s.by_rows ? j : i];
    }
  }

  // Ids to labels; the first that is neither a class nor ignored, or -1. Flags are integers, not bools: so compilers
  // take vectors.
  template <class I>
  int64_t read_labels() {
    const I* ids = (const I*)s.target + begin;
    const A* weights = (const A*)s.weights;
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = ids[i];
      const int64_t known = (uint64_t)id < (uint64_t)s.classes, ignored = id == s.ignore_index;
      const int64_t counts = known & ~ignored;
      p.label[i] = counts ? A((int32_t)id) : A(-1);
      p.weight[i] = p.counted[i] = counts ? A(1) : A(0);
      wrong |= (known | ignored) ^ 1;
    }
    for (int64_t i = 0; i < count && weights; ++i)
      if (p.counted[i] != 0) p.weight[i] = weights[ids[i]];
    for (int64_t i = 0; wrong; ++i)
      if ((uint64_t)ids[i] >= (uint64_t)s.classes && ids[i] != s.ignore_index) return begin + i;
    return -1;
  }

  int64_t decode_ids() {
    const int64_t bad = with_id_type(s.target_type, [&](auto zero) { return read_labels<decltype(zero)>(); });
    for (int64_t i = 0; i < count; ++i)
      if (p.counted[i] == 0) blank(i);
    return bad;
  }

  // The gradient of a position that counts for nothing is 0 times something finite.
  void blank(int64_t i) {
    p.row[i] = at(x, i, 0);
    for (int64_t c = 0; c < s.classes; ++c) *at(x, i, c) = 0;
  }

  void decode_probabilities() {
    load_values(s.target_type, s.target, t, A(0));
    for (int64_t i = 0; i < count; ++i) {
      p.counted[i] = 1;
      p.label[i] = -1;  // a tile of class ids may have been here before
    }
  }

  int64_t decode() {
    // The last vector of a row reads on into the next: there must be one.
    const bool copied = !plain || s.adjustment || (!in_place && begin + count == s.positions());
    if (copied) load_values(s.dtype, s.input, x, -A(INFINITY));
    if (s.adjustment) adjust();
    for (int64_t i = 0; i < count && s.by_rows; ++i)
      p.row[i] = copied ? at(x, i, 0) : (const A*)s.input + (begin + i) * s.classes;
    for (int64_t i = 0; i < count; ++i) p.upstream[i] = 1;
    if (s.upstream) read(s.upstream_type, s.upstream, begin, count, p.upstream);
    int64_t bad = -1;
    if (s.class_ids)
      bad = decode_ids();
    else
      decode_probabilities();
    for (int64_t i = count; i < lanes; ++i) {
      p.counted[i] = p.weight[i] = p.top[i] = p.own[i] = p.upstream[i] = 0;
      p.label[i] = -1;
      for (A* sum : {p.others, p.deficit, p.tops, p.hit, p.mass, p.rest_mass, p.top_mass}) sum[i] = 0;
      if (s.by_rows) store(p.by_lane + i * W, Vec<A>{});
    }
    return bad;
  }

  // An infinite logit takes all: the others become -inf beside it, and it 0.
  void settle_infinities() {
    typename Simd<A>::I some = {};
    for (int64_t i = 0; i < lanes; i += W) some |= load(p.top + i) == A(INFINITY);
    if (!any<A>(some)) return;
    for (int64_t i = 0; i < count; ++i) {
      if (p.top[i] != A(INFINITY)) continue;
      p.top[i] = 0;
      for (int64_t c = 0; c < s.classes; ++c) {
        const A v = logit(i, c);
        *at(x, i, c) = v != v ? v : v == A(INFINITY) ? A(0) : -A(INFINITY);
      }
      p.row[i] = at(x, i, 0);
      if (p.label[i] >= 0) p.own[i] = *at(x, i, p.label[i]);
    }
  }

  // f(sweep, i) for every vector of positions, or row.
  template <bool kRows, class F>
  void sweep(F f) {
    for (int64_t i = 0; i < count; i += kRows ? 1 : W) {
      A* const here = at(x, i, 0);
      f(Sweep<A, kRows>{kRows ? p.row[i] : here, here, at(t, i, 0), (const A*)s.weights, s.classes, s.stride()}, i);
    }
  }

  template <bool kRows>
  void run() {
    sweep<kRows>([&](const auto& v, int64_t i) { v.find_top(p, i); });
    if constexpr (kRows) p.across_rows(lanes, p.top, [](auto a, auto b) { return vmax(a, b); });
    settle_infinities();
    if (s.class_ids) {
      if (s.smoothing != 0) sweep<kRows>([&](const auto& v, int64_t i) { v.find_deficit(p, i); });
      const int64_t size = size_of(s.dtype);
      const char* ahead = (const char*)s.input + (begin + s.tile) * s.classes * size;
      sweep<kRows>([&](const auto& v, int64_t i) { v.exponentiate(p, i, ahead + i * s.classes * size, size); });
      if constexpr (kRows) p.across_rows(lanes, p.others, [](auto a, auto b) { return a + b; });
      finish_ids(s, p, lanes);
    } else {
      sweep<kRows>([&](const auto& v, int64_t i) { v.exponentiate_probabilities(s, p, i); });
      finish_probabilities(s, p, lanes);
    }
    if (!s.grad) return;
    // Rows that are moved later close up as they are written: each begins at or before where it was read, and runs over
    // into the next.
    const bool past = in_place && s.past_caches;
    sweep<kRows>([&](const auto& v, int64_t i) {
      A* out = in_place ? (A*)s.grad + (begin + i) * s.classes : kRows ? x + i * s.classes : v.x;
      if (s.class_ids)
        v.differentiate(s, p, i, out, past);
      else
        v.differentiate_probabilities(s, p, i, out, past);
    });
  }

  void write_gradient() {
    if (in_place) return;
    if (s.by_rows) return write_all(s.dtype, x, begin * s.classes, count * s.classes, s.grad, s.past_caches);
    if (s.inner == 1) {
      to_rows();
      return write_all(s.dtype, lines, begin * s.classes, count * s.classes, s.grad, s.past_caches);
    }
    for_each_run(s, begin, count, [&](int64_t i, int64_t n, int64_t offset) {
      for (int64_t c = 0; c < s.classes; ++c)
        write_all(s.dtype, at(x, i, c), offset + c * s.inner, n, s.grad, s.past_caches);
    });
  }

  double sum_of_losses() const {
    Sum sum;
    for (int64_t i = 0; i < lanes; i += W) sum.add(load(p.loss + i));
    return sum.total();
  }
};

template <class A>
int64_t run_tiles(const SoftmaxLoss& s, int64_t first, int64_t last, void* scratch) {
  static thread_local Positions<A> own;
  Positions<A>* positions = &own;
  asm("" : "+r"(positions));  // its address is then not asked for anew at each use
  const FlushDenormals flush;
  int64_t bad = -1;
  for (int64_t i = first; i < last; ++i) {
    SoftmaxTile<A> tile(s, *positions, (A*)scratch, i);
    const int64_t here = tile.decode();
    if (bad < 0) bad = here;
    if (s.by_rows)
      tile.template run<true>();
    else
      tile.template run<false>();
    if (s.partial_sums) s.partial_sums[i] = tile.sum_of_losses();
    if (s.loss) write(s.loss_type, positions->loss, tile.begin, tile.count, s.loss);
    if (s.grad) tile.write_gradient();
  }
#if defined(__SSE2__)
  if (s.past_caches) _mm_sfence();
#endif
  return bad;
}

int64_t softmax_loss(const SoftmaxLoss& s, int64_t first, int64_t last, void* scratch) {
  return s.dtype == Type::kF64 ? run_tiles<double>(s, first, last, scratch) : run_tiles<float>(s, first, last, scratch);
}
