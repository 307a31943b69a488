// The two products of attention on AMX (amx.h), for all rows of a task.
//
//     scores  = rows x keys      a tile of keys: 16 pairs of dimensions of a block's 16 keys
//     output += weights x values a tile of values: 8 pairs of a block's tokens, of 16 dimensions
//
// Both lie in the cache as tiles take them. A block has no more than 8 pairs of tokens and blocks lie anywhere, so that
// tiles of values are half as high as they might be: it takes twice the products, and no copies.
//
// Rows are cut into strips of one height, the last of which may reach beyond them, into room that is there for it.
#pragma once

#include "amx.h"
#include "tile.h"

namespace headwater::amx {

struct Strips {
    int64_t count, height;

    explicit Strips(int64_t rows) : count((rows + ROWS - 1) / ROWS), height((rows + count - 1) / count) {}
    int64_t rows() const { return count * height; }
};

#if defined(__AMX_BF16__)

// Sets up this thread's tiles for strips of rows, and gives them back in the end.
class AttentionTiles {
   public:
    explicit AttentionTiles(int64_t height) {
        Layout layout;
        for (int tile = 0; tile < 8; tile++) {
            // 0 to 3: sums. 4: queries, times 6: keys. 5: weights, times 7: values.
            layout.row_bytes[tile] = tile == 5 ? 32 : 64;
            layout.rows[tile] = uint8_t(tile < 6 ? height : tile == 6 ? 16 : 8);
        }
        _tile_loadconfig(&layout);
    }
    ~AttentionTiles() { _tile_release(); }
    AttentionTiles(const AttentionTiles&) = delete;
};

inline void fetch(const bf16* from, int64_t elements) {
    for (int64_t line = 0; line < elements; line += 32) __builtin_prefetch(from + line, 0, 2);
}

// The sums of P tiles side by side, in rows that are `stride` apart.
template <int P> inline void store_sums(float* to, int64_t stride) {
    _tile_stored(0, to, stride * 4);
    if constexpr (P == 4) {
        _tile_stored(1, to + TILE, stride * 4);
        _tile_stored(2, to + 2 * TILE, stride * 4);
        _tile_stored(3, to + 3 * TILE, stride * 4);
    }
}

// A strip of queries times the keys of P blocks, to scores that are `stride` apart from row to row. `ahead`: P blocks to fetch
// meanwhile, or null; between the products, since the CPU waits where it is asked for all of them at once.
template <int P>
inline void score_strip(const bf16* queries, int64_t dim, const bf16* const* blocks, const bf16* const* ahead, float* scores,
                        int64_t stride) {
    const auto fetch_for = [&](int64_t d, int block) {
        if (ahead) fetch(ahead[block] + d * TILE, INPUTS * TILE);
    };
    _tile_zero(0);
    if constexpr (P == 4) {
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t d = 0; d < dim; d += INPUTS) {
        _tile_loadd(4, queries + d, dim * 2);
        _tile_loadd(6, blocks[0] + d * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        fetch_for(d, 0);
        if constexpr (P == 4) {
            _tile_loadd(6, blocks[1] + d * TILE, 64);
            _tile_dpbf16ps(1, 4, 6);
            fetch_for(d, 1);
            _tile_loadd(6, blocks[2] + d * TILE, 64);
            _tile_dpbf16ps(2, 4, 6);
            fetch_for(d, 2);
            _tile_loadd(6, blocks[3] + d * TILE, 64);
            _tile_dpbf16ps(3, 4, 6);
            fetch_for(d, 3);
        }
    }
    store_sums<P>(scores, stride);
}

// output += a strip of weights, `stride` apart, times P tiles of dimensions of the values of blocks, from `first` on. `ahead`:
// as many blocks to fetch meanwhile, or null.
template <int P>
inline void add_values_to_strip(const bf16* weights, int64_t stride, const bf16* const* blocks, int64_t count,
                                const bf16* const* ahead, int64_t first, float* output, int64_t width) {
    constexpr int64_t SIZE = TILE * TILE;
    const auto fetch_for = [&](int64_t block, int tile) {
        if (ahead) fetch(ahead[block] + (first + tile) * SIZE, SIZE);
    };
    _tile_loadd(0, output, width * 4);
    if constexpr (P == 4) {
        _tile_loadd(1, output + TILE, width * 4);
        _tile_loadd(2, output + 2 * TILE, width * 4);
        _tile_loadd(3, output + 3 * TILE, width * 4);
    }
    for (int64_t block = 0; block < count; block++) {
        const bf16* values = blocks[block] + first * SIZE;
        _tile_loadd(5, weights + block * TILE, stride * 2);
        _tile_loadd(7, values, 64);
        _tile_dpbf16ps(0, 5, 7);
        fetch_for(block, 0);
        if constexpr (P == 4) {
            _tile_loadd(7, values + SIZE, 64);
            _tile_dpbf16ps(1, 5, 7);
            fetch_for(block, 1);
            _tile_loadd(7, values + 2 * SIZE, 64);
            _tile_dpbf16ps(2, 5, 7);
            fetch_for(block, 2);
            _tile_loadd(7, values + 3 * SIZE, 64);
            _tile_dpbf16ps(3, 5, 7);
            fetch_for(block, 3);
        }
    }
    store_sums<P>(output, width);
}

#endif

}  // namespace headwater::amx
