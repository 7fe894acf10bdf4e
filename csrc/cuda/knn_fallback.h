// What is done for queries whose shortlist proves nothing.

#pragma once

#include "knn_search.h"

namespace imbal {

// The definition for every reference of the chunk, for eight queries of a panel of which one at least is uncertain.
struct Fallback {
  Search s;

  static constexpr int kRows = kFallbackRows, kThreads = 256, kBlocks = 2, kDims = 256, kBuffer = 512;
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

}  // namespace imbal
