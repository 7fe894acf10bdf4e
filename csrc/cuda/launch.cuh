// How the ops start a kernel: on the tensors' device and its current stream, with a check that it started.

#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "block.h"

namespace imbal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks) run_kernel(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(16) char shared[];
  kernel(DeviceBlock{shared, (int64_t)blockIdx.x});
}

// What `what()`, a text about the shapes, is for: the message when a call of the runtime fails.
template <class What>
void check_cuda(cudaError_t error, What what) {
  STD_TORCH_CHECK(error == cudaSuccess, "imbal_kernels: ", what(), ": ", cudaGetErrorString(error));
}

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return (cudaStream_t)stream;
}

template <class What>
struct Launcher {
  cudaStream_t stream;
  What what;

  template <class... Args, class... Values>
  void start(void (*kernel)(Args...), int64_t blocks, int threads, int64_t shared, Values... values) const {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error == cudaSuccess) {
      kernel<<<(unsigned)blocks, threads, shared, stream>>>(values...);
      error = cudaGetLastError();
    }
    check_cuda(error, [&] {
      return what() + " did not start (" + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
             " threads, " + std::to_string(shared) + " bytes of shared memory)";
    });
  }

  template <class Kernel>
  void operator()(Kernel kernel, int64_t blocks, int threads, int64_t shared) const {
    start(run_kernel<Kernel>, blocks, threads, shared, kernel);
  }
};

}  // namespace imbal
