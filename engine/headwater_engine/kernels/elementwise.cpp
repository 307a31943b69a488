// One pass over the data each: at these sizes the cost is reading and writing it.
#include "elementwise.h"

#include <algorithm>

#include "rows.h"
#include "team.h"

namespace headwater {

constexpr int64_t PIECE_ELEMENTS = 16 * 1024;  // below two of them, to tell the other threads costs more than it saves

// Calls f(row) for all rows, which are of `dim` elements.
template <typename F> static void for_rows(int64_t rows, int64_t dim, F f) {
    in_ranges(rows, std::max<int64_t>(1, PIECE_ELEMENTS / std::max<int64_t>(1, dim)), [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) f(row);
    });
}

template <typename T>
void rms_norm(const T* x, int64_t x_stride, T* residual, const T* weight, float eps, T* output, int64_t rows,
              int64_t dim) {
    for_rows(rows, dim, [&](int64_t row) {
        const T* from = x + row * x_stride;
        if (residual) {
            T* sum = residual + row * dim;
            by_vectors(dim, [&](int64_t d, auto one) { put(sum + d, get(sum + d, one) + get(from + d, one)); });
            from = sum;
        }
        normalize(from, weight, eps, output + row * dim, dim);
    });
}

template <typename T> void silu_mul(const T* gate_up, T* output, int64_t rows, int64_t dim) {
    for_rows(rows, dim, [&](int64_t row) {
        const T* gate = gate_up + row * 2 * dim;
        const T* up = gate + dim;
        T* to = output + row * dim;
        by_vectors(dim, [&](int64_t d, auto one) { put(to + d, silu(get(gate + d, one)) * get(up + d, one)); });
    });
}

template <typename W, typename Y> void take_rows(const W* table, const int64_t* rows, int64_t count, int64_t dim, Y* y) {
    for_rows(count, dim, [&](int64_t row) {
        const W* from = table + rows[row] * dim;
        by_vectors(dim, [&](int64_t d, auto one) { put(y + row * dim + d, get(from + d, one)); });
    });
}
template void take_rows(const float*, const int64_t*, int64_t, int64_t, float*);
template void take_rows(const bf16*, const int64_t*, int64_t, int64_t, float*);
template void take_rows(const bf16*, const int64_t*, int64_t, int64_t, bf16*);

#define INSTANTIATE(T)                                                                                              \
    template void rms_norm(const T*, int64_t, T*, const T*, float, T*, int64_t, int64_t);                           \
    template void silu_mul(const T*, T*, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
#undef INSTANTIATE

}  // namespace headwater
