// Exact nearest neighbours on a CPU. A fast pass in fp32 (knn_kernel.h) keeps a shortlist for each query, whose
// distances are then computed by the definition in fp64. A query whose shortlist could not be kept whole falls
// back: its distances to all candidates are computed in fp64. Indices and distances follow from the definition, so
// neither the instruction set nor the threads nor the order of the work show in them.
//
// x against itself is cut into blocks; every pair of blocks is met once and serves both. Disjoint pairs, as in the
// rounds of a tournament, give each block's shortlists one owner at a time.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "knn.h"
#include "tasks.h"
#include "tensors.h"

namespace imbal {
namespace {

// The tile budget: what a search holds beyond its outputs, and 24 bytes for each query.
constexpr int64_t kListBytes = 96 << 20;   // shortlists of the queries in flight
constexpr int64_t kQueryBytes = 64 << 20;  // those queries, packed
constexpr int64_t kChunkBytes = 16 << 20;  // candidates packed for them; the exact pass has twice this
// Rows that meet in one task: a multiple of every instruction set's panel that L2 holds twice.
constexpr int64_t kBlockRows = 480;

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A segment's candidates and queries as rows of the whole arrays.
struct Segment {
  int64_t begin, count, first_query, queries;
};

template <class T>
void exact_distances(const double* query, const T* x, int64_t columns, const int64_t* rows, int64_t n, Exact* out) {
  constexpr int kChains = 8;  // sums at a time: each waits for its own last addition
  for (int64_t at = 0; at < n; at += kChains) {
    const T* y[kChains];
    double sum[kChains] = {};
    for (int c = 0; c < kChains; ++c) y[c] = x + rows[std::min(at + c, n - 1)] * columns;
    for (int64_t j = 0; j < columns; ++j)
      for (int c = 0; c < kChains; ++c) sum[c] = add_square(sum[c], query[j], (double)y[c][j]);
    for (int c = 0; c < kChains && at + c < n; ++c) out[at + c] = {sum[c], rows[at + c]};
  }
}

template <class F>
void with_type(const Points& p, F f) {
  switch (p.type) {
    case Type::kF64: return f((const double*)p.data);
    case Type::kBF16: return f((const torch::headeronly::BFloat16*)p.data);
    case Type::kF16: return f((const torch::headeronly::Half*)p.data);
    default: return f((const float*)p.data);
  }
}

class Search {
 public:
  Search(const Tensor& x, const Tensor& query, int64_t k, bool exclude_self, Tensor& indices, Tensor& distances)
      : like_(x),
        x_{x.const_data_ptr(), type_of(x), x.size(1)},
        query_{query.const_data_ptr(), type_of(query), x.size(1)},
        d_(x.size(1)),
        k_(k),
        keep_(k + k / 4 + 11),
        exclude_self_(exclude_self),
        accuracy_(d_),
        kernels_(*current_backend()->knn),
        indices_(indices.mutable_data_ptr<int64_t>()),
        distances_(distances.mutable_data_ptr<double>()) {}

  void run(const Segment& s) {
    if (s.queries == 0) return;
    std::vector<double> center(d_);
    double scale = 1;
    if (s.count > std::numeric_limits<uint32_t>::max() || !find_frame(s, center, scale)) {
      std::vector<int64_t> all(s.queries);
      for (int64_t i = 0; i < s.queries; ++i) all[i] = i;
      return run_exact(s, all);
    }
    const Frame frame{center.data(), scale, accuracy_};
    const int64_t most = std::max<int64_t>(
        kernels_.panel, std::min(kListBytes / list_bytes(), kQueryBytes / (4 * d_)));
    const int64_t parts = (s.queries + most - 1) / most;
    const int64_t size = up((s.queries + parts - 1) / parts, kernels_.panel);
    for (int64_t first = 0; first < s.queries; first += size)
      run_part(s, frame, first, std::min(size, s.queries - first));
  }

  // Whether a segment is too small to share out.
  bool is_small(const Segment& s) const {
    const int64_t rows = s.count + s.queries;
    return rows <= 2048 && s.queries * (list_bytes() + 4 * d_) <= 4 << 20;
  }

  int64_t rescored() const { return rescored_; }
  int64_t fallbacks() const { return fallbacks_; }

 private:
  int64_t room() const { return keep_ + std::max<int64_t>(keep_, 16); }
  int64_t list_bytes() const { return room() * 12; }
  // Whether the queries are the candidates. Where a row is excluded they are, though a compiler may have copied them.
  bool itself(const Segment& s) const {
    return exclude_self_ || (x_.data == query_.data && s.begin == s.first_query && s.count == s.queries);
  }
  int64_t own(const Segment& s, int64_t query) const { return exclude_self_ ? s.first_query + query - s.begin : -1; }

  // The middle of a sample, and a power of two that brings every coordinate below 1: any frame gives the same
  // neighbours, a good one at once. False where squares in fp64 come near overflow or underflow.
  bool find_frame(const Segment& s, std::vector<double>& center, double& scale) const {
    const int64_t step = std::max<int64_t>(1, s.count / 1024);
    std::vector<double> row(d_);
    int64_t sampled = 0;
    for (int64_t i = 0; i < s.count; i += step, ++sampled) {
      widen(x_, s.begin + i, row.data());
      for (int64_t j = 0; j < d_; ++j) center[j] += row[j] * 0x1p-12;
    }
    double most = 0;
    for (double& c : center) {
      c *= 0x1p12 / sampled;
      most = std::max(most, std::fabs(c));
    }
    most = std::max(most, largest(x_, s.begin, s.count));
    if (!itself(s)) most = std::max(most, largest(query_, s.first_query, s.queries));
    if (most == 0) return true;
    if (!(most < 0x1p400 && most > 0x1p-400)) return false;
    scale = std::ldexp(1.0, -std::ilogb(most) - 2);
    return true;
  }

  double largest(const Points& points, int64_t first, int64_t count) const {
    constexpr int64_t rows = 256;
    std::vector<double> found((count + rows - 1) / rows);
    for_each_part(count, rows, [&](int64_t begin, int64_t end) {
      found[begin / rows] = kernels_.largest(points, (first + begin) * d_, (end - begin) * d_);
    });
    return *std::max_element(found.begin(), found.end());
  }

  void widen(const Points& points, int64_t row, double* out) const {
    with_type(points, [&](auto p) {
      for (int64_t j = 0; j < d_; ++j) out[j] = (double)p[row * d_ + j];
    });
  }

  void pack(const Points& points, int64_t row, const Frame& frame, const Packed& to) const {
    for_each_part(to.count, kBlockRows / 2, [&](int64_t begin, int64_t end) {
      kernels_.pack(points, row, frame, to, begin, end);
    });
  }

  // Queries [first, first + count) of a segment from pack to output.
  void run_part(const Segment& s, const Frame& frame, int64_t first, int64_t count) {
    const int64_t filled = up(count, kernels_.panel);
    const Buffer<float> values(like_, filled * d_), halves(like_, filled), threshold(like_, filled);
    const Buffer<int32_t> counts(like_, filled);
    const Buffer<uint64_t> keys(like_, count * room());
    const Buffer<float> list_halves(like_, count * room());
    std::fill_n(threshold.get(), filled, -FLT_MAX);
    std::fill_n(counts.get(), filled, 0);
    const Packed queries{values.get(), halves.get(), first, count};
    const Shortlists lists{k_,           keep_,      room(),            accuracy_,   threshold.get(),
                           counts.get(), keys.get(), list_halves.get(), halves.get()};
    pack(query_, s.first_query + first, frame, queries);
    if (itself(s)) {
      scan_itself(queries, lists);
      scan_candidates(s, frame, 0, first, queries, lists);
      scan_candidates(s, frame, first + count, s.count, queries, lists);
    } else {
      scan_candidates(s, frame, 0, s.count, queries, lists);
    }
    finish(s, first, count, lists);
  }

  // Each block meets itself, then the others one by one, in the rounds of a tournament. A block keeps to the order of
  // its rounds, but no round waits for all of the one before: tasks start in order and wait for two blocks at most.
  // They sleep meanwhile, where a loop of yields would rely on the scheduler to choose the thread that is waited for.
  void scan_itself(const Packed& points, const Shortlists& lists) const {
    const int64_t n = points.count, blocks = (n + kBlockRows - 1) / kBlockRows, players = up(blocks, 2);
    const int64_t others = players - 1, pairs = players / 2;
    std::vector<int64_t> met(players);  // by a block so far; a last player without rows makes them even
    std::mutex mutex;
    std::condition_variable moved;
    auto meet = [&](int64_t a, int64_t b, int64_t before) {
      std::unique_lock lock(mutex);
      moved.wait(lock, [&] { return met[a] >= before && met[b] >= before; });
      lock.unlock();
      const std::shared_ptr<void> in_the_end(nullptr, [&](void*) {  // after an exception too: others wait for it
        lock.lock();
        met[a] = met[b] = before + 1;
        lock.unlock();
        moved.notify_all();
      });
      if (a > b) std::swap(a, b);
      if (b < blocks)
        kernels_.scan_both(points, a * kBlockRows, std::min(n, (a + 1) * kBlockRows), b * kBlockRows,
                           std::min(n, (b + 1) * kBlockRows), d_, !exclude_self_, lists);
    };
    for_each_task(players + others * pairs, [&](int64_t task) {
      if (task < players) return meet(task, task, 0);
      const int64_t round = (task - players) / pairs, i = (task - players) % pairs;
      i == 0 ? meet(others, round, round + 1)
             : meet((round + i) % others, (round + others - i) % others, round + 1);
    });
  }

  void scan_candidates(const Segment& s, const Frame& frame, int64_t begin, int64_t end, const Packed& queries,
                       const Shortlists& lists) const {
    if (begin >= end) return;
    const int64_t panel = kernels_.panel;
    const int64_t size = std::min(up(end - begin, panel), std::max(panel, kChunkBytes / (4 * d_) / panel * panel));
    const Buffer<float> values(like_, size * d_), halves(like_, size);
    const int64_t rows = std::min(kBlockRows, up((queries.count + 7) / 8, kBlockRows / 10));
    for (int64_t at = begin; at < end; at += size) {
      const Packed candidates{values.get(), halves.get(), at, std::min(size, end - at)};
      pack(x_, s.begin + at, frame, candidates);
      for_each_part(queries.count, rows, [&](int64_t first, int64_t last) {
        kernels_.scan(queries, first, last, candidates, 0, candidates.count, d_, lists);
      });
    }
  }

  // Shortlists that are whole become neighbours; the others' queries start again.
  void finish(const Segment& s, int64_t first, int64_t count, const Shortlists& lists) {
    std::vector<char> uncertain(count);
    const int64_t available = s.count - exclude_self_;
    for_each_part(count, 64, [&](int64_t begin, int64_t end) {
      std::vector<double> query(d_);
      std::vector<int64_t> rows(room());
      std::vector<Exact> found(room());
      int64_t pairs = 0;
      for (int64_t i = begin; i < end; ++i) {
        lists.prune(i);
        const int64_t n = lists.count[i];
        uncertain[i] = n >= keep_ && n < available;
        if (uncertain[i]) continue;
        for (int64_t c = 0; c < n; ++c) rows[c] = key_index(lists.keys[i * room() + c]);
        widen(query_, s.first_query + first + i, query.data());
        with_type(x_, [&](auto p) {
          exact_distances(query.data(), p + s.begin * d_, d_, rows.data(), n, found.data());
        });
        pairs += n;
        write(s, first + i, found.data(), n);
      }
      rescored_ += pairs;
    });
    std::vector<int64_t> again;
    for (int64_t i = 0; i < count; ++i)
      if (uncertain[i]) again.push_back(first + i);
    if (!again.empty()) run_exact(s, again);
  }

  void write(const Segment& s, int64_t query, Exact* found, int64_t n) const {
    std::partial_sort(found, found + k_, found + n, in_order);
    const int64_t row = (s.first_query + query) * k_;
    for (int64_t c = 0; c < k_; ++c) {
      indices_[row + c] = s.begin + found[c].index;
      distances_[row + c] = found[c].distance;
    }
  }

  // Some of a segment's queries against all of its candidates by the definition.
  void run_exact(const Segment& s, const std::vector<int64_t>& queries) {
    const int64_t n = queries.size(), group = kernels_.exact_rows;
    fallbacks_ += n;
    rescored_ += n * (s.count - exclude_self_);
    const int64_t room = 2 * k_ + 16;
    const int64_t batch = std::min(up(n, group), std::max(group, kChunkBytes / (16 * room + 8 * d_) / group * group));
    const int64_t panel = kernels_.exact_panel;
    const int64_t chunk = std::min(up(s.count, panel), std::max(panel, kChunkBytes / (8 * d_) / panel * panel));
    const Buffer<double> rows(like_, batch * d_), candidates(like_, chunk * d_), threshold(like_, batch);
    const Buffer<int32_t> counts(like_, batch);
    const Buffer<Exact> found(like_, batch * room);
    const Buffer<int64_t> own_index(like_, batch);
    const ExactLists lists{k_, room, threshold.get(), counts.get(), found.get(), own_index.get()};
    for (int64_t first = 0; first < n; first += batch) {
      const int64_t here = std::min(batch, n - first);
      std::vector<double> row(d_);
      for (int64_t i = 0; i < up(here, group); ++i) {
        const int64_t query = queries[first + std::min(i, here - 1)];
        widen(query_, s.first_query + query, row.data());
        for (int64_t j = 0; j < d_; ++j) rows[(i / group * d_ + j) * group + i % group] = row[j];
        threshold[i] = std::numeric_limits<double>::quiet_NaN();
        counts[i] = 0;
        own_index[i] = own(s, query);
      }
      for (int64_t at = 0; at < s.count; at += chunk) {
        const int64_t size = std::min(chunk, s.count - at);
        for_each_part(size, 64 * panel, [&](int64_t begin, int64_t end) {
          kernels_.pack_exact(x_, s.begin + at + begin, end - begin, candidates.get() + begin * d_);
        });
        for_each_part(here, group, [&](int64_t begin, int64_t end) {
          kernels_.scan_exact(rows.get() + begin * d_, begin, end - begin, candidates.get(), at, size, d_, lists);
        });
      }
      for_each_part(here, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) write(s, queries[first + i], &found[i * room], counts[i]);
      });
    }
  }

  const Tensor like_;
  const Points x_, query_;
  const int64_t d_, k_, keep_;
  const bool exclude_self_;
  const Accuracy accuracy_;
  const KnnKernels& kernels_;
  int64_t* const indices_;
  double* const distances_;
  std::atomic<int64_t> rescored_{0}, fallbacks_{0};
};

std::tuple<Tensor, Tensor, Tensor> knn(Tensor x, Tensor query, Tensor ptr, Tensor query_ptr, int64_t k,
                                       bool exclude_self) {
  const int64_t m = query.size(0);
  Tensor indices = torch::stable::new_empty(x, {m, k}, ScalarType::Long);
  Tensor distances = torch::stable::new_empty(x, {m, k}, ScalarType::Double);
  Tensor counts = torch::stable::new_empty(x, {2}, ScalarType::Long);
  const KeepDenormals keep;
  Search search(x, query, k, exclude_self, indices, distances);
  const int64_t *ends = ptr.const_data_ptr<int64_t>(), *query_ends = query_ptr.const_data_ptr<int64_t>();
  std::vector<Segment> small;
  for (int64_t i = 0; i + 1 < ptr.numel(); ++i) {
    const Segment s{ends[i], ends[i + 1] - ends[i], query_ends[i], query_ends[i + 1] - query_ends[i]};
    if (search.is_small(s))
      small.push_back(s);
    else
      search.run(s);
  }
  for_each_task(small.size(), [&](int64_t i) { search.run(small[i]); });
  counts.mutable_data_ptr<int64_t>()[0] = search.rescored();
  counts.mutable_data_ptr<int64_t>()[1] = search.fallbacks();
  return {indices, distances, counts};
}

STABLE_TORCH_LIBRARY_IMPL(imbal_kernels, CPU, m) { m.impl("_knn_cpu", TORCH_BOX(&knn)); }

}  // namespace
}  // namespace imbal
