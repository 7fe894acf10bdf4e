// From a shortlist to neighbours: exact distances, and the proof that none is missing.

#pragma once

#include "knn_search.h"

namespace imbal {

// The exact distances of a query's shortlist, merged into its nearest so far, if the cutoffs prove that nothing is
// missing. A block does one query of the batch.
struct Finish {
  Search s;

  static constexpr int kThreads = 512, kBlocks = 2, kFewThreads = 128;  // the latter for lists of up to 512

  struct Shared {
    int n, prefix_count;
    uint32_t prefix;
    float cutoff;
    double kth;
    int histogram[256];
  };
  static size_t shared_bytes(int64_t candidates) { return sizeof(Shared) + candidates * 16; }

  template <class Block>
  IMBAL_DEVICE void operator()(const Block& block) const {
    const Finish self = *this;
    Shared& sh = *(Shared*)block.shared;
    Candidates c;
    c.distance = (uint64_t*)(block.shared + sizeof(Shared));
    c.row = (uint32_t*)(c.distance + s.candidates());
    int* ranks = (int*)(c.row + s.candidates());
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
  // equals it is left out too. CUB has no top-k in CUDA 13.0 (CCCL 3.0), and its segmented sort of (score, row) is no
  // replacement: 16 bytes a score instead of 4, so a quarter of the queries at a time in the same budget, and each of
  // its six passes writes all of them, where these passes only read.
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

}  // namespace imbal
