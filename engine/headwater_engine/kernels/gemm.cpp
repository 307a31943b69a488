// Products with packed weights.
//
// A weight [outputs, inputs] is cut into panels of TILE outputs, each stored input by input: what the inner loop reads
// next always lies next. A panel, once read from memory, stays in the cache while all rows of x pass by; while one or a
// few rows are computed, as in decoding, the panels are read at the memory's own speed.
//
// Each output is one sum in the order of the inputs, whatever the number of rows: a row's result does not depend on
// what else is in the batch, to the last bit.
#include "gemm.h"

#include <omp.h>

#include <algorithm>
#include <vector>

namespace headwater {

constexpr int64_t GROUP_BYTES = 192 * 1024;  // of panels that one thread works through together; they stay in its L2

template <typename W> void pack(const W* weight, int64_t outputs, int64_t inputs, W* packed) {
    const int64_t panels = (outputs + TILE - 1) / TILE;
#pragma omp parallel for
    for (int64_t panel = 0; panel < panels; panel++) {
        W* to = packed + panel * TILE * inputs;
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t column = 0; column < TILE; column++) {
                const int64_t output = panel * TILE + column;
                to[i * TILE + place<W>(int(column))] = output < outputs ? weight[output * inputs + i] : W{};
            }
    }
}

// R rows times P neighbouring panels. Tiles are [P][R][TILE].
//
// The sums of one row wait for one another; with few rows, several panels at once keep the units busy. Never inlined:
// among the caller's variables GCC runs out of registers, and halves the speed.
template <int R, int P, typename W>
__attribute__((noinline))
static void multiply(const float* x, int64_t x_stride, const W* panels, int64_t inputs, float* tiles) {
    Vec sums[P][R][VECS] = {};
#pragma GCC unroll 4
    for (int64_t i = 0; i < inputs; i++)
        for (int p = 0; p < P; p++) {
            Vec w[VECS];
            load_tile(panels + (p * inputs + i) * TILE, w);
            for (int r = 0; r < R; r++) {
                const Vec each = spread(x[r * x_stride + i]);
                for (int v = 0; v < VECS; v++) sums[p][r][v] += each * w[v];
            }
        }
    for (int p = 0; p < P; p++)
        for (int r = 0; r < R; r++)
            for (int v = 0; v < VECS; v++) store(tiles + (p * R + r) * TILE + v * LANES, sums[p][r][v]);
}

// The same for `rows` <= ROWS rows and as many panels as suit them, at most `panels`. Returns how many it took.
template <typename W>
static int multiply_some(int rows, int64_t panels, const float* x, int64_t x_stride, const W* from, int64_t inputs,
                         float* tiles) {
    switch (rows) {
        case 1:
            if (panels >= 4) return multiply<1, 4>(x, x_stride, from, inputs, tiles), 4;
            return multiply<1, 1>(x, x_stride, from, inputs, tiles), 1;
        case 2:
            if (panels >= 2) return multiply<2, 2>(x, x_stride, from, inputs, tiles), 2;
            return multiply<2, 1>(x, x_stride, from, inputs, tiles), 1;
        case 3:
            if (panels >= 2) return multiply<3, 2>(x, x_stride, from, inputs, tiles), 2;
            return multiply<3, 1>(x, x_stride, from, inputs, tiles), 1;
        case 4: return multiply<4, 1>(x, x_stride, from, inputs, tiles), 1;
        case 5: return multiply<5, 1>(x, x_stride, from, inputs, tiles), 1;
        default: return multiply<ROWS, 1>(x, x_stride, from, inputs, tiles), 1;
    }
}

struct Product {
    const float* x;
    int64_t x_stride;
    const float* bias;
    float* y;
    int64_t rows, inputs, outputs;
};

// All rows times the panels `first` to `last`, which begin at `from`.
template <typename W> static void multiply_group(const Product& p, const W* from, int64_t first, int64_t last) {
    float tiles[8 * TILE];
    const int64_t strips = (p.rows + ROWS - 1) / ROWS;
    for (int64_t strip = 0; strip < strips; strip++) {
        // Strips of nearly the same height: a last one of one or two rows would cost as much as a full one.
        const int64_t row = p.rows * strip / strips;
        const int count = int(p.rows * (strip + 1) / strips - row);
        for (int64_t panel = first; panel < last;) {
            const W* weights = from + (panel - first) * TILE * p.inputs;
            const int taken =
                multiply_some(count, last - panel, p.x + row * p.x_stride, p.x_stride, weights, p.inputs, tiles);
            for (int t = 0; t < taken; t++, panel++) {
                const int64_t column = panel * TILE;
                const int64_t width = std::min<int64_t>(TILE, p.outputs - column);
                for (int r = 0; r < count; r++)
                    for (int64_t c = 0; c < width; c++)
                        p.y[(row + r) * p.outputs + column + c] =
                            tiles[(t * count + r) * TILE + c] + (p.bias ? p.bias[column + c] : 0.0f);
            }
        }
    }
}

template <typename W>
void gemm(const float* x, int64_t x_stride, const W* packed, const float* bias, float* y, int64_t rows, int64_t inputs,
          int64_t outputs) {
    const Product product{x, x_stride, bias, y, rows, inputs, outputs};
    const int64_t panels = (outputs + TILE - 1) / TILE;
    const int64_t fitting = std::max<int64_t>(4, GROUP_BYTES / int64_t(TILE * inputs * sizeof(W)));
    // No larger than leaves every thread something to do.
    const int64_t group = std::min(fitting, (panels + omp_get_max_threads() - 1) / omp_get_max_threads());
    const int64_t groups = (panels + group - 1) / group;
#pragma omp parallel for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
        const int64_t first = g * group, last = std::min(panels, first + group);
        multiply_group(product, packed + first * TILE * inputs, first, last);
    }
}

template void pack(const float*, int64_t, int64_t, float*);
template void pack(const bf16*, int64_t, int64_t, bf16*);
template void gemm(const float*, int64_t, const float*, const float*, float*, int64_t, int64_t, int64_t);
template void gemm(const float*, int64_t, const bf16*, const float*, float*, int64_t, int64_t, int64_t);

}  // namespace headwater
