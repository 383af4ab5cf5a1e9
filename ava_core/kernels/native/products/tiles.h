// AMX's tiles: 8 registers of 16 rows of 64 bytes, and the product of two of them (Intel 64 and IA-32 Architectures Software
// Developer's Manual, volume 2, TDPBF16PS).
//
// `dot<C, A, B>` adds to C, 16 x 16 floats, the product of A, 16 rows of 32 bfloat16 numbers, and B, 16 rows of 16 pairs:
// row k of B holds rows 2k and 2k + 1 of the right operand, interleaved. With AVA_EMULATED the same calls run on any CPU,
// so that what is built on them is tested where there is no AMX.
#pragma once

#include <cstdint>
#include <cstring>

#include "../bfloat16.h"

namespace ava {
inline namespace AVA_PATH {
namespace tiles {

constexpr int64_t ROWS = 16;   // of a tile
constexpr int64_t DEPTH = 32;  // bfloat16 numbers of a row
constexpr int64_t WIDTH = 16;  // floats of a row

#ifdef AVA_EMULATED

struct Registers {
  alignas(64) unsigned char bytes[8][16][64];
  bool configured = false;
};
inline thread_local Registers registers;

inline void configure() { std::memset(registers.bytes, 0, sizeof registers.bytes), registers.configured = true; }
inline void release() { registers.configured = false; }

template <int T>
inline void zero() { std::memset(registers.bytes[T], 0, sizeof registers.bytes[T]); }

template <int T>
inline void load(const void* from, int64_t stride) {
  for (int64_t r = 0; r < ROWS; r++) std::memcpy(registers.bytes[T][r], (const char*)from + r * stride, 64);
}

template <int T>
inline void store(void* to, int64_t stride) {
  for (int64_t r = 0; r < ROWS; r++) std::memcpy((char*)to + r * stride, registers.bytes[T][r], 64);
}

template <int C, int A, int B>
inline void dot() {
  if (!registers.configured) __builtin_trap();  // as the instruction would
  for (int64_t r = 0; r < ROWS; r++) {
    __m512 sum = _mm512_load_ps(registers.bytes[C][r]);
    for (int64_t k = 0; k < DEPTH; k += 2) {
      const __m512i pairs = _mm512_load_si512(registers.bytes[B][k / 2]);
      uint32_t left;
      std::memcpy(&left, registers.bytes[A][r] + 2 * k, sizeof left);
      const __m512 even = _mm512_castsi512_ps(_mm512_set1_epi32(int(left << 16)));
      const __m512 odd = _mm512_castsi512_ps(_mm512_set1_epi32(int(left & 0xffff0000u)));
      sum = _mm512_fmadd_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), sum);
      sum = _mm512_fmadd_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000u)))), sum);
    }
    _mm512_store_ps(registers.bytes[C][r], sum);
  }
}

#else

// In assembly, for the compilers' own functions take no template parameter as a register's number.
inline void configure() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } whole;
  asm volatile("ldtilecfg %0" ::"m"(whole));
}
inline void release() { asm volatile("tilerelease" ::: "memory"); }

template <int T>
inline void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }

template <int T>
inline void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}

template <int C, int A, int B>
inline void dot() { asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }

#endif

}  // namespace tiles
}  // namespace AVA_PATH
}  // namespace ava
