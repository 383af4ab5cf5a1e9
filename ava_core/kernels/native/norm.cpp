// RMSNorm over rows, and RMSNorm of attention heads fused with RoPE. `scale` is a row's 1 / rms, kept for the backward
// pass.
#include <cmath>

#include "buffer.h"
#include "elementary.h"
#include "fault.h"

namespace ava {
namespace {

inline float sum_of_squares(const bf16* x, int64_t n) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < n; c += 16) {
    const __m512 v = load(x + c, n - c);
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// Adds a row's share, g x scale, to grad_weight and writes grad_x = scale (w g - x <w g, x> scale^2 / n), where g is the
// gradient of the output: gradient(c) are 16 elements of it from c on.
template <class Gradient>
inline void rms_norm_row_backward(Gradient&& gradient, const bf16* x, const bf16* weight, float scale, int64_t n,
                                  bf16* grad_x, float* grad_weight) {
  __m512 dot = _mm512_setzero_ps();
  for (int64_t c = 0; c < n; c += 16) {
    const __m512 g = gradient(c), v = load(x + c, n - c);
    dot = _mm512_fmadd_ps(_mm512_mul_ps(g, load(weight + c, n - c)), v, dot);
    const __m512 share = _mm512_mul_ps(_mm512_mul_ps(g, v), _mm512_set1_ps(scale));
    store(grad_weight + c, _mm512_add_ps(load(grad_weight + c, n - c), share), n - c);
  }
  const __m512 pull = _mm512_set1_ps(_mm512_reduce_add_ps(dot) * scale * scale * scale / float(n));
  for (int64_t c = 0; c < n; c += 16) {
    const __m512 wg = _mm512_mul_ps(gradient(c), load(weight + c, n - c));
    store(grad_x + c, _mm512_fmsub_ps(wg, _mm512_set1_ps(scale), _mm512_mul_ps(load(x + c, n - c), pull)), n - c);
  }
}

void sum_chunks(const float* parts, int64_t n, bf16* out) {
  for (int64_t c = 0; c < n; c++) {
    float sum = 0;
    for (int64_t chunk = 0; chunk < CHUNKS; chunk++) sum += parts[chunk * n + c];
    out[c] = to_bf16(sum);
  }
}

// Where the heads of one position lie: q and k come from projections of (position, heads, A) and go to
// (sequence, head, position, A).
struct Heads {
  int64_t sequences, length, heads, width;
  int64_t in(int64_t row, int64_t head) const { return (row * heads + head) * width; }
  int64_t out(int64_t row, int64_t head) const {
    return ((row / length * heads + head) * length + row % length) * width;
  }
};

}  // namespace
}  // namespace ava

using namespace ava;

extern "C" {

int64_t ava_rms_norm(const bf16* x, const bf16* weight, int64_t rows, int64_t n, float eps, bf16* out, float* scales) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const float scale = 1.f / std::sqrt(sum_of_squares(x + r * n, n) / float(n) + eps);
    scales[r] = scale;
    for (int64_t c = 0; c < n; c += 16) {
      const __m512 scaled = _mm512_mul_ps(load(x + r * n + c, n - c), _mm512_set1_ps(scale));
      store(out + r * n + c, _mm512_mul_ps(scaled, load(weight + c, n - c)), n - c);
    }
  }
  return SOUND;
}

int64_t ava_rms_norm_backward(const bf16* grad, const bf16* x, const bf16* weight, const float* scales, int64_t rows,
                              int64_t n, bf16* grad_x, bf16* grad_weight) {
  Buffer<float> parts = buffer<float>(CHUNKS * n);
  std::memset(parts.get(), 0, CHUNKS * n * sizeof(float));
#pragma omp parallel for schedule(static)
  for (int64_t chunk = 0; chunk < CHUNKS; chunk++)
    for (int64_t r = chunk_start(rows, chunk); r < chunk_start(rows, chunk + 1); r++) {
      const auto gradient = [=](int64_t c) { return load(grad + r * n + c, n - c); };
      rms_norm_row_backward(gradient, x + r * n, weight, scales[r], n, grad_x + r * n, parts.get() + chunk * n);
    }
  sum_chunks(parts.get(), n, grad_weight);
  return SOUND;
}

// x (sequences, length, heads, A) -> out (sequences, heads, length, A): optional RMSNorm with `weight` (A), then rotation
// of (i, i + A/2) by the angles whose cosines and sines are (positions, length, A): one row of `positions`, or one per
// sequence.
int64_t ava_norm_rotate(const bf16* x, const bf16* weight, const float* cosines, const float* sines, int64_t positions,
                        int64_t sequences, int64_t length, int64_t heads, int64_t A, float eps, bf16* out,
                        float* scales) {
  const Heads at{sequences, length, heads, A};
  const int64_t half = A / 2, angle_rows = positions * length;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < sequences * length; row++) {
    const float *cosine = cosines + row % angle_rows * A, *sine = sines + row % angle_rows * A;
    for (int64_t h = 0; h < heads; h++) {
      const bf16* from = x + at.in(row, h);
      bf16* to = out + at.out(row, h);
      float scale = 1;
      if (weight) scales[row * heads + h] = scale = 1.f / std::sqrt(sum_of_squares(from, A) / float(A) + eps);
      for (int64_t c = 0; c < half; c += 16) {
        __m512 a = _mm512_mul_ps(load(from + c, half - c), _mm512_set1_ps(scale));
        __m512 b = _mm512_mul_ps(load(from + half + c, half - c), _mm512_set1_ps(scale));
        if (weight) {
          a = _mm512_mul_ps(a, load(weight + c, half - c));
          b = _mm512_mul_ps(b, load(weight + half + c, half - c));
        }
        const __m512 cs = load(cosine + c, half - c), sn = load(sine + c, half - c);
        store(to + c, _mm512_fmsub_ps(a, cs, _mm512_mul_ps(b, sn)), half - c);
        store(to + half + c, _mm512_fmadd_ps(b, cs, _mm512_mul_ps(a, sn)), half - c);
      }
    }
  }
  return SOUND;
}

int64_t ava_norm_rotate_backward(const bf16* grad, const bf16* x, const bf16* weight, const float* cosines,
                                 const float* sines, int64_t positions, const float* scales, int64_t sequences,
                                 int64_t length, int64_t heads, int64_t A, bf16* grad_x, bf16* grad_weight) {
  const Heads at{sequences, length, heads, A};
  const int64_t half = A / 2, rows = sequences * length, angle_rows = positions * length;
  Buffer<float> parts = buffer<float>(CHUNKS * A);
  std::memset(parts.get(), 0, CHUNKS * A * sizeof(float));
#pragma omp parallel
  {
    Buffer<float> back = buffer<float>(A);
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < CHUNKS; chunk++)
      for (int64_t row = chunk_start(rows, chunk); row < chunk_start(rows, chunk + 1); row++) {
        const float *cosine = cosines + row % angle_rows * A, *sine = sines + row % angle_rows * A;
        for (int64_t h = 0; h < heads; h++) {
          const bf16* g = grad + at.out(row, h);
          for (int64_t c = 0; c < half; c += 16) {  // the rotation's transpose
            const __m512 a = load(g + c, half - c), b = load(g + half + c, half - c);
            const __m512 cs = load(cosine + c, half - c), sn = load(sine + c, half - c);
            store(back.get() + c, _mm512_fmadd_ps(a, cs, _mm512_mul_ps(b, sn)), half - c);
            store(back.get() + half + c, _mm512_fmsub_ps(b, cs, _mm512_mul_ps(a, sn)), half - c);
          }
          bf16* to = grad_x + at.in(row, h);
          const auto gradient = [&](int64_t c) { return load(back.get() + c, A - c); };
          if (weight)
            rms_norm_row_backward(gradient, x + at.in(row, h), weight, scales[row * heads + h], A, to,
                                  parts.get() + chunk * A);
          else
            for (int64_t c = 0; c < A; c += 16) store(to + c, gradient(c), A - c);
        }
      }
  }
  if (weight) sum_chunks(parts.get(), A, grad_weight);
  return SOUND;
}
}
