// Products of stacks of matrices, as Newton-Schulz iterations need them (ava_core/training/optimizers/muon.py).
#include "../fault.h"
#include "entry.h"
#include "linear.h"

namespace ava {
inline namespace AVA_PATH {
namespace {

// alpha * sums + beta * `plus`, at `columns` (at most PANEL) columns from `first` on.
struct WriteSum {
  bf16* to;
  const bf16* plus;
  int64_t ld, first, columns;
  float alpha, beta;
  void operator()(int64_t row, const __m512* sum) const {
    for (int64_t j = 0; j < 4 && 16 * j < columns; j++) {
      const int64_t at = row * ld + first + 16 * j, count = columns - 16 * j;
      __m512 value = _mm512_mul_ps(_mm512_set1_ps(alpha), sum[j]);
      if (plus) value = _mm512_fmadd_ps(_mm512_set1_ps(beta), load(plus + at, count), value);
      store(to + at, value, count);
    }
  }
};

// Rows and columns from `start` on, what lies below the diagonal, to above it: (m, m), in squares of 16.
void mirror(bf16* square, int64_t m, int64_t r, int64_t c) {
  const int64_t rows = least(m - r, 16), columns = least(m - c, 16);
  __m512i words[16];
  for (int64_t i = 0; i < 16; i++)
    words[i] = i < rows ? pairs_of(square + (r + i) * m + c, nullptr, first(columns)) : _mm512_setzero_si512();
  transpose16(words);
  for (int64_t i = 0; i < columns; i++)
    _mm256_mask_storeu_epi16(square + (c + i) * m + r, first(rows), _mm512_cvtepi32_epi16(words[i]));
}

}  // namespace
}  // namespace AVA_PATH
}  // namespace ava

using namespace ava;

extern "C" {

// out (N, m, m) = alpha x x' + beta plus, for each x (m, k) of the stack; `plus`, (N, m, m), must be symmetric too. Only
// what is on and below the diagonal is computed.
int64_t AVA_ENTRY(ava_symmetric)(const bf16* x, const bf16* plus, int64_t N, int64_t m, int64_t k, float alpha, float beta,
                                 bf16* out) {
  const int64_t panels = divide_up(m, PANEL), size = Product::depth(k) * PANEL, squares = divide_up(m, 16);
#pragma omp parallel
  {
    Product product;
    Buffer<bf16> panel = buffer<bf16>(size);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < N * panels; item++) {
      const int64_t e = item / panels, c = item % panels * PANEL, columns = least(m - c, PANEL);
      const bf16* rows = x + (e * m + c) * k;
      pack_columns(rows, k, k, columns, panel.get());
      end_panel(k, Product::depth(k), panel.get());
      const int64_t square = (e * m + c) * m;
      const WriteSum write{out + square, plus ? plus + square : nullptr, m, c, columns, alpha, beta};
      product.rows(rows, k, m - c, Panels{panel.get(), size, 1}, k, [&](int64_t) { return write; });
    }
#pragma omp for schedule(static)
    for (int64_t item = 0; item < N * squares; item++) {
      const int64_t e = item / squares, r = item % squares * 16;
      // A panel's columns are whole on its diagonal.
      for (int64_t c = 0; c < r / PANEL * PANEL; c += 16) mirror(out + e * m * m, m, r, c);
    }
  }
  return SOUND;
}

// out (N, m, n) = a (N, m, k) b (N, k, n) + beta plus (N, m, n).
int64_t AVA_ENTRY(ava_product)(const bf16* a, const bf16* b, const bf16* plus, int64_t N, int64_t m, int64_t k, int64_t n,
                               float beta, bf16* out) {
  std::vector<int64_t> starts(N + 1);
  for (int64_t e = 0; e <= N; e++) starts[e] = e * m;
  const auto pack = [=](int64_t e, int64_t p, bf16* to) {
    pack_rows(b + e * k * n + p * PANEL, n, k, least(n - p * PANEL, PANEL), PANEL, to);
  };
  for_each_panel(a, Groups{starts.data(), N}, k, divide_up(n, PANEL), pack, [=](int64_t, int64_t p) {
    return WriteSum{out, plus, n, p * PANEL, least(n - p * PANEL, PANEL), 1.f, beta};
  });
  return SOUND;
}
}
