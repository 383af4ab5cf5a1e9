// Products of bfloat16 matrices, accumulated in float32: one panel of packed B against rows of A.
#pragma once

#include "pack.h"

namespace ava {

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

// All `rows` of A times one panel; `finish(row, accumulators)` sees each row once.
template <class Finish>
inline void panel_product(Pairs a, int64_t rows, const bf16* panel, int64_t k2, Finish&& finish) {
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6)
    tile<6>(a.from_row(r), panel, k2, [&](int i, const __m512* sum) { finish(r + i, sum); });
  const auto rest = [&](int i, const __m512* sum) { finish(r + i, sum); };
  switch (rows - r) {
    case 5: tile<5>(a.from_row(r), panel, k2, rest); break;
    case 4: tile<4>(a.from_row(r), panel, k2, rest); break;
    case 3: tile<3>(a.from_row(r), panel, k2, rest); break;
    case 2: tile<2>(a.from_row(r), panel, k2, rest); break;
    case 1: tile<1>(a.from_row(r), panel, k2, rest); break;
  }
}

// Writes rows of a panel into C at `columns` (at most PANEL) columns, or adds to what is there.
template <class C, bool ADD>
struct Write {
  C* to;
  int64_t ld, columns;
  void operator()(int64_t row, const __m512* sum) const {
    C* at = to + row * ld;
    for (int64_t j = 0; j < 4 && 16 * j < columns; j++) {
      const int64_t count = columns - 16 * j;
      store(at + 16 * j, ADD ? _mm512_add_ps(sum[j], load(at + 16 * j, count)) : sum[j], count);
    }
  }
};

}  // namespace ava
