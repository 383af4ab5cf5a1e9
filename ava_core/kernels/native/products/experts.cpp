// SwiGLU experts over rows that are sorted by expert, with their gather, activation and weighted sum fused in.
//
// Shapes: T tokens of D numbers, K slots a token, R occupied rows, N experts of width F; gate_up (N, 2F, D), gate first;
// down (N, D, F).
#include <vector>

#include "../elementary.h"
#include "../fault.h"
#include "entry.h"
#include "linear.h"

namespace ava {
inline namespace AVA_PATH {
namespace {

constexpr int64_t HALF = PANEL / 2;
constexpr int64_t BATCH_ROWS = 512;  // rows of consecutive experts that the passes take together, at least

void gather_rows(const bf16* x, const int64_t* token, int64_t rows, int64_t D, bf16* out) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) std::memcpy(out + r * D, x + token[r] * D, D * sizeof(bf16));
}

// out[t] = sum over slots of weight * row; a row index below 0 is an empty slot. No weights: weight one.
void combine_rows(const bf16* rows, const int64_t* row_of, const float* weights, int64_t T, int64_t K, int64_t D,
                  bf16* out) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < T; t++)
    for (int64_t c = 0; c < D; c += 16) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t k = 0; k < K; k++) {
        const int64_t row = row_of[t * K + k];
        if (row < 0) continue;
        const __m512 w = _mm512_set1_ps(weights ? weights[t * K + k] : 1.f);
        sum = _mm512_fmadd_ps(w, load(rows + row * D + c, D - c), sum);
      }
      store(out + t * D + c, sum, D - c);
    }
}

// A panel holds 32 columns of gate and the 32 of up that belong to them.
void gate_up_swiglu(const bf16* rows, const bf16* gate_up, Groups groups, int64_t D, int64_t F, bf16* activations,
                    bf16* hidden) {
  const auto pack = [=](int64_t e, int64_t p, bf16* to) {
    const bf16* gate = gate_up + (e * 2 * F + p * HALF) * D;
    const int64_t columns = least(F - p * HALF, HALF);
    pack_columns(gate, D, D, columns, to, HALF);
    pack_columns(gate + F * D, D, D, columns, to + 2 * HALF, HALF);
  };
  for_each_panel(rows, groups, D, divide_up(F, HALF), pack, [=](int64_t, int64_t p) {
    return [=](int64_t row, const __m512* sum) {
      for (int64_t j = 0; j < 2; j++) {
        const int64_t c = p * HALF + 16 * j;
        if (c >= F) break;
        store(activations + row * 2 * F + c, sum[j], F - c);
        store(activations + row * 2 * F + F + c, sum[2 + j], F - c);
        store(hidden + row * F + c, _mm512_mul_ps(_mm512_mul_ps(sum[j], sigmoid16(sum[j])), sum[2 + j]), F - c);
      }
    };
  });
}

// From the gradient of what down was given, `grad_hidden` (R, F): `grad_activations` (R, 2F), `weighted` = weight * hidden
// (R, F), and each row's weight gradient, <gradient of the sum, expert output> = <grad_hidden, hidden>.
//
// A pass of its own: fused into the product it would read the activations in narrow columns, from far memory.
void swiglu_backward(const bf16* grad_hidden, const bf16* activations, const float* weight_of, int64_t rows, int64_t F,
                     bf16* grad_activations, bf16* weighted, float* grad_weight) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const bf16* gates = activations + r * 2 * F;
    bf16* grads = grad_activations + r * 2 * F;
    const __m512 weight = _mm512_set1_ps(weight_of[r]), one = _mm512_set1_ps(1.f);
    __m512 dot = _mm512_setzero_ps();
    for (int64_t c = 0; c < F; c += 16) {
      const __m512 gate = load(gates + c, F - c), up = load(gates + F + c, F - c), back = load(grad_hidden + r * F + c, F - c);
      const __m512 s = sigmoid16(gate), silu = _mm512_mul_ps(gate, s), hidden = _mm512_mul_ps(silu, up);
      dot = _mm512_fmadd_ps(back, hidden, dot);
      const __m512 g = _mm512_mul_ps(back, weight);
      // d silu(x) / dx = s (1 + x (1 - s))
      const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one));
      store(grads + c, _mm512_mul_ps(_mm512_mul_ps(g, up), slope), F - c);
      store(grads + F + c, _mm512_mul_ps(g, silu), F - c);
      store(weighted + r * F + c, _mm512_mul_ps(weight, hidden), F - c);
    }
    grad_weight[r] = _mm512_reduce_add_ps(dot);
  }
}

constexpr int64_t SHARED = 1 << 25;  // multiplications of an expert's rows with one matrix that pay for waking threads

// Consecutive experts, a few at a time: what one product writes is still in the cache when the next reads it. Where there are
// several small ones for each thread, every thread has its own, and all that is done for one runs in that thread: to wake
// the others for each of so small products would take as long as the products. Large ones are shared by the threads,
// which would else wait for the one with the fullest expert.
template <class Work>
void for_each_batch(const int64_t* starts, int64_t N, int64_t matrix, Work&& work) {
  const bool alone = threads() > 1 && N >= 4 * threads() && (starts[N] - starts[0]) / N * matrix < SHARED;
  std::vector<int64_t> firsts;
  for (int64_t e = 0; e < N;) {
    firsts.push_back(e);
    const int64_t start = starts[e++];
    while (!alone && e < N && starts[e] - start < BATCH_ROWS) e++;
  }
  firsts.push_back(N);
#pragma omp parallel for schedule(dynamic, 1) if (alone)
  for (int64_t i = 0; i < int64_t(firsts.size()) - 1; i++) {
    const int64_t e = firsts[i], next = firsts[i + 1];
    std::vector<int64_t> offsets(next - e + 1);
    for (int64_t j = e; j <= next; j++) offsets[j - e] = starts[j] - starts[e];
    work(e, starts[e], offsets.back(), Groups{offsets.data(), next - e});
  }
}

// The integer arrays in the order of the arguments.
enum { TOKEN, ROW, SLOT, STARTS };

// Rows, slots and tokens must belong together, and each row to one slot: then every one of them is in its range, and no
// two threads write to one place.
int64_t check_routes(const int64_t* token, const int64_t* row_of, const int64_t* slot, int64_t T, int64_t K, int64_t R) {
  int64_t wrong_slot = NOWHERE, wrong_token = NOWHERE, wrong_row = NOWHERE;
#pragma omp parallel for schedule(static) reduction(min : wrong_slot, wrong_token)
  for (int64_t r = 0; r < R; r++) {
    if (slot[r] < 0 || slot[r] >= T * K || row_of[slot[r]] != r)
      wrong_slot = least(wrong_slot, r);
    else if (token[r] != slot[r] / K)
      wrong_token = least(wrong_token, r);
  }
#pragma omp parallel for schedule(static) reduction(min : wrong_row)
  for (int64_t i = 0; i < T * K; i++) {
    const int64_t r = row_of[i];
    if (r != -1 && (r < 0 || r >= R || slot[r] != i)) wrong_row = least(wrong_row, i);
  }
  if (wrong_slot != NOWHERE) return fault(SLOT, wrong_slot);
  return wrong_token != NOWHERE ? fault(TOKEN, wrong_token) : first_fault(ROW, wrong_row);
}

}  // namespace
}  // namespace AVA_PATH
}  // namespace ava

using namespace ava;

extern "C" {

int64_t AVA_ENTRY(ava_experts_forward)(const bf16* x, const int64_t* token, const int64_t* row_of, const int64_t* slot,
                            const float* weights, const int64_t* starts, const bf16* gate_up, const bf16* down, int64_t T,
                            int64_t K, int64_t N, int64_t D, int64_t F, int64_t R, bf16* activations, bf16* out) {
  if (const int64_t found = check_starts(STARTS, starts, N, R); found != SOUND) return found;
  if (const int64_t found = check_routes(token, row_of, slot, T, K, R); found != SOUND) return found;
  Buffer<bf16> rows = buffer<bf16>(R * D);
  for_each_batch(starts, N, D * F, [&](int64_t e, int64_t start, int64_t count, Groups groups) {
    Buffer<bf16> gathered = buffer<bf16>(count * D), hidden = buffer<bf16>(count * F);
    gather_rows(x, token + start, count, D, gathered.get());
    gate_up_swiglu(gathered.get(), gate_up + e * 2 * F * D, groups, D, F, activations + start * 2 * F, hidden.get());
    rows_times_weight(hidden.get(), down + e * D * F, groups, F, D, false, rows.get() + start * D);
  });
  combine_rows(rows.get(), row_of, weights, T, K, D, out);
  return SOUND;
}

int64_t AVA_ENTRY(ava_experts_backward)(const bf16* grad, const bf16* x, const int64_t* token, const int64_t* row_of,
                             const int64_t* slot, const float* weights, const int64_t* starts, const bf16* gate_up,
                             const bf16* down, const bf16* activations, int64_t T, int64_t K, int64_t N, int64_t D,
                             int64_t F, int64_t R, bf16* grad_x, bf16* grad_gate_up, bf16* grad_down,
                             float* grad_weights) {
  if (const int64_t found = check_starts(STARTS, starts, N, R); found != SOUND) return found;
  if (const int64_t found = check_routes(token, row_of, slot, T, K, R); found != SOUND) return found;
  Buffer<bf16> grad_rows = buffer<bf16>(R * D);
  Buffer<float> weight_of = buffer<float>(R), grad_weight_of = buffer<float>(R);
  for (int64_t r = 0; r < R; r++) weight_of[r] = weights[slot[r]];
  for_each_batch(starts, N, D * F, [&](int64_t e, int64_t start, int64_t rows, Groups groups) {
    Buffer<bf16> gathered = buffer<bf16>(rows * D), grad_hidden = buffer<bf16>(rows * F);
    Buffer<bf16> grad_activations = buffer<bf16>(rows * 2 * F), weighted = buffer<bf16>(rows * F);
    gather_rows(grad, token + start, rows, D, gathered.get());
    rows_times_weight(gathered.get(), down + e * D * F, groups, D, F, true, grad_hidden.get());
    swiglu_backward(grad_hidden.get(), activations + start * 2 * F, weight_of.get() + start, rows, F,
                    grad_activations.get(), weighted.get(), grad_weight_of.get() + start);
    transposed_times_rows<bf16, false>(gathered.get(), weighted.get(), groups, D, F, grad_down + e * D * F);
    rows_times_weight(grad_activations.get(), gate_up + e * 2 * F * D, groups, 2 * F, D, true,
                      grad_rows.get() + start * D);
    gather_rows(x, token + start, rows, D, gathered.get());
    transposed_times_rows<bf16, false>(grad_activations.get(), gathered.get(), groups, 2 * F, D,
                                       grad_gate_up + e * 2 * F * D);
  });
  // The slots without a row were set to 0 by the caller.
  for (int64_t r = 0; r < R; r++) grad_weights[slot[r]] = grad_weight_of[r];
  combine_rows(grad_rows.get(), row_of, nullptr, T, K, D, grad_x);
  return SOUND;
}
}
