// Linear layers over groups of rows: group e holds rows starts[e] .. starts[e + 1] and has weight e. One group is an
// ordinary linear layer. Each output element is summed by one thread in one order, whatever the number of threads.
#pragma once

#include "buffer.h"
#include "product.h"

namespace ava {

struct Groups {
  const int64_t* starts;
  int64_t count;
  int64_t rows(int64_t e) const { return starts[e + 1] - starts[e]; }
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// For every group e and panel of its weight: `pack(e, panel_index, memory)`, then all rows of `a` (R, k) times it;
// `finish(e, panel_index)` makes the object that receives (row within all R, accumulators).
template <class Pack, class Finish>
void for_each_panel(const bf16* a, Groups groups, int64_t k, int64_t panels, Pack&& pack, Finish&& finish) {
  const int64_t k2 = divide_up(k, 2);
#pragma omp parallel
  {
    Buffer<bf16> panel = buffer<bf16>(k2 * 2 * PANEL);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < groups.count * panels; item++) {
      const int64_t e = item / panels, p = item % panels, start = groups.starts[e];
      if (groups.rows(e) == 0) continue;
      pack(e, p, panel.get());
      auto write = finish(e, p);
      panel_product(Pairs{(const int32_t*)(a + start * k), k / 2, 1}, groups.rows(e), panel.get(), k2,
                    [&](int64_t row, const __m512* sum) { write(start + row, sum); });
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

// out e (m, n) = rows of a (R, m) transposed times rows of b (R, n), over the rows of group e. C is added to if ADD.
template <class C, bool ADD>
void transposed_times_rows(const bf16* a, const bf16* b, Groups groups, int64_t m, int64_t n, C* out) {
  const int64_t panels = divide_up(n, PANEL), blocks = divide_up(m, BLOCK), all = groups.starts[groups.count];
  int64_t most2 = 0;
  for (int64_t e = 0; e < groups.count; e++) most2 = std::max(most2, divide_up(groups.rows(e), 2));
  // Group e's panels begin where the pairs of the rows before it end; an odd group pads one row.
  Buffer<bf16> packed = buffer<bf16>((all + 2 * groups.count) * panels * PANEL);
  const auto panel_at = [&](int64_t e, int64_t p) {
    return packed.get() + ((groups.starts[e] + e) / 2 * 2 * panels + p * divide_up(groups.rows(e), 2) * 2) * PANEL;
  };
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < groups.count * panels; item++) {
      const int64_t e = item / panels, p = item % panels, c = p * PANEL;
      pack_rows(b + groups.starts[e] * n + c, n, groups.rows(e), least(n - c, PANEL), PANEL, panel_at(e, p));
    }
    Buffer<bf16> block = buffer<bf16>(most2 * 2 * BLOCK);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < groups.count * blocks; item++) {
      const int64_t e = item / blocks, r = item % blocks * BLOCK, rows = least(m - r, BLOCK), k = groups.rows(e);
      pack_rows(a + groups.starts[e] * m + r, m, k, rows, BLOCK, block.get());
      for (int64_t p = 0; p < panels; p++) {
        const int64_t c = p * PANEL;
        panel_product(Pairs{(const int32_t*)block.get(), 1, BLOCK}, rows, panel_at(e, p), divide_up(k, 2),
                      Write<C, ADD>{out + (e * m + r) * n + c, n, least(n - c, PANEL)});
      }
    }
  }
}

}  // namespace ava
