#include "linear.h"

using ava::bf16;
using ava::Groups;

extern "C" {

void ava_linear(const bf16* x, const bf16* weights, const int64_t* starts, int64_t groups, int64_t k, int64_t n,
                int by_rows, bf16* out) {
  ava::rows_times_weight(x, weights, Groups{starts, groups}, k, n, by_rows != 0, out);
}

void ava_linear_weight(const bf16* grad, const bf16* x, const int64_t* starts, int64_t groups, int64_t m, int64_t n,
                       bf16* out) {
  ava::transposed_times_rows<bf16, false>(grad, x, Groups{starts, groups}, m, n, out);
}

// The head of a language model: float32 logits, and a float32 gradient that is added to.
void ava_logits(const bf16* x, const bf16* weight, const int64_t* starts, int64_t k, int64_t n, float* out) {
  ava::rows_times_weight(x, weight, Groups{starts, 1}, k, n, false, out);
}

void ava_add_head_gradient(const bf16* grad, const bf16* x, const int64_t* starts, int64_t m, int64_t n, float* out) {
  ava::transposed_times_rows<float, true>(grad, x, Groups{starts, 1}, m, n, out);
}
}
