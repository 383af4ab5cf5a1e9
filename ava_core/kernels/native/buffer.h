// Scratch memory, aligned to a cache line.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace ava {

struct Release {
  void operator()(void* memory) const { std::free(memory); }
};

template <class T>
using Buffer = std::unique_ptr<T[], Release>;

template <class T>
Buffer<T> buffer(int64_t elements) {
  void* memory = std::aligned_alloc(64, size_t(elements * sizeof(T) / 64 + 1) * 64);
  if (!memory) throw std::bad_alloc();
  return Buffer<T>((T*)memory);
}

}  // namespace ava
