// Products in AMX's tiles: blocks of 32 rows times the two halves of a panel, 2 x 2 tiles of sums at a time.
//
// Four products of tiles take the time of eight loads from the level 1 cache. So a block of A stays there while all panels
// of a strip, which fit the level 2 cache, pass by.
#pragma once

#include "../buffer.h"
#include "pack.h"
#include "tiles.h"

namespace ava {
inline namespace AVA_PATH {

// What product.h says, for one thread.
class Product {
 public:
  static constexpr int64_t STRIP_BYTES = 3 << 18;
  static constexpr int64_t STRIP_PANELS = 8;
  static constexpr int64_t LEFT_ROWS = 256;
  static constexpr int64_t CHUNK = 512;

  Product() : sums(buffer<float>(BLOCK_ROWS * PANEL)) { tiles::configure(); }
  ~Product() { tiles::release(); }
  Product(const Product&) = delete;

  static int64_t depth(int64_t k) { return divide_up(k, tiles::DEPTH) * tiles::DEPTH; }
  static int64_t left_size(int64_t rows, int64_t k) { return depth(k) * divide_up(rows, BLOCK_ROWS) * BLOCK_ROWS; }

  // Rows of a (k, rows) matrix to [rows][depth(k)], with 0 past both ends.
  static void pack_left(const bf16* from, int64_t ld, int64_t k, int64_t rows, bf16* to) {
    const int64_t wide = depth(k);
    for (int64_t r = 0; r < rows; r += 16)
      for (int64_t k0 = 0; k0 < k; k0 += 32) {
        __m512i words[16];
        for (int64_t i = 0; i < 16; i++) {
          const int64_t even = k0 + 2 * i;
          words[i] = pairs_of(even < k ? from + even * ld + r : nullptr, even + 1 < k ? from + (even + 1) * ld + r : nullptr,
                              first(rows - r));
        }
        transpose16(words);
        for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(to + (r + i) * wide + k0, words[i]);
      }
    const int64_t written = divide_up(rows, 16) * 16;
    std::memset(to + written * wide, 0, (left_size(rows, k) - written * wide) * sizeof(bf16));
  }

  template <class Finish>
  void rows(const bf16* a, int64_t ld, int64_t rows, Panels panels, int64_t k, Finish&& finish) {
    for (int64_t r = 0; r < rows; r += BLOCK_ROWS) {
      const int64_t these = least(rows - r, BLOCK_ROWS);
      const bool whole = k % tiles::DEPTH == 0 && these % tiles::ROWS == 0;
      const bf16* from = whole ? a + r * ld : padded(a + r * ld, ld, these, k);
      block(from, whole ? ld : depth(k), r, these, panels, k, finish);
    }
  }

  template <class Finish>
  void left(const bf16* packed, int64_t rows, Panels panels, int64_t k, Finish&& finish) {
    for (int64_t r = 0; r < rows; r += BLOCK_ROWS)
      block(packed + r * depth(k), depth(k), r, least(rows - r, BLOCK_ROWS), panels, k, finish);
  }

 private:
  static constexpr int64_t BLOCK_ROWS = 2 * tiles::ROWS;
  Buffer<float> sums;
  Buffer<bf16> edge;
  int64_t edge_size = 0;

  template <class Finish>
  void block(const bf16* a, int64_t ld, int64_t row, int64_t rows, Panels panels, int64_t k,
             Finish&& finish) {
    for (int64_t p = 0; p < panels.count; p++) {
      const bf16* panel = panels.at(p);
      for (int64_t half = 0; half < 2; half++) {
        if (rows > tiles::ROWS)
          half_panel<2>(a, ld, panel + half * PANEL, depth(k) / tiles::DEPTH, sums.get() + half * PANEL / 2);
        else
          half_panel<1>(a, ld, panel + half * PANEL, depth(k) / tiles::DEPTH, sums.get() + half * PANEL / 2);
      }
      const auto write = finish(p);
      for (int64_t r = 0; r < rows; r++) {
        __m512 sum[4];
        for (int j = 0; j < 4; j++) sum[j] = _mm512_load_ps(sums.get() + r * PANEL + 16 * j);
        write(row + r, sum);
      }
    }
  }

  template <int ROW_TILES>
  static void half_panel(const bf16* a, int64_t ld, const bf16* panel, int64_t steps, float* to) {
    constexpr int64_t BYTES = PANEL * 2 * sizeof(bf16);
    tiles::zero<0>(), tiles::zero<1>();
    if (ROW_TILES > 1) tiles::zero<2>(), tiles::zero<3>();
    for (int64_t s = 0; s < steps; s++, a += tiles::DEPTH, panel += tiles::DEPTH * PANEL) {
      tiles::load<4>(a, ld * sizeof(bf16));
      tiles::load<6>(panel, BYTES);
      tiles::dot<0, 4, 6>();
      tiles::load<7>(panel + 2 * tiles::WIDTH, BYTES);
      tiles::dot<1, 4, 7>();
      if (ROW_TILES > 1) {
        tiles::load<5>(a + tiles::ROWS * ld, ld * sizeof(bf16));
        tiles::dot<2, 5, 6>();
        tiles::dot<3, 5, 7>();
      }
    }
    constexpr int64_t STRIDE = PANEL * sizeof(float);
    tiles::store<0>(to, STRIDE), tiles::store<1>(to + tiles::WIDTH, STRIDE);
    if (ROW_TILES > 1) {
      to += tiles::ROWS * PANEL;
      tiles::store<2>(to, STRIDE), tiles::store<3>(to + tiles::WIDTH, STRIDE);
    }
  }

  // A copy of rows that end within a tile, with 0 after them.
  const bf16* padded(const bf16* a, int64_t ld, int64_t rows, int64_t k) {
    const int64_t wide = depth(k), size = BLOCK_ROWS * wide;
    if (edge_size < size) edge = buffer<bf16>(size), edge_size = size;
    for (int64_t r = 0; r < rows; r++) {
      std::memcpy(edge.get() + r * wide, a + r * ld, k * sizeof(bf16));
      std::memset(edge.get() + r * wide + k, 0, (wide - k) * sizeof(bf16));
    }
    std::memset(edge.get() + rows * wide, 0, (BLOCK_ROWS - rows) * wide * sizeof(bf16));
    return edge.get();
  }
};

}  // namespace AVA_PATH
}  // namespace ava
