// Distances of a panel of queries to panels of references: 128 x 128 scores a tile, 8 x 8 a thread, fp32.
//
// A step of 8 dimensions is 4 KiB of each side, contiguous as packed, copied asynchronously (16 bytes a thread and side)
// while the step before is multiplied: one barrier a step. A dimension costs a thread 64 FFMA and four 128-bit shared
// loads, of which a quarter-warp's addresses are one broadcast (queries) or 128 contiguous bytes (references): no bank
// conflicts. Scores start at the reference's own term, so that a candidate costs
// little after that: the largest of a row's eight is compared with the row's threshold.

#pragma once

#include "knn_lists.h"

namespace imbal {

constexpr int kTileThreads = 256;
constexpr int kTileFloats = kStep * kPanel;
// Blocks that share a multiprocessor, two where 128 registers a thread are enough: for sm_80 ptxas would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kTileBlocks = 1;
#else
constexpr int kTileBlocks = 2;
#endif

__device__ inline void copy_async(unsigned to, const float* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

struct Tile {
  float sum[8][8];

  // Rows 4 ty + i and 64 + 4 ty + i, columns likewise.
  static __device__ int row(int i) { return (i & 4) * 16 + (threadIdx.x / 16) * 4 + (i & 3); }
  static __device__ int column(int j) { return (j & 4) * 16 + (threadIdx.x % 16) * 4 + (j & 3); }

  __device__ void start(const float* from) {
    const float4 low = *(const float4*)(from + column(0)), high = *(const float4*)(from + column(4));
    const float s[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[i][j] = s[j];
  }

  __device__ void multiply(const float* queries, const float* references) {
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      const float4 a0 = *(const float4*)(queries + k * kPanel + row(0));
      const float4 a1 = *(const float4*)(queries + k * kPanel + row(4));
      const float4 b0 = *(const float4*)(references + k * kPanel + column(0));
      const float4 b1 = *(const float4*)(references + k * kPanel + column(4));
      const float a[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
      const float b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
  }

  __device__ void store(float* to, int64_t stride) const {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 8; j += 4)
        *(float4*)(to + row(i) * stride + column(j)) =
            make_float4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
  }
};

// What is left of a tile: sends what passes to the lists, merging those that are full until nothing waits. A step's
// barrier parts these pushes from the merges of the tile before.
__device__ inline void collect(const Search& s, const Lists& lists, const Tile& tile, int first_column, int self_row) {
  const DeviceBlock block{nullptr, 0};
  uint64_t waiting = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float threshold = lists.thresholds[Tile::row(i)];
    float best = tile.sum[i][0];
#pragma unroll
    for (int j = 1; j < 8; ++j) best = fmaxf(best, tile.sum[i][j]);
    if (best >= threshold) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (tile.sum[i][j] >= threshold) waiting |= 1ull << (8 * i + j);
    }
  }
  while (true) {
    if (waiting) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (!(waiting >> (8 * i) & 0xff)) continue;
        const int row = Tile::row(i);
        const List list = lists.of(row, s.capacity);
        const float threshold = *list.threshold;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const uint64_t bit = 1ull << (8 * i + j);
          if (!(waiting & bit)) continue;
          const float score = tile.sum[i][j];
          const int column = first_column + Tile::column(j);
          const bool wanted = score >= threshold && column != self_row + row;
          if (!wanted || push(block, list, s.kept, s.capacity, list_key(score, column))) waiting &= ~bit;
        }
      }
    }
    if (!__syncthreads_or(waiting != 0)) return;
    for (int row = threadIdx.x / 32; row < kPanel; row += kTileThreads / 32) {
      const List list = lists.of(row, s.capacity);
      if ((*list.state & kBuffered) >= s.capacity - s.kept) merge(DeviceWarp{nullptr, 0}, list, s.kept, s.capacity);
    }
    __syncthreads();
  }
}

// Where a query's own row would be among the columns counted from `first_row`; far below 0 if it is not there.
__device__ inline int self_column(const Search& s, int64_t query, int64_t first_row) {
  const int64_t column = query - first_row;
  return s.exclude_self && column > -kPanel && column < INT32_MAX - kPanel ? (int)column : INT32_MIN / 2;
}

// A block does one panel of queries and one split of their segment's panels in the chunk.
template <bool kScores>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks) tiles_kernel(const __grid_constant__ Search s) {
  extern __shared__ __align__(16) char shared[];
  float* const tiles = (float*)shared;  // [buffer][side][kStep][kPanel]
  const int batch_panel = blockIdx.x / s.splits;
  const Panel p = panel_at(s.query, s.segments, s.first_batch + batch_panel);
  if (p.rows == 0) return;
  const Range all = range_of(s, p.segment), range = share_of(all, blockIdx.x % s.splits, s.splits);
  const Lists lists(shared + 4 * kTileFloats * sizeof(float), s.capacity);
  if (!kScores) lists.open(DeviceBlock{nullptr, 0}, s, p, batch_panel);

  const int steps = s.padded_d / kStep, first = (int)(range.first_panel - s.first_panel);
  const int end = (int)(range.last_panel - s.first_panel), shift = (int)(s.first_panel - all.first_panel);
  const int self_row = self_column(s, p.first_row, all.first_row);
  const float* const queries = s.query.packed + (int64_t)batch_panel * steps * kTileFloats + threadIdx.x * 4;
  const float* references = s.x.packed + (int64_t)first * steps * kTileFloats + threadIdx.x * 4;
  // Offsets of shared memory, which fit one register each.
  const unsigned to = (unsigned)__cvta_generic_to_shared(tiles) + threadIdx.x * 16;
  unsigned buffer = 0;
  const auto fetch = [&](int step) {
    copy_async(to + buffer, queries + step * kTileFloats);
    copy_async(to + buffer + kTileFloats * 4, references);
    references += kTileFloats;
  };
  if (first < end) fetch(0);
  Tile tile;
  for (int panel = first; panel < end; ++panel) {
    tile.start(s.start + (int64_t)panel * kPanel);
#pragma unroll 1
    for (int step = 1; step <= steps; ++step) {
      const float* now = (const float*)((const char*)tiles + buffer);
      buffer ^= 2 * kTileFloats * 4;
      asm volatile("cp.async.wait_all;" ::: "memory");
      __syncthreads();  // this step has arrived, and all have done with the one before
      // After the last step too: what follows in the workspace is read and not used, cheaper than a branch.
      fetch(step < steps ? step : 0);
      tile.multiply(now, now + kTileFloats);
    }
    if (kScores)
      tile.store(s.scores + ((int64_t)batch_panel * kPanel * s.chunk_panels + panel) * kPanel, s.chunk_panels * kPanel);
    else
      collect(s, lists, tile, (panel + shift) * kPanel, self_row);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  if (kScores) return;
  __syncthreads();
  for (int row = threadIdx.x / 32; row < kPanel; row += kTileThreads / 32)
    merge(DeviceWarp{nullptr, 0}, lists.of(row, s.capacity), s.kept, s.capacity);
  __syncthreads();
  lists.close(DeviceBlock{nullptr, 0}, s, batch_panel, blockIdx.x % s.splits);
}

}  // namespace imbal
