// What the kernels of one search share: its shape, its work list, its numbers and its bounds.
//
// References and queries are cut into panels of 128 rows that never straddle a segment; a panel is packed as fp32,
// centred, dimension by dimension (`packed[j][128]`, j up to d rounded up to 8), so that the distance kernel
// copies 16 bytes a thread from any d, alignment or dtype. References go by chunks of panels and queries by batches
// of them, so that the workspace has a bound (knn_plan.h).

#pragma once

#include <cmath>
#include <limits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "block.h"

namespace imbal {

constexpr int kPanel = 128;     // rows of a panel
constexpr int kStep = 8;        // dimensions of a tile
constexpr int kFusedK = 64;     // neighbours up to which the lists live in shared memory
constexpr int kFallbackRows = 8;
constexpr float kLowest = -std::numeric_limits<float>::max();
constexpr float kNone = -std::numeric_limits<float>::infinity();
// Components beyond this would overflow a squared norm in fp32.
constexpr float kLargest = 0x1p56f;
// Of the definition's own d2, whose relative error is at most (d + 2) 2^-53 with d <= 4096.
constexpr double kExactSlack = 0x1p-39;

enum class Element { kF32, kF64, kBF16, kF16 };

// One side of the search: rows by segment. `panels[s]` is the first panel of segment s, counted on the device.
struct Rows {
  const void* data;
  const int64_t* ptr;
  int64_t* panels;
  float* packed;
};

struct Search {
  Rows x, query;
  Element element;
  int64_t segments;
  int d, padded_d;
  int k, kept, capacity;  // neighbours asked for; candidates a list keeps; those and its buffer
  int splits;             // of a chunk's panels among thread blocks; where there are lists, each has its own
  bool exclude_self;
  int64_t first_panel, chunk_panels;  // of the references at hand
  int64_t first_batch, batch_panels;  // of the queries at hand
  float* start;                       // of a packed reference's score
  double* norm;                       // of a packed query, squared
  float* scores;                      // (batch rows, chunk rows), for k > kFusedK; else lists:
  uint32_t* lists;                    // (batch rows, splits, kept) rows, counted from the segment's first in the chunk
  int* counts;
  float* cutoffs;  // (batch rows, splits): no reference that is not listed scores more
  uint8_t* uncertain;  // bit 0: in the chunk at hand, bit 1: in any so far
  int64_t* indices;
  double* distances;
  int64_t* totals;  // rescored, fallen back

  IMBAL_HOST_DEVICE int candidates() const { return scores ? kept : kept * splits; }  // of a shortlist, at most
};

template <class F>
IMBAL_DEVICE auto with_element(Element element, const void* data, F f) {
  switch (element) {
    case Element::kF64: return f((const double*)data);
    case Element::kBF16: return f((const torch::headeronly::BFloat16*)data);
    case Element::kF16: return f((const torch::headeronly::Half*)data);
    default: return f((const float*)data);
  }
}

IMBAL_DEVICE double load(const Search& s, const Rows& side, int64_t row, int64_t j) {
  return with_element(s.element, side.data, [&](auto p) { return (double)p[row * s.d + j]; });
}

// A squared distance as bits that order as distances do; any NaN comes last but for rows that do not exist.
IMBAL_DEVICE uint64_t distance_bits(double d2) { return d2 == d2 ? bits_as<uint64_t>(d2) : 0x7ff8000000000000ull; }

IMBAL_DEVICE uint64_t exact_distance(const Search& s, int64_t query, int64_t row) {
  return with_element(s.element, s.x.data, [&](auto x) {
    const decltype(x) q = (decltype(x))s.query.data;
    return distance_bits(squared_distance(q + query * s.d, x + row * s.d, s.d));
  });
}

// ---- Work list: which rows a panel holds, which panels a segment has in the chunk at hand.

struct Panel {
  int64_t segment, first_row;
  int rows;  // 0: there is no such panel
};

IMBAL_DEVICE Panel panel_at(const Rows& side, int64_t segments, int64_t panel) {
  if (panel >= side.panels[segments]) return {0, 0, 0};
  const int64_t segment = count_before(segments, [&](int64_t i) { return side.panels[i + 1] <= panel; });
  const int64_t first = side.ptr[segment] + (panel - side.panels[segment]) * kPanel;
  return {segment, first, (int)at_most((int64_t)kPanel, side.ptr[segment + 1] - first)};
}

struct Range {
  int64_t first_panel, last_panel;  // the last not included
  int64_t first_row, rows;
};

IMBAL_DEVICE Range range_of(const Search& s, int64_t segment) {
  const int64_t begin = s.x.panels[segment], end = s.x.panels[segment + 1];
  const int64_t first = at_least(begin, s.first_panel), last = at_most(end, s.first_panel + s.chunk_panels);
  if (first >= last) return {first, first, 0, 0};
  const int64_t row = s.x.ptr[segment] + (first - begin) * kPanel;
  return {first, last, row, at_most(s.x.ptr[segment + 1] - row, (last - first) * kPanel)};
}

// ---- Bounds.
//
// With x', y' the packed rows, X = |x'|^2, Y = |y'|^2, u = 2^-24, the fast pass finds
//   score = start(x) + sum of d fused products x'_j y'_j,   start = -(X - margin(X)) / 2, rounded up.
// Each of its d roundings is at most u (X / 2 + (X + Y) / 2), and packing moves |x - y|^2 by at most 4 u (X + Y). Hence
//   |x - y|^2 >= Y - margin(Y) - 2 score
// for margins of (2d + 4) u X and (d + 4) u Y, to first order; what is used is larger, for the rest. Scores thus order
// references by a lower bound of their distance, and a cutoff of scores bounds all that was left out. 2^-140
// covers products that underflow.

IMBAL_DEVICE float start_score(double norm, int d) {
  const double exact = -0.5 * (norm - 1.001 * (2 * d + 8) * 0x1p-24 * norm);
  const float near = (float)exact;
  return near < exact ? nextafterf(near, std::numeric_limits<float>::infinity()) : near;
}

// Below it is no reference that scores at most `score`.
IMBAL_DEVICE double least_distance(double norm, double score, int d) {
  return norm - 1.001 * (d + 8) * 0x1p-24 * norm - (d + 8) * 0x1p-140 - 2 * score;
}

// Whether all that scores at most `cutoff` is further away than `distance`, ties included.
IMBAL_DEVICE bool is_certain(double norm, float cutoff, double distance, int d) {
  return cutoff == kNone || least_distance(norm, cutoff, d) * (1 - kExactSlack) > distance;
}

// What scores less can't be nearer than the k-th so far. The lowest float, not -inf: that is padding's score.
IMBAL_DEVICE float first_threshold(const Nearest& nearest, double norm, int d) {
  if (nearest.row[nearest.k - 1] < 0) return kLowest;
  const double distance = nearest.distance[nearest.k - 1] * (1 + kExactSlack);
  const double exact = 0.5 * least_distance(norm, 0.5 * distance, d);
  if (!(exact > kLowest)) return kLowest;
  const float near = (float)exact;
  return near > exact ? nextafterf(near, kNone) : near;
}

// ---- Lists of the fast pass: keys that order by score, the highest first, then by row.

IMBAL_DEVICE uint64_t list_key(float score, uint32_t row) { return (uint64_t)~ordered_bits(score) << 32 | row; }

// One query's list: `kept` keys in order, then a buffer for what passed the threshold since the last merge.
// state: how many are kept << 16 | how many came to the buffer, those included that found it full.
struct List {
  uint64_t* keys;
  int* state;
  float* threshold;
};

constexpr int kBuffered = 0xffff;

// False where the buffer is full.
template <class Block>
IMBAL_DEVICE bool push(const Block& block, const List& list, int kept, int capacity, uint64_t key) {
  const int slot = block.add(list.state, 1) & kBuffered;
  if (slot >= capacity - kept) return false;
  list.keys[kept + slot] = key;
  return true;
}

// Each key moves to the place that counting gives it: no keys are equal, so the order they came in is forgotten.
template <class Block>
IMBAL_DEVICE void merge(const Block& warp, const List& list, int kept, int capacity) {
  struct Moved {
    uint64_t key;
    int rank;
  };
  const int listed = *list.state >> 16, buffered = at_most(*list.state & kBuffered, capacity - kept);
  const uint64_t *keys = list.keys, *buffer = list.keys + kept;
  warp.template exchange<3>(
      listed + buffered,
      [=](int i) {
        const uint64_t key = i < listed ? keys[i] : buffer[i - listed];
        int rank = i < listed ? i : (int)count_before(listed, [=](int64_t j) { return keys[j] < key; });
        for (int j = 0; j < buffered; ++j) rank += buffer[j] < key;
        return Moved{key, rank};
      },
      [=](int, Moved m) {
        if (m.rank < kept) list.keys[m.rank] = m.key;
      });
  warp.each(1, [=](int64_t) {
    const int now = at_most(listed + buffered, kept);
    *list.state = now << 16;
    // A full list bounds the rest: inclusive, as an equal score with a lower row goes first.
    if (now == kept) *list.threshold = from_ordered_bits(~(uint32_t)(list.keys[kept - 1] >> 32));
  });
}

}  // namespace imbal
