// The lists that a search's passes fill: full ones are cut back to what may still be a neighbour.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <vector>

#include "knn.h"

namespace imbal {

void Shortlists::prune(int64_t row) const {
  uint64_t* key = keys + row * room;
  float* half = halves + row * room;
  static thread_local std::vector<double> sure;
  static thread_local std::vector<uint64_t> best;
  int64_t n = count[row];
  auto keep_if = [&](auto wanted) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {  // no branch: there would be no foretelling it
      const bool keeps = wanted(key[i]);
      key[kept] = key[i];
      half[kept] = half[i];
      kept += keeps;
    }
    n = kept;
  };
  if (n >= k) {
    sure.resize(n);
    for (int64_t i = 0; i < n; ++i) sure[i] = accuracy.pessimistic(-key_distance(key[i]), own[row], half[i]);
    std::nth_element(sure.begin(), sure.begin() + (k - 1), sure.end(), std::greater<>());
    float limit = (float)sure[k - 1];
    if (limit > sure[k - 1]) limit = std::nextafter(limit, -FLT_MAX);
    threshold[row] = std::max(threshold[row], limit);
    keep_if([&](uint64_t candidate) { return -key_distance(candidate) >= limit; });
  }
  if (n > keep) {  // too many are too close to call: the list stays full unless better ones make them superfluous
    best.assign(key, key + n);
    std::nth_element(best.begin(), best.begin() + (keep - 1), best.end());
    const uint64_t last = best[keep - 1];
    keep_if([&](uint64_t candidate) { return candidate <= last; });
    threshold[row] = std::max(threshold[row], std::nextafter(-key_distance(last), FLT_MAX));
  }
  count[row] = (int32_t)n;
}

void ExactLists::prune(int64_t row) const {
  Exact* list = found + row * room;
  if (count[row] < k) return;
  std::nth_element(list, list + (k - 1), list + count[row], in_order);
  threshold[row] = list[k - 1].distance;  // those to come have higher indices
  count[row] = (int32_t)k;
}

}  // namespace imbal
