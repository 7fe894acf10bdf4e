// The CUDA kernels on the host: their own headers, their own plan, one thread. Only the distance tiles are written
// again, with the same products in the same order.

#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "emulation.h"

using namespace imbal;

namespace {

struct Options {
  int processors, backwards;
  int64_t references, queries, lists, scored_panels;  // bytes of the budget, and its panels
};

}  // namespace

// Bytes of the workspace for a search of this size.
extern "C" int64_t workspace(int64_t segments, int64_t n, int64_t m, int64_t d, int64_t k, int processors) {
  Search s{};
  s.segments = segments;
  s.d = (int)d;
  s.k = (int)k;
  return Plan(s, n, m, processors, Budget{}).workspace.bytes;
}

// Blocks of the distance kernel in one launch.
extern "C" int64_t tile_blocks(int64_t segments, int64_t n, int64_t m, int64_t d, int64_t k, int processors) {
  Search s{};
  s.segments = segments;
  s.d = (int)d;
  s.k = (int)k;
  Plan(s, n, m, processors, Budget{});
  return s.batch_panels * s.splits;
}

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
  run(s, plan, n, m, HostLaunch{backwards}, [&](const Search& now) { tiles(now, backwards); });
  return plan.workspace.bytes;
}
