// The nearest-neighbour search on a CPU: what knn.cpp, knn_lists.cpp and the kernels for an instruction set
// (knn_kernel.h) share.
//
// A segment's points are centred, scaled by a power of two and rounded to fp32, with coordinates of at most 1. For two
// of them, a and b, the fast pass computes e = a.b - (|a|^2 / 2 + |b|^2 / 2), which is -d^2 / 2. In units of 2^-24
// (|a|^2 + |b|^2) / 2 it is off by at most
//
//   d   for the product: its sum starts at 0, so each term is rounded d times at most, fused or not, and the sum of the
//       terms' magnitudes is at most |a| |b|, which is at most (|a|^2 + |b|^2) / 2 (a sum that started at a norm's half
//       would need 2 d)
//   1   for the norms' halves, summed in fp64 and then rounded
//   1   for the sum of the two
//   2   for the difference, which is at most |a|^2 + |b|^2
//   4   for the coordinates: the points are off by 2^-24 of |a| and |b|, d by both, and d^2 by 2 d of that, at most
//       2 (|a| + |b|)^2 or 4 (|a|^2 + |b|^2)
//
// `slack` is d + 10 of them and a thousandth more, for products of roundings, which are at most d 2^-24 = 2^-12 of it,
// and for the roundings of the definition in fp64. `tiny` is for underflow: 2^-126 for each product, halved norm and
// sum, at most 4 d times that for the coordinates. The norms' halves are stored less this much, so that e is never
// below the true value: what falls short of the k-th best pessimistic value is no neighbour.
#pragma once

#include <cstdint>

#include "../neighbors.h"
#include "sigmoid_loss.h"

namespace imbal {

struct Accuracy {
  double slack, tiny;  // of -d^2 / 2; tiny covers underflow, flushed to zero or not

  explicit Accuracy(int64_t columns)
      : slack(1.001 * (double)(columns + 10) * 0x1p-24), tiny((double)(columns + 4) * 0x1p-122) {}
  float half(double norm) const { return (float)((1 - slack) * norm / 2 - tiny / 4); }
  // From an optimistic value and the halves of its two points.
  double pessimistic(double e, double half_a, double half_b) const {
    return e - 2.001 * slack * (half_a + half_b + tiny) - 2 * tiny;
  }
};

// Rows of one array of points, by its dtype.
struct Points {
  const void* data;
  Type type;
  int64_t columns;
};

// How a segment's coordinates become fp32: (x - center) * scale.
struct Frame {
  const double* center;
  double scale;
  Accuracy accuracy;
};

// Points `first` to `first + count` of a segment in panels of as many as the registers hold, column by column.
// The last panel is filled up with points that are no one's neighbour: their halves are infinite.
struct Packed {
  float* values;
  float* halves;
  int64_t first, count;
};

// The best candidates seen by each of `rows` queries, with room for a few more than are kept.
struct Shortlists {
  int64_t k, keep, room;
  Accuracy accuracy;
  float* threshold;     // an optimistic value below this is of no interest
  int32_t* count;
  uint64_t* keys;       // rows x room: candidate_key(-e, index inside the segment)
  float* halves;        // rows x room: of the candidates
  const float* own;     // halves of the queries

  // The list is full: back to what may be a neighbour, `keep` at most, and a threshold that tells.
  void prune(int64_t row) const;
};

// The same in fp64 by the definition.
struct Exact {
  double distance;
  int64_t index;
};

inline bool in_order(const Exact& a, const Exact& b) { return before(a.distance, a.index, b.distance, b.index); }

struct ExactLists {
  int64_t k, room;
  double* threshold;  // a distance that is not below it is of no interest; NaN until k are known
  int32_t* count;
  Exact* found;       // rows x room
  const int64_t* own; // the queries' own indices, or -1

  void prune(int64_t row) const;
};

struct KnnKernels {
  int64_t panel, exact_panel, exact_rows;
  // Largest magnitude of elements begin to begin + n.
  double (*largest)(const Points&, int64_t begin, int64_t n);
  // Point `row` of an array becomes point i of `to`, for count points; the last panel is filled up.
  void (*pack)(const Points&, int64_t row, const Frame&, const Packed& to, int64_t begin, int64_t end);
  void (*pack_exact)(const Points&, int64_t row, int64_t count, double* to);
  // Rows [begin, end) of `queries` against `candidates` [first, last), both multiples of a panel or the end.
  void (*scan)(const Packed& queries, int64_t begin, int64_t end, const Packed& candidates, int64_t first,
               int64_t last, int64_t columns, const Shortlists&);
  // The same for two parts of one block, each the other's candidates; begin <= first. On the diagonal a pair is met
  // once, and a point meets itself where `itself`.
  void (*scan_both)(const Packed& points, int64_t begin, int64_t end, int64_t first, int64_t last, int64_t columns,
                    bool itself, const Shortlists&);
  // exact_rows queries, column by column, against `count` candidates of which the first is `first`.
  void (*scan_exact)(const double* queries, int64_t row, int64_t rows, const double* candidates, int64_t first,
                     int64_t count, int64_t columns, const ExactLists&);
};

}  // namespace imbal
