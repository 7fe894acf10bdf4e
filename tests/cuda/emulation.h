// Launches of the CUDA kernels on the host: block by block, and the distance tiles written again.

#pragma once

#include <vector>

#include "knn_lists.h"
#include "knn_plan.h"

namespace imbal {

// Shared memory is poisoned before each block: what is read before it is written shows.
struct HostLaunch {
  bool backwards;

  template <class Kernel>
  void operator()(const Kernel& kernel, int64_t blocks, int threads, int64_t shared_bytes) const {
    std::vector<uint64_t> shared(shared_bytes / 8 + 1);
    for (int64_t i = 0; i < blocks; ++i) {
      memset(shared.data(), 0xfb, shared.size() * 8);
      kernel(HostBlock{(char*)shared.data(), backwards ? blocks - 1 - i : i, threads, backwards});
    }
  }
};

// 256 threads, eight by eight scores each; `backwards` visits them in the opposite order.
inline void collect(const Search& s, const Lists& lists, const std::vector<float>& scores, int64_t first_column,
             int64_t self_row, const HostBlock& block) {
  std::vector<bool> waiting(kPanel * kPanel);
  for (int i = 0; i < kPanel * kPanel; ++i) waiting[i] = scores[i] >= lists.thresholds[i / kPanel];
  while (true) {
    bool again = false;
    block.each(kPanel * kPanel, [&](int64_t i) {
      const int row = (int)i / kPanel, column = (int)first_column + (int)i % kPanel;
      const List list = lists.of(row, s.capacity);
      if (!waiting[i]) return;
      const bool wanted = scores[i] >= *list.threshold && !(s.exclude_self && column == self_row + row);
      waiting[i] = wanted && !push(block, list, s.kept, s.capacity, list_key(scores[i], column));
      again |= waiting[i];
    });
    if (!again) return;
    for (int row = 0; row < kPanel; ++row) {
      const List list = lists.of(row, s.capacity);
      if ((*list.state & kBuffered) >= s.capacity - s.kept) merge(block, list, s.kept, s.capacity);
    }
  }
}

inline void tiles(const Search& s, bool backwards) {
  const HostBlock block{nullptr, 0, 32, backwards};
  std::vector<uint64_t> shared(Lists::shared_bytes(s.capacity) / 8 + 1);
  const Lists lists((char*)shared.data(), s.capacity);
  std::vector<float> scores(kPanel * kPanel);
  for (int64_t index = 0; index < s.batch_panels * s.splits; ++index) {
    const int64_t batch_panel = index / s.splits;
    const Panel p = panel_at(s.query, s.segments, s.first_batch + batch_panel);
    if (p.rows == 0) continue;
    const Range all = range_of(s, p.segment), range = share_of(all, index % s.splits, s.splits);
    if (!s.scores) lists.open(block, s, p, batch_panel);
    for (int64_t panel = range.first_panel; panel < range.last_panel; ++panel) {
      const int64_t at = panel - s.first_panel;
      const float *x = s.x.packed + at * s.padded_d * kPanel, *q = s.query.packed + batch_panel * s.padded_d * kPanel;
      for (int r = 0; r < kPanel; ++r) {
        float* row = &scores[r * kPanel];
        for (int c = 0; c < kPanel; ++c) row[c] = s.start[at * kPanel + c];
        for (int j = 0; j < s.padded_d; ++j)
          for (int c = 0; c < kPanel; ++c) row[c] = fmaf(q[j * kPanel + r], x[j * kPanel + c], row[c]);
        if (s.scores) memcpy(s.scores + ((batch_panel * kPanel + r) * s.chunk_panels + at) * kPanel, row, kPanel * 4);
      }
      if (!s.scores)
        collect(s, lists, scores, (panel - all.first_panel) * kPanel, p.first_row - all.first_row, block);
    }
    if (s.scores) continue;
    for (int row = 0; row < kPanel; ++row) merge(block, lists.of(row, s.capacity), s.kept, s.capacity);
    lists.close(block, s, batch_panel, (int)(index % s.splits));
  }
}

}  // namespace imbal
