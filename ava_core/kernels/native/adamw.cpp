// AdamW (arXiv 1711.05101) on float32 masters of bfloat16 weights, in one visit of memory.
#include <cmath>

#include "elementary.h"
#include "fault.h"

using namespace ava;

extern "C" {

// `weight` gets the rounded master; the corrections are 1 - beta^step.
int64_t ava_adamw(bf16* weight, const bf16* grad, float* master, float* mean, float* square, int64_t n, float lr,
                  float beta1, float beta2, float eps, float decay, float correction1, float correction2) {
  const __m512 keep = _mm512_set1_ps(1 - lr * decay), step = _mm512_set1_ps(lr / correction1);
  const __m512 root = _mm512_set1_ps(1 / std::sqrt(correction2));
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t count = n - i;
    const __m512 g = load(grad + i, count);
    __m512 m = load(mean + i, count), v = load(square + i, count);
    m = _mm512_fmadd_ps(_mm512_set1_ps(1 - beta1), _mm512_sub_ps(g, m), m);
    v = _mm512_fmadd_ps(_mm512_set1_ps(1 - beta2), _mm512_fmsub_ps(g, g, v), v);
    const __m512 denominator = _mm512_fmadd_ps(_mm512_sqrt_ps(v), root, _mm512_set1_ps(eps));
    const __m512 w = _mm512_fnmadd_ps(step, _mm512_div_ps(m, denominator), _mm512_mul_ps(load(master + i, count), keep));
    store(mean + i, m, count);
    store(square + i, v, count);
    store(master + i, w, count);
    store(weight + i, w, count);
  }
  return SOUND;
}
}
