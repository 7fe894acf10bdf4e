// The CUDA search on the host: its own headers, its own plan, one thread. Only the distance tiles are written again,
// with the same products in the same order.

#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "knn_plan.h"

using namespace imbal;

namespace {

struct Options {
  int processors, backwards;
  int64_t references, queries, lists, scored_panels;  // bytes of the budget, and its panels
};

// 256 threads, eight by eight scores each; `backwards` visits them in the opposite order.
void collect(const Search& s, const Lists& lists, const std::vector<float>& scores, int64_t first_column,
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

void tiles(const Search& s, bool backwards) {
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

}  // namespace

extern "C" int64_t knn(const void* x, const void* query, const int64_t* ptr, const int64_t* query_ptr,
                       int64_t segments, int64_t n, int64_t m, int64_t d, int64_t k, int element, int exclude_self,
                       const Options* options, int64_t* indices, double* distances, int64_t* totals) {
  Search s{};
  s.x = {x, ptr, nullptr, nullptr};
  s.query = {query, query_ptr, nullptr, nullptr};
  s.element = (Element)element;
  s.segments = segments;
  s.d = (int)d;
  s.k = (int)k;
  s.exclude_self = exclude_self;
  s.indices = indices;
  s.distances = distances;
  s.totals = totals;
  Budget budget;
  budget.references = options->references;
  budget.queries = options->queries;
  budget.lists = options->lists;
  budget.scored_panels = options->scored_panels;
  const Plan plan(s, n, m, options->processors, budget);
  // Poisoned: what is read before it is written shows. The same for every block's shared memory.
  std::unique_ptr<char, decltype(&free)> workspace((char*)aligned_alloc(256, plan.workspace.bytes), &free);
  memset(workspace.get(), 0xfb, plan.workspace.bytes);
  plan.bind(s, workspace.get());
  const bool backwards = options->backwards;
  run(
      s, plan, m,
      [&](auto kernel, int64_t blocks, int threads, int64_t shared_bytes) {
        std::vector<uint64_t> shared(shared_bytes / 8 + 1);
        for (int64_t i = 0; i < blocks; ++i) {
          memset(shared.data(), 0xfb, shared.size() * 8);
          kernel(HostBlock{(char*)shared.data(), backwards ? blocks - 1 - i : i, threads, backwards});
        }
      },
      [&](const Search& now) { tiles(now, backwards); });
  return plan.workspace.bytes;
}
