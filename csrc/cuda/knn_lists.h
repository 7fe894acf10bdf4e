// What the distance kernel does beside its tiles, written once for the GPU and for the host.

#pragma once

#include "knn_search.h"

namespace imbal {

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
