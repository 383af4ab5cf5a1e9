// Softmax attention over whole sequences, in blocks of queries (FlashAttention, arXiv 2205.14135, without its blocks of
// keys: one block's scores against all keys fit a core's cache). The backward pass recomputes the probabilities from the
// saved log-sum-exp; with P the probabilities, O the output and d gradients, dS = scale P (dP - delta), delta = <dO, O>.
//
// Shapes: B sequences of S positions, H query heads, G key/value heads (H / G neighbouring query heads share one), A wide;
// q (B, H, S, A), k and v (B, G, S, A). Without a mask attention is causal; a mask is (masks, S, S) bytes, 0 hides a key,
// with one mask or one per sequence.
#include <cmath>

#include "elementary.h"
#include "fault.h"
#include "linear.h"

namespace ava {
namespace {

constexpr int64_t QUERIES = 64;  // queries of one block

struct Shape {
  int64_t B, H, G, S, A, masks;
  const uint8_t* mask;
  float scale;
  int64_t key_panels() const { return divide_up(S, PANEL); }
  int64_t width_panels() const { return divide_up(A, PANEL); }
  int64_t padded() const { return key_panels() * PANEL; }
  // Keys that queries before `end` may look at.
  int64_t visible(int64_t end) const { return mask ? S : end; }
  const uint8_t* mask_row(int64_t b, int64_t query) const {
    return mask ? mask + ((masks > 1 ? b : 0) * S + query) * S : nullptr;
  }
};

// Rows (S, A) as the columns of a product with k = A, and as the rows of one with k = S.
void pack_as_columns(const bf16* rows, const Shape& s, bf16* to) {
  for (int64_t p = 0; p < s.key_panels(); p++)
    pack_columns(rows + p * PANEL * s.A, s.A, s.A, least(s.S - p * PANEL, PANEL), to + p * PANEL * s.A);
}
void pack_as_rows(const bf16* rows, const Shape& s, bf16* to) {
  for (int64_t c = 0; c < s.A; c += PANEL) pack_rows(rows + c, s.A, s.S, least(s.A - c, PANEL), PANEL, to + c * s.padded());
}

// Which of the 16 keys from `key` on a query may attend to.
inline __mmask16 shown(const uint8_t* mask_row, int64_t key, int64_t visible) {
  __mmask16 shown = key < visible ? first(visible - key) : __mmask16(0);
  if (mask_row && shown) {
    const __m128i bytes = _mm_maskz_loadu_epi8(shown, mask_row + key);
    shown &= _mm_test_epi8_mask(bytes, bytes);
  }
  return shown;
}

// out (rows, visible keys) = rows of a (ld A) times packed columns; `ld` is padded().
void scores_of(const bf16* a, int64_t rows, const bf16* columns, int64_t visible, const Shape& s, float* out) {
  for (int64_t c = 0; c < visible; c += PANEL)
    panel_product(Pairs{(const int32_t*)a, s.A / 2, 1}, rows, columns + c * s.A, s.A / 2,
                  Write<float, false>{out + c, s.padded(), PANEL});
}

// to (rows, A) = p (rows, keys; ld padded()) times packed rows.
template <class C>
void weighted_sum(const bf16* p, int64_t rows, const bf16* packed, int64_t visible, const Shape& s, C* to, int64_t ld) {
  for (int64_t c = 0; c < s.A; c += PANEL)
    panel_product(Pairs{(const int32_t*)p, s.padded() / 2, 1}, rows, packed + c * s.padded(), divide_up(visible, 2),
                  Write<C, false>{to + c, ld, least(s.A - c, PANEL)});
}

// to (keys, A) += p (rows, keys) transposed times b (rows, A).
void add_transposed(const bf16* p, int64_t rows, const bf16* b, int64_t visible, const Shape& s, bf16* block, bf16* panel,
                    float* to) {
  for (int64_t c = 0; c < s.A; c += PANEL) {
    pack_rows(b + c, s.A, rows, least(s.A - c, PANEL), PANEL, panel);
    for (int64_t key = 0; key < visible; key += BLOCK) {
      const int64_t keys = least(visible - key, BLOCK);
      pack_rows(p + key, s.padded(), rows, keys, BLOCK, block);
      panel_product(Pairs{(const int32_t*)block, 1, BLOCK}, keys, panel, divide_up(rows, 2),
                    Write<float, true>{to + key * s.A + c, s.A, least(s.A - c, PANEL)});
    }
  }
}

// Probabilities of one query from its scores; returns the log-sum-exp. Masked keys and those from `visible` to `end` get
// 0.
float softmax_row(const float* scores, const uint8_t* mask_row, int64_t visible, int64_t end, float scale, bf16* to) {
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < visible; c += 16)
    top = _mm512_mask_max_ps(top, shown(mask_row, c, visible), top, _mm512_loadu_ps(scores + c));
  const float most = _mm512_reduce_max_ps(top);
  if (most == -INFINITY) {
    std::memset(to, 0, end * sizeof(bf16));
    return INFINITY;  // makes every probability 0 in the backward pass
  }
  const __m512 shift = _mm512_set1_ps(most);
  for (int64_t c = 0; c < visible; c += 16) {
    const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + c), shift), factor);
    sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(shown(mask_row, c, visible), exp16(x)));
  }
  const float lse = most * scale + std::log(_mm512_reduce_add_ps(sum));
  const __m512 log_sum = _mm512_set1_ps(lse);
  for (int64_t c = 0; c < end; c += 16) {
    const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + c), factor, log_sum);
    store(to + c, _mm512_maskz_mov_ps(shown(mask_row, c, visible), exp16(x)));
  }
  return lse;
}

// From scores and dP to P and dS of one query, both rounded to bfloat16.
void softmax_row_backward(const float* scores, const float* grad, const uint8_t* mask_row, int64_t visible, int64_t end,
                          float scale, float lse, float delta, bf16* probabilities, bf16* grad_scores) {
  const __m512 factor = _mm512_set1_ps(scale), log_sum = _mm512_set1_ps(lse), shift = _mm512_set1_ps(delta);
  for (int64_t c = 0; c < end; c += 16) {
    const __mmask16 mask = shown(mask_row, c, visible);
    const __m512 p =
        _mm512_maskz_mov_ps(mask, exp16(_mm512_fmsub_ps(_mm512_loadu_ps(scores + c), factor, log_sum)));
    const __m512 g = _mm512_sub_ps(_mm512_loadu_ps(grad + c), shift);
    store(probabilities + c, p);
    store(grad_scores + c, _mm512_maskz_mul_ps(mask, _mm512_mul_ps(p, factor), g));
  }
}

}  // namespace
}  // namespace ava

using namespace ava;

extern "C" {

int64_t ava_attention(const bf16* q, const bf16* k, const bf16* v, const uint8_t* mask, int64_t masks, int64_t B,
                      int64_t H, int64_t G, int64_t S, int64_t A, float scale, bf16* out, float* lse) {
  const Shape s{B, H, G, S, A, masks, mask, scale};
#pragma omp parallel
  {
    Buffer<bf16> keys = buffer<bf16>(s.padded() * A), values = buffer<bf16>(s.padded() * PANEL * s.width_panels());
    Buffer<bf16> probabilities = buffer<bf16>(QUERIES * s.padded());
    Buffer<float> scores = buffer<float>(QUERIES * s.padded());
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < B * G; item++) {
      const int64_t b = item / G, g = item % G, each = H / G;
      pack_as_columns(k + item * S * A, s, keys.get());
      pack_as_rows(v + item * S * A, s, values.get());
      for (int64_t h = g * each; h < (g + 1) * each; h++)
        for (int64_t start = 0; start < S; start += QUERIES) {
          const int64_t rows = least(S - start, QUERIES), base = (b * H + h) * S + start;
          const int64_t visible = s.visible(start + rows);
          scores_of(q + base * A, rows, keys.get(), visible, s, scores.get());
          for (int64_t r = 0; r < rows; r++) {
            const int64_t row_visible = s.visible(start + r + 1);
            lse[base + r] = softmax_row(scores.get() + r * s.padded(), s.mask_row(b, start + r), row_visible,
                                        divide_up(visible, 16) * 16, scale, probabilities.get() + r * s.padded());
          }
          weighted_sum(probabilities.get(), rows, values.get(), visible, s, out + base * A, A);
        }
    }
  }
  return SOUND;
}

int64_t ava_attention_backward(const bf16* grad, const bf16* q, const bf16* k, const bf16* v, const bf16* out,
                               const float* lse, const uint8_t* mask, int64_t masks, int64_t B, int64_t H, int64_t G,
                               int64_t S, int64_t A, float scale, bf16* grad_q, bf16* grad_k, bf16* grad_v) {
  const Shape s{B, H, G, S, A, masks, mask, scale};
#pragma omp parallel
  {
    const int64_t packed = s.padded() * PANEL * s.width_panels(), block_size = QUERIES * s.padded();
    Buffer<bf16> keys = buffer<bf16>(s.padded() * A), values = buffer<bf16>(s.padded() * A);
    Buffer<bf16> key_rows = buffer<bf16>(packed), probabilities = buffer<bf16>(block_size);
    Buffer<bf16> grad_scores = buffer<bf16>(block_size), block = buffer<bf16>(QUERIES * BLOCK);
    Buffer<bf16> panel = buffer<bf16>(QUERIES * PANEL);
    Buffer<float> scores = buffer<float>(block_size), grad_p = buffer<float>(block_size);
    Buffer<float> sum_k = buffer<float>(S * A), sum_v = buffer<float>(S * A);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < B * G; item++) {
      const int64_t b = item / G, g = item % G, each = H / G;
      pack_as_columns(k + item * S * A, s, keys.get());
      pack_as_columns(v + item * S * A, s, values.get());
      pack_as_rows(k + item * S * A, s, key_rows.get());
      std::memset(sum_k.get(), 0, S * A * sizeof(float));
      std::memset(sum_v.get(), 0, S * A * sizeof(float));
      for (int64_t h = g * each; h < (g + 1) * each; h++)
        for (int64_t start = 0; start < S; start += QUERIES) {
          const int64_t rows = least(S - start, QUERIES), base = (b * H + h) * S + start;
          const int64_t visible = s.visible(start + rows);
          scores_of(q + base * A, rows, keys.get(), visible, s, scores.get());
          scores_of(grad + base * A, rows, values.get(), visible, s, grad_p.get());
          for (int64_t r = 0; r < rows; r++) {
            const int64_t at = r * s.padded();
            const float delta = dot(grad + (base + r) * A, out + (base + r) * A, A);
            softmax_row_backward(scores.get() + at, grad_p.get() + at, s.mask_row(b, start + r),
                                 s.visible(start + r + 1), divide_up(visible, 16) * 16, scale, lse[base + r], delta,
                                 probabilities.get() + at, grad_scores.get() + at);
          }
          weighted_sum(grad_scores.get(), rows, key_rows.get(), visible, s, grad_q + base * A, A);
          add_transposed(grad_scores.get(), rows, q + base * A, visible, s, block.get(), panel.get(), sum_k.get());
          add_transposed(probabilities.get(), rows, grad + base * A, visible, s, block.get(), panel.get(), sum_v.get());
        }
      for (int64_t i = 0; i < S * A; i += 16) {
        store(grad_k + item * S * A + i, load(sum_k.get() + i, S * A - i), S * A - i);
        store(grad_v + item * S * A + i, load(sum_v.get() + i, S * A - i), S * A - i);
      }
    }
  }
  return SOUND;
}
}
