// The CPU side of the sigmoid losses: from tensors to chunks, and from partial sums to a loss.
// Shapes, dtypes and options were checked in Python; what is wrong with a label is returned, not raised.

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "large_tensor.h"

namespace imbal {
namespace {

const Backend* best_backend() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (kAvx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return kAvx512;
  if (kAvx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;  // so it has F16C
#endif
  return kPortable;
}

std::atomic<const Backend*> current{best_backend()};

// A one-element tensor becomes the scalar, any other a factor with its broadcasting strides.
void resolve(const OptionalTensor& t, double& scalar, Factor& factor) {
  if (!t) return;
  if (t->numel() == 1) {
    scalar = value(*t);
    return;
  }
  factor.data = t->const_data_ptr();
  factor.row_stride = t->size(0) == 1 ? 0 : t->size(1);
  factor.col_stride = t->size(1) == 1 ? 0 : 1;
}

Formula formula_of(const std::string& name) {
  if (name == "focal") return Formula::kFocal;
  if (name == "quality_focal") return Formula::kQualityFocal;
  if (name == "varifocal") return Formula::kVarifocal;
  STD_TORCH_CHECK(name == "asymmetric", "imbal_kernels: unexpected formula ", name);
  return Formula::kAsymmetric;
}

using Shape = std::vector<int64_t>;
Shape shape_of(const Tensor& t) {
  Shape shape;
  for (int64_t i = 0; i < t.dim(); ++i) shape.push_back(t.size(i));
  return shape;
}

int64_t chunks_of(const SigmoidLoss& s) { return (s.rows * s.classes + kChunk - 1) / kChunk; }

// A thread's share, in chunks, below which starting one costs more than it saves.
constexpr int64_t kGrain = 4;

// The smallest row that several threads found, or -1.
class FirstRow {
 public:
  void note(int64_t row) {
    int64_t seen = row_.load();
    while (row >= 0 && row < seen && !row_.compare_exchange_weak(seen, row)) {
    }
  }
  int64_t get() const { return row_ == kNone ? -1 : row_.load(); }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> row_{kNone};
};

// The first bad row (of ids) or element of each level, or -1.
using BadRows = std::vector<FirstRow>;

// Runs the chunks of all levels, which threads share out as if they were one.
void run(const std::vector<SigmoidLoss>& levels, BadRows& bad) {
  const ChunkFunction f = current_backend()->sigmoid_loss;
  int64_t total = 0;
  for (const SigmoidLoss& s : levels) total += chunks_of(s);
  torch::stable::parallel_for(0, total, kGrain, [&](int64_t first, int64_t last) {
    for (size_t i = 0; i < levels.size() && last > 0; ++i) {
      const int64_t chunks = chunks_of(levels[i]);
      if (first < chunks) bad[i].note(f(levels[i], std::max<int64_t>(first, 0), std::min(last, chunks)));
      first -= chunks;
      last -= chunks;
    }
  });
}

// Level after level, with the sums by class, (kSums, C), added to `sums`: slices of a level's chunks each add up their
// own, whatever the number of threads. A slice's sums take at most half a byte for each of its logits.
void run_by_class(const std::vector<SigmoidLoss>& levels, double* sums, BadRows& bad) {
  const ChunkFunction f = current_backend()->sigmoid_loss;
  for (size_t l = 0; l < levels.size(); ++l) {
    const SigmoidLoss& s = levels[l];
    const int64_t chunks = chunks_of(s), size = kSums * s.classes;
    const int64_t slices = std::min(chunks, std::clamp<int64_t>(s.rows / 64, 1, 64));
    std::vector<double> partial(slices * size);
    torch::stable::parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        SigmoidLoss slice = s;
        slice.by_class = partial.data() + i * size;
        bad[l].note(f(slice, chunks * i / slices, chunks * (i + 1) / slices));
      }
    });
    for (int64_t i = 0; i < slices; ++i)
      for (int64_t j = 0; j < size; ++j) sums[j] += partial[i * size + j];
  }
}

// The loss of all levels, the gradient of each if it is wanted, their sums by class, and the level and the row of the
// first bad target (or -1). A list of tensors that the levels do not have is empty.
std::tuple<Tensor, std::vector<Tensor>, Tensor, int64_t, int64_t> sigmoid_loss(
    std::vector<Tensor> inputs, std::vector<Tensor> targets, std::vector<Tensor> weights,
    std::vector<Tensor> pos_weights, OptionalTensor alpha_per_class, OptionalTensor scale_tensor,
    OptionalTensor upstream, double alpha, double gamma, double label_smoothing, double scale, int64_t ignore_index,
    int64_t loss_mode, bool want_grad, std::vector<Tensor> scores, std::string formula, double gamma_pos, double clip,
    bool fp32_loss, bool by_class) {
  auto one_each = [&](const std::vector<Tensor>& list) { return list.empty() || list.size() == inputs.size(); };
  STD_TORCH_CHECK(!inputs.empty() && targets.size() == inputs.size() && one_each(weights) && one_each(pos_weights) &&
                      one_each(scores),
                  "imbal_kernels: a list must have a tensor for each level");
  STD_TORCH_CHECK(inputs.size() == 1 || (loss_mode != 1 && (!upstream || upstream->dim() == 0)),
                  "imbal_kernels: the losses of several levels are added up");
  const Tensor& input = inputs[0];
  SigmoidLoss common{};
  common.dtype = type_of(input);
  common.ignore_index = ignore_index;
  common.formula = formula_of(formula);
  const bool varifocal = common.formula == Formula::kVarifocal;
  common.alpha = varifocal ? -1 : alpha;
  common.negatives = varifocal ? alpha : 1;
  common.gamma = gamma;
  common.gamma_pos = gamma_pos;
  common.clip = clip;
  common.smoothing = label_smoothing;
  common.scale = scale * (scale_tensor ? value(*scale_tensor) : 1.0);
  common.pos_weight = 1;
  resolve(alpha_per_class, common.alpha, common.alphas);
  common.grad_scale = 1;
  if (upstream && upstream->dim() == 0) {
    common.grad_scale = value(*upstream);
  } else if (upstream) {
    common.upstream_type = type_of(*upstream);
    common.upstream = upstream->const_data_ptr();
  }

  const bool fp64 = common.dtype == Type::kF64, elementwise = loss_mode == 1;
  const ScalarType wide = fp64 ? ScalarType::Double : ScalarType::Float;
  Tensor loss = elementwise ? new_large(input, shape_of(input), fp32_loss ? wide : input.scalar_type())
                            : torch::stable::new_empty(input, loss_mode == 2 ? Shape{} : Shape{0}, wide);
  common.loss_type = type_of(loss);
  common.loss = elementwise ? loss.mutable_data_ptr() : nullptr;

  std::vector<SigmoidLoss> levels;
  std::vector<Tensor> grads;
  int64_t chunks = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor &x = inputs[i], &t = targets[i];
    STD_TORCH_CHECK(type_of(x) == common.dtype, "imbal_kernels: levels must be of one dtype");
    SigmoidLoss s = common;
    const bool head = x.dim() == 4;  // (images, anchors, C, positions)
    s.rows = head ? x.size(0) * x.size(1) * x.size(3) : x.size(0);
    s.classes = x.size(head ? 2 : 1);
    s.positions = head ? x.size(3) : 0;
    s.input = x.const_data_ptr();
    s.class_ids = t.dim() == x.dim() - 1;
    s.target_type = type_of(t);
    s.target = t.const_data_ptr();
    s.scores = scores.empty() ? nullptr : scores[i].const_data_ptr();
    double scalar_weight = 1;
    if (!weights.empty()) resolve(weights[i], scalar_weight, s.weight);
    if (!pos_weights.empty()) resolve(pos_weights[i], s.pos_weight, s.pos_weights);
    s.scale *= scalar_weight;
    if (want_grad) grads.push_back(new_large(x, shape_of(x), x.scalar_type()));
    s.grad = want_grad ? grads[i].mutable_data_ptr() : nullptr;
    s.past_caches = too_large_to_cache(x) && aligned(s.grad) && aligned(s.loss);
    chunks += chunks_of(s);
    levels.push_back(s);
  }
  std::vector<double> partial_sums(loss_mode == 2 ? chunks : 0);
  if (loss_mode == 2) {
    double* next = partial_sums.data();
    for (SigmoidLoss& s : levels) {
      s.partial_sums = next;
      next += chunks_of(s);
    }
  }

  Tensor sums = torch::stable::new_empty(input, by_class ? Shape{kSums, levels[0].classes} : Shape{0},
                                         ScalarType::Double);
  BadRows bad(levels.size());
  if (by_class) {
    double* all = sums.mutable_data_ptr<double>();
    std::fill(all, all + sums.numel(), 0.0);
    run_by_class(levels, all, bad);
  } else {
    run(levels, bad);
  }
  if (loss_mode == 2) {
    double sum = 0 * common.scale;  // a mean over nothing, whose scale is 1 / 0, is NaN
    for (double p : partial_sums) sum += p;
    if (fp64)
      *loss.mutable_data_ptr<double>() = sum;
    else
      *loss.mutable_data_ptr<float>() = (float)sum;
  }
  for (size_t i = 0; i < levels.size(); ++i)
    if (const int64_t row = bad[i].get(); row >= 0)
      return {loss, grads, sums, i, levels[i].class_ids ? row : row / levels[i].classes};
  return {loss, grads, sums, -1, -1};
}

// Rows (class ids) or elements (dense values) that are not ignored; with `positives`, those that hold an object. -1 where
// one is out of range.
Tensor count_targets(Tensor target, int64_t classes, int64_t ignore, bool dense, bool positives) {
  SigmoidLoss s{};
  s.classes = classes;
  s.ignore_index = ignore;
  s.class_ids = !dense;
  s.target_type = type_of(target);
  s.target = target.const_data_ptr();
  constexpr int64_t block = 1 << 15;
  const int64_t n = target.numel();
  const CountFunction f = current_backend()->count;
  std::atomic<int64_t> total{0};
  std::atomic<bool> bad{false};
  torch::stable::parallel_for(0, (n + block - 1) / block, 1, [&](int64_t first, int64_t last) {
    const int64_t counted = f(s, first * block, std::min(n, last * block), positives);
    if (counted < 0) bad = true;
    total += counted;
  });
  Tensor out = torch::stable::new_empty(target, {}, ScalarType::Long);
  *out.mutable_data_ptr<int64_t>() = bad ? -1 : total.load();
  return out;
}

template <class T, class A>
void scale_all(Tensor& grad, A factor) {
  T* p = (T*)grad.mutable_data_ptr();
  torch::stable::parallel_for(0, grad.numel(), 1 << 15, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) p[i] = (T)((A)p[i] * factor);
  });
}

// grads *= upstream, and nothing at all when upstream is 1.
void rescale_(std::vector<Tensor> grads, Tensor upstream) {
  const double factor = value(upstream);
  if (factor == 1) return;
  for (Tensor& grad : grads) switch (type_of(grad)) {
      case Type::kF64: scale_all<double>(grad, factor); break;
      case Type::kF32: scale_all<float>(grad, (float)factor); break;
      case Type::kBF16: scale_all<torch::headeronly::BFloat16>(grad, (float)factor); break;
      default: scale_all<torch::headeronly::Half>(grad, (float)factor); break;
    }
}

// The instruction set in use; a name given is switched to first, where this machine has it.
std::string cpu_capability(std::string name) {
  for (const Backend* b : {kPortable, kAvx2, kAvx512})
    if (b && name == b->name) {
      const bool supported = b == kPortable || b == best_backend() || best_backend() == kAvx512;
      STD_TORCH_CHECK(supported, "this machine does not have ", name);
      current = b;
      return name;
    }
  STD_TORCH_CHECK(name.empty(), "unknown instruction set: ", name);
  return current.load()->name;
}

STABLE_TORCH_LIBRARY_IMPL(imbal_kernels, CPU, m) {
  m.impl("_sigmoid_loss_cpu", TORCH_BOX(&sigmoid_loss));
  m.impl("count_targets", TORCH_BOX(&count_targets));
  m.impl("rescale_", TORCH_BOX(&rescale_));
}

STABLE_TORCH_LIBRARY_IMPL(imbal_kernels, CompositeExplicitAutograd, m) {
  m.impl("_cpu_capability", TORCH_BOX(&cpu_capability));
  m.impl("keep_memory", TORCH_BOX(&keep_memory));
}

}  // namespace

const Backend* current_backend() { return current.load(); }

}  // namespace imbal
