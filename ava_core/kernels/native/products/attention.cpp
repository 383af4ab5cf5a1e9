// Softmax attention over whole sequences, in blocks of queries (FlashAttention, arXiv 2205.14135, without its blocks of
// keys: one block's scores against all keys fit a core's cache). The backward pass recomputes the probabilities from the
// saved log-sum-exp; with P the probabilities, O the output and d gradients, dS = scale P (dP - delta), delta = <dO, O>.
//
// Shapes: B sequences of S positions, H query heads, G key/value heads (H / G neighbouring query heads share one), A wide;
// q (B, H, S, A), k and v (B, G, S, A). Attention is causal; a mask says at which key each query begins to look, (masks, S),
// with one mask or one per sequence.
#include <cmath>

#include "../elementary.h"
#include "../fault.h"
#include "entry.h"
#include "linear.h"

namespace ava {
inline namespace AVA_PATH {
namespace {

constexpr int64_t QUERIES = 64;  // queries of one block

// Keys from `first` to before `end`.
struct Range {
  int64_t first, end;
};

struct Shape {
  int64_t B, H, G, S, A, masks;
  const int64_t* mask;
  float scale;
  int64_t key_panels() const { return divide_up(S, PANEL); }
  int64_t width_panels() const { return divide_up(A, PANEL); }
  int64_t padded() const { return key_panels() * PANEL; }
  // The keys of a block of queries: from a multiple of PANEL to before `end`.
  Range keys_of(int64_t b, int64_t start, int64_t stop) const {
    Range keys{mask ? stop : 0, stop};
    for (int64_t query = start; mask && query < stop; query++) keys.first = least(keys.first, keys_of(b, query).first);
    keys.first = keys.first / PANEL * PANEL;
    return keys;
  }
  // Those of one query; none where its mask begins behind it.
  Range keys_of(int64_t b, int64_t query) const {
    return {mask ? mask[(masks > 1 ? b : 0) * S + query] : 0, query + 1};
  }
  // SOUND, or which element of the mask is no position.
  int64_t check() const {
    for (int64_t i = 0; mask && i < masks * S; i++)
      if (mask[i] < 0 || mask[i] > S) return fault(0, i);
    return SOUND;
  }
};

// Rows (S, A) as the columns of a product with k = A, and as the rows of one with k = S.
void pack_as_columns(const bf16* rows, const Shape& s, bf16* to) {
  const int64_t depth = Product::depth(s.A);
  for (int64_t p = 0; p < s.key_panels(); p++, to += depth * PANEL) {
    pack_columns(rows + p * PANEL * s.A, s.A, s.A, least(s.S - p * PANEL, PANEL), to);
    end_panel(s.A, depth, to);
  }
}
void pack_as_rows(const bf16* rows, int64_t count, int64_t depth, const Shape& s, bf16* to) {
  for (int64_t c = 0; c < s.A; c += PANEL, to += depth * PANEL) {
    pack_rows(rows + c, s.A, count, least(s.A - c, PANEL), PANEL, to);
    end_panel(count, depth, to);
  }
}

// Which of the 16 keys from `key` on are among a query's.
inline __mmask16 shown(Range visible, int64_t key) {
  const __mmask16 before_end = key < visible.end ? first(visible.end - key) : __mmask16(0);
  return key < visible.first ? before_end & ~first(visible.first - key) : before_end;
}

// out (rows, keys of the range) = rows of a (ld A) times packed columns; `ld` is padded().
void scores_of(Product& product, const bf16* a, int64_t rows, const bf16* columns, Range keys, const Shape& s, float* out) {
  const int64_t size = Product::depth(s.A) * PANEL;
  const Panels panels{columns + keys.first / PANEL * size, size, divide_up(keys.end - keys.first, PANEL)};
  product.rows(a, s.A, rows, panels, s.A,
               [&](int64_t p) { return Write<float, false>{out + keys.first + p * PANEL, s.padded(), PANEL}; });
}

// Writes rows of bfloat16, each times its factor.
struct WriteScaled {
  bf16* to;
  int64_t ld, columns;
  const float* factors;
  void operator()(int64_t row, const __m512* sum) const {
    const __m512 factor = _mm512_set1_ps(factors[row]);
    for (int64_t j = 0; j < 4 && 16 * j < columns; j++)
      store(to + row * ld + 16 * j, _mm512_mul_ps(factor, sum[j]), columns - 16 * j);
  }
};

// to (rows, A) = factor of the row * p (rows, keys; ld padded()) times packed rows.
void weighted_sum(Product& product, const bf16* p, int64_t rows, const bf16* packed, Range keys, const Shape& s,
                  const float* factors, bf16* to) {
  const Panels panels{packed + keys.first * PANEL, s.padded() * PANEL, s.width_panels()};
  product.rows(p + keys.first, s.padded(), rows, panels, keys.end - keys.first, [&](int64_t panel) {
    return WriteScaled{to + panel * PANEL, s.A, least(s.A - panel * PANEL, PANEL), factors};
  });
}

// to (keys, A) += p (rows, keys) transposed times b (rows, A).
void add_transposed(Product& product, const bf16* p, int64_t rows, const bf16* b, Range visible, const Shape& s,
                    bf16* block, bf16* packed, float* to) {
  const Panels panels{packed, Product::depth(rows) * PANEL, s.width_panels()};
  pack_as_rows(b, rows, Product::depth(rows), s, packed);
  for (int64_t key = visible.first; key < visible.end; key += Product::LEFT_ROWS) {
    const int64_t keys = least(visible.end - key, Product::LEFT_ROWS);
    Product::pack_left(p + key, s.padded(), rows, keys, block);
    product.left(block, keys, panels, rows, [&](int64_t panel) {
      return Write<float, true>{to + key * s.A + panel * PANEL, s.A, least(s.A - panel * PANEL, PANEL)};
    });
  }
}

// e^(score - largest score) of one query's keys, its `factor` = 1 / their sum, which makes them probabilities, and the
// log-sum-exp. Keys of the range that aren't visible get 0.
float softmax_row(const float* scores, Range keys, Range visible, float scale, bf16* to, float* factor) {
  const int64_t end = divide_up(keys.end, 16) * 16;
  __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (int64_t c = keys.first; c < visible.end; c += 16)
    top = _mm512_mask_max_ps(top, shown(visible, c), top, _mm512_loadu_ps(scores + c));
  const float most = _mm512_reduce_max_ps(top);
  if (most == -INFINITY) {
    if (end > keys.first) std::memset(to + keys.first, 0, (end - keys.first) * sizeof(bf16));
    *factor = 0;
    return INFINITY;  // makes every probability 0 in the backward pass
  }
  const __m512 scaling = _mm512_set1_ps(scale), shift = _mm512_set1_ps(most);
  for (int64_t c = keys.first; c < end; c += 16) {
    const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + c), shift), scaling);
    const __m512 value = _mm512_maskz_mov_ps(shown(visible, c), exp16(x));
    sum = _mm512_add_ps(sum, value);
    store(to + c, value);
  }
  const float all = _mm512_reduce_add_ps(sum);
  *factor = 1 / all;
  return most * scale + std::log(all);
}

// From scores and dP to P and dS of one query, both rounded to bfloat16.
void softmax_row_backward(const float* scores, const float* grad, Range keys, Range visible, float scale, float lse,
                          float delta, bf16* probabilities, bf16* grad_scores) {
  const __m512 factor = _mm512_set1_ps(scale), log_sum = _mm512_set1_ps(lse), shift = _mm512_set1_ps(delta);
  for (int64_t c = keys.first; c < keys.end; c += 16) {
    const __mmask16 mask = shown(visible, c);
    const __m512 p =
        _mm512_maskz_mov_ps(mask, exp16(_mm512_fmsub_ps(_mm512_loadu_ps(scores + c), factor, log_sum)));
    const __m512 g = _mm512_sub_ps(_mm512_loadu_ps(grad + c), shift);
    store(probabilities + c, p);
    store(grad_scores + c, _mm512_maskz_mul_ps(mask, _mm512_mul_ps(p, factor), g));
  }
}

}  // namespace
}  // namespace AVA_PATH
}  // namespace ava

using namespace ava;

extern "C" {

int64_t AVA_ENTRY(ava_attention)(const bf16* q, const bf16* k, const bf16* v, const int64_t* mask, int64_t masks, int64_t B,
                      int64_t H, int64_t G, int64_t S, int64_t A, float scale, bf16* out, float* lse) {
  const Shape s{B, H, G, S, A, masks, mask, scale};
  if (const int64_t code = s.check(); code != SOUND) return code;
#pragma omp parallel
  {
    Product product;
    Buffer<bf16> keys = buffer<bf16>(s.padded() * Product::depth(A));
    Buffer<bf16> values = buffer<bf16>(s.padded() * PANEL * s.width_panels());
    Buffer<bf16> probabilities = buffer<bf16>(QUERIES * s.padded());
    Buffer<float> scores = buffer<float>(QUERIES * s.padded());
    float factors[QUERIES];
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < B * G; item++) {
      const int64_t b = item / G, g = item % G, each = H / G;
      pack_as_columns(k + item * S * A, s, keys.get());
      pack_as_rows(v + item * S * A, S, s.padded(), s, values.get());
      for (int64_t h = g * each; h < (g + 1) * each; h++)
        for (int64_t start = 0; start < S; start += QUERIES) {
          const int64_t rows = least(S - start, QUERIES), base = (b * H + h) * S + start;
          const Range keys_seen = s.keys_of(b, start, start + rows);
          scores_of(product, q + base * A, rows, keys.get(), keys_seen, s, scores.get());
          for (int64_t r = 0; r < rows; r++)
            lse[base + r] = softmax_row(scores.get() + r * s.padded(), keys_seen, s.keys_of(b, start + r), scale,
                                        probabilities.get() + r * s.padded(), factors + r);
          weighted_sum(product, probabilities.get(), rows, values.get(), keys_seen, s, factors, out + base * A);
        }
    }
  }
  return SOUND;
}

int64_t AVA_ENTRY(ava_attention_backward)(const bf16* grad, const bf16* q, const bf16* k, const bf16* v, const bf16* out,
                               const float* lse, const int64_t* mask, int64_t masks, int64_t B, int64_t H, int64_t G,
                               int64_t S, int64_t A, float scale, bf16* grad_q, bf16* grad_k, bf16* grad_v) {
  const Shape s{B, H, G, S, A, masks, mask, scale};
  if (const int64_t code = s.check(); code != SOUND) return code;
#pragma omp parallel
  {
    const int64_t packed = s.padded() * PANEL * s.width_panels(), block_size = QUERIES * s.padded();
    Product product;
    const int64_t as_columns = s.padded() * Product::depth(A);
    Buffer<bf16> keys = buffer<bf16>(as_columns), values = buffer<bf16>(as_columns);
    Buffer<bf16> key_rows = buffer<bf16>(packed), probabilities = buffer<bf16>(block_size);
    Buffer<bf16> grad_scores = buffer<bf16>(block_size), panel = buffer<bf16>(QUERIES * PANEL * s.width_panels());
    Buffer<bf16> block = buffer<bf16>(Product::left_size(Product::LEFT_ROWS, QUERIES));
    Buffer<float> scores = buffer<float>(block_size), grad_p = buffer<float>(block_size);
    Buffer<float> sum_k = buffer<float>(S * A), sum_v = buffer<float>(S * A);
    float ones[QUERIES];
    std::fill_n(ones, QUERIES, 1.f);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < B * G; item++) {
      const int64_t b = item / G, g = item % G, each = H / G;
      pack_as_columns(k + item * S * A, s, keys.get());
      pack_as_columns(v + item * S * A, s, values.get());
      pack_as_rows(k + item * S * A, S, s.padded(), s, key_rows.get());
      std::memset(sum_k.get(), 0, S * A * sizeof(float));
      std::memset(sum_v.get(), 0, S * A * sizeof(float));
      for (int64_t h = g * each; h < (g + 1) * each; h++)
        for (int64_t start = 0; start < S; start += QUERIES) {
          const int64_t rows = least(S - start, QUERIES), base = (b * H + h) * S + start;
          const Range keys_seen = s.keys_of(b, start, start + rows);
          scores_of(product, q + base * A, rows, keys.get(), keys_seen, s, scores.get());
          scores_of(product, grad + base * A, rows, values.get(), keys_seen, s, grad_p.get());
          for (int64_t r = 0; r < rows; r++) {
            const int64_t at = r * s.padded();
            const float delta = dot(grad + (base + r) * A, out + (base + r) * A, A);
            softmax_row_backward(scores.get() + at, grad_p.get() + at, keys_seen, s.keys_of(b, start + r), scale,
                                 lse[base + r], delta, probabilities.get() + at, grad_scores.get() + at);
          }
          weighted_sum(product, grad_scores.get(), rows, key_rows.get(), keys_seen, s, ones, grad_q + base * A);
          add_transposed(product, grad_scores.get(), rows, q + base * A, keys_seen, s, block.get(), panel.get(), sum_k.get());
          add_transposed(product, probabilities.get(), rows, grad + base * A, keys_seen, s, block.get(), panel.get(), sum_v.get());
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
