// The kernels of the samplers, written once for the GPU and for the host. What a new row is stands in sampling.h.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../sampling.h"
#include "block.h"

namespace imbal {

// How new rows are cut among thread blocks: `rows` of them, and of each `width` of its `groups` of elements, so that
// a block's work counts in 32 bits however wide or many the rows are.
struct RowTiles {
  int64_t count, groups, parts;  // parts of a row
  int rows, width;

  static constexpr int kGroups = 4096, kMostRows = 256;

  RowTiles(int64_t count, int64_t groups)
      : count(count),
        groups(groups),
        parts(at_least<int64_t>(1, divide_up(groups, kGroups))),
        rows((int)at_most<int64_t>(kMostRows, kGroups / at_most<int64_t>(kGroups, at_least<int64_t>(1, groups)))),
        width((int)at_most<int64_t>(kGroups, groups)) {}

  int64_t blocks() const { return divide_up(count, rows) * parts; }
};

// Elements of a row that move at once: 16 bytes where rows are whole vectors of them.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Group {
  T element[kWidth];
};

template <class T, int kWidth>
struct NewRows {
  Generate g;
  const T* x;
  T* out;
  RowTiles tiles;

  static constexpr int kThreads = 256, kBlocks = 4;
  struct Shared {
    Origin origin[RowTiles::kMostRows];
  };
  static size_t shared_bytes() { return sizeof(Shared); }

  template <class Block>
  IMBAL_DEVICE void operator()(const Block& block) const {
    const NewRows self = *this;
    Shared& sh = *(Shared*)block.shared;
    const int64_t first_row = block.index / tiles.parts * tiles.rows, part = block.index % tiles.parts;
    const int64_t first_group = part * tiles.width;
    const int rows = (int)at_most<int64_t>(tiles.rows, tiles.count - first_row);
    const int width = (int)at_most<int64_t>(tiles.width, tiles.groups - first_group);
    block.each(rows, [&](int64_t r) {
      const int64_t row = first_row + r;
      const int64_t c = count_before(self.g.classes, [&](int64_t i) { return self.g.out_ptr[i + 1] <= row; });
      const int64_t seeds = self.g.ptr[c + 1] - self.g.ptr[c];
      const Draw draw = smote_draw(self.g.key, self.g.streams[c], row - self.g.out_ptr[c], seeds, self.g.k);
      sh.origin[r] = origin_of(self.g, c, row, draw);
      if (part == 0) trace(self.g, row, sh.origin[r]);
    });
    block.each(rows * width, [&](int64_t i) {
      const int r = (int)i / width;
      const int64_t at = (first_group + (int)i % width) * kWidth, d = self.g.columns;
      using Elements = Group<T, kWidth>;
      Elements a = *(const Elements*)(self.x + sh.origin[r].seed * d + at);
      if (self.g.k) {
        const Elements b = *(const Elements*)(self.x + sh.origin[r].neighbor * d + at);
        const double step = sh.origin[r].step;
#pragma unroll
        for (int e = 0; e < kWidth; ++e) a.element[e] = interpolate(a.element[e], b.element[e], step);
      }
      *(Elements*)(self.out + (first_row + r) * d + at) = a;
    });
  }
};

// launch(kernel, blocks, threads, shared bytes): `count` new rows of X at `x` behind the original ones at `out`.
template <class T, class Launch>
void new_rows(const Generate& g, const void* x, void* out, int64_t count, Launch launch) {
  constexpr int kWide = 16 / sizeof(T);
  const T* from = (const T*)x;
  T* to = (T*)out + g.rows * g.columns;
  const auto start = [&](auto kernel) {
    if (kernel.tiles.blocks()) launch(kernel, kernel.tiles.blocks(), kernel.kThreads, kernel.shared_bytes());
  };
  if (g.columns % kWide == 0 && (uintptr_t)from % 16 == 0 && (uintptr_t)to % 16 == 0)
    start(NewRows<T, kWide>{g, from, to, RowTiles(count, g.columns / kWide)});
  else
    start(NewRows<T, 1>{g, from, to, RowTiles(count, g.columns)});
}

struct PhiloxWords {
  uint64_t key, stream, first;
  int64_t n;
  int64_t* out;  // (n, 4)

  static constexpr int kThreads = 256, kBlocks = 4, kItems = 1024;
  int64_t blocks() const { return divide_up(n, kItems); }

  template <class Block>
  IMBAL_DEVICE void operator()(const Block& block) const {
    const PhiloxWords self = *this;
    const int64_t begin = block.index * kItems;
    block.each(at_most<int64_t>(kItems, n - begin), [&](int64_t i) {
      const Words r = philox(self.key, self.stream, self.first + (uint64_t)(begin + i));
      for (int j = 0; j < 4; ++j) self.out[(begin + i) * 4 + j] = r.w[j];
    });
  }
};

}  // namespace imbal
