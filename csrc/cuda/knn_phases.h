// Every kernel of the search but the distance tiles (knn_tile.cuh), written once for the GPU and for the host.

#pragma once

#include "knn_search.h"

namespace imbal {

// First panels of all segments, by one block: each item adds up a range of them, then the ranges are offset. Segments
// that do not rise from 0 to the number of rows, which nobody could check without waiting for the device, get no
// panels: every query is then left with rows -1 at distance inf.
struct CountPanels {
  Rows rows;
  int64_t segments, n;

  static constexpr int kItems = 1024, kThreads = 256;
  struct Shared {
    int64_t sums[kItems + 1];
    int bad;
  };
  static size_t shared_bytes() { return sizeof(Shared); }

  IMBAL_DEVICE int64_t count(int64_t s) const { return divide_up(rows.ptr[s + 1] - rows.ptr[s], kPanel); }

  template <class Block>
  IMBAL_DEVICE void operator()(const Block& block) const {
    const CountPanels self = *this;
    Shared& sh = *(Shared*)block.shared;
    const int64_t share = divide_up(segments, kItems);
    block.each(1, [&](int64_t) { sh.bad = self.rows.ptr[0] != 0 || self.rows.ptr[self.segments] != self.n; });
    block.each(kItems, [&](int64_t i) {
      int64_t sum = 0;
      for (int64_t s = i * share; s < at_most((i + 1) * share, self.segments); ++s) {
        if (self.rows.ptr[s] > self.rows.ptr[s + 1]) sh.bad = 1;
        sum += self.count(s);
      }
      sh.sums[i + 1] = sum;
    });
    block.each(1, [&](int64_t) {
      sh.sums[0] = 0;
      for (int i = 0; i < kItems; ++i) sh.sums[i + 1] += sh.sums[i];
    });
    block.each(kItems, [&](int64_t i) {
      int64_t sum = sh.sums[i];
      for (int64_t s = i * share; s < at_most((i + 1) * share, self.segments); ++s) {
        self.rows.panels[s] = sh.bad ? 0 : sum;
        sum += self.count(s);
      }
    });
    block.each(1, [&](int64_t) { self.rows.panels[self.segments] = sh.bad ? 0 : sh.sums[kItems]; });
  }
};

struct Clear {
  int64_t* indices;
  double* distances;
  int64_t n;
  static constexpr int kItems = 4096, kThreads = 256;

  template <class Block>
  IMBAL_DEVICE void operator()(const Block& block) const {
    const Clear self = *this;
    const int64_t first = block.index * kItems;
    block.each(at_most((int64_t)kItems, n - first), [=](int64_t i) {
      self.indices[first + i] = -1;
      self.distances[first + i] = std::numeric_limits<double>::infinity();
    });
  }
};

// One panel: centred on the mean of up to 32 references of its segment (any point serves as long as both sides
// subtract the same one; near the mean it makes norms, and with them the margins, small), turned so that a
// dimension's 128 values are contiguous, padded with zeros. A row with components that fp32 can't hold
// becomes zero: a reference then scores +inf, so it is always rescored; a query is always uncertain.
struct Pack {
  Search s;
  bool queries;
  int64_t first_panel;

  static constexpr int kThreads = 256, kTile = 32, kSamples = 32;
  struct Shared {
    float tile[kPanel][kTile + 1];  // + 1: neither the rows nor the columns that a warp touches share a bank
    float centre[kTile];
    double norm[kPanel];
    int unsafe[kPanel];
    int any;
  };
  static size_t shared_bytes() { return sizeof(Shared); }

  IMBAL_DEVICE float centre(const Panel& p, int64_t j) const {
    if (s.x.panels[p.segment] == s.x.panels[p.segment + 1]) return 0;  // no rows, whatever ptr says
    const int64_t begin = s.x.ptr[p.segment], rows = s.x.ptr[p.segment + 1] - begin;
    double sum = 0;
    for (int64_t i = 0; i < kSamples; ++i) sum += load(s, s.x, begin + i * rows / kSamples, j);
    const float mean = (float)(sum / kSamples);
    return fabsf(mean) <= kLargest ? mean : 0;
  }

  template <class Block>
  IMBAL_DEVICE void operator()(const Block& block) const {
    const Pack self = *this;
    Shared& sh = *(Shared*)block.shared;
    const Rows& side = queries ? s.query : s.x;
    const Panel p = panel_at(side, s.segments, first_panel + block.index);
    if (p.rows == 0) return;
    float* out = side.packed + block.index * kPanel * s.padded_d;
    block.each(kPanel, [&](int64_t r) {
      sh.norm[r] = 0;
      sh.unsafe[r] = 0;
    });
    block.each(1, [&](int64_t) { sh.any = 0; });
    for (int first = 0; first < s.padded_d; first += kTile) {
      const int width = at_most(kTile, s.padded_d - first), real = at_most(kTile, s.d - first);
      block.each(real, [&](int64_t j) { sh.centre[j] = self.centre(p, first + j); });
      block.each(kPanel * kTile, [&](int64_t i) {
        const int64_t r = i / kTile, j = i % kTile;
        const bool there = r < p.rows && j < real;
        sh.tile[r][j] = there ? (float)(load(self.s, side, p.first_row + r, first + j) - sh.centre[j]) : 0;
      });
      block.each(kPanel, [&](int64_t r) {
        double sum = sh.norm[r];
        bool unsafe = false;
        for (int j = 0; j < width; ++j) {
          unsafe |= !(fabsf(sh.tile[r][j]) <= kLargest);
          sum += (double)sh.tile[r][j] * sh.tile[r][j];
        }
        sh.norm[r] = sum;
        if (unsafe) sh.unsafe[r] = sh.any = 1;
      });
      block.each(width * kPanel, [&](int64_t i) {
        out[first * kPanel + i] = sh.tile[i % kPanel][i / kPanel];
      });
    }
    if (sh.any)
      block.each((int64_t)s.padded_d * kPanel, [&](int64_t i) {
        if (sh.unsafe[i % kPanel]) out[i] = 0;
      });
    constexpr float inf = std::numeric_limits<float>::infinity();
    block.each(kPanel, [&](int64_t r) {
      const int64_t at = block.index * kPanel + r;
      if (self.queries) {
        self.s.norm[at] = sh.unsafe[r] ? inf : sh.norm[r];
        self.s.uncertain[at] = 0;
      } else {
        self.s.start[at] = r >= p.rows ? -inf : sh.unsafe[r] ? inf : start_score(sh.norm[r], self.s.d);
      }
    });
  }
};

// The exact distances of a query's shortlist, merged into its nearest so far, if the cutoffs prove that nothing is
// missing. A block does one query of the batch.
struct Finish {
  Search s;

  static constexpr int kThreads = 512, kFewThreads = 128;  // the latter for lists of up to 512

  struct Shared {
    int n, prefix_count;
    uint32_t prefix;
    float cutoff;
    double kth;
    int histogram[256];
  };
  static size_t shared_bytes(int64_t candidates) { return sizeof(Shared) + candidates * 16; }

  IMBAL_DEVICE int candidates() const { return s.kept * s.splits; }

  template <class Block>
  IMBAL_DEVICE void operator()(const Block& block) const {
    const Finish self = *this;
    Shared& sh = *(Shared*)block.shared;
    Candidates c;
    c.distance = (uint64_t*)(block.shared + sizeof(Shared));
    c.row = (uint32_t*)(c.distance + candidates());
    int* ranks = (int*)(c.row + candidates());
    const Panel p = panel_at(s.query, s.segments, s.first_batch + block.index / kPanel);
    const int64_t r = block.index % kPanel;
    if (r >= p.rows) return;
    const Range range = range_of(s, p.segment);
    if (range.rows == 0) return;
    const int64_t query = p.first_row + r;
    const Nearest nearest{s.distances + query * s.k, s.indices + query * s.k, s.k};
    const double norm = s.norm[block.index];

    block.each(1, [&](int64_t) {
      sh.n = 0;
      sh.cutoff = kNone;
      sh.kth = std::numeric_limits<double>::quiet_NaN();
    });
    if (s.scores)
      select(block, sh, c, range, query, first_threshold(nearest, norm, s.d));
    else
      gather(block, sh, c);
    const int n = sh.n;
    block.each(n, [=](int64_t i) { c.distance[i] = exact_distance(self.s, query, range.first_row + c.row[i]); });
    sort(block, c, n);
    block.each(n, [&](int64_t i) {
      if (rank_of_candidate(nearest, c, (int)i) == nearest.k - 1) sh.kth = bits_as<double>(c.distance[i]);
    });
    block.each(nearest.k, [&](int64_t i) {
      if (rank_of_listed(nearest, c, n, (int)i) == nearest.k - 1 && nearest.row[i] >= 0)
        sh.kth = nearest.distance[i];
    });
    const bool certain = is_certain(norm, sh.cutoff, sh.kth, s.d);
    block.each(1, [&](int64_t) {
      uint8_t& uncertain = self.s.uncertain[block.index];
      block.count(self.s.totals, n);
      if (!certain && !uncertain) block.count(self.s.totals + 1, 1);
      uncertain = certain ? uncertain & 2 : 3;
    });
    if (certain) merge(block, nearest, c, n, range.first_row, ranks);
  }

  template <class Block>
  IMBAL_DEVICE void gather(const Block& block, Shared& sh, Candidates c) const {
    const Finish self = *this;
    const int64_t first = block.index * s.splits;
    block.each(s.splits * s.kept, [&](int64_t i) {
      if (i % self.s.kept >= self.s.counts[first + i / self.s.kept]) return;
      c.row[block.add(&sh.n, 1)] = self.s.lists[first * self.s.kept + i];
    });
    block.each(1, [&](int64_t) {
      for (int i = 0; i < self.s.splits; ++i) sh.cutoff = fmaxf(sh.cutoff, self.s.cutoffs[first + i]);
    });
  }

  // Radix select of the `kept` best scores. Where more pass the threshold, the cutoff is the best of the rest, and what
  // equals it is left out too.
  template <class Block>
  IMBAL_DEVICE void select(const Block& block, Shared& sh, Candidates c, const Range& range, int64_t query,
                           float threshold) const {
    const int64_t stride = s.chunk_panels * kPanel;
    const float* scores = s.scores + block.index * stride + (range.first_panel - s.first_panel) * kPanel;
    const int64_t self_row = s.exclude_self ? query - range.first_row : -1;
    const int kept = s.kept;
    const auto passes = [=](int64_t i) { return scores[i] >= threshold && i != self_row; };
    block.each(range.rows, [&](int64_t i) {
      if (!passes(i)) return;
      const int slot = block.add(&sh.n, 1);
      if (slot < kept) c.row[slot] = (uint32_t)i;
    });
    if (sh.n <= kept) return;
    block.sync();  // before sh.n changes below
    block.each(1, [&](int64_t) { sh.prefix = 0, sh.prefix_count = kept + 1; });
    for (int shift = 24; shift >= 0; shift -= 8) {
      const uint32_t prefix = sh.prefix;
      block.each(256, [&](int64_t i) { sh.histogram[i] = 0; });
      block.each(range.rows, [&](int64_t i) {
        const uint32_t key = ordered_bits(scores[i]);
        if (passes(i) && (uint64_t)key >> (shift + 8) == prefix) block.add(&sh.histogram[key >> shift & 255], 1);
      });
      block.each(1, [&](int64_t) {
        int digit = 255;
        for (; sh.histogram[digit] < sh.prefix_count; --digit) sh.prefix_count -= sh.histogram[digit];
        sh.prefix = prefix << 8 | digit;
      });
    }
    block.each(1, [&](int64_t) {
      sh.n = 0;
      sh.cutoff = from_ordered_bits(sh.prefix);
    });
    const uint32_t cutoff = sh.prefix;
    block.each(range.rows, [&](int64_t i) {
      if (passes(i) && ordered_bits(scores[i]) > cutoff) c.row[block.add(&sh.n, 1)] = (uint32_t)i;
    });
  }
};

// The definition for every reference of the chunk, for eight queries of a panel of which one at least is uncertain.
struct Fallback {
  Search s;

  static constexpr int kRows = kFallbackRows, kThreads = 256, kDims = 256, kBuffer = 512;
  struct Shared {
    double query[kDims][kRows];
    double sum[kRows][kThreads];
    uint64_t distance[kRows][kBuffer];
    uint32_t row[kRows][kBuffer];
    int ranks[kBuffer];
    int n[kRows], active[kRows], any;
  };
  static size_t shared_bytes() { return sizeof(Shared); }

  template <class Block>
  IMBAL_DEVICE void operator()(const Block& block) const {
    const Fallback self = *this;
    Shared& sh = *(Shared*)block.shared;
    const int64_t slot = block.index * kRows;
    const Panel p = panel_at(s.query, s.segments, s.first_batch + slot / kPanel);
    const int first = (int)(slot % kPanel);
    if (first >= p.rows) return;
    const Range range = range_of(s, p.segment);
    if (range.rows == 0) return;
    block.each(1, [&](int64_t) {
      sh.any = 0;
      for (int r = 0; r < kRows; ++r) {
        sh.active[r] = first + r < p.rows && self.s.uncertain[slot + r] & 1;
        sh.any |= sh.active[r];
        sh.n[r] = 0;
      }
    });
    if (!sh.any) return;
    const int64_t query = p.first_row + first;
    for (int64_t base = 0; base < range.rows; base += kThreads) {
      const int count = (int)at_most((int64_t)kThreads, range.rows - base);
      distances(block, sh, query, p.rows - first, range.first_row + base, count);
      block.each(kRows * kThreads, [&](int64_t i) {
        const int r = (int)i / kThreads, t = (int)i % kThreads;
        const int64_t row = range.first_row + base + t;
        if (t >= count || !sh.active[r] || (self.s.exclude_self && row == query + r)) return;
        const uint64_t bits = distance_bits(sh.sum[r][t]);
        if (bits >= self.nearest(query + r).key(self.s.k - 1)) return;
        const int to = block.add(&sh.n[r], 1);
        sh.distance[r][to] = bits;
        sh.row[r][to] = (uint32_t)(base + t);
      });
      flush(block, sh, query, range.first_row, kBuffer - kThreads);
    }
    flush(block, sh, query, range.first_row, 0);
  }

  IMBAL_DEVICE Nearest nearest(int64_t query) const {
    return {s.distances + query * s.k, s.indices + query * s.k, s.k};
  }

  // sum[r][t]: from query + r to row + t, dimensions in ascending order.
  template <class Block>
  IMBAL_DEVICE void distances(const Block& block, Shared& sh, int64_t query, int rows, int64_t row, int count) const {
    const Fallback self = *this;
    for (int begin = 0; begin < s.d; begin += kDims) {
      const int dims = at_most(kDims, s.d - begin);
      block.each(dims * kRows, [&](int64_t i) {
        const int r = (int)i % kRows, j = (int)i / kRows;
        sh.query[j][r] = r < rows ? load(self.s, self.s.query, query + r, begin + j) : 0;
      });
      block.each(count, [&](int64_t t) {
        double sum[kRows];
        for (int r = 0; r < kRows; ++r) sum[r] = begin ? sh.sum[r][t] : 0;
        with_element(self.s.element, self.s.x.data, [&](auto x) {
          x += (row + t) * self.s.d + begin;
          for (int j = 0; j < dims; ++j) {
            const double value = (double)x[j];
            for (int r = 0; r < kRows; ++r) sum[r] = add_square(sum[r], sh.query[j][r], value);
          }
        });
        for (int r = 0; r < kRows; ++r) sh.sum[r][t] = sum[r];
      });
    }
  }

  // Merges the buffers that hold more than `most`.
  template <class Block>
  IMBAL_DEVICE void flush(const Block& block, Shared& sh, int64_t query, int64_t first_row, int most) const {
    for (int r = 0; r < kRows; ++r) {
      const int n = sh.n[r];
      if (n <= most) continue;
      const Candidates c{sh.distance[r], sh.row[r]};
      sort(block, c, n);
      merge(block, nearest(query + r), c, n, first_row, sh.ranks);
      block.each(1, [&](int64_t) { sh.n[r] = 0; });
    }
  }
};

// ---- What the distance kernel does beside its tiles.

// The lists of a panel's 128 queries, in shared memory.
struct Lists {
  uint64_t* keys;
  float* thresholds;
  int* states;

  static size_t shared_bytes(int capacity) { return kPanel * (capacity * 8 + 8); }

  IMBAL_DEVICE Lists(char* shared, int capacity)
      : keys((uint64_t*)shared), thresholds((float*)(keys + kPanel * capacity)), states((int*)(thresholds + kPanel)) {}

  IMBAL_DEVICE List of(int row, int capacity) const { return {keys + row * capacity, states + row, thresholds + row}; }

  // A row that does not exist gets a threshold that nothing passes, not even +inf.
  template <class Block>
  IMBAL_DEVICE void open(const Block& block, const Search& s, const Panel& p, int64_t batch_panel) const {
    const Lists self = *this;
    block.each(kPanel, [&](int64_t r) {
      const int64_t query = p.first_row + r;
      const Nearest nearest{s.distances + query * s.k, s.indices + query * s.k, s.k};
      self.states[r] = 0;
      self.thresholds[r] = r < p.rows ? first_threshold(nearest, s.norm[batch_panel * kPanel + r], s.d)
                                      : std::numeric_limits<float>::quiet_NaN();
    });
  }

  template <class Block>
  IMBAL_DEVICE void close(const Block& block, const Search& s, int64_t batch_panel, int split) const {
    const Lists self = *this;
    const auto at = [=](int64_t r) { return (batch_panel * kPanel + r) * s.splits + split; };
    block.each(kPanel, [&](int64_t r) {
      const int count = self.states[r] >> 16;
      s.counts[at(r)] = count;
      s.cutoffs[at(r)] = count == s.kept ? self.thresholds[r] : kNone;
    });
    block.each(kPanel * s.kept, [&](int64_t i) {
      const int64_t r = i / s.kept, e = i % s.kept;
      if (e < self.states[r] >> 16) s.lists[at(r) * s.kept + e] = (uint32_t)self.keys[r * s.capacity + e];
    });
  }
};

// A split's share of a segment's panels in the chunk.
IMBAL_DEVICE Range share_of(Range range, int split, int splits) {
  const int64_t n = range.last_panel - range.first_panel;
  range.last_panel = range.first_panel + n * (split + 1) / splits;
  range.first_panel += n * split / splits;
  return range;
}

}  // namespace imbal
