// bfloat16 in 512-bit registers. Rounding is to nearest even, as in PyTorch.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace ava {

using bf16 = uint16_t;

inline bf16 to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;  // NaN stays NaN
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline __m512 widen(__m256i values) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16)); }

inline __m256i narrow(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

// Mask of the first `count` of 16 lanes.
inline __mmask16 first(int64_t count) { return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1); }

// `count` (at most 16) values from memory; the others are 0.
inline __m512 load(const bf16* from, int64_t count = 16) {
  return widen(count >= 16 ? _mm256_loadu_si256((const __m256i*)from) : _mm256_maskz_loadu_epi16(first(count), from));
}
inline __m512 load(const float* from, int64_t count = 16) {
  return count >= 16 ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(first(count), from);
}

inline void store(bf16* to, __m512 values, int64_t count = 16) {
  if (count >= 16)
    _mm256_storeu_si256((__m256i*)to, narrow(values));
  else
    _mm256_mask_storeu_epi16(to, first(count), narrow(values));
}
// A load that follows a masked store to the same place waits for the cache, so masks are for the ends only.
inline void store(float* to, __m512 values, int64_t count = 16) {
  if (count >= 16)
    _mm512_storeu_ps(to, values);
  else
    _mm512_mask_storeu_ps(to, first(count), values);
}

}  // namespace ava
