// Memory and threads for work that is cut into tasks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "denormals.h"

namespace imbal {

// Memory from PyTorch, so that its profiler sees it.
template <class T>
class Buffer {
 public:
  Buffer(const torch::stable::Tensor& like, int64_t n)
      : tensor_(torch::stable::new_empty(like, {n * (int64_t)sizeof(T)}, torch::headeronly::ScalarType::Byte)),
        data_((T*)tensor_.mutable_data_ptr()) {}
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  torch::stable::Tensor tensor_;
  T* data_;
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

}  // namespace imbal
