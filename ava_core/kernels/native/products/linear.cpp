#include "entry.h"
#include "linear.h"

#include "../fault.h"

using namespace ava;

extern "C" {

// out (R, n) = x (R, k) times weight (n, k) transposed.
int64_t AVA_ENTRY(ava_linear)(const bf16* x, const bf16* weight, int64_t R, int64_t k, int64_t n, bf16* out) {
  const int64_t starts[] = {0, R};
  rows_times_weight(x, weight, Groups{starts, 1}, k, n, false, out);
  return SOUND;
}

// Gradient of the input: grad (R, k) times weight (k, n).
int64_t AVA_ENTRY(ava_linear_input)(const bf16* grad, const bf16* weight, int64_t R, int64_t k, int64_t n, bf16* grad_x) {
  const int64_t starts[] = {0, R};
  rows_times_weight(grad, weight, Groups{starts, 1}, k, n, true, grad_x);
  return SOUND;
}

// Gradient of the weight: grad (R, m) transposed times x (R, n).
int64_t AVA_ENTRY(ava_linear_weight)(const bf16* grad, const bf16* x, int64_t R, int64_t m, int64_t n, bf16* grad_weight) {
  const int64_t starts[] = {0, R};
  transposed_times_rows<bf16, false>(grad, x, Groups{starts, 1}, m, n, grad_weight);
  return SOUND;
}

// The head of a language model: float32 logits, and a float32 gradient that is added to.
int64_t AVA_ENTRY(ava_logits)(const bf16* hidden, const bf16* weight, int64_t T, int64_t D, int64_t V, float* out) {
  const int64_t starts[] = {0, T};
  rows_times_weight(hidden, weight, Groups{starts, 1}, D, V, false, out);
  return SOUND;
}

int64_t AVA_ENTRY(ava_add_head_gradient)(const bf16* grad, const bf16* hidden, int64_t T, int64_t V, int64_t D,
                              float* grad_weight) {
  const int64_t starts[] = {0, T};
  transposed_times_rows<float, true>(grad, hidden, Groups{starts, 1}, V, D, grad_weight);
  return SOUND;
}
}
