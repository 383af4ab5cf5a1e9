// Cross-entropy with label smoothing and z-loss (a penalty on logsumexp^2): values and gradient in one visit of a row.
#include <cmath>

#include "elementary.h"
#include "fault.h"

using namespace ava;

namespace {
constexpr int64_t IGNORED = -100;  // ava_core.losses.IGNORE_INDEX
}

extern "C" {

// For each of `rows` rows of float32 logits (V): losses[r] = -(1 - s) log p(label) - s mean(log p), normalisers[r] =
// logsumexp, and grad (rows, V) = d(loss + z logsumexp^2) / d logits. The label IGNORED has no loss.
int64_t ava_cross_entropy(const float* logits, const int64_t* labels, int64_t rows, int64_t V, float smoothing, float z,
                          float* losses, float* normalisers, bf16* grad) {
  int64_t wrong = NOWHERE;
#pragma omp parallel for schedule(static) reduction(min : wrong)
  for (int64_t r = 0; r < rows; r++) {
    const float* row = logits + r * V;
    bf16* to = grad ? grad + r * V : nullptr;
    const int64_t label = labels[r];
    if (label < 0 || label >= V) {
      if (label != IGNORED && r < wrong) wrong = r;
      losses[r] = normalisers[r] = 0;
      if (to) std::memset(to, 0, V * sizeof(bf16));
      continue;
    }
    // 4 running maxima and sums: the chain of one would be as long as its latency.
    __m512 top[4], total = _mm512_setzero_ps(), sum[4];
    for (int j = 0; j < 4; j++) top[j] = _mm512_set1_ps(-INFINITY), sum[j] = _mm512_setzero_ps();
    int64_t c = 0;
    for (; c + 64 <= V; c += 64)
      for (int j = 0; j < 4; j++) top[j] = _mm512_max_ps(top[j], _mm512_loadu_ps(row + c + 16 * j));
    for (; c < V; c += 16) top[0] = _mm512_mask_max_ps(top[0], first(V - c), top[0], load(row + c, V - c));
    const float most = _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3])));
    const __m512 shift = _mm512_set1_ps(most);
    for (c = 0; c + 64 <= V; c += 64)
      for (int j = 0; j < 4; j++) {
        const __m512 v = _mm512_loadu_ps(row + c + 16 * j);
        sum[j] = _mm512_add_ps(sum[j], exp16(_mm512_sub_ps(v, shift)));
        if (smoothing != 0) total = _mm512_add_ps(total, v);
      }
    for (; c < V; c += 16) {
      const __m512 v = load(row + c, V - c);
      sum[0] = _mm512_mask_add_ps(sum[0], first(V - c), sum[0], exp16(_mm512_sub_ps(v, shift)));
      total = _mm512_add_ps(total, v);
    }
    const float lse = most + std::log(_mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]),
                                                                          _mm512_add_ps(sum[2], sum[3]))));
    normalisers[r] = lse;
    losses[r] = lse - (1 - smoothing) * row[label] -
                (smoothing != 0 ? smoothing * _mm512_reduce_add_ps(total) / float(V) : 0.f);
    if (!to) continue;
    const __m512 factor = _mm512_set1_ps(1 + 2 * z * lse), base = _mm512_set1_ps(smoothing / float(V));
    const __m512 log_sum = _mm512_set1_ps(lse);
    for (c = 0; c < V; c += 16) {
      const __m512 p = exp16(_mm512_sub_ps(load(row + c, V - c), log_sum));
      store(to + c, _mm512_fmsub_ps(p, factor, base), V - c);
    }
    const float p = std::exp(row[label] - lse);
    to[label] = to_bf16(p * (1 + 2 * z * lse) - smoothing / float(V) - (1 - smoothing));
  }
  return first_fault(0, wrong);
}
}
