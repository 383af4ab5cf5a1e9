// What a mixture layer does to each token beside its experts: a product with few outputs, and the zero-computation
// experts. Weights are small enough to stay in the cache; each token's row is visited once.
#include "buffer.h"
#include "elementary.h"
#include "fault.h"

namespace ava {
namespace {

// sums (n, D) over chunks of tokens, each in order, then over chunks: the same for any number of threads.
template <class PerToken>
void sum_over_tokens(int64_t T, int64_t n, int64_t D, bf16* out, PerToken&& per_token) {
  Buffer<float> parts = buffer<float>(CHUNKS * n * D);
  std::memset(parts.get(), 0, CHUNKS * n * D * sizeof(float));
#pragma omp parallel for schedule(static)
  for (int64_t chunk = 0; chunk < CHUNKS; chunk++)
    for (int64_t t = chunk_start(T, chunk); t < chunk_start(T, chunk + 1); t++)
      per_token(t, parts.get() + chunk * n * D);
  for (int64_t i = 0; i < n * D; i++) {
    float sum = 0;
    for (int64_t chunk = 0; chunk < CHUNKS; chunk++) sum += parts[chunk * n * D + i];
    out[i] = to_bf16(sum);
  }
}

}  // namespace
}  // namespace ava

using namespace ava;

extern "C" {

// out (T, n) = x (T, D) times weight (n, D) transposed, float32.
int64_t ava_narrow_linear(const bf16* x, const bf16* weight, int64_t T, int64_t n, int64_t D, float* out) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < T; t++)
    for (int64_t j = 0; j < n; j++) out[t * n + j] = dot(x + t * D, weight + j * D, D);
  return SOUND;
}

int64_t ava_narrow_linear_backward(const float* grad, const bf16* x, const bf16* weight, int64_t T, int64_t n,
                                   int64_t D, bf16* grad_x, bf16* grad_weight) {
  sum_over_tokens(T, n, D, grad_weight, [=](int64_t t, float* sums) {
    for (int64_t c = 0; c < D; c += 16) {
      const __m512 v = load(x + t * D + c, D - c);
      __m512 back = _mm512_setzero_ps();
      for (int64_t j = 0; j < n; j++) {
        const __m512 g = _mm512_set1_ps(grad[t * n + j]);
        back = _mm512_fmadd_ps(g, load(weight + j * D + c, D - c), back);
        store(sums + j * D + c, _mm512_fmadd_ps(g, v, load(sums + j * D + c, D - c)), D - c);
      }
      store(grad_x + t * D + c, back, D - c);
    }
  });
  return SOUND;
}

// out = base + scale x + mix (T, C) times constants (C, D).
int64_t ava_zero_computation(const bf16* base, const bf16* x, const float* scale, const float* mix,
                             const bf16* constants, int64_t T, int64_t C, int64_t D, bf16* out) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < T; t++)
    for (int64_t c = 0; c < D; c += 16) {
      __m512 sum = _mm512_fmadd_ps(_mm512_set1_ps(scale[t]), load(x + t * D + c, D - c), load(base + t * D + c, D - c));
      for (int64_t j = 0; j < C; j++)
        sum = _mm512_fmadd_ps(_mm512_set1_ps(mix[t * C + j]), load(constants + j * D + c, D - c), sum);
      store(out + t * D + c, sum, D - c);
    }
  return SOUND;
}

int64_t ava_zero_computation_backward(const bf16* grad, const bf16* x, const float* scale, const float* mix,
                                      const bf16* constants, int64_t T, int64_t C, int64_t D, bf16* grad_x,
                                      float* grad_scale, float* grad_mix, bf16* grad_constants) {
  sum_over_tokens(T, C, D, grad_constants, [=](int64_t t, float* sums) {
    const bf16 *g = grad + t * D, *from = x + t * D;
    grad_scale[t] = dot(g, from, D);
    for (int64_t j = 0; j < C; j++) grad_mix[t * C + j] = dot(g, constants + j * D, D);
    for (int64_t c = 0; c < D; c += 16) {
      const __m512 v = load(g + c, D - c);
      store(grad_x + t * D + c, _mm512_mul_ps(_mm512_set1_ps(scale[t]), v), D - c);
      for (int64_t j = 0; j < C; j++)
        store(sums + j * D + c,
              _mm512_fmadd_ps(_mm512_set1_ps(mix[t * C + j]), v, load(sums + j * D + c, D - c)), D - c);
    }
  });
  return SOUND;
}
}
