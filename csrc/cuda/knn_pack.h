// What runs before the distances: the work list, empty outputs, and rows packed as the distance kernel reads them.

#pragma once

#include "knn_search.h"

namespace imbal {

// First panels of all segments, by one block: each item adds up a range of them, then the ranges are offset. Segments
// that do not rise from 0 to the number of rows, which nobody could check without waiting for the device, get no
// panels: every query is then left with rows -1 at distance inf.
struct CountPanels {
  Rows rows;
  int64_t segments, n;

  static constexpr int kItems = 1024, kThreads = 256, kBlocks = 1;
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
#pragma unroll 8
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
  static constexpr int kItems = 4096, kThreads = 256, kBlocks = 4;

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

  static constexpr int kThreads = 256, kBlocks = 4, kTile = 32, kSamples = 32;
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

}  // namespace imbal
