#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/tensor.h>

namespace imbal {

constexpr uintptr_t kPage = 4096;
constexpr uintptr_t kLarge = 4 << 20;  // bytes of a tensor from which on its pages are worth the trouble

// Asks for huge pages under a large new tensor, as NumPy does: a fresh buffer is otherwise faulted in
// 4 KiB at a time, which takes longer than what is computed. A hint: the system may refuse.
inline torch::stable::Tensor in_huge_pages(torch::stable::Tensor t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (uintptr_t)t.mutable_data_ptr(), size = t.numel() * t.element_size();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  if (size >= kLarge) madvise((void*)first, begin + size - first, MADV_HUGEPAGE);
#endif
  return t;
}

}  // namespace imbal
