// Loads and stores of every storage type as the compute type, a block at a time.
//
// Included inside `namespace IMBAL_ISA`.

inline float widen(uint16_t bf16) {
  const uint32_t bits = (uint32_t)bf16 << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t narrow(float f) {  // round to nearest even; a NaN stays one
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return f != f ? 0x7fc0 : (uint16_t)rounded;
}

inline void half_to_float(const uint16_t* p, int64_t n, float* out) {
  int64_t i = 0;
#if defined(IMBAL_AVX512)
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(p + i))));
#elif defined(IMBAL_AVX2)
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + i))));
#endif
  for (; i < n; ++i) out[i] = c10::detail::fp16_ieee_to_fp32_value(p[i]);
}

inline void float_to_half(const float* in, int64_t n, uint16_t* p) {
  int64_t i = 0;
#if defined(IMBAL_AVX512)
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256((__m256i*)(p + i), _mm512_cvtps_ph(_mm512_loadu_ps(in + i), 0));
#elif defined(IMBAL_AVX2)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i*)(p + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), 0));
#endif
  for (; i < n; ++i) p[i] = c10::detail::fp16_ieee_from_fp32_value(in[i]);
}

template <class S, class A>
inline void cast(const S* p, int64_t n, A* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = (A)p[i];
}

// data[begin, begin + n) as the compute type.
template <class A>
inline void read(Type type, const void* data, int64_t begin, int64_t n, A* out) {
  switch (type) {
    case Type::kF32: return cast((const float*)data + begin, n, out);
    case Type::kF64: return cast((const double*)data + begin, n, out);
    case Type::kI64: return cast((const int64_t*)data + begin, n, out);
    case Type::kI32: return cast((const int32_t*)data + begin, n, out);
    case Type::kI16: return cast((const int16_t*)data + begin, n, out);
    case Type::kI8: return cast((const int8_t*)data + begin, n, out);
    case Type::kU8:
    case Type::kBool: return cast((const uint8_t*)data + begin, n, out);
    case Type::kBF16: {
      const uint16_t* p = (const uint16_t*)data + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = widen(p[i]);
      return;
    }
    case Type::kF16: {
      if constexpr (sizeof(A) == 4) return half_to_float((const uint16_t*)data + begin, n, out);
      float buffer[kBlock];
      half_to_float((const uint16_t*)data + begin, n, buffer);
      return cast(buffer, n, out);
    }
  }
}

template <class A>
inline void write(Type type, const A* in, int64_t begin, int64_t n, void* data) {
  if (type == Type::kF32) return cast(in, n, (float*)data + begin);
  if (type == Type::kF64) return cast(in, n, (double*)data + begin);
  uint16_t* p = (uint16_t*)data + begin;
  if constexpr (sizeof(A) == 4) {  // fp64 has no half outputs
    if (type == Type::kF16) return float_to_half(in, n, p);
    for (int64_t i = 0; i < n; ++i) p[i] = narrow(in[i]);
  }
}

// f(zero) with a zero of the type of class ids.
template <class F>
inline auto with_id_type(Type type, F f) {
  switch (type) {
    case Type::kI64: return f(int64_t(0));
    case Type::kI32: return f(int32_t(0));
    case Type::kI16: return f(int16_t(0));
    case Type::kI8: return f(int8_t(0));
    default: return f(uint8_t(0));
  }
}
