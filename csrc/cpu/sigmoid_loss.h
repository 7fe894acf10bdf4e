// What one call of the streaming loss is given: filled by sigmoid_loss.cpp, read by stream.h.
#pragma once

#include <cstdint>

namespace imbal {

enum class Type : int8_t { kF32, kF64, kBF16, kF16, kI64, kI32, kI16, kI8, kU8, kBool };

// A factor that broadcasts to (N, C): element (row, col) is at row * row_stride + col * col_stride.
struct Factor {
  const void* data = nullptr;
  int64_t row_stride = 0, col_stride = 0;
};

constexpr int64_t size_of(Type type) {
  switch (type) {
    case Type::kF64:
    case Type::kI64: return 8;
    case Type::kF32:
    case Type::kI32: return 4;
    case Type::kBF16:
    case Type::kF16:
    case Type::kI16: return 2;
    default: return 1;
  }
}

enum class Formula : int8_t { kFocal, kQualityFocal, kVarifocal, kAsymmetric };

struct SigmoidLoss {
  int64_t rows, classes;
  int64_t positions;  // 0: rows of classes. Else lines of positions, one line a class: a detector's head
  Type dtype;         // of the logits and their gradient; fp64 computes in fp64, the others in fp32
  Type target_type;
  Type loss_type;     // of the elementwise loss
  Type upstream_type;
  bool class_ids;     // target is (N,) ids, else (N, C) values
  const void* input;
  const void* target;
  const void* scores;    // (N,), the targets of the rows' classes in the compute type; null: 1
  const void* upstream;  // (N, C), or null
  void* loss;            // (N, C), or null
  void* grad;            // (N, C), or null
  bool past_caches;      // store loss and gradient without a copy in the caches: they are large and aligned
  double* partial_sums;  // one per chunk, or null
  double* by_class;      // (kSums, C), added to by all chunks of a call, or null
  int64_t ignore_index;
  Formula formula;
  double gamma, gamma_pos, clip, smoothing;
  double negatives;  // varifocal loss's alpha; that of the others is below
  double alpha, pos_weight;
  double scale;        // on loss and gradient
  double grad_scale;   // on the gradient alone
  Factor weight, pos_weights, alphas;  // null data where the scalar above says it all
};

// Sums by class: elements with a target above 0, the loss, the magnitude of the gradient of these, and of the others.
constexpr int64_t kSums = 4;

// Elements of one partial sum, whatever the number of threads, and of one block, which fits L1 with all that belongs to
// it (decode.h has a longer one).
constexpr int64_t kChunk = 4096, kBlock = 1024;

// Runs chunks first to last - 1; returns their first bad target (row for ids, element for values) or -1.
using ChunkFunction = int64_t (*)(const SigmoidLoss&, int64_t first, int64_t last);

// How many of the targets first to last - 1 are not ignored, or hold an object; -1 where one is out of range.
using CountFunction = int64_t (*)(const SigmoidLoss&, int64_t first, int64_t last, bool positives);

struct KnnKernels;   // knn.h
struct SoftmaxLoss;  // softmax_loss.h

// Runs tiles first to last - 1 in `scratch`; returns their first bad position or -1.
using TileFunction = int64_t (*)(const SoftmaxLoss&, int64_t first, int64_t last, void* scratch);

struct Backend {
  const char* name;
  ChunkFunction sigmoid_loss;
  CountFunction count;
  const KnnKernels* knn;
  TileFunction softmax_loss;
};

// The one in use.
const Backend* current_backend();

// Null where the compiler has no such target.
extern const Backend* const kPortable;
extern const Backend* const kAvx2;
extern const Backend* const kAvx512;

}  // namespace imbal
