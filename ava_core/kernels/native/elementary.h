// Elementary functions on 16 floats, and what several kernels share.
#pragma once

#include "bfloat16.h"

namespace ava {

// e^x by range reduction to [-ln2/2, ln2/2] and a polynomial of degree 6; relative error below 2e-7. The order of the
// bounds' operands lets NaN through.
inline __m512 exp16(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(88.7f), _mm512_max_ps(_mm512_set1_ps(-104.f), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.f / 720);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(p, n);
}

inline __m512 sigmoid16(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline float dot(const bf16* a, const bf16* b, int64_t n) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < n; c += 16) sum = _mm512_fmadd_ps(load(a + c, n - c), load(b + c, n - c), sum);
  return _mm512_reduce_add_ps(sum);
}

// Sums over rows are made of this many partial sums, each over consecutive rows in order: the result doesn't depend on the
// number of threads.
constexpr int64_t CHUNKS = 16;

inline int64_t chunk_start(int64_t rows, int64_t chunk) { return rows * chunk / CHUNKS; }

}  // namespace ava
