// y = x W^T + b with packed weights.
#pragma once

#include <cstdint>

#include "vec.h"

namespace headwater {

// Number of elements of a packed [outputs, inputs] weight.
template <typename W> int64_t packed_size(int64_t outputs, int64_t inputs) {
    return padded(outputs) * packed_rows<W>(inputs);
}

template <typename W> void pack(const W* weight, int64_t outputs, int64_t inputs, W* packed);

// x [rows, inputs] with `x_stride` between rows, y [rows, outputs], bias [outputs] or null. float x takes weights of
// float or bfloat16 and gives float y; bfloat16 x takes bfloat16 weights and gives either.
template <typename X, typename W, typename Y>
void gemm(const X* x, int64_t x_stride, const W* packed, const float* bias, Y* y, int64_t rows, int64_t inputs,
          int64_t outputs);

// A gate and what it lets through, at once: y = silu(x G^T + b) * (x U^T + c), y [rows, outputs], biases b and c behind one
// another. `packed` has the rows of G and U in turns, TILE of one and TILE of the other. Only where takes_gated says so:
// tiles (amx.h) leave the CPU time for it while they multiply.
bool takes_gated(int64_t inputs, int64_t outputs);
void gated_gemm(const bf16* x, int64_t x_stride, const bf16* packed, const float* bias, bf16* y, int64_t rows, int64_t inputs,
                int64_t outputs);

// y [count, inputs]: those of the rows of a packed weight that `rows` names.
template <typename W, typename Y>
void unpack_rows(const W* packed, const int64_t* rows, int64_t count, int64_t inputs, Y* y);

}  // namespace headwater
