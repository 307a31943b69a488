// y = x W^T + b with float activations and packed weights of float or bfloat16.
#pragma once

#include <cstdint>

#include "vec.h"

namespace headwater {

// Number of elements of a packed [outputs, inputs] weight.
inline int64_t packed_size(int64_t outputs, int64_t inputs) { return (outputs + TILE - 1) / TILE * TILE * inputs; }

template <typename W> void pack(const W* weight, int64_t outputs, int64_t inputs, W* packed);

// x [rows, inputs] with `x_stride` between rows, y [rows, outputs], bias [outputs] or null.
template <typename W>
void gemm(const float* x, int64_t x_stride, const W* packed, const float* bias, float* y, int64_t rows, int64_t inputs,
          int64_t outputs);

}  // namespace headwater
