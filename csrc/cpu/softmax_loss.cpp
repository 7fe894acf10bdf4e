// The CPU side of the softmax losses: from tensors to tiles, and from partial sums to a loss.
// Shapes, dtypes and options were checked in Python; what is wrong with a label is returned, not raised.

#include "softmax_loss.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "large_tensor.h"

namespace imbal {

int64_t SoftmaxLoss::scratch() const {
  const int64_t values = by_rows ? tile * padded_classes() : classes * stride();
  return values * (class_ids ? 1 : 2) + tile * classes + kPad;
}

namespace {

// With fewer classes what is done once a row costs more than turning rows into lines of positions does.
constexpr int64_t kFewestByRows = 40;

// Elements of a tile: of rows, as L1 holds with what the next tile needs; of positions, as L2 does.
constexpr int64_t kRowTile = 4096, kPositionTile = 1 << 15;

// A thread's share, in elements, below which starting one costs more than it saves.
constexpr int64_t kGrain = 1 << 14;

void choose_tile(SoftmaxLoss& s) {
  s.by_rows = s.inner == 1 && s.classes >= kFewestByRows;
  const int64_t pad = SoftmaxLoss::kPad;
  s.tile = s.by_rows ? std::clamp<int64_t>(kRowTile / s.classes, 1, SoftmaxLoss::kRows)
                     : std::clamp<int64_t>(kPositionTile / s.classes / pad * pad, pad, kPositions);
}

// A (C,) tensor with zeros after it; `ones` where there is none but one is needed. Its sum goes to `total`.
template <class A>
std::vector<A> padded(const OptionalTensor& t, const SoftmaxLoss& s, bool ones, double& total) {
  if (!t && !ones) return {};
  std::vector<A> out(s.padded_classes());
  const A* data = t ? (const A*)t->const_data_ptr() : nullptr;
  for (int64_t c = 0; c < s.classes; ++c) total += out[c] = data ? data[c] : A(1);
  return out;
}

// Runs every tile; returns the smallest position with a bad target, or -1.
template <class A>
int64_t run(SoftmaxLoss& s, const OptionalTensor& weight, const OptionalTensor& adjustment) {
  double unused = 0;
  s.total_weight = 0;
  const std::vector<A> weights = padded<A>(weight, s, s.smoothing != 0 || !s.class_ids, s.total_weight);
  const std::vector<A> adjustments = padded<A>(adjustment, s, false, unused);
  s.weights = weights.empty() ? nullptr : weights.data();
  s.adjustment = adjustments.empty() ? nullptr : adjustments.data();

  constexpr int64_t none = std::numeric_limits<int64_t>::max();
  const TileFunction f = current_backend()->softmax_loss;
  std::atomic<int64_t> bad{none};
  const int64_t grain = std::max<int64_t>(1, kGrain / (s.tile * s.classes));
  torch::stable::parallel_for(0, s.tiles(), grain, [&](int64_t first, int64_t last) {
    const std::unique_ptr<A[]> scratch(new A[s.scratch()]);
    const int64_t here = f(s, first, last, scratch.get());
    int64_t seen = bad.load();
    while (here >= 0 && here < seen && !bad.compare_exchange_weak(seen, here)) {
    }
  });
  const int64_t first = bad.load();
  return first == none ? -1 : first;
}

std::tuple<Tensor, Tensor, int64_t> softmax_loss(Tensor input, Tensor target, OptionalTensor weight,
                                                 OptionalTensor logit_adjustment, OptionalTensor scale_tensor,
                                                 OptionalTensor upstream, double gamma, double label_smoothing,
                                                 double scale, int64_t ignore_index, int64_t loss_mode,
                                                 bool want_grad, bool fp32_loss) {
  SoftmaxLoss s{};
  s.samples = input.size(0);
  s.classes = input.size(1);
  s.inner = input.size(2);
  s.dtype = type_of(input);
  s.input = input.const_data_ptr();
  s.class_ids = target.dim() == 2;
  s.target_type = type_of(target);
  s.target = target.const_data_ptr();
  s.ignore_index = ignore_index;
  s.gamma = gamma;
  s.smoothing = label_smoothing;
  s.scale = scale * (scale_tensor ? value(*scale_tensor) : 1.0);
  s.grad_scale = 1;
  if (upstream && upstream->dim() == 0) {
    s.grad_scale = value(*upstream);
  } else if (upstream) {
    s.upstream_type = type_of(*upstream);
    s.upstream = upstream->const_data_ptr();
  }
  choose_tile(s);

  const bool fp64 = s.dtype == Type::kF64;
  const ScalarType wide = fp64 ? ScalarType::Double : ScalarType::Float;
  const std::vector<int64_t> shape{s.samples, s.classes, s.inner};
  Tensor grad = new_large(input, want_grad ? shape : std::vector<int64_t>{0}, input.scalar_type());
  Tensor loss = loss_mode == 1 ? torch::stable::new_empty(input, {s.samples, s.inner},
                                                          fp32_loss ? wide : input.scalar_type())
                : loss_mode == 2 ? torch::stable::new_empty(input, {}, wide)
                                 : torch::stable::new_empty(input, {0}, wide);
  s.loss_type = type_of(loss);
  s.grad = want_grad ? grad.mutable_data_ptr() : nullptr;
  s.loss = loss_mode == 1 ? loss.mutable_data_ptr() : nullptr;
  s.past_caches = want_grad && too_large_to_cache(grad) && aligned(s.grad);
  std::vector<double> partial_sums(loss_mode == 2 ? s.tiles() : 0);
  s.partial_sums = loss_mode == 2 ? partial_sums.data() : nullptr;

  const int64_t bad = fp64 ? run<double>(s, weight, logit_adjustment) : run<float>(s, weight, logit_adjustment);
  if (loss_mode == 2) {
    double sum = 0 * s.scale;  // a mean over nothing, whose scale is 1 / 0, is NaN
    for (double p : partial_sums) sum += p;
    if (fp64)
      *loss.mutable_data_ptr<double>() = sum;
    else
      *loss.mutable_data_ptr<float>() = (float)sum;
  }
  return {loss, grad, bad};
}

// The sum of f(id) over all ids that are a class and not ignored: per block, then in the order of blocks.
template <class T, class F>
double sum_ids(const Tensor& target, int64_t classes, int64_t ignore, F f) {
  constexpr int64_t block = 1 << 15;
  const T* p = (const T*)target.const_data_ptr();
  const int64_t n = target.numel(), blocks = (n + block - 1) / block;
  std::vector<double> sums(blocks);
  const auto value_of = [&](int64_t id) { return id != ignore && (uint64_t)id < (uint64_t)classes ? f(id) : 0.0; };
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      double parts[4] = {};  // one addition need not wait for the one before
      int64_t i = b * block;
      const int64_t end = std::min(n, i + block);
      for (; i + 4 <= end; i += 4)
        for (int64_t j = 0; j < 4; ++j) parts[j] += value_of((int64_t)p[i + j]);
      for (; i < end; ++i) parts[0] += value_of((int64_t)p[i]);
      sums[b] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

template <class F>
double sum_ids_of_any_type(const Tensor& target, int64_t classes, int64_t ignore, F f) {
  switch (type_of(target)) {
    case Type::kI64: return sum_ids<int64_t>(target, classes, ignore, f);
    case Type::kI32: return sum_ids<int32_t>(target, classes, ignore, f);
    case Type::kI16: return sum_ids<int16_t>(target, classes, ignore, f);
    case Type::kI8: return sum_ids<int8_t>(target, classes, ignore, f);
    default: return sum_ids<uint8_t>(target, classes, ignore, f);
  }
}

// The sum of the weights of the class ids that are not ignored; their number without weights.
Tensor sum_weights(Tensor target, OptionalTensor weight, int64_t classes, int64_t ignore) {
  Tensor out = torch::stable::new_empty(target, {}, weight ? weight->scalar_type() : ScalarType::Long);
  if (!weight) {
    *out.mutable_data_ptr<int64_t>() = (int64_t)sum_ids_of_any_type(target, classes, ignore, [](int64_t) { return 1.0; });
  } else if (type_of(*weight) == Type::kF64) {
    const double* w = weight->const_data_ptr<double>();
    *out.mutable_data_ptr<double>() = sum_ids_of_any_type(target, classes, ignore, [=](int64_t id) { return w[id]; });
  } else {
    const float* w = weight->const_data_ptr<float>();
    *out.mutable_data_ptr<float>() =
        (float)sum_ids_of_any_type(target, classes, ignore, [=](int64_t id) { return (double)w[id]; });
  }
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(imbal_kernels, CPU, m) {
  m.impl("_softmax_loss_cpu", TORCH_BOX(&softmax_loss));
  m.impl("sum_weights", TORCH_BOX(&sum_weights));
}

}  // namespace
}  // namespace imbal
