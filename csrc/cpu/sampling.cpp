// Synthetic rows on a CPU: the original rows and the new ones go straight into one output.
// Arguments were checked in Python.

// The definition rounds every operation by itself.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../sampling.h"
#include "huge_pages.h"

namespace imbal {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// New rows drawn at a time: their draws are made before their rows are read, which are prefetched meanwhile.
constexpr int64_t kBlock = 64;

// Rows [begin, begin + n) of the new ones, all of class c.
void draw(const Generate& g, int64_t c, int64_t begin, int64_t n, Origin* out) {
  const int64_t first = begin - g.out_ptr[c], seeds = g.ptr[c + 1] - g.ptr[c];
  Draw draws[kBlock];
  for (int64_t i = 0; i < n; ++i) draws[i] = smote_draw(g.key, g.streams[c], first + i, seeds, g.k);
  for (int64_t i = 0; i < n; ++i) {
    out[i] = origin_of(g, c, begin + i, draws[i]);
    trace(g, begin + i, out[i]);
  }
}

template <class T>
void generate(const Generate& g, const T* x, T* out, int64_t begin, int64_t end) {
  const int64_t d = g.columns;
  int64_t c = std::upper_bound(g.out_ptr, g.out_ptr + g.classes, begin) - g.out_ptr - 1;
  Origin drawn[kBlock];
  for (int64_t i = begin; i < end;) {
    while (g.out_ptr[c + 1] <= i) ++c;
    const int64_t n = std::min({kBlock, end - i, g.out_ptr[c + 1] - i});
    draw(g, c, i, n, drawn);
    for (int64_t j = 0; j < n; ++j) {
      const T* __restrict a = x + drawn[j].seed * d;
      const T* __restrict b = x + drawn[j].neighbor * d;
      T* __restrict o = out + (i + j) * d;
      const double step = drawn[j].step;
      if (g.k)
        for (int64_t e = 0; e < d; ++e) o[e] = interpolate(a[e], b[e], step);
      else
        std::memcpy(o, a, d * sizeof(T));
    }
    i += n;
  }
}

// A thread's share, in elements, below which starting one costs more than it saves.
constexpr int64_t kGrain = 1 << 15;

template <class T>
void run(const Generate& g, const Tensor& x, Tensor& out) {
  const T* from = (const T*)x.const_data_ptr();
  T* to = (T*)out.mutable_data_ptr();
  const int64_t d = g.columns, grain = std::max<int64_t>(1, kGrain / d);
  torch::stable::parallel_for(0, g.rows, grain, [&](int64_t first, int64_t last) {
    std::memcpy(to + first * d, from + first * d, (last - first) * d * sizeof(T));
  });
  torch::stable::parallel_for(0, g.out_ptr[g.classes], grain, [&](int64_t first, int64_t last) {
    generate(g, from, to + g.rows * d, first, last);
  });
}

const int64_t* pointer(const Tensor& t) { return t.const_data_ptr<int64_t>(); }

std::tuple<Tensor, Tensor, Tensor, Tensor> smote_generate(
    Tensor x, Tensor seeds, Tensor neighbors, Tensor ptr, Tensor out_ptr, Tensor streams, OptionalTensor chosen,
    OptionalTensor labels, int64_t key, int64_t count, bool provenance) {
  Generate g{};
  g.rows = x.size(0);
  g.columns = x.size(1);
  g.k = neighbors.size(1);
  g.classes = streams.size(0);
  g.seeds = pointer(seeds);
  g.neighbors = pointer(neighbors);
  g.ptr = pointer(ptr);
  g.out_ptr = pointer(out_ptr);
  g.streams = pointer(streams);
  g.chosen = chosen ? pointer(*chosen) : nullptr;
  g.labels = labels ? pointer(*labels) : nullptr;
  g.key = (uint64_t)key;
  const int64_t traced = provenance ? count : 0;
  Tensor seed_row = torch::stable::new_empty(seeds, {traced}), neighbor_row = torch::stable::new_empty(seeds, {traced});
  Tensor step = torch::stable::new_empty(seeds, {traced}, ScalarType::Double);
  g.seed_row = provenance ? seed_row.mutable_data_ptr<int64_t>() : nullptr;
  g.neighbor_row = provenance ? neighbor_row.mutable_data_ptr<int64_t>() : nullptr;
  g.step = provenance ? step.mutable_data_ptr<double>() : nullptr;
  Tensor out = in_huge_pages(torch::stable::new_empty(x, {g.rows + count, g.columns}));
  switch (x.scalar_type()) {
    case ScalarType::Float: run<float>(g, x, out); break;
    case ScalarType::Double: run<double>(g, x, out); break;
    case ScalarType::BFloat16: run<torch::headeronly::BFloat16>(g, x, out); break;
    case ScalarType::Half: run<torch::headeronly::Half>(g, x, out); break;
    case ScalarType::Long: run<int64_t>(g, x, out); break;
    case ScalarType::Int: run<int32_t>(g, x, out); break;
    case ScalarType::Short: run<int16_t>(g, x, out); break;
    case ScalarType::Char: run<int8_t>(g, x, out); break;
    case ScalarType::Byte: run<uint8_t>(g, x, out); break;
    default: STD_TORCH_CHECK(false, "imbal_kernels: unexpected dtype");
  }
  return {out, seed_row, neighbor_row, step};
}

Tensor philox_words(Tensor like, int64_t key, int64_t stream, int64_t first, int64_t blocks) {
  Tensor out = torch::stable::new_empty(like, {blocks, 4}, ScalarType::Long);
  int64_t* p = out.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, blocks, 1 << 12, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Words r = philox((uint64_t)key, (uint64_t)stream, (uint64_t)first + (uint64_t)i);
      for (int j = 0; j < 4; ++j) p[i * 4 + j] = r.w[j];
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(imbal_kernels, CPU, m) {
  m.impl("smote_generate", TORCH_BOX(&smote_generate));
  m.impl("philox", TORCH_BOX(&philox_words));
}

}  // namespace
}  // namespace imbal
