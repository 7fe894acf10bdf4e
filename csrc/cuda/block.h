// A thread block as the kernels see it: phases that end with a barrier. On a GPU the threads share a phase's
// items; the host runs them one after the other, which is how the kernels' logic is tested without a GPU.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "../neighbors.h"

#ifdef __CUDACC__
#define IMBAL_DEVICE __device__ inline  // a GPU's alone where nvcc reads it, the host's elsewhere
#else
#define IMBAL_DEVICE inline
#endif

namespace imbal {

#ifdef __CUDACC__
template <bool kWarp>
struct DeviceGroup {
  char* shared;
  int64_t index;

  __device__ int rank() const { return kWarp ? threadIdx.x % 32 : threadIdx.x; }
  __device__ int size() const { return kWarp ? 32 : blockDim.x; }
  __device__ void sync() const {
    if (kWarp)
      __syncwarp();
    else
      __syncthreads();
  }

  template <class F>
  __device__ void each(int64_t n, F f) const {
    for (int64_t i = rank(); i < n; i += size()) f(i);
    sync();
  }

  // Reads all of n <= PER * size() items before it writes one.
  template <int PER, class Load, class Store>
  __device__ void exchange(int n, Load load, Store store) const {
    decltype(load(0)) held[PER];
#pragma unroll
    for (int u = 0; u < PER; ++u)
      if (rank() + u * size() < n) held[u] = load(rank() + u * size());
    sync();
#pragma unroll
    for (int u = 0; u < PER; ++u)
      if (rank() + u * size() < n) store(rank() + u * size(), held[u]);
    sync();
  }

  // Returns what was there.
  __device__ int add(int* p, int v) const { return atomicAdd(p, v); }
  __device__ void count(int64_t* p, int64_t v) const { atomicAdd((unsigned long long*)p, (unsigned long long)v); }
};
using DeviceBlock = DeviceGroup<false>;
using DeviceWarp = DeviceGroup<true>;
#endif

// `backwards` runs the items of a phase in the opposite order: no result may depend on it.
struct HostBlock {
  char* shared;
  int64_t index;
  int threads;
  bool backwards;

  int size() const { return threads; }
  void sync() const {}

  template <class F>
  void each(int64_t n, F f) const {
    for (int64_t i = 0; i < n; ++i) f(backwards ? n - 1 - i : i);
  }

  template <int PER, class Load, class Store>
  void exchange(int n, Load load, Store store) const {
    std::vector<decltype(load(0))> held(n);
    each(n, [&](int64_t i) { held[i] = load((int)i); });
    each(n, [&](int64_t i) { store((int)i, held[i]); });
  }

  int add(int* p, int v) const {
    *p += v;
    return *p - v;
  }
  void count(int64_t* p, int64_t v) const { *p += v; }
};

template <class To, class From>
IMBAL_HOST_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class T>
IMBAL_HOST_DEVICE T at_most(T a, T b) {
  return a < b ? a : b;
}

template <class T>
IMBAL_HOST_DEVICE T at_least(T a, T b) {
  return a > b ? a : b;
}

IMBAL_HOST_DEVICE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many of n things stand before the first for which `before` fails.
template <class F>
IMBAL_HOST_DEVICE int64_t count_before(int64_t n, F before) {
  int64_t first = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    if (before(first + half)) {
      first += half + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return first;
}

// Candidates of one query: the bits of their squared distance, which order as the distances do, and a row.
struct Candidates {
  uint64_t* distance;
  uint32_t* row;
};

// Bitonic, every exchange ascending, so that items beyond n, which would be the largest, need not exist.
template <class Block>
IMBAL_DEVICE void sort(const Block& block, Candidates c, int n) {
  const auto order = [=](int low, int high) {
    if (high >= n) return;
    const uint64_t a = c.distance[low], b = c.distance[high];
    const uint32_t i = c.row[low], j = c.row[high];
    if (a < b || (a == b && i < j)) return;
    c.distance[low] = b, c.distance[high] = a;
    c.row[low] = j, c.row[high] = i;
  };
  for (int size = 2; size / 2 < n; size *= 2) {
    const int half = size / 2, pairs = (int)divide_up(n, size) * half;
    block.each(pairs, [=](int64_t t) {
      const int base = (int)t / half * size, offset = (int)t % half;
      order(base + offset, base + size - 1 - offset);
    });
    for (int stride = size / 4; stride > 0; stride /= 2)
      block.each(pairs, [=](int64_t t) {
        const int low = (int)t / stride * 2 * stride + (int)t % stride;
        order(low, low + stride);
      });
  }
}

// The k nearest so far, ascending, in the outputs themselves. A row below 0: not there yet.
struct Nearest {
  double* distance;
  int64_t* row;
  int k;

  IMBAL_HOST_DEVICE uint64_t key(int i) const { return row[i] < 0 ? ~0ull : bits_as<uint64_t>(distance[i]); }
};

// Of equal distances the one in the list stays in front: its row is the lower one.
IMBAL_DEVICE int rank_of_candidate(const Nearest& list, const Candidates& c, int i) {
  return i + (int)count_before(list.k, [&](int64_t j) { return list.key((int)j) <= c.distance[i]; });
}

IMBAL_DEVICE int rank_of_listed(const Nearest& list, const Candidates& c, int n, int i) {
  const uint64_t key = list.key(i);
  return i + (int)count_before(n, [&](int64_t j) { return c.distance[j] < key; });
}

// Merges n sorted candidates into the list, in place: what is listed moves up, the far end first. A candidate's row
// counts from `first_row`. ranks: room for n.
template <class Block>
IMBAL_DEVICE void merge(const Block& block, Nearest list, Candidates c, int n, int64_t first_row, int* ranks) {
  struct Moved {
    double distance;
    int64_t row;
    int rank;
  };
  block.each(n, [=](int64_t i) { ranks[i] = rank_of_candidate(list, c, (int)i); });
  const int tile = block.size();
  for (int first = (list.k - 1) / tile * tile; first >= 0; first -= tile)
    block.template exchange<1>(
        at_most(tile, list.k - first),
        [=](int t) {
          const int i = first + t;
          return Moved{list.distance[i], list.row[i], rank_of_listed(list, c, n, i)};
        },
        [=](int, Moved m) {
          if (m.rank < list.k) list.distance[m.rank] = m.distance, list.row[m.rank] = m.row;
        });
  block.each(n, [=](int64_t i) {
    if (ranks[i] >= list.k) return;
    list.distance[ranks[i]] = bits_as<double>(c.distance[i]);
    list.row[ranks[i]] = first_row + c.row[i];
  });
}

}  // namespace imbal
