// Operands in the order in which products read them.
//
// vdpbf16ps and tdpbf16ps multiply pairs of neighbours along k, so both operands are made of pairs: 32-bit words that hold
// (k, k + 1) of one row or column. k2 counts pairs; an odd k ends in a pair with 0.
#pragma once

#include "../bfloat16.h"

namespace ava {
inline namespace AVA_PATH {

constexpr int64_t PANEL = 64;  // columns of one packed panel of B

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Interleaves 32 columns of two rows into 32 pairs.
inline void interleave(const bf16* even, const bf16* odd, int64_t columns, bf16* to) {
  const __mmask32 mask = columns >= 32 ? ~0u : (1u << columns) - 1;
  const __m512i index_low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                             37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i index_high = _mm512_add_epi16(index_low, _mm512_set1_epi16(16));
  const __m512i a = _mm512_maskz_loadu_epi16(mask, even);
  const __m512i b = odd ? _mm512_maskz_loadu_epi16(mask, odd) : _mm512_setzero_si512();
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, index_low, b));
  _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(a, index_high, b));
}

// Packed panels, `stride` numbers from one to the next.
struct Panels {
  const bf16* data;
  int64_t stride, count;
  const bf16* at(int64_t p) const { return data + p * stride; }
};

// 16 columns of two rows as 16 pairs; a row may be missing, and columns that `mask` hides are 0.
inline __m512i pairs_of(const bf16* even, const bf16* odd, __mmask16 mask) {
  const __m256i none = _mm256_setzero_si256();
  const __m512i low = _mm512_cvtepu16_epi32(even ? _mm256_maskz_loadu_epi16(mask, even) : none);
  const __m512i high = _mm512_cvtepu16_epi32(odd ? _mm256_maskz_loadu_epi16(mask, odd) : none);
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Rows of a (k, columns) matrix to [k2][width] pairs, columns past `columns` are 0. `width` is a multiple of 16.
inline void pack_rows(const bf16* from, int64_t ld, int64_t k, int64_t columns, int64_t width, bf16* to) {
  for (int64_t r = 0; r < k; r += 2, to += 2 * width) {
    const bf16* even = from + r * ld;
    const bf16* odd = r + 1 < k ? even + ld : nullptr;
    for (int64_t c = 0; c < width; c += 32) {
      const int64_t count = columns > c ? columns - c : 0;
      if (width - c >= 32) {
        interleave(even + c, odd ? odd + c : nullptr, count, to + 2 * c);
      } else {  // the last 16 columns
        bf16 pairs[64];
        interleave(even + c, odd ? odd + c : nullptr, count < 16 ? count : 16, pairs);
        std::memcpy(to + 2 * c, pairs, 2 * 2 * (width - c));
      }
    }
  }
}

// 16 x 16 transposition of 32-bit words.
inline void transpose16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// What is between k and `depth` of a panel.
inline void end_panel(int64_t k, int64_t depth, bf16* panel) {
  const int64_t written = divide_up(k, 2) * 2;
  if (depth > written) std::memset(panel + written * PANEL, 0, (depth - written) * PANEL * sizeof(bf16));
}

// Rows of a (columns, k) matrix, k contiguous, to [k2][PANEL] pairs; row c becomes column c. `width` columns (a multiple of
// 16) are written, those past `columns` as 0.
inline void pack_columns(const bf16* from, int64_t ld, int64_t k, int64_t columns, bf16* to, int64_t width = PANEL) {
  for (int64_t k0 = 0; k0 < k; k0 += 32) {
    const int64_t pairs = (k - k0 + 1) / 2 < 16 ? (k - k0 + 1) / 2 : 16;
    const __mmask32 mask = k - k0 >= 32 ? ~0u : (1u << (k - k0)) - 1;
    for (int64_t c0 = 0; c0 < width; c0 += 16) {
      __m512i rows[16];
      for (int64_t i = 0; i < 16; i++)
        rows[i] = c0 + i < columns ? _mm512_maskz_loadu_epi16(mask, from + (c0 + i) * ld + k0) : _mm512_setzero_si512();
      transpose16(rows);
      for (int64_t p = 0; p < pairs; p++) _mm512_storeu_si512(to + ((k0 / 2 + p) * PANEL + c0) * 2, rows[p]);
    }
  }
}

}  // namespace AVA_PATH
}  // namespace ava
