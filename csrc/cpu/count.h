// How many targets count, for a normalizer.
//
// Included inside `namespace IMBAL_ISA`, after decode.h.

// Flags are integers, not bools: so compilers take vectors.
template <class I>
int64_t count_ids(const SigmoidLoss& s, int64_t first, int64_t last, bool positives) {
  const I* ids = (const I*)s.target;
  const bool any = !positives;
  int64_t counted = 0, bad = 0;
  for (int64_t i = first; i < last; ++i) {
    const int64_t id = ids[i];
    const int64_t kept = id != s.ignore_index;
    counted += kept & (int64_t)(any | is_class(s, id));
    bad |= (int64_t)is_bad(s, id);
  }
  return bad ? -1 : counted;
}

inline int64_t count_values(const SigmoidLoss& s, int64_t first, int64_t last, bool positives) {
  double values[kBlock];
  const double ignored = s.ignore_index;
  const bool any = !positives;
  int64_t counted = 0, bad = 0;
  for (int64_t n; first < last; first += n) {
    n = std::min(kBlock, last - first);
    read(s.target_type, s.target, first, n, values);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t kept = values[i] != ignored;
      counted += kept & (int64_t)(any | (values[i] > 0));
      bad |= kept & (int64_t)((values[i] < 0) | (values[i] > 1));
    }
  }
  return bad ? -1 : counted;
}

inline int64_t count_targets(const SigmoidLoss& s, int64_t first, int64_t last, bool positives) {
  if (!s.class_ids) return count_values(s, first, last, positives);
  return with_id_type(s.target_type, [&](auto zero) { return count_ids<decltype(zero)>(s, first, last, positives); });
}
