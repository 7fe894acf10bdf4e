// Exact k nearest neighbours on a GPU: the op, its launches. The definition is neighbors.h's; what proves the
// shortlist is in knn_search.h.

#include <string>
#include <tuple>

#include "launch.cuh"
#include "knn_plan.h"
#include "knn_tile.cuh"

namespace imbal {
namespace {

Element element_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return Element::kF64;
    case ScalarType::BFloat16: return Element::kBF16;
    case ScalarType::Half: return Element::kF16;
    default: return Element::kF32;
  }
}

std::tuple<Tensor, Tensor, Tensor> knn(Tensor x, Tensor query, Tensor ptr, Tensor query_ptr, int64_t k,
                                       bool exclude_self) {
  const int64_t n = x.size(0), m = query.size(0);
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor indices = torch::stable::new_empty(x, {m, k}, ScalarType::Long);
  Tensor distances = torch::stable::new_empty(x, {m, k}, ScalarType::Double);
  Tensor totals = torch::stable::new_zeros(x, {2}, ScalarType::Long);
  Search s{};
  s.x = {x.const_data_ptr(), ptr.const_data_ptr<int64_t>(), nullptr, nullptr};
  s.query = {query.const_data_ptr(), query_ptr.const_data_ptr<int64_t>(), nullptr, nullptr};
  s.element = element_of(x);
  s.segments = ptr.size(0) - 1;
  s.d = (int)x.size(1);
  s.k = (int)k;
  s.exclude_self = exclude_self;
  s.indices = indices.mutable_data_ptr<int64_t>();
  s.distances = distances.mutable_data_ptr<double>();
  s.totals = totals.mutable_data_ptr<int64_t>();

  const auto what = [&] {
    return "knn of " + std::to_string(m) + " queries among " + std::to_string(n) + " rows, d = " + std::to_string(s.d) +
           ", k = " + std::to_string(k);
  };
  int processors = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.get_device_index()), what);
  const Plan plan(s, n, m, processors, Budget{});
  Tensor workspace = torch::stable::new_empty(x, {m ? plan.workspace.bytes : 0}, ScalarType::Byte);
  plan.bind(s, (char*)workspace.mutable_data_ptr());
  const Launcher<decltype(what)> launch{current_stream(x), what};
  run(s, plan, n, m, launch, [&](const Search& now) {
    const int64_t tiles = 4 * kTileFloats * sizeof(float), blocks = now.batch_panels * now.splits;
    if (now.scores)
      launch.start(tiles_kernel<true>, blocks, kTileThreads, tiles, now);
    else
      launch.start(tiles_kernel<false>, blocks, kTileThreads, tiles + Lists::shared_bytes(now.capacity), now);
  });
  return {indices, distances, totals};
}

STABLE_TORCH_LIBRARY_IMPL(imbal_kernels, CUDA, m) { m.impl("knn", TORCH_BOX(&knn)); }

}  // namespace
}  // namespace imbal
