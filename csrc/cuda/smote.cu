// Synthetic rows and random words on a GPU: the ops. The kernels are in smote_rows.h.

#include <optional>
#include <string>
#include <tuple>

#include "launch.cuh"
#include "smote_rows.h"

namespace imbal {
namespace {

using OptionalTensor = std::optional<Tensor>;

const int64_t* pointer(const Tensor& t) { return t.const_data_ptr<int64_t>(); }

template <class Launch>
void new_rows(ScalarType type, const Generate& g, const void* x, void* out, int64_t count, Launch launch) {
  switch (type) {
    case ScalarType::Float: return new_rows<float>(g, x, out, count, launch);
    case ScalarType::Double: return new_rows<double>(g, x, out, count, launch);
    case ScalarType::BFloat16: return new_rows<torch::headeronly::BFloat16>(g, x, out, count, launch);
    case ScalarType::Half: return new_rows<torch::headeronly::Half>(g, x, out, count, launch);
    case ScalarType::Long: return new_rows<int64_t>(g, x, out, count, launch);
    case ScalarType::Int: return new_rows<int32_t>(g, x, out, count, launch);
    case ScalarType::Short: return new_rows<int16_t>(g, x, out, count, launch);
    case ScalarType::Char: return new_rows<int8_t>(g, x, out, count, launch);
    case ScalarType::Byte: return new_rows<uint8_t>(g, x, out, count, launch);
    default: STD_TORCH_CHECK(false, "imbal_kernels: unexpected dtype");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> smote_generate(
    Tensor x, Tensor seeds, Tensor neighbors, Tensor ptr, Tensor out_ptr, Tensor streams, OptionalTensor chosen,
    OptionalTensor labels, int64_t key, int64_t count, bool provenance) {
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
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
  Tensor out = torch::stable::new_empty(x, {g.rows + count, g.columns});
  const auto what = [&] {
    return std::to_string(count) + " rows made from " + std::to_string(g.rows) + " x " + std::to_string(g.columns);
  };
  const cudaStream_t stream = current_stream(x);
  const size_t bytes = g.rows * g.columns * x.element_size();
  void* to = out.mutable_data_ptr();
  if (bytes) check_cuda(cudaMemcpyAsync(to, x.const_data_ptr(), bytes, cudaMemcpyDeviceToDevice, stream), what);
  new_rows(x.scalar_type(), g, x.const_data_ptr(), to, count, Launcher<decltype(what)>{stream, what});
  return {out, seed_row, neighbor_row, step};
}

Tensor philox_words(Tensor like, int64_t key, int64_t stream, int64_t first, int64_t blocks) {
  torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  Tensor out = torch::stable::new_empty(like, {blocks, 4}, ScalarType::Long);
  const PhiloxWords words{(uint64_t)key, (uint64_t)stream, (uint64_t)first, blocks, out.mutable_data_ptr<int64_t>()};
  const auto what = [&] { return std::to_string(blocks) + " blocks of random words"; };
  if (blocks) Launcher<decltype(what)>{current_stream(like), what}(words, words.blocks(), words.kThreads, 0);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(imbal_kernels, CUDA, m) {
  m.impl("smote_generate", TORCH_BOX(&smote_generate));
  m.impl("philox", TORCH_BOX(&philox_words));
}

}  // namespace
}  // namespace imbal
