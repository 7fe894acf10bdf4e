// Exact nearest neighbours on a CPU. A fast pass in fp32 (knn_kernel.h) keeps a shortlist for each query, whose
// distances are then computed by the definition in fp64. A query whose shortlist could not be kept whole falls
// back: its distances to all candidates are computed in fp64. Indices and distances follow from the definition, so
// neither the instruction set nor the threads nor the order of the work show in them.
//
// x against itself is cut into blocks; every pair of blocks is met once and serves both. Rounds of disjoint pairs,
// as in a tournament, give each block's shortlists one owner at a time.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "knn.h"

namespace imbal {

void Shortlists::prune(int64_t row) const {
  uint64_t* key = keys + row * room;
  float* half = halves + row * room;
  static thread_local std::vector<double> sure;
  static thread_local std::vector<uint64_t> best;
  int64_t n = count[row];
  auto keep_if = [&](auto wanted) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {  // no branch: there would be no foretelling it
      const bool keeps = wanted(key[i]);
      key[kept] = key[i];
      half[kept] = half[i];
      kept += keeps;
    }
    n = kept;
  };
  if (n >= k) {
    sure.resize(n);
    for (int64_t i = 0; i < n; ++i) sure[i] = accuracy.pessimistic(-key_distance(key[i]), own[row], half[i]);
    std::nth_element(sure.begin(), sure.begin() + (k - 1), sure.end(), std::greater<>());
    float limit = (float)sure[k - 1];
    if (limit > sure[k - 1]) limit = std::nextafter(limit, -FLT_MAX);
    threshold[row] = std::max(threshold[row], limit);
    keep_if([&](uint64_t candidate) { return -key_distance(candidate) >= limit; });
  }
  if (n > keep) {  // too many are too close to call: the list stays full unless better ones make them superfluous
    best.assign(key, key + n);
    std::nth_element(best.begin(), best.begin() + (keep - 1), best.end());
    const uint64_t last = best[keep - 1];
    keep_if([&](uint64_t candidate) { return candidate <= last; });
    threshold[row] = std::max(threshold[row], std::nextafter(-key_distance(last), FLT_MAX));
  }
  count[row] = (int32_t)n;
}

namespace {

bool in_order(const Exact& a, const Exact& b) { return before(a.distance, a.index, b.distance, b.index); }

}  // namespace

void ExactLists::prune(int64_t row) const {
  Exact* list = found + row * room;
  if (count[row] < k) return;
  std::nth_element(list, list + (k - 1), list + count[row], in_order);
  threshold[row] = list[k - 1].distance;  // those to come have higher indices
  count[row] = (int32_t)k;
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The tile budget: what a search holds beyond its outputs, and 20 bytes for each query in flight.
constexpr int64_t kListBytes = 96 << 20;   // shortlists of the queries in flight
constexpr int64_t kQueryBytes = 64 << 20;  // those queries, packed
constexpr int64_t kChunkBytes = 16 << 20;  // candidates packed for them; the exact pass has twice this
// Rows that meet in one task: a multiple of every instruction set's panel that L2 holds twice.
constexpr int64_t kBlockRows = 480;

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n) : data_((T*)std::aligned_alloc(64, (n * sizeof(T) + 64) / 64 * 64), &std::free) {
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  std::unique_ptr<T[], decltype(&std::free)> data_;
};

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A caller may have its thread flush denormals, which the definition does not and other threads need not.
struct KeepDenormals {
#if defined(__SSE2__)
  unsigned int saved = _mm_getcsr();
  KeepDenormals() { _mm_setcsr(saved & ~0x8040u); }
  ~KeepDenormals() { _mm_setcsr(saved); }
#else
  KeepDenormals() {}
#endif
};

// Tasks 0 to n, handed to whichever thread is free; inside another task, all to the one that asks.
template <class F>
void for_each_task(int64_t n, F f) {
  std::atomic<int64_t> next{0};
  auto work = [&](int64_t, int64_t) {
    const KeepDenormals keep;
    for (int64_t i = next++; i < n; i = next++) f(i);
  };
  if (n == 1) return work(0, 1);
  torch::stable::parallel_for(0, std::min<int64_t>(n, torch::stable::get_num_threads()), 1, work);
}

// Parts [begin, end) of 0 to n, `size` each.
template <class F>
void for_each_part(int64_t n, int64_t size, F f) {
  for_each_task((n + size - 1) / size, [&](int64_t i) { f(i * size, std::min(n, (i + 1) * size)); });
}

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
      : x_{x.const_data_ptr(), type_of(x), x.size(1)},
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

  static Type type_of(const Tensor& t) {
    switch (t.scalar_type()) {
      case ScalarType::Double: return Type::kF64;
      case ScalarType::BFloat16: return Type::kBF16;
      case ScalarType::Half: return Type::kF16;
      default: return Type::kF32;
    }
  }

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
    const Buffer<float> values(filled * d_), halves(filled), threshold(filled), list_halves(count * room());
    const Buffer<int32_t> counts(filled);
    const Buffer<uint64_t> keys(count * room());
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

  // Rounds of a tournament between blocks, after each has met itself.
  void scan_itself(const Packed& points, const Shortlists& lists) const {
    const int64_t n = points.count, blocks = (n + kBlockRows - 1) / kBlockRows, players = up(blocks, 2);
    auto meet = [&](int64_t a, int64_t b) {
      if (a > b) std::swap(a, b);
      if (b >= blocks) return;
      kernels_.scan_both(points, a * kBlockRows, std::min(n, (a + 1) * kBlockRows), b * kBlockRows,
                         std::min(n, (b + 1) * kBlockRows), d_, !exclude_self_, lists);
    };
    for_each_task(blocks, [&](int64_t i) { meet(i, i); });
    const int64_t others = players - 1;
    for (int64_t round = 0; blocks > 1 && round < others; ++round)
      for_each_task(players / 2, [&](int64_t i) {
        i == 0 ? meet(others, round) : meet((round + i) % others, (round + others - i) % others);
      });
  }

  void scan_candidates(const Segment& s, const Frame& frame, int64_t begin, int64_t end, const Packed& queries,
                       const Shortlists& lists) const {
    if (begin >= end) return;
    const int64_t panel = kernels_.panel;
    const int64_t size = std::min(up(end - begin, panel), std::max(panel, kChunkBytes / (4 * d_) / panel * panel));
    const Buffer<float> values(size * d_), halves(size);
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
    const Buffer<double> rows(batch * d_), candidates(chunk * d_), threshold(batch);
    const Buffer<int32_t> counts(batch);
    const Buffer<Exact> found(batch * room);
    const Buffer<int64_t> own_index(batch);
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
