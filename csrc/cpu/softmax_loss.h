// What one call of the softmax loss is given: filled by softmax_loss.cpp, read by softmax.h.
#pragma once

#include "sigmoid_loss.h"

namespace imbal {

// Logits are (N, C, P): P positions of each of N samples, whose C logits lie P apart. A position is numbered n P + p.
struct SoftmaxLoss {
  int64_t samples, classes, inner;
  Type dtype;  // of the logits and their gradient; fp64 computes in fp64, the others in fp32
  Type target_type;
  Type loss_type;  // of the elementwise loss
  Type upstream_type;
  bool class_ids;  // target is (N, P) ids, else (N, C, P) probabilities
  const void* input;
  const void* target;
  const void* upstream;     // (N, P), or null
  const void* weights;      // (C,) in the compute type, zeros up to a multiple of kPad after it; or null: all 1
  const void* adjustment;   // likewise, or null: all 0
  void* loss;               // (N, P), or null
  void* grad;               // (N, C, P), or null
  bool past_caches;         // store the gradient without a copy in the caches: it is large and aligned
  double* partial_sums;     // one per tile, or null
  int64_t ignore_index;
  double gamma, smoothing, total_weight;
  double scale;       // on loss and gradient
  double grad_scale;  // on the gradient alone
  int64_t tile;       // positions of a tile: the unit of work and of summation, whatever the number of threads
  bool by_rows;       // classes in the lanes of a vector, else positions

  int64_t positions() const { return samples * inner; }
  int64_t tiles() const { return (positions() + tile - 1) / tile; }
  int64_t padded_classes() const { return (classes + kPad - 1) / kPad * kPad; }
  int64_t stride() const { return tile + kPad; }  // of a class in a tile of positions: no power of two
  int64_t scratch() const;                        // elements of the compute type that a thread works in

  static constexpr int64_t kPad = 16;   // lanes of the widest vector
  static constexpr int64_t kRows = 16;  // of the largest tile by rows
};

// Positions of the largest tile.
constexpr int64_t kPositions = 256;

}  // namespace imbal
