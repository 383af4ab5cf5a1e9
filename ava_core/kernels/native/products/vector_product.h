// Products in 512-bit registers (vdpbf16ps).
#pragma once

#include "pack.h"

namespace ava {
inline namespace AVA_PATH {

// A as 32-bit pairs: element (row, k2) is at row * row_stride + k2 * k_stride.
struct Pairs {
  const int32_t* data;
  int64_t row_stride, k_stride;
  Pairs from_row(int64_t row) const { return {data + row * row_stride, row_stride, k_stride}; }
};

// ROWS rows of A times one packed panel, handed to `finish(row, accumulators)`. 6 rows x 64 columns fill 24 of the 32
// registers; the next panel rows come from the level 2 cache while these are multiplied.
template <int ROWS, class Finish>
inline void tile(Pairs a, const bf16* panel, int64_t k2, Finish&& finish) {
  __m512 sum[ROWS][4];
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_ps();
  for (int64_t k = 0; k < k2; k++, panel += 2 * PANEL) {
    __m512bh b[4];
    for (int j = 0; j < 4; j++) b[j] = (__m512bh)_mm512_loadu_si512(panel + 32 * j);
    const int32_t* row = a.data + k * a.k_stride;
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; i++) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(row[i * a.row_stride]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], pair, b[j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < ROWS; i++) finish(i, sum[i]);
}

// What product.h says, for one thread.
class Product {
 public:
  static constexpr int64_t STRIP_BYTES = 0;         // one panel at a time
  static constexpr int64_t STRIP_PANELS = INT64_MAX;
  static constexpr int64_t LEFT_ROWS = 48;
  static constexpr int64_t CHUNK = int64_t(1) << 40;

  static int64_t depth(int64_t k) { return divide_up(k, 2) * 2; }
  static int64_t left_size(int64_t, int64_t k) { return depth(k) * LEFT_ROWS; }

  static void pack_left(const bf16* from, int64_t ld, int64_t k, int64_t rows, bf16* to) {
    pack_rows(from, ld, k, rows, LEFT_ROWS, to);
  }

  template <class Finish>
  void rows(const bf16* a, int64_t ld, int64_t rows, Panels panels, int64_t k, Finish&& finish) {
    for (int64_t p = 0; p < panels.count; p++) panel(Pairs{(const int32_t*)a, ld / 2, 1}, rows, panels.at(p), k, finish(p));
  }

  template <class Finish>
  void left(const bf16* packed, int64_t rows, Panels panels, int64_t k, Finish&& finish) {
    for (int64_t p = 0; p < panels.count; p++)
      panel(Pairs{(const int32_t*)packed, 1, LEFT_ROWS}, rows, panels.at(p), k, finish(p));
  }

 private:
  template <class Write>
  static void panel(Pairs a, int64_t rows, const bf16* panel, int64_t k, Write&& write) {
    const int64_t k2 = divide_up(k, 2);
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6)
      tile<6>(a.from_row(r), panel, k2, [&](int i, const __m512* sum) { write(r + i, sum); });
    const auto rest = [&](int i, const __m512* sum) { write(r + i, sum); };
    switch (rows - r) {
      case 5: tile<5>(a.from_row(r), panel, k2, rest); break;
      case 4: tile<4>(a.from_row(r), panel, k2, rest); break;
      case 3: tile<3>(a.from_row(r), panel, k2, rest); break;
      case 2: tile<2>(a.from_row(r), panel, k2, rest); break;
      case 1: tile<1>(a.from_row(r), panel, k2, rest); break;
    }
  }
};

}  // namespace AVA_PATH
}  // namespace ava
