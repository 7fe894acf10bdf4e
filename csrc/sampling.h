// What one synthetic row is: its draw and the interpolation of one element, for host and device. Every
// backend includes this file, so all of them give the bits of reference/sampling.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"

namespace imbal {

// What reference.smote_generate is given, as pointers.
struct Generate {
  int64_t rows, columns, k, classes;
  const int64_t* seeds;
  const int64_t* neighbors;
  const int64_t* ptr;
  const int64_t* out_ptr;
  const int64_t* streams;
  const int64_t* chosen;  // or null
  const int64_t* labels;  // or null
  uint64_t key;
  int64_t* seed_row;  // or null, with the two below
  int64_t* neighbor_row;
  double* step;
};

// The rows of X that a new row lies between, and the step from one to the other.
struct Origin {
  int64_t seed, neighbor;
  double step;
};

// A row between `seed` (a position among `seeds` rows) and that row's neighbour number `neighbor` of `k`.
struct Draw {
  int64_t seed, neighbor;
  double step;
};

// Draw number `draw` of a class: words 0 and 1 give the seed, 2 the neighbour, 3 the step. seeds < 2^31.
IMBAL_HOST_DEVICE Draw smote_draw(uint64_t key, int64_t stream, int64_t draw, int64_t seeds, int64_t k) {
  const Words r = philox(key, (uint64_t)stream, (uint64_t)draw);
  const uint64_t n = (uint64_t)seeds;
  const uint64_t seed = (r.w[1] * n + (r.w[0] * n >> 32)) >> 32;  // floor((w1 2^32 + w0) n / 2^64)
  return {(int64_t)seed, (int64_t)(r.w[2] * (uint64_t)k >> 32), r.w[3] * 0x1p-32};
}

// Of new row `row`, which is of class c.
IMBAL_HOST_DEVICE Origin origin_of(const Generate& g, int64_t c, int64_t row, const Draw& draw) {
  const int64_t at = g.chosen ? g.chosen[row] : g.ptr[c] + draw.seed;
  const int64_t seed = g.seeds[at];
  if (g.k == 0) return {seed, seed, 0};
  const int64_t neighbor = g.neighbors[at * g.k + draw.neighbor];
  const bool across = g.labels && g.labels[neighbor] != g.streams[c];
  return {seed, neighbor, across ? draw.step / 2 : draw.step};
}

IMBAL_HOST_DEVICE void trace(const Generate& g, int64_t row, const Origin& origin) {
  if (!g.seed_row) return;
  g.seed_row[row] = origin.seed;
  g.neighbor_row[row] = origin.neighbor;
  g.step[row] = origin.step;
}

// a + step * (b - a), every operation rounded by itself.
IMBAL_HOST_DEVICE double blend(double a, double b, double step) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, __dmul_rn(step, __dadd_rn(b, -a)));
#else
  const double move = step * (b - a);
  return a + move;
#endif
}

IMBAL_HOST_DEVICE double into_box(double v, double a, double b) {
  const double low = a < b ? a : b, high = a < b ? b : a;
  return v < low ? low : v > high ? high : v;
}

// One element of a synthetic row, between those of its end points; step in [0, 1). Narrow floats are blended
// in fp64 and come back to fp32 first: two roundings for fp16 and bf16.
template <class T>
IMBAL_HOST_DEVICE T interpolate(T a, T b, double step) {
  const double x = (double)(float)a, y = (double)(float)b;
  return (T)(float)into_box(blend(x, y, step), x, y);
}

// In halves where the difference overflows.
template <>
IMBAL_HOST_DEVICE double interpolate(double a, double b, double step) {
  const bool far = fabs(b - a) > 0x1.fffffffffffffp1023;
  const double scale = far ? 0.5 : 1;
  return into_box(blend(a * scale, b * scale, step) / scale, a, b);
}

// Integers to the nearest, ties to even.
template <class T>
IMBAL_HOST_DEVICE T interpolate_narrow_integer(T a, T b, double step) {
  return (T)llrint(blend((double)a, (double)b, step));
}

template <>
IMBAL_HOST_DEVICE int32_t interpolate(int32_t a, int32_t b, double step) {
  return interpolate_narrow_integer(a, b, step);
}
template <>
IMBAL_HOST_DEVICE int16_t interpolate(int16_t a, int16_t b, double step) {
  return interpolate_narrow_integer(a, b, step);
}
template <>
IMBAL_HOST_DEVICE int8_t interpolate(int8_t a, int8_t b, double step) {
  return interpolate_narrow_integer(a, b, step);
}
template <>
IMBAL_HOST_DEVICE uint8_t interpolate(uint8_t a, uint8_t b, double step) {
  return interpolate_narrow_integer(a, b, step);
}

// The distance of two int64 may take 64 bits and more digits than fp64 has: it is taken modulo 2^64, and
// the rounded part of it that is walked is never more than all of it.
template <>
IMBAL_HOST_DEVICE int64_t interpolate(int64_t a, int64_t b, double step) {
  const uint64_t x = (uint64_t)a, y = (uint64_t)b, distance = a < b ? y - x : x - y;
  const uint64_t part = (uint64_t)rint(step * (double)distance);
  const uint64_t walked = part < distance ? part : distance;
  return (int64_t)(a < b ? x + walked : x - walked);
}

}  // namespace imbal
