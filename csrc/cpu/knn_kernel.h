// The passes over pairs of points: products in registers, compared with thresholds before they leave them.
//
// Included inside `namespace IMBAL_ISA`.

#if defined(IMBAL_AVX512)
constexpr int kRows = 8;  // 24 sums, 3 vectors of candidates; a query's coordinate is a memory operand
#else
constexpr int kRows = 4;  // 12 sums, 3 vectors of candidates, 1 coordinate
#endif
constexpr int kVectors = 3;
constexpr int kLanes = Simd<float>::W;
constexpr int kPanel = kVectors * kLanes;
constexpr int kExactRows = 4;
constexpr int kExactVectors = 2;
constexpr int kExactLanes = Simd<double>::W;
constexpr int kExactPanel = kExactVectors * kExactLanes;

// Lanes of a that are at least b.
inline uint32_t lanes_at_least(VF a, VF b) {
#if defined(IMBAL_AVX512)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif defined(IMBAL_AVX2)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
#else
  const IF m = a >= b;
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (uint32_t)(m[i] & 1) << i;
  return bits;
#endif
}

// Whether any of many vectors has a lane that is at least a limit.
struct AnyAtLeast {
#if defined(IMBAL_AVX512)
  __mmask16 seen = 0;
  void add(VF a, VF b) { seen |= _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
  bool any() const { return seen != 0; }
#else
  IF seen = {};
  void add(VF a, VF b) { seen |= a >= b; }
  bool any() const { return imbal::IMBAL_ISA::any<float>(seen); }
#endif
};

inline void push(const Shortlists& lists, int64_t row, float e, int64_t index, float half) {
  const int64_t at = row * lists.room + lists.count[row];
  lists.keys[at] = candidate_key(-e, (uint32_t)index);
  lists.halves[at] = half;
  if (++lists.count[row] == lists.room) lists.prune(row);
}

// Where a tile stands: its queries from `row`, its candidates from `column`, both inside their packed blocks.
struct Tile {
  const Packed& queries;
  const Packed& candidates;
  int64_t row, column;
  bool diagonal, itself;  // diagonal: candidates before a query met it already
  const Shortlists& lists;
};

template <bool kBoth>
__attribute__((noinline)) void survivors(const Tile& t, const VF (&e)[kRows][kVectors]) {
  const float* limits = t.lists.threshold;
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = t.row + r, j0 = t.column + v * kLanes;
      if (i >= t.queries.count) return;
      const uint32_t for_row = lanes_at_least(e[r][v], VF{} + limits[i]);
      const uint32_t for_column = kBoth ? lanes_at_least(e[r][v], load(limits + j0)) : 0;
      if (!(for_row | for_column)) continue;
      float values[kLanes];
      store(values, e[r][v]);
      for (uint32_t bits = for_row | for_column; bits; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        const int64_t j = j0 + lane;
        if (t.diagonal && (j < i || (j == i && !t.itself))) continue;
        if (for_row >> lane & 1)
          push(t.lists, i, values[lane], t.candidates.first + j, t.candidates.halves[j]);
        if (kBoth && (for_column >> lane & 1) && j != i)
          push(t.lists, j, values[lane], t.queries.first + i, t.queries.halves[i]);
      }
    }
}

template <bool kBoth>
inline void scan_tile(const Tile& t, int64_t columns) {
  const float* a = t.queries.values + t.row / kPanel * kPanel * columns + t.row % kPanel;
  const float* b = t.candidates.values + t.column * columns;
  VF e[kRows][kVectors] = {};
  for (int64_t j = 0; j < columns; ++j, a += kPanel, b += kPanel) {
    VF y[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) y[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const VF x = VF{} + a[r];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) e[r][v] += x * y[v];
    }
  }
  AnyAtLeast alive;
  const float *halves = t.candidates.halves + t.column, *limits = t.lists.threshold;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const VF half = load(halves + v * kLanes), limit = kBoth ? load(limits + t.column + v * kLanes) : VF{};
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      e[r][v] -= half + t.queries.halves[t.row + r];  // the sum first: the same whichever of the two is the query
      const VF own = VF{} + limits[t.row + r];
      alive.add(e[r][v], kBoth ? vmin(limit, own) : own);
    }
  }
  if (__builtin_expect(alive.any(), 0)) {
    VF kept[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) kept[r][v] = e[r][v];
    survivors<kBoth>(t, kept);
  }
}

template <bool kBoth>
void scan_tiles(const Packed& queries, int64_t begin, int64_t end, const Packed& candidates, int64_t first, int64_t last,
                int64_t columns, bool itself, const Shortlists& lists) {
  const bool diagonal = kBoth && begin == first;
  for (int64_t column = first; column < last; column += kPanel)
    for (int64_t row = begin; row < end; row += kRows) {
      if (diagonal && row >= column + kPanel) break;
      scan_tile<kBoth>(Tile{queries, candidates, row, column, diagonal, itself, lists}, columns);
    }
}

void scan(const Packed& queries, int64_t begin, int64_t end, const Packed& candidates, int64_t first, int64_t last,
          int64_t columns, const Shortlists& lists) {
  scan_tiles<false>(queries, begin, end, candidates, first, last, columns, false, lists);
}

void scan_both(const Packed& points, int64_t begin, int64_t end, int64_t first, int64_t last, int64_t columns,
               bool itself, const Shortlists& lists) {
  scan_tiles<true>(points, begin, end, points, first, last, columns, itself, lists);
}

double largest(const Points& points, int64_t begin, int64_t n) {
  double buffer[kChunk], most = 0;
  for (int64_t at = 0; at < n; at += kChunk) {
    const int64_t here = n - at < kChunk ? n - at : kChunk;
    read(points.type, points.data, begin + at, here, buffer);
    for (int64_t i = 0; i < here; ++i) {
      const double magnitude = buffer[i] < 0 ? -buffer[i] : buffer[i];
      most = magnitude > most ? magnitude : most;
    }
  }
  return most;
}

// A row fits the buffer that `read` converts through.
constexpr int64_t kMaxColumns = kChunk;

void pack(const Points& points, int64_t row, const Frame& frame, const Packed& to, int64_t begin, int64_t end) {
  const int64_t d = points.columns, filled = (end + kPanel - 1) / kPanel * kPanel;
  double buffer[kMaxColumns];
  for (int64_t i = begin; i < filled; ++i) {
    float* out = to.values + i / kPanel * kPanel * d + i % kPanel;
    if (i >= end) {
      for (int64_t j = 0; j < d; ++j) out[j * kPanel] = 0;
      to.halves[i] = INFINITY;
      continue;
    }
    read(points.type, points.data, (row + i) * d, d, buffer);
    double norm = 0;
    for (int64_t j = 0; j < d; ++j) {
      const float y = (float)((buffer[j] - frame.center[j]) * frame.scale);
      out[j * kPanel] = y;
      norm += (double)y * y;
    }
    to.halves[i] = frame.accuracy.half(norm);
  }
}

void pack_exact(const Points& points, int64_t row, int64_t count, double* to) {
  const int64_t d = points.columns, filled = (count + kExactPanel - 1) / kExactPanel * kExactPanel;
  double buffer[kMaxColumns] = {};
  for (int64_t i = 0; i < filled; ++i) {
    double* out = to + i / kExactPanel * kExactPanel * d + i % kExactPanel;
    if (i < count) read(points.type, points.data, (row + i) * d, d, buffer);
    for (int64_t j = 0; j < d; ++j) out[j * kExactPanel] = buffer[j];
  }
}

// The value as it is, rounded: hides from the compiler that a product's sum could be fused.
inline VD rounded(VD v) {
#if defined(__x86_64__)
  asm("" : "+x"(v));
  return v;
#else
  volatile VD kept = v;
  return kept;
#endif
}

void scan_exact(const double* queries, int64_t row, int64_t rows, const double* candidates, int64_t first, int64_t count,
                int64_t columns, const ExactLists& lists) {
  for (int64_t column = 0; column < count; column += kExactPanel) {
    const double *a = queries, *b = candidates + column * columns;
    VD d[kExactRows][kExactVectors] = {};
    for (int64_t j = 0; j < columns; ++j, a += kExactRows, b += kExactPanel) {
      const VD y[kExactVectors] = {load(b), load(b + kExactLanes)};
#pragma GCC unroll 4
      for (int r = 0; r < kExactRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kExactVectors; ++v) {
          const VD difference = a[r] - y[v];
          d[r][v] += rounded(difference * difference);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kExactRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kExactVectors; ++v) {
        if (r >= rows) continue;
        const VD mine = d[r][v];
        if (!any<double>(~(mine >= lists.threshold[row + r]))) continue;
        for (int lane = 0; lane < kExactLanes; ++lane) {
          const int64_t i = column + v * kExactLanes + lane;
          if (i >= count || first + i == lists.own[row + r] || mine[lane] >= lists.threshold[row + r]) continue;
          lists.found[(row + r) * lists.room + lists.count[row + r]] = {mine[lane], first + i};
          if (++lists.count[row + r] == lists.room) lists.prune(row + r);
        }
      }
  }
}

static const KnnKernels knn_kernels{kPanel, kExactPanel, kExactRows, largest,   pack,
                                    pack_exact, scan,    scan_both,  scan_exact};
