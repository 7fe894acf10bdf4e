#include "large_tensor.h"

#include <atomic>
#include <mutex>

#include "huge_pages.h"

#if defined(__linux__) && defined(MADV_FREE)
#define IMBAL_KEEPS_MEMORY

// PyTorch has it from 2.11 on; before, nothing is kept.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
    int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace imbal {

#ifdef IMBAL_KEEPS_MEMORY
namespace {

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kMost = 16;  // blocks that are kept
// Bytes of the latest that are not offered to the system: an offer, and the faults after it, cost a sixth of a copy.
constexpr size_t kHeld = 128 << 20;

struct Block {
  void* data;
  size_t size;
  bool held = true;  // the system may not take its pages
};

// Never destroyed: a tensor may be gone only after whatever the process tears down. The lock is tried and never waited
// for: a child that was forked while another thread held it keeps nothing.
struct Kept {
  std::mutex mutex;
  std::vector<Block> blocks;  // the latest last
  std::atomic<bool> wanted{true};
};
Kept& kept() {
  static Kept* all = new Kept;
  return *all;
}

// New memory, from the begin of a huge page; null without any.
Block map(size_t size) {
  void* all = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return {nullptr, 0};
  const size_t before = -(uintptr_t)all % kHugePage;
  char* data = (char*)all + before;
  if (before) munmap(all, before);
  munmap(data + size, kHugePage - before);
  madvise(data, size / kHugePage * kHugePage, MADV_HUGEPAGE);
  return {data, size};
}

// The smallest block kept that is large enough, but not more than twice as large, and of those the latest; a new one
// without.
Block take(size_t size) {
  Kept& k = kept();
  std::unique_lock lock(k.mutex, std::try_to_lock);
  if (lock) {
    auto best = k.blocks.end();
    for (auto b = k.blocks.begin(); b != k.blocks.end(); ++b)
      if (b->size >= size && b->size / 2 <= size && (best == k.blocks.end() || b->size <= best->size)) best = b;
    if (best != k.blocks.end()) {
      const Block found = *best;
      k.blocks.erase(best);
      return found;
    }
  }
  return map(size);
}

// At most kMost blocks are kept; the latest are held up to kHeld, and the system may take the others.
void settle(std::vector<Block>& blocks) {
  auto drop = [&](size_t i) {
    munmap(blocks[i].data, blocks[i].size);
    blocks.erase(blocks.begin() + i);
  };
  if (blocks.size() > kMost) drop(0);
  size_t held = 0;
  for (size_t i = blocks.size(); i-- > 0;) {
    Block& b = blocks[i];
    if (!b.held || (held += b.size) <= kHeld) continue;
    b.held = false;
    if (madvise(b.data, b.size, MADV_FREE) != 0) drop(i);
  }
}

// What a tensor does in the end.
void give_back(void* data, void* size) {
  Kept& k = kept();
  std::unique_lock lock(k.mutex, std::try_to_lock);
  if (!lock || !k.wanted) {
    munmap(data, (size_t)size);
    return;
  }
  k.blocks.push_back({data, (size_t)size});
  settle(k.blocks);
}

void let_go() {
  Kept& k = kept();
  std::unique_lock lock(k.mutex, std::try_to_lock);
  if (!lock) return;
  for (const Block& block : k.blocks) munmap(block.data, block.size);
  k.blocks.clear();
}

}  // namespace
#endif

Tensor new_large(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
#ifdef IMBAL_KEEPS_MEMORY
  size_t size = size_of(type_of(dtype));
  for (int64_t n : shape) size *= n;
  if (size >= kLarge && kept().wanted && torch_from_blob) {
    const Block block = take((size + kPage - 1) / kPage * kPage);
    if (block.data) {
      std::vector<int64_t> strides(shape.size(), 1);
      for (size_t i = shape.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * shape[i];
      const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
      AtenTensorHandle handle;
      STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(
          block.data, shape.size(), shape.data(), strides.data(), 0, type, aoti_torch_device_type_cpu(), -1, &handle,
          aoti_torch_layout_strided(), nullptr, 0, give_back, (void*)block.size));
      return Tensor(handle);
    }
    let_go();  // address space or a limit is used up, perhaps by what is kept
  }
#endif
  return in_huge_pages(torch::stable::new_empty(like, shape, dtype));
}

void keep_memory(bool keep) {
#ifdef IMBAL_KEEPS_MEMORY
  kept().wanted = keep;
  if (!keep) let_go();
#endif
}

}  // namespace imbal
