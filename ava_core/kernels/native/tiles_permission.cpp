// Asks Linux for AMX's tiles.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

extern "C" {

// 0 if this process may use tiles from now on (arch_prctl(2), ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
int64_t ava_allow_tiles() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}
}
