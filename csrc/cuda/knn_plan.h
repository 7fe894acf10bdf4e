// The sequence of launches of a search, and the workspace it needs: at most 512 MiB and 16 bytes a segment, whatever the
// number of rows.

#pragma once

#include "knn_fallback.h"
#include "knn_finish.h"
#include "knn_pack.h"

namespace imbal {

struct Budget {
  int64_t references = 256 << 20, queries = 64 << 20, lists = 192 << 20;  // 512 MiB
  int64_t chunk_panels = 1 << 16;                                        // rows of a chunk count in 32 bits
  int64_t scored_panels = 256;                                           // of a chunk, for k > kFusedK
};

struct Workspace {
  int64_t bytes = 0;

  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += divide_up(size, 256) * 256;
    return at;
  }
};

// Sizes of `s` from its shape; `s` gets its place in the workspace from bind().
struct Plan {
  int64_t chunks, batches;
  int64_t x_panels, query_panels;  // at most
  Workspace workspace;
  int64_t at_x_panels, at_query_panels, at_x, at_query, at_start, at_norm, at_lists, at_counts, at_cutoffs,
      at_uncertain;

  Plan(Search& s, int64_t n, int64_t m, int processors, const Budget& budget) {
    s.padded_d = (int)divide_up(s.d, kStep) * kStep;
    s.kept = s.k + 8 + s.k / 16;  // slack: with k alone a cutoff could prove nothing
    s.capacity = s.k <= 12 ? 32 : s.k <= 32 ? 64 : 96;
    const bool fused = s.k <= kFusedK;
    // A segment's last panel may be short: one for each segment at most, and none without a row.
    x_panels = at_most(n, n / kPanel + s.segments);
    query_panels = at_most(m, m / kPanel + s.segments);
    const int64_t packed = (int64_t)s.padded_d * kPanel * sizeof(float);
    const int64_t most = fused ? budget.chunk_panels : budget.scored_panels;
    s.chunk_panels = clamp(budget.references / (packed + kPanel * sizeof(float)), at_most(x_panels, most));
    const int64_t panels = clamp(budget.queries / (packed + kPanel * sizeof(double)), query_panels);
    // Blocks of the distance kernel for six on each multiprocessor, two of which run at a time: three waves.
    const auto splits = [&](int64_t batch, int64_t most) {
      return (int)clamp(divide_up(6 * processors, batch), at_most(s.chunk_panels, most));
    };
    s.splits = splits(panels, 32);
    const int64_t listed = fused ? s.splits * (s.kept * 4 + 8) : s.chunk_panels * kPanel * (int64_t)sizeof(float);
    s.batch_panels = clamp(budget.lists / (kPanel * (listed + 1)), panels);
    if (!fused) s.splits = splits(s.batch_panels, s.chunk_panels);
    chunks = divide_up(x_panels, s.chunk_panels);
    batches = divide_up(query_panels, s.batch_panels);

    const int64_t rows = s.batch_panels * kPanel;
    at_x_panels = workspace.take((s.segments + 1) * sizeof(int64_t));
    at_query_panels = workspace.take((s.segments + 1) * sizeof(int64_t));
    at_x = workspace.take(s.chunk_panels * packed);
    at_query = workspace.take(s.batch_panels * packed);
    at_start = workspace.take(s.chunk_panels * kPanel * sizeof(float));
    at_norm = workspace.take(rows * sizeof(double));
    at_uncertain = workspace.take(rows);
    at_lists = workspace.take(fused ? rows * s.splits * s.kept * 4 : rows * listed);
    at_counts = workspace.take(fused ? rows * s.splits * sizeof(int) : 0);
    at_cutoffs = workspace.take(fused ? rows * s.splits * sizeof(float) : 0);
  }

  void bind(Search& s, char* base) const {
    s.x.panels = (int64_t*)(base + at_x_panels);
    s.query.panels = (int64_t*)(base + at_query_panels);
    s.x.packed = (float*)(base + at_x);
    s.query.packed = (float*)(base + at_query);
    s.start = (float*)(base + at_start);
    s.norm = (double*)(base + at_norm);
    s.uncertain = (uint8_t*)(base + at_uncertain);
    s.scores = s.k <= kFusedK ? nullptr : (float*)(base + at_lists);
    s.lists = (uint32_t*)(base + at_lists);
    s.counts = (int*)(base + at_counts);
    s.cutoffs = (float*)(base + at_cutoffs);
  }

 private:
  static int64_t clamp(int64_t v, int64_t most) { return at_least<int64_t>(1, at_most(v, most)); }
};

// launch(kernel, blocks, threads, shared bytes) and tiles(search), the distance kernel, run in order.
template <class Launch, class Tiles>
void run(Search s, const Plan& plan, int64_t n, int64_t m, Launch launch, Tiles tiles) {
  if (m == 0) return;
  launch(Clear{s.indices, s.distances, m * s.k}, divide_up(m * s.k, Clear::kItems), Clear::kThreads, 0);
  if (plan.x_panels == 0) return;
  launch(CountPanels{s.x, s.segments, n}, 1, CountPanels::kThreads, CountPanels::shared_bytes());
  launch(CountPanels{s.query, s.segments, m}, 1, CountPanels::kThreads, CountPanels::shared_bytes());
  for (int64_t batch = 0; batch < plan.batches; ++batch) {
    s.first_batch = batch * s.batch_panels;
    launch(Pack{s, true, s.first_batch}, s.batch_panels, Pack::kThreads, Pack::shared_bytes());
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      s.first_panel = chunk * s.chunk_panels;
      if (plan.chunks > 1 || batch == 0)
        launch(Pack{s, false, s.first_panel}, s.chunk_panels, Pack::kThreads, Pack::shared_bytes());
      tiles(s);
      launch(Finish{s}, s.batch_panels * kPanel, s.candidates() <= 512 ? Finish::kFewThreads : Finish::kThreads,
             Finish::shared_bytes(s.candidates()));
      launch(Fallback{s}, s.batch_panels * (kPanel / kFallbackRows), Fallback::kThreads, Fallback::shared_bytes());
    }
  }
}

}  // namespace imbal
