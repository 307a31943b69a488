// AMX: registers of 16 rows of 64 bytes ("tiles"), and an instruction that multiplies two of them and adds to a third.
//
// One tile holds rows of x, 32 bfloat16 inputs of each, as they lie in memory. Another one holds 16 pairs of inputs of 16
// columns, which is a piece of a panel (vec.h) as it lies in memory. Their product is 16 x 16 sums in float32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vec.h"

#if defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headwater::amx {

constexpr int64_t ROWS = 16;    // of x in a tile
constexpr int64_t INPUTS = 32;  // in a tile

#if defined(__AMX_BF16__)

// Whether the CPU has tiles and the kernel grants them. They are larger than all other registers together, so that it
// wants to be asked, once for all threads of a process.
inline bool granted() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    static const bool answer = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return answer;
}

// What the CPU is told of its tiles.
struct alignas(64) Layout {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Sets up this thread's tiles for up to 2 * ROWS rows of x, and gives them back in the end.
class Tiles {
   public:
    explicit Tiles(int64_t rows) {
        Layout layout;
        const int64_t upper = std::min(rows, ROWS), lower = rows - upper;
        for (int tile = 0; tile < 8; tile++) {
            layout.row_bytes[tile] = 64;
            // 0 and 1: sums of the upper rows, 2 and 3: of the lower. 4 and 5: upper and lower rows of x. 6 and 7: panels.
            layout.rows[tile] = uint8_t(tile >= 6 ? 16 : tile == 0 || tile == 1 || tile == 4 ? upper : std::max<int64_t>(1, lower));
        }
        _tile_loadconfig(&layout);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
};

// Sums of rows of x, `stride` elements apart, times P panels of 16 columns, to [2 * ROWS][P * 16]. TWO: there are more than
// ROWS rows. Panels only stream through the L1, so that x stays in it. meanwhile(): what the CPU does beside the products of
// each INPUTS inputs. Those take all of its time for tiles, and little of that for anything else.
template <bool TWO, int P, typename F>
inline void multiply(const bf16* x, int64_t stride, const bf16* panels, int64_t inputs, float* sums, F meanwhile) {
    const int64_t panel_size = 16 * inputs;
    _tile_zero(0);
    if constexpr (P == 2) _tile_zero(1);
    if constexpr (TWO) _tile_zero(2);
    if constexpr (TWO && P == 2) _tile_zero(3);
    for (int64_t i = 0; i < inputs; i += INPUTS) {
        _tile_loadd(4, x + i, stride * 2);
        _tile_stream_loadd(6, panels + i * 16, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (P == 2) {
            _tile_stream_loadd(7, panels + panel_size + i * 16, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        meanwhile();
        if constexpr (TWO) {
            _tile_loadd(5, x + ROWS * stride + i, stride * 2);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (P == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    constexpr int64_t row_bytes = P * 64;
    _tile_stored(0, sums, row_bytes);
    if constexpr (P == 2) _tile_stored(1, sums + 16, row_bytes);
    if constexpr (TWO) _tile_stored(2, sums + ROWS * P * 16, row_bytes);
    if constexpr (TWO && P == 2) _tile_stored(3, sums + ROWS * P * 16 + 16, row_bytes);
}

#else

inline bool granted() { return false; }

#endif

}  // namespace headwater::amx
