// What the functions of the library return. Python has checked types, shapes and strides (entries.py); what an index may be
// is checked here, where it is read anyway.
#pragma once

#include <cstdint>

namespace ava {

constexpr int64_t SOUND = -1;

// Element `position` of the `array`-th int64 array among the arguments is no index that may stand there.
inline int64_t fault(int64_t array, int64_t position) { return position * 4 + array; }

// For reductions over threads: of several faults the first is told, whatever the number of threads.
constexpr int64_t NOWHERE = INT64_MAX;

inline int64_t first_fault(int64_t array, int64_t position) {
  return position == NOWHERE ? SOUND : fault(array, position);
}

// 0, then no less than the one before, and all rows at the end.
inline int64_t check_starts(int64_t array, const int64_t* starts, int64_t groups, int64_t rows) {
  if (starts[0] != 0) return fault(array, 0);
  for (int64_t e = 1; e <= groups; e++)
    if (starts[e] < starts[e - 1] || starts[e] > rows) return fault(array, e);
  return starts[groups] == rows ? SOUND : fault(array, groups);
}

}  // namespace ava
