// What lies between the products of a layer, but for attention: norms and activation. And where it all begins: rows of a table.
#pragma once

#include <cstdint>

#include "vec.h"

namespace headwater {

// output [rows, dim] contiguous; x with `x_stride` between rows. With `residual` (contiguous), residual += x comes first,
// and the residual is what is normalised.
template <typename T>
void rms_norm(const T* x, int64_t x_stride, T* residual, const T* weight, float eps, T* output, int64_t rows,
              int64_t dim);

// y [count, dim]: those of the rows of a table [any, dim] that `rows` names.
template <typename W, typename Y> void take_rows(const W* table, const int64_t* rows, int64_t count, int64_t dim, Y* y);

template <typename T> void silu_mul(const T* gate_up, T* output, int64_t rows, int64_t dim);

}  // namespace headwater
