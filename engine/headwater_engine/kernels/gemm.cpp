// Products with packed weights.
//
// A weight [outputs, inputs] is cut into panels of TILE outputs: what the inner loop (tile.h) reads next always lies
// next. A group of panels, once read from memory, stays in the cache while all rows of x pass by.
//
// While one or a few rows are computed, as in decoding, panels are read at the memory's own speed. The rows of a large
// batch that decodes compute for about as long as the memory takes to bring the weights. Both then happen at once: while
// a group is computed, each strip of rows asks for a share of the next group.
//
// Where the CPU has AMX, it multiplies panels as they are (amx.h); the order of work is the same. It is so fast that weights
// must come from memory for more rows at once.
//
// The work is shared by panels, so that each weight is read by one thread. Where there are many rows, as in prefill, it
// is shared by rows, as all that is done between two products: what a thread reads is then in its own cache, not in
// another core's.
//
// Each output is one sum in the order of the inputs, whatever the number of rows: a row's result does not depend on
// what else is in the batch, to the last bit.
#include "gemm.h"

#include <algorithm>
#include <type_traits>

#include "amx.h"
#include "team.h"
#include "tile.h"

namespace headwater {

constexpr int64_t GROUP_BYTES = 192 * 1024;  // of panels that one thread works through together; they stay in its L2
constexpr int64_t LOOKED_UP = 16;  // rows of a table that one thread looks up: fewer take less time than to share them
// With so many rows for each thread, a thread takes all panels for some rows: those that it has, and with tiles.
constexpr int64_t OWN_ROWS = 128, OWN_ROWS_ON_TILES = 256;

template <typename W> void pack(const W* weight, int64_t outputs, int64_t inputs, W* packed) {
    const int64_t panels = tiles(outputs), rows = packed_rows<W>(inputs);
    in_pieces(panels, [&](int64_t panel) {
        for (int64_t i = 0; i < rows; i++)
            for (int64_t column = 0; column < TILE; column++) {
                const int64_t output = panel * TILE + column;
                packed[panel * TILE * rows + place<W>(i, column)] =
                    output < outputs && i < inputs ? weight[output * inputs + i] : W{};
            }
    });
}

template <typename W, typename Y>
void unpack_rows(const W* packed, const int64_t* rows, int64_t count, int64_t inputs, Y* y) {
    in_ranges(count, LOOKED_UP, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            const W* panel = packed + rows[r] / TILE * TILE * packed_rows<W>(inputs);
            for (int64_t i = 0; i < inputs; i++)
                y[r * inputs + i] = narrow<Y>(widen(panel[place<W>(i, rows[r] % TILE)]));
        }
    });
}

template <typename X, typename Y> struct Product {
    const X* x;
    int64_t x_stride;
    const float* bias;
    Y* y;
    int64_t rows, inputs, outputs;
    bool gated = false;

    int64_t panels() const { return (gated ? 2 : 1) * tiles(outputs); }
    Product of_rows(int64_t first, int64_t last) const {
        return {x + first * x_stride, x_stride, bias, y + first * outputs, last - first, inputs, outputs, gated};
    }
};

// Of a vector of outputs of one row, from `column` on, those that there are.
template <typename X, typename Y>
__attribute__((noinline)) static void write_rest(const Product<X, Y>& p, int64_t row, int64_t column, Vec sums) {
    for (int64_t lane = 0; column + lane < p.outputs; lane++)
        p.y[row * p.outputs + column + lane] = narrow<Y>(sums[lane] + (p.bias ? p.bias[column + lane] : 0.0f));
}

template <typename X, typename Y>
inline void write_sums(const Product<X, Y>& p, int64_t row, int64_t column, Vec sums) {
    if (column + LANES <= p.outputs)
        store(p.y + row * p.outputs + column, p.bias ? sums + load(p.bias + column) : sums);
    else
        write_rest(p, row, column, sums);
}

// Of outputs that there are two of, whole vectors.
template <typename X, typename Y>
inline void write_gated(const Product<X, Y>& p, int64_t row, int64_t column, Vec gate, Vec up) {
    if (p.bias) gate += load(p.bias + column), up += load(p.bias + p.outputs + column);
    store(p.y + row * p.outputs + column, silu(gate) * up);
}

// R rows from `row` on times the P panels at `from`, which make the outputs from `column` on. `next`: a panel to fetch
// meanwhile, or null.
template <int R, int P, typename X, typename W, typename Y>
__attribute__((noinline, flatten)) static void multiply(const Product<X, Y>& p, int64_t row, int64_t column,
                                                        const W* from, const W* next) {
    const W* panels[P];
    for (int t = 0; t < P; t++) panels[t] = from + t * TILE * packed_rows<W>(p.inputs);
    const W* ahead[1] = {next};
    Sums<R, P> sums;
    clear<R, P>(sums);
    accumulate<R, P>(sums, p.x + row * p.x_stride, p.x_stride, panels, p.inputs, ahead);
    for_sums<R, P>(
        [&](int r, int t, int v) { write_sums(p, row + r, column + t * TILE + v * LANES, sums[r][t][v]); });
}

// All rows times the panels `first` to `last`. Meanwhile those behind them are fetched.
template <typename X, typename W, typename Y>
static void multiply_group(const Product<X, Y>& p, const W* packed, int64_t first, int64_t last) {
    const int64_t panel_size = TILE * packed_rows<W>(p.inputs), panels = tiles(p.outputs);
    in_strips(p.rows, [&](auto R, int64_t row, int64_t strip) {
        constexpr int P = panels_for(R);
        in_groups<P>(last - first, [&](auto taken, int64_t offset) {
            const int64_t panel = first + offset, next = last + offset + strip;
            const W* ahead = strip < P && next < panels ? packed + next * panel_size : nullptr;
            multiply<R, taken>(p, row, panel * TILE, packed + panel * panel_size, ahead);
        });
    });
}

#if defined(__AMX_BF16__)
// Rows of sums of one or two panels, on their way to y: a few at a time, beside the products of the next ones.
struct Written {
    const float* sums = nullptr;
    int64_t row = 0, rows = 0, column = 0, panels = 0;
    int64_t next = 0;  // of the rows, the first that is not written yet

    template <typename Y> void write(const Product<bf16, Y>& p, int64_t count) {
        for (const int64_t end = std::min(rows, next + count); next < end; next++) {
            const float* from = sums + next * panels * TILE;
            if (p.gated)
                write_gated(p, row + next, column / 2, load(from), load(from + TILE));
            else
                for (int64_t c = 0; c < panels * TILE; c += LANES) write_sums(p, row + next, column + c, load(from + c));
        }
    }
};

// The same on AMX.
template <typename Y>
static void multiply_group_on_tiles(const Product<bf16, Y>& p, const bf16* packed, int64_t first, int64_t last) {
    const int64_t panel_size = TILE * p.inputs, steps = p.inputs / amx::INPUTS;
    const int64_t strips = (p.rows + 2 * amx::ROWS - 1) / (2 * amx::ROWS);
    alignas(64) float sums[2][2 * amx::ROWS * 2 * TILE];
    Written before;
    int64_t turn = 0;
    for (int64_t strip = 0; strip < strips; strip++) {
        const int64_t row = p.rows * strip / strips, rows = p.rows * (strip + 1) / strips - row;
        const amx::Tiles each(rows);
        in_groups<2>(last - first, [&](auto taken, int64_t offset) {
            const int64_t panel = first + offset, next = last + offset;
            const int64_t lines = (taken * TILE + strips - 1) / strips;  // each strip fetches its share of the next group
            const bf16* ahead = next < p.panels() ? packed + next * panel_size + strip * lines * p.inputs : nullptr;
            const int64_t written = (before.rows + steps - 1) / steps;
            const auto meanwhile = [&] {
                if (ahead)
                    for (int64_t line = 0; line < lines; line++, ahead += 32) __builtin_prefetch(ahead, 0, 2);
                before.write(p, written);
            };
            const auto multiply = [&](auto two) {
                amx::multiply<two, taken>(p.x + row * p.x_stride, p.x_stride, packed + panel * panel_size, p.inputs, sums[turn],
                                          meanwhile);
            };
            rows > amx::ROWS ? multiply(std::true_type{}) : multiply(std::false_type{});
            before = {sums[turn], row, rows, panel * TILE, taken};
            turn ^= 1;
        });
    }
    before.write(p, before.rows);
}
#endif

// A weight is always multiplied in the same way, however many rows there are.
template <typename X> static bool takes_tiles(int64_t inputs) {
    return sizeof(X) == 2 && inputs % amx::INPUTS == 0 && amx::granted();
}

template <typename X, typename W, typename Y>
static void multiply_any(const Product<X, Y>& p, const W* packed, int64_t first, int64_t last) {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(X) == 2)
        if (takes_tiles<X>(p.inputs)) return multiply_group_on_tiles(p, packed, first, last);
#endif
    multiply_group(p, packed, first, last);
}

template <typename X, typename W, typename Y> static void multiply_shared(const Product<X, Y>& p, const W* packed) {
    const int64_t panels = p.panels(), threads = team_size();
    constexpr int64_t MOST_PANELS = panels_for(1);
    const int64_t unit_bytes = MOST_PANELS * packed_size<W>(TILE, p.inputs) * int64_t(sizeof(W));
    const int64_t group = MOST_PANELS * std::max<int64_t>(1, GROUP_BYTES / unit_bytes);
    const int64_t own_rows = takes_tiles<X>(p.inputs) ? OWN_ROWS_ON_TILES : OWN_ROWS;
    if (p.rows < own_rows * threads) {
        in_pieces((panels + group - 1) / group, [&](int64_t piece) {
            multiply_any(p, packed, piece * group, std::min(panels, (piece + 1) * group));
        });
    } else {
        const int64_t own_group = takes_tiles<X>(p.inputs) ? 2 * group : group;  // the L2 of a core with AMX has 2 MiB
        in_ranges(p.rows, own_rows, [&](int64_t first, int64_t last) {
            const auto own = p.of_rows(first, last);
            for (int64_t panel = 0; panel < panels; panel += own_group)
                multiply_any(own, packed, panel, std::min(panels, panel + own_group));
        });
    }
}

template <typename X, typename W, typename Y>
void gemm(const X* x, int64_t x_stride, const W* packed, const float* bias, Y* y, int64_t rows, int64_t inputs,
          int64_t outputs) {
    multiply_shared(Product<X, Y>{x, x_stride, bias, y, rows, inputs, outputs}, packed);
}

bool takes_gated(int64_t inputs, int64_t outputs) { return takes_tiles<bf16>(inputs) && outputs % TILE == 0; }

void gated_gemm(const bf16* x, int64_t x_stride, const bf16* packed, const float* bias, bf16* y, int64_t rows, int64_t inputs,
                int64_t outputs) {
    multiply_shared(Product<bf16, bf16>{x, x_stride, bias, y, rows, inputs, outputs, true}, packed);
}

template void pack(const float*, int64_t, int64_t, float*);
template void pack(const bf16*, int64_t, int64_t, bf16*);
template void gemm(const float*, int64_t, const float*, const float*, float*, int64_t, int64_t, int64_t);
template void gemm(const float*, int64_t, const bf16*, const float*, float*, int64_t, int64_t, int64_t);
template void gemm(const bf16*, int64_t, const bf16*, const float*, bf16*, int64_t, int64_t, int64_t);
template void gemm(const bf16*, int64_t, const bf16*, const float*, float*, int64_t, int64_t, int64_t);
template void unpack_rows(const float*, const int64_t*, int64_t, int64_t, float*);
template void unpack_rows(const bf16*, const int64_t*, int64_t, int64_t, float*);
template void unpack_rows(const bf16*, const int64_t*, int64_t, int64_t, bf16*);

}  // namespace headwater
