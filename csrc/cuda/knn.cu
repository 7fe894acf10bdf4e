// Exact k nearest neighbours on a GPU: the op, its launches. The definition is neighbors.h's; what proves the
// shortlist is in knn_search.h.

#include <string>
#include <tuple>

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "knn_plan.h"
#include "knn_tile.cuh"

namespace imbal {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) run_kernel(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(16) char shared[];
  kernel(DeviceBlock{shared, (int64_t)blockIdx.x});
}

Element element_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return Element::kF64;
    case ScalarType::BFloat16: return Element::kBF16;
    case ScalarType::Half: return Element::kF16;
    default: return Element::kF32;
  }
}

struct Launcher {
  cudaStream_t stream;
  int64_t n, m, d, k;

  template <class... Args, class... Values>
  void operator()(void (*kernel)(Args...), int64_t blocks, int threads, int64_t shared, Values... values) const {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error == cudaSuccess) {
      kernel<<<(unsigned)blocks, threads, shared, stream>>>(values...);
      error = cudaGetLastError();
    }
    STD_TORCH_CHECK(error == cudaSuccess, "imbal_kernels: knn of ", m, " queries among ", n, " rows, d = ", d,
                    ", k = ", k, " did not start (", blocks, " blocks of ", threads, " threads, ", shared,
                    " bytes of shared memory): ", cudaGetErrorString(error));
  }
};

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

  int processors = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.get_device_index());
  STD_TORCH_CHECK(error == cudaSuccess, "imbal_kernels: knn: ", cudaGetErrorString(error));
  const Plan plan(s, n, m, processors, Budget{});
  Tensor workspace = torch::stable::new_empty(x, {m ? plan.workspace.bytes : 0}, ScalarType::Byte);
  plan.bind(s, (char*)workspace.mutable_data_ptr());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const Launcher start{(cudaStream_t)stream, n, m, s.d, k};
  run(
      s, plan, m,
      [&](auto kernel, int64_t blocks, int threads, int64_t shared) {
        start(run_kernel<decltype(kernel)>, blocks, threads, shared, kernel);
      },
      [&](const Search& now) {
        const int64_t tiles = 4 * kTileFloats * sizeof(float), blocks = now.batch_panels * now.splits;
        if (now.scores)
          start(tiles_kernel<true>, blocks, kTileThreads, tiles, now);
        else
          start(tiles_kernel<false>, blocks, kTileThreads, tiles + Lists::shared_bytes(now.capacity), now);
      });
  return {indices, distances, totals};
}

STABLE_TORCH_LIBRARY_IMPL(imbal_kernels, CUDA, m) { m.impl("knn", TORCH_BOX(&knn)); }

}  // namespace
}  // namespace imbal
