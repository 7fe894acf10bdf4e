// Labels, weights and class weights of one block as values in L1.
//
// Included inside `namespace IMBAL_ISA`, after convert.h.

// Elements of a block where only class ids and logits are read, these in place: more than elsewhere, for fewer starts.
// Over 256 vectors fp32 sums round off more.
template <class A>
constexpr int64_t kLongBlock = std::clamp<int64_t>(256 * Simd<A>::W, kBlock, kChunk);

// Spans are farther apart than this: to start one costs as much as background does in so many vectors.
constexpr int64_t kApart = 16;

// Vectors first to last - 1 of a block.
struct Span {
  int64_t first, last;
};

// What a block of targets holds; the cheapest formula that fits is chosen per block.
struct Targets {
  const Span* spans;  // in order; all vectors outside are background
  int64_t count;
  bool soft;  // whether a target in them may be any value, not 0 and 1 alone
};

template <class A>
constexpr int64_t vectors_of(int64_t n) {
  return (n + Simd<A>::W - 1) / Simd<A>::W;
}

template <class A>
struct Buffers {
  static constexpr int W = Simd<A>::W;
  alignas(64) A x[kBlock], t[kLongBlock<A>], factor[kBlock], pos_weight[kBlock], upstream[kBlock];
  alignas(64) A loss[kBlock], grad[kBlock];
  Span spans[kLongBlock<A> / W / kApart + 1];

  // By vectors. Without the empty asm compilers make a memset of the loop, which may be an instruction (rep stos) that
  // takes several times as long.
  void clear_targets(Span s) {
    for (int64_t v = s.first; v < s.last; ++v) {
      store(t + v * W, Vec<A>{});
      asm("" ::: "memory");
    }
  }
};

// Marks an ignored element. Valid targets are in [0, 1], so it can't be mistaken.
constexpr int kIgnored = -1;

// Where a block's first element is, kept up without a division per block. A line is what lies in a row in memory:
// the classes of a row, or the positions of a class.
struct Place {
  int64_t length, line, offset, lines_on, offset_on;

  Place(const SigmoidLoss& s, int64_t begin)
      : length(s.positions ? s.positions : s.classes),
        line(begin / length),
        offset(begin % length),
        lines_on(kBlock / length),
        offset_on(kBlock % length) {}
  // By a multiple of kBlock.
  void advance(int64_t elements) {
    for (int64_t i = 0; i < elements; i += kBlock) {
      line += lines_on;
      offset += offset_on;
      if (offset >= length) {
        offset -= length;
        ++line;
      }
    }
  }
};

// The row and column of an element of a line.
struct Element2d {
  int64_t row, col;

  Element2d(const SigmoidLoss& s, int64_t line, int64_t offset)
      : row(s.positions ? line / s.classes * s.positions + offset : line),
        col(s.positions ? line % s.classes : offset) {}
};

// Calls f(i, n, line, offset) for every piece of one line inside the block.
template <class F>
inline void for_each_piece(Place at, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++at.line, at.offset = 0) {
    const int64_t piece = n - i < at.length - at.offset ? n - i : at.length - at.offset;
    f(i, piece, at.line, at.offset);
    i += piece;
  }
}

// Writes targets where a block holds anything but background, and keeps up which vectors those are. Calls come in the
// order of the elements.
template <class A>
struct Fill {
  Buffers<A>& b;
  const int64_t whole;  // the block's vectors, where all its targets are read once there is one; else 0
  int64_t count = 0;    // of spans

  void cover(Span s) {
    if (count == 0 || s.first > b.spans[count - 1].last + kApart) b.spans[count++] = {s.first, s.first};
    Span& own = b.spans[count - 1];
    if (s.last <= own.last) return;
    b.clear_targets({own.last, s.last});
    own.last = s.last;
  }
  void operator()(int64_t first, int64_t last, A value) {
    cover(whole ? Span{0, whole} : Span{first / Simd<A>::W, vectors_of<A>(last)});
    for (int64_t i = first; i < last; ++i) b.t[i] = value;
  }
};

inline bool is_class(const SigmoidLoss& s, int64_t id) { return (id >= 0) & (id < s.classes); }
inline bool is_bad(const SigmoidLoss& s, int64_t id) {
  return ((id < -1) | (id > s.classes)) & (id != s.ignore_index);
}

// Whether n labels are background: neither objects nor ignored nor bad. Flags are integers, not bools: so compilers
// take vectors.
template <class I>
inline bool all_background(const SigmoidLoss& s, const I* ids, int64_t n) {
  int64_t other = 0;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t id = ids[j];
    other |= (int64_t)((id != -1) & (id != s.classes)) | (int64_t)(id == s.ignore_index);
  }
  return !other;
}

constexpr int64_t kRowsAtOnce = 16;

// One id per row of classes. A positive's target is its score, where there are scores.
template <class A, class I>
void decode_rows(const SigmoidLoss& s, Fill<A>& fill, Place at, int64_t n, int64_t& bad) {
  const I* ids = (const I*)s.target;
  for (int64_t row = at.line, first = -at.offset, next; first < n; row = next) {
    next = row + kRowsAtOnce;
    if (next <= s.rows && all_background(s, ids + row, kRowsAtOnce)) {
      first += kRowsAtOnce * s.classes;
      continue;
    }
    for (; row < next && first < n; ++row, first += s.classes) {
      const int64_t id = ids[row];
      if (id == s.ignore_index) {
        const int64_t last = first + s.classes;
        fill(first > 0 ? first : 0, last < n ? last : n, kIgnored);
      } else if (id >= 0 && id < s.classes) {
        const A score = s.scores ? ((const A*)s.scores)[row] : A(1);
        if (!(score >= 0 && score <= 1) && bad < 0) bad = row;
        if (first + id >= 0 && first + id < n) fill(first + id, first + id + 1, score);
      } else if (id != -1 && id != s.classes && bad < 0) {
        bad = row;
      }
    }
  }
}

// Which groups of positions hold anything but background: found once for the lines of all classes, for the one
// outer index (image and anchor) at hand.
struct Busy {
  static constexpr int64_t kGroups = 4096;
  int64_t outer = -1, size = 0;
  bool group[kGroups];

  template <class A, class I>
  void look(const SigmoidLoss& s, int64_t at, int64_t& bad) {
    const I* ids = (const I*)s.target + at * s.positions;
    const A* scores = (const A*)s.scores;
    outer = at;
    size = (s.positions + kGroups - 1) / kGroups;
    if (size < 64) size = 64;
    for (int64_t i = 0; i < s.positions; i += size) {
      const int64_t end = size < s.positions - i ? i + size : s.positions;
      bool& any = group[i / size];
      any = false;
      if (all_background(s, ids + i, end - i)) continue;
      for (int64_t j = i; j < end; ++j) {
        const int64_t id = ids[j];
        any |= id == s.ignore_index || is_class(s, id);
        if (is_bad(s, id) && bad < 0) bad = at * s.positions + j;
      }
      for (int64_t j = i; any && scores && j < end; ++j) {
        const int64_t id = ids[j], row = at * s.positions + j;
        const bool scored = is_class(s, id) && id != s.ignore_index;
        if (scored && !(scores[row] >= 0 && scores[row] <= 1) && bad < 0) bad = row;
      }
    }
  }
};

// Whether one of n labels is a or b.
template <class I>
inline bool any_of(const I* ids, int64_t n, int64_t a, int64_t b) {
  int64_t found = 0;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t id = ids[j];
    found |= (int64_t)(id == a) | (int64_t)(id == b);
  }
  return found;
}

// One id per position: a line compares with its class where there is anything. Scores as above.
template <class A, class I>
void decode_positions(const SigmoidLoss& s, Busy& busy, Fill<A>& fill, Place at, int64_t n, int64_t& bad) {
  for_each_piece(at, n, [&](int64_t i, int64_t piece, int64_t line, int64_t offset) {
    const int64_t outer = line / s.classes, own = line % s.classes, end = offset + piece;
    if (outer != busy.outer) busy.template look<A, I>(s, outer, bad);
    const I* ids = (const I*)s.target + outer * s.positions;
    const A* scores = s.scores ? (const A*)s.scores + outer * s.positions : nullptr;
    for (int64_t group = offset / busy.size, j = offset, next; j < end; ++group, j = next) {
      next = (group + 1) * busy.size < end ? (group + 1) * busy.size : end;
      if (!busy.group[group] || !any_of(ids + j, next - j, own, s.ignore_index)) continue;
      for (int64_t k = j; k < next; ++k) {
        const int64_t id = ids[k], to = i + k - offset;
        if (id == s.ignore_index) fill(to, to + 1, kIgnored);
        else if (id == own) fill(to, to + 1, scores ? scores[k] : A(1));
      }
    }
  });
}

template <class A, class I>
void decode_lines(const SigmoidLoss& s, Busy& busy, Fill<A>& fill, Place at, int64_t n, int64_t& bad) {
  if (s.positions) decode_positions<A, I>(s, busy, fill, at, n, bad);
  else decode_rows<A, I>(s, fill, at, n, bad);
}

// Class ids: targets are written only where the block holds a positive or an ignored element; everywhere, where `whole`
// says that those of background are read as well.
template <class A>
Targets decode_ids(const SigmoidLoss& s, Busy& busy, Buffers<A>& b, Place at, int64_t n, bool whole, int64_t& bad) {
  const int64_t vectors = vectors_of<A>(n);
  Fill<A> fill{b, whole ? vectors : 0};
  if (s.smoothing != 0) fill.cover({0, vectors});
  with_id_type(s.target_type, [&](auto zero) { decode_lines<A, decltype(zero)>(s, busy, fill, at, n, bad); });
  if (n % Simd<A>::W != 0) fill(n, vectors * Simd<A>::W, kIgnored);
  return {b.spans, fill.count, s.smoothing != 0 || s.scores != nullptr};
}

// Whether all bytes are 0, which every type of a target reads as 0.
inline bool all_zero(const void* data, int64_t bytes) {
  const char* p = (const char*)data;
  ID bits = {};
  int64_t i = 0;
  for (; i + (int64_t)sizeof bits <= bytes; i += sizeof bits) {
    bits |= (ID)load_ahead((const double*)(p + i), 512);
  }
  for (; i < bytes; ++i) bits[0] |= p[i];
  return !any<double>(bits);
}

// Dense values: copied, checked and classified.
template <class A>
Targets decode_values(const SigmoidLoss& s, Buffers<A>& b, int64_t begin, int64_t n, int64_t& bad) {
  using V = Vec<A>;
  constexpr int W = Simd<A>::W;
  if (s.smoothing == 0 && s.ignore_index != 0 && n == kBlock &&
      all_zero((const char*)s.target + begin * size_of(s.target_type), n * size_of(s.target_type)))
    return {nullptr, 0, false};
  read(s.target_type, s.target, begin, n, b.t);
  for (int64_t i = n; i % W != 0; ++i) b.t[i] = A(s.ignore_index);
  const V zero = {}, one = zero + A(1), ignored = zero + A(s.ignore_index), mark = zero + A(kIgnored);
  V least = zero, most = zero;
  typename Simd<A>::I soft = {};
  for (int64_t i = 0; i < n; i += W) {
    const V t = load(b.t + i);
    const auto skip = t == ignored;
    const V counted = skip ? zero : t;
    least = vmin(counted, least);
    most = vmax(counted, most);
    soft |= (typename Simd<A>::I)(counted * counted - counted);  // no bit is set for 0, -0 and 1 alone
    store(b.t + i, V(skip ? mark : t));
  }
  const auto wrong = (least < zero) | (most > one);
  if (bad < 0 && any<A>(wrong)) {
    read(s.target_type, s.target, begin, n, b.t);  // again: a bad -1 looks like an ignored element by now
    for (int64_t i = 0; bad < 0; ++i)
      if ((b.t[i] < 0 || b.t[i] > 1) && b.t[i] != A(s.ignore_index)) bad = begin + i;
  }
  b.spans[0] = {0, vectors_of<A>(n)};
  return {b.spans, 1, s.smoothing != 0 || any<A>(soft)};
}

// Calls f(i, factor) for the elements of every piece.
template <class A, class F>
inline void apply(const SigmoidLoss& s, const Factor& factor, Place at, int64_t n, F f) {
  const int64_t stride = s.positions ? factor.row_stride : factor.col_stride;
  for_each_piece(at, n, [&](int64_t i, int64_t piece, int64_t line, int64_t offset) {
    const Element2d first(s, line, offset);
    const A* p = (const A*)factor.data + first.row * factor.row_stride + first.col * factor.col_stride;
    if (stride == 0) {
      for (int64_t j = 0; j < piece; ++j) f(i + j, *p);
    } else if (stride == 1) {
      for (int64_t j = 0; j < piece; ++j) f(i + j, p[j]);
    } else {
      for (int64_t j = 0; j < piece; ++j) f(i + j, p[j * stride]);
    }
  });
}

// factor = scale * weight * alpha_t, where a tensor takes part in it.
template <class A>
void decode_factors(const SigmoidLoss& s, Buffers<A>& b, Place at, bool background, int64_t n) {
  for (int64_t i = 0; i < n; ++i) b.factor[i] = A(s.scale);
  if (s.weight.data) apply<A>(s, s.weight, at, n, [&](int64_t i, A w) { b.factor[i] *= w; });
  const auto multiply = [&](auto alpha_t) {
    if (s.alphas.data) {
      apply<A>(s, s.alphas, at, n, [&](int64_t i, A a) { b.factor[i] *= a < 0 ? A(1) : alpha_t(a, i); });
    } else if (s.alpha >= 0) {
      for (int64_t i = 0; i < n; ++i) b.factor[i] *= alpha_t(A(s.alpha), i);
    }
  };
  if (background) multiply([](A a, int64_t) { return A(1) - a; });
  else multiply([&](A a, int64_t i) { return a * b.t[i] + (A(1) - a) * (A(1) - b.t[i]); });
}

template <class A>
void decode_pos_weights(const SigmoidLoss& s, Buffers<A>& b, Place at, int64_t n) {
  apply<A>(s, s.pos_weights, at, n, [&](int64_t i, A w) { b.pos_weight[i] = w; });
}
