// A CUDA runtime without a driver: the ops' own host code runs, and its launches run on the host from the kernels' own
// headers. Whatever a GPU would refuse, or race with because it is on another stream, is an error.

#include <functional>
#include <map>
#include <string>
#include <typeinfo>

#include <cuda_runtime_api.h>

#include "emulation.h"
#include "smote_rows.h"

namespace {

using namespace imbal;

struct Kernel {
  std::function<void(void** args, int64_t blocks, int threads, int64_t shared)> run;
  int threads;
};

bool backwards = false;
int guards = 0, launches = 0, failures = 0;
cudaStream_t const kStream = (cudaStream_t)0x57;
std::map<const void*, std::string> names;  // of the kernels that the library registered
std::map<const void*, int> shared_limit;
struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} next_launch;

// run_kernel<K> by the name that nvcc gives it.
template <class K>
void add(std::map<std::string, Kernel>& known) {
  const std::string name = std::string("NS_") + (typeid(K).name() + sizeof("N5imbal") - 1);
  known["_ZN5imbal10run_kernelI" + name + "EEvT_"] = {
      [](void** args, int64_t blocks, int threads, int64_t shared) {
        HostLaunch{backwards}(*(const K*)args[0], blocks, threads, shared);
      },
      K::kThreads};
}

template <class... T>
void add_rows(std::map<std::string, Kernel>& known) {
  (add<NewRows<T, 1>>(known), ...);
  (add<NewRows<T, 16 / sizeof(T)>>(known), ...);
}

const std::map<std::string, Kernel>& kernels() {
  static const std::map<std::string, Kernel> all = [] {
    std::map<std::string, Kernel> known;
    add<CountPanels>(known), add<Clear>(known), add<Pack>(known), add<Finish>(known), add<Fallback>(known);
    add<PhiloxWords>(known);
    add_rows<float, double, torch::headeronly::BFloat16, torch::headeronly::Half, int64_t, int32_t, int16_t, int8_t,
             uint8_t>(known);
    for (const bool scores : {false, true})
      known["_ZN5imbal12tiles_kernelILb" + std::to_string(scores) + "EEEvNS_6SearchE"] = {
          [scores](void** args, int64_t blocks, int, int64_t shared) {
            const Search& s = *(const Search*)args[0];
            // Two steps of both sides, and the lists.
            const size_t least = 4 * kStep * kPanel * sizeof(float) + (scores ? 0 : Lists::shared_bytes(s.capacity));
            const bool right = (s.scores != nullptr) == scores && blocks == s.batch_panels * s.splits;
            if (right && (size_t)shared >= least) tiles(s, backwards);
          },
          256};
    return known;
  }();
  return all;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t stream) {
  const auto kernel = kernels().find(names[function]);
  if (failures && failures-- == 1) return cudaErrorLaunchOutOfResources;
  if (kernel == kernels().end()) return cudaErrorInvalidDeviceFunction;
  constexpr size_t kLeast = 163 << 10;  // of shared memory that an architecture has: sm_80's
  const bool fits = grid.x >= 1 && grid.x <= INT32_MAX && grid.y * grid.z * block.y * block.z == 1 &&
                    (int)block.x <= kernel->second.threads && shared <= kLeast && (int)shared <= shared_limit[function];
  if (!fits) return cudaErrorInvalidConfiguration;
  if (stream != kStream || guards != 1) return cudaErrorInvalidResourceHandle;
  ++launches;
  kernel->second.run(args, grid.x, block.x, shared);
  return cudaSuccess;
}

cudaError_t last_error = cudaSuccess;

}  // namespace

extern "C" {

void emulate(int order_backwards, int fail_at) { backwards = order_backwards, failures = fail_at; }
int launched() { return launches; }

void** __cudaRegisterFatBinary(void*) { return (void**)&names; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  names[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  next_launch = {grid, block, shared, (cudaStream_t)stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = next_launch.grid, *block = next_launch.block, *shared = next_launch.shared;
  *(cudaStream_t*)stream = next_launch.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args, size_t shared,
                               cudaStream_t stream) {
  return last_error = launch(kernel, grid, block, args, shared, stream);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** args, size_t shared,
                             cudaStream_t stream) {
  return last_error = launch(function, grid, block, args, shared, stream);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  shared_limit[function] = value;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchOutOfResources ? "too many resources requested" : "unexpected error";
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = 132;
  return attribute == cudaDevAttrMultiProcessorCount ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind != cudaMemcpyDeviceToDevice || stream != kStream || guards != 1) return cudaErrorInvalidValue;
  memcpy(to, from, bytes);
  return cudaSuccess;
}

int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = kStream;
  return 0;
}
int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = &guards;
  ++guards;
  return 0;
}
int32_t aoti_torch_delete_device_guard(void*) {
  --guards;
  return 0;
}
}
