// Products of bfloat16 matrices, accumulated in float32. One of two ways, chosen when a file is compiled; the library has
// the files of this folder once for each, and Python calls what this CPU can do (ava_core/kernels/library.py).
//
// A `Product` belongs to one thread, and needs its left operand A and its right one, packed in panels (pack.h):
//
//   depth(k)                 numbers along k of a packed panel: k, and zeros to the end
//   rows(a, ld, rows, panels, k, finish)
//                            rows of A, k contiguous, times panels; finish(p) makes for panel p what then receives
//                            (row, four registers of 16 sums), each row once
//   pack_left, left_size, left
//                            the same for an A whose rows are contiguous instead, packed first
//
// and says what its caches hold: panels that are multiplied in one visit of A (STRIP_BYTES, STRIP_PANELS), rows of A that
// are packed together (LEFT_ROWS), and how deep (CHUNK).
#pragma once

#ifdef AVA_TILES
#include "tile_product.h"
#else
#include "vector_product.h"
#endif

namespace ava {
inline namespace AVA_PATH {

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

}  // namespace AVA_PATH
}  // namespace ava
