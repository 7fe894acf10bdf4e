// Labels, weights and class weights of one block as values in L1.
//
// Included inside `namespace IMBAL_ISA`, after convert.h.

// What a block of targets holds; the cheapest formula that fits is chosen per block.
enum Kind : uint8_t { kBackground, kHard, kSoft };
struct Targets {
  Kind kind;
  int64_t first, last;  // all elements outside are background
};

template <class A>
struct Buffers {
  alignas(64) A x[kBlock], t[kBlock], factor[kBlock], pos_weight[kBlock], upstream[kBlock];
  alignas(64) A loss[kBlock], grad[kBlock];
};

// Marks an ignored element. Valid targets are in [0, 1], so it can't be mistaken.
constexpr int kIgnored = -1;

// Row and column of a block's first element, kept up without a division per block.
struct Place {
  int64_t row, col, rows_on, cols_on;

  Place(const SigmoidLoss& s, int64_t begin)
      : row(begin / s.classes), col(begin % s.classes), rows_on(kBlock / s.classes), cols_on(kBlock % s.classes) {}
  void advance(const SigmoidLoss& s) {
    row += rows_on;
    col += cols_on;
    if (col >= s.classes) {
      col -= s.classes;
      ++row;
    }
  }
};

// Class ids: targets are written only where the block holds a positive or an ignored element.
template <class A>
Targets decode_ids(const SigmoidLoss& s, Buffers<A>& b, Place at, int64_t n, int64_t& bad) {
  Targets targets{kBackground, kBlock, 0};
  auto fill = [&](int64_t first, int64_t last, A value) {
    if (targets.kind == kBackground) __builtin_memset(b.t, 0, sizeof b.t);
    targets.kind = kHard;
    for (int64_t i = first; i < last; ++i) b.t[i] = value;
    if (first < targets.first) targets.first = first;
    if (last > targets.last) targets.last = last;
  };
  for (int64_t row = at.row, first = -at.col; first < n; ++row, first += s.classes) {
    const int64_t id = read_integer(s.target_type, s.target, row);
    if (id == s.ignore_index) {
      const int64_t last = first + s.classes;
      fill(first > 0 ? first : 0, last < n ? last : n, kIgnored);
    } else if (id >= 0 && id < s.classes) {
      if (first + id >= 0 && first + id < n) fill(first + id, first + id + 1, 1);
    } else if (id != -1 && id != s.classes && bad < 0) {
      bad = row;
    }
  }
  if (n % Simd<A>::W != 0) fill(n, (n / Simd<A>::W + 1) * Simd<A>::W, kIgnored);
  if (s.smoothing == 0) return targets;
  if (targets.kind == kBackground) __builtin_memset(b.t, 0, sizeof b.t);
  return {kSoft, 0, n};
}

// Whether all bytes are 0, which every type of a target reads as 0.
inline bool all_zero(const void* data, int64_t bytes) {
  const char* p = (const char*)data;
  ID bits = {};
  int64_t i = 0;
  for (; i + (int64_t)sizeof bits <= bytes; i += sizeof bits) {
    ID more;
    __builtin_memcpy(&more, p + i, sizeof more);
    bits |= more;
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
    return {kBackground, 0, 0};
  read(s.target_type, s.target, begin, n, b.t);
  for (int64_t i = n; i % W != 0; ++i) b.t[i] = A(s.ignore_index);
  const V zero = {}, one = zero + A(1), ignored = zero + A(s.ignore_index), mark = zero + A(kIgnored);
  typename Simd<A>::I soft = {}, wrong = {};
  for (int64_t i = 0; i < n; i += W) {
    const V t = load(b.t + i);
    const auto skip = t == ignored;
    soft |= ~((t == zero) | (t == one) | skip);
    wrong |= ((t < zero) | (t > one)) & ~skip;
    store(b.t + i, V(skip ? mark : t));
  }
  if (bad < 0 && any<A>(wrong)) {
    read(s.target_type, s.target, begin, n, b.t);  // again: a bad -1 looks like an ignored element by now
    for (int64_t i = 0; bad < 0; ++i)
      if ((b.t[i] < 0 || b.t[i] > 1) && b.t[i] != A(s.ignore_index)) bad = begin + i;
  }
  return {s.smoothing != 0 || any<A>(soft) ? kSoft : kHard, 0, n};
}

// Calls f(i, n, row, col) for every run of one row inside the block.
template <class F>
inline void for_each_row(const SigmoidLoss& s, Place at, int64_t n, F f) {
  int64_t row = at.row, col = at.col;
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
void decode_factors(const SigmoidLoss& s, Buffers<A>& b, Place at, Kind kind, int64_t n) {
  for_each_row(s, at, n, [&](int64_t i, int64_t run, int64_t row, int64_t col) {
    A* f = b.factor + i;
    for (int64_t j = 0; j < run; ++j) f[j] = A(s.scale);
    if (s.weight.data) apply<A>(s.weight, row, col, run, [&](int64_t j, A w) { f[j] *= w; });
  });
  if (kind == kBackground) __builtin_memset(b.t, 0, sizeof b.t);
  auto alpha_t = [](A a, A t) { return a < 0 ? A(1) : a * t + (A(1) - a) * (A(1) - t); };
  if (s.alphas.data) {
    for_each_row(s, at, n, [&](int64_t i, int64_t run, int64_t row, int64_t col) {
      apply<A>(s.alphas, row, col, run, [&](int64_t j, A a) { b.factor[i + j] *= alpha_t(a, b.t[i + j]); });
    });
  } else if (s.alpha >= 0) {
    for (int64_t i = 0; i < n; ++i) b.factor[i] *= alpha_t(A(s.alpha), b.t[i]);
  }
}

template <class A>
void decode_pos_weights(const SigmoidLoss& s, Buffers<A>& b, Place at, int64_t n) {
  for_each_row(s, at, n, [&](int64_t i, int64_t run, int64_t row, int64_t col) {
    apply<A>(s.pos_weights, row, col, run, [&](int64_t j, A w) { b.pos_weight[i + j] = w; });
  });
}
