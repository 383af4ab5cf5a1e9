// Linear layers over groups of rows: group e holds rows starts[e] .. starts[e + 1] and has weight e. One group is an
// ordinary linear layer. Each output element is summed by one thread in one order, whatever the number of threads.
#pragma once

#include <omp.h>

#include <vector>

#include "../buffer.h"
#include "product.h"

namespace ava {
inline namespace AVA_PATH {

struct Groups {
  const int64_t* starts;
  int64_t count;
  int64_t rows(int64_t e) const { return starts[e + 1] - starts[e]; }
};

// Threads that the next parallel region will have: one, within another region.
inline int64_t threads() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }

// `count` panels in strips of nearly one size, of at most `most` panels each.
struct Strips {
  int64_t count, panels;
  Strips(int64_t panels, int64_t most) : count(divide_up(panels, std::max<int64_t>(most, 1))), panels(panels) {}
  int64_t first(int64_t strip) const { return panels * strip / count; }
  int64_t size(int64_t strip) const { return first(strip + 1) - first(strip); }
  int64_t largest() const { return divide_up(panels, count); }
};

// For every group e and panel of its weight: `pack(e, panel_index, memory)`, then all rows of `a` (R, k) times it;
// `finish(e, panel_index)` makes the object that receives (row within all R, accumulators).
template <class Pack, class Finish>
void for_each_panel(const bf16* a, Groups groups, int64_t k, int64_t panels, Pack&& pack, Finish&& finish) {
  if (groups.count == 0 || panels == 0) return;
  const int64_t depth = Product::depth(k), size = depth * PANEL;
  const Strips strips(panels, Product::STRIP_BYTES / std::max<int64_t>(size * int64_t(sizeof(bf16)), 1));
  // Too few strips for all threads: the rows are divided too, and their strip is packed for each part of them. A part reads
  // less of A than a smaller strip would.
  const int64_t parts = divide_up(threads(), groups.count * strips.count);
#pragma omp parallel
  {
    Product product;
    Buffer<bf16> strip = buffer<bf16>(strips.largest() * size);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < groups.count * strips.count * parts; item++) {
      const int64_t e = item / parts / strips.count, s = item / parts % strips.count, first = strips.first(s);
      const int64_t part_rows = divide_up(divide_up(groups.rows(e), parts), 32) * 32, skipped = item % parts * part_rows;
      const int64_t start = groups.starts[e] + skipped, rows = least(groups.rows(e) - skipped, part_rows);
      if (rows <= 0) continue;
      for (int64_t p = 0; p < strips.size(s); p++) {
        pack(e, first + p, strip.get() + p * size);
        end_panel(k, depth, strip.get() + p * size);
      }
      product.rows(a + start * k, k, rows, Panels{strip.get(), size, strips.size(s)}, k, [&](int64_t p) {
        return [start, write = finish(e, first + p)](int64_t row, const __m512* sum) { write(start + row, sum); };
      });
    }
  }
}

// out (R, n) = a (R, k) times the weight of each row's group: (n, k), k contiguous; or (k, n) if `by_rows`.
template <class C>
void rows_times_weight(const bf16* a, const bf16* weights, Groups groups, int64_t k, int64_t n, bool by_rows, C* out) {
  const auto pack = [=](int64_t e, int64_t p, bf16* to) {
    const bf16* weight = weights + e * n * k;
    const int64_t c = p * PANEL, columns = least(n - c, PANEL);
    if (by_rows)
      pack_rows(weight + c, n, k, columns, PANEL, to);
    else
      pack_columns(weight + c * k, k, k, columns, to);
  };
  for_each_panel(a, groups, k, divide_up(n, PANEL), pack, [=](int64_t, int64_t p) {
    return Write<C, false>{out + p * PANEL, n, least(n - p * PANEL, PANEL)};
  });
}

// The rows of a group, cut into chunks that are summed one after the other.
struct Chunks {
  int64_t rows;
  int64_t count() const { return std::max<int64_t>(1, divide_up(rows, Product::CHUNK)); }
  int64_t first(int64_t q) const { return q * Product::CHUNK; }
  int64_t size(int64_t q) const { return least(rows - first(q), Product::CHUNK); }
};

// The right operand of `transposed_times_rows`, packed: of each group its chunks, of each chunk its panels.
class PackedRows {
 public:
  PackedRows(Groups groups, int64_t panels) : groups(groups), panels(panels), starts(groups.count + 1) {
    for (int64_t e = 0; e < groups.count; e++) {
      const Chunks chunks{groups.rows(e)};
      const int64_t last = chunks.count() - 1;
      starts[e + 1] = starts[e] + (chunks.first(last) + Product::depth(chunks.size(last))) * panels * PANEL;
    }
    memory = buffer<bf16>(starts[groups.count]);
  }
  bf16* at(int64_t e, int64_t chunk, int64_t panel) const {
    const Chunks chunks{groups.rows(e)};
    return memory.get() + starts[e] + (chunks.first(chunk) * panels + panel * Product::depth(chunks.size(chunk))) * PANEL;
  }
  Panels panels_of(int64_t e, int64_t chunk, int64_t first, int64_t count) const {
    return {at(e, chunk, first), Product::depth(Chunks{groups.rows(e)}.size(chunk)) * PANEL, count};
  }
  // Group e's panel p, of `columns` columns from `from`.
  void pack(int64_t e, int64_t p, const bf16* from, int64_t ld, int64_t columns) const {
    const Chunks chunks{groups.rows(e)};
    for (int64_t q = 0; q < chunks.count(); q++) {
      pack_rows(from + chunks.first(q) * ld, ld, chunks.size(q), columns, PANEL, at(e, q, p));
      end_panel(chunks.size(q), Product::depth(chunks.size(q)), at(e, q, p));
    }
  }

 private:
  Groups groups;
  int64_t panels;
  std::vector<int64_t> starts;
  Buffer<bf16> memory;
};

// out e (m, n) = rows of a (R, m) transposed times rows of b (R, n), over the rows of group e. C is added to if ADD.
template <class C, bool ADD>
void transposed_times_rows(const bf16* a, const bf16* b, Groups groups, int64_t m, int64_t n, C* out) {
  if (groups.count == 0 || m == 0 || n == 0) return;
  const int64_t panels = divide_up(n, PANEL);
  int64_t most = 0;
  for (int64_t e = 0; e < groups.count; e++) most = std::max(most, groups.rows(e));
  const PackedRows packed(groups, panels);
  const Strips strips(panels, least(panels, Product::STRIP_PANELS));
  // Blocks of nearly one size, in steps of 32 rows, and enough of them for all threads.
  const int64_t blocks = std::max(divide_up(m, Product::LEFT_ROWS), divide_up(threads(), groups.count * strips.count));
  const int64_t block_rows = least(divide_up(divide_up(m, blocks), 32) * 32, Product::LEFT_ROWS);
  const int64_t wide = strips.largest() * PANEL;
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < groups.count * panels; item++) {
      const int64_t e = item / panels, p = item % panels, c = p * PANEL;
      packed.pack(e, p, b + groups.starts[e] * n + c, n, least(n - c, PANEL));
    }
    Product product;
    Buffer<bf16> left = buffer<bf16>(Product::left_size(block_rows, least(most, Product::CHUNK)));
    Buffer<float> sums = buffer<float>(most > Product::CHUNK && !ADD ? block_rows * wide : 0);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < groups.count * blocks * strips.count; item++) {
      const int64_t e = item / strips.count / blocks, r = item / strips.count % blocks * block_rows, s = item % strips.count;
      const int64_t rows = least(m - r, block_rows), first = strips.first(s);
      if (rows <= 0) continue;  // rounded up, fewer blocks have them all
      const Chunks chunks{groups.rows(e)};
      C* to = out + (e * m + r) * n;
      const auto columns = [=](int64_t p) { return least(n - (first + p) * PANEL, PANEL); };
      for (int64_t q = 0; q < chunks.count(); q++) {
        const int64_t k = chunks.size(q);
        Product::pack_left(a + (groups.starts[e] + chunks.first(q)) * m + r, m, k, rows, left.get());
        const auto multiply = [&](auto&& finish) { product.left(left.get(), rows, packed.panels_of(e, q, first, strips.size(s)), k, finish); };
        if (ADD || chunks.count() == 1)
          multiply([&](int64_t p) { return Write<C, ADD>{to + (first + p) * PANEL, n, columns(p)}; });
        else if (q == 0)
          multiply([&](int64_t p) { return Write<float, false>{sums.get() + p * PANEL, wide, PANEL}; });
        else if (q + 1 < chunks.count())
          multiply([&](int64_t p) { return Write<float, true>{sums.get() + p * PANEL, wide, PANEL}; });
        else
          multiply([&](int64_t p) {
            return [=, base = sums.get() + p * PANEL](int64_t row, const __m512* sum) {
              __m512 all[4];
              for (int j = 0; j < 4; j++) all[j] = _mm512_add_ps(sum[j], load(base + row * wide + 16 * j));
              Write<C, false>{to + (first + p) * PANEL, n, columns(p)}(row, all);
            };
          });
      }
    }
  }
}

}  // namespace AVA_PATH
}  // namespace ava
