// One pass over the data each: at these sizes the cost is reading and writing it.
#include "elementwise.h"

#include <cmath>

namespace headwater {

constexpr int64_t PARALLEL_ELEMENTS = 32 * 1024;  // below, waking the other threads costs more than it saves

template <typename T>
void rms_norm(const T* x, int64_t x_stride, T* residual, const T* weight, float eps, T* output, int64_t rows,
              int64_t dim) {
#pragma omp parallel for if (rows * dim > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        const T* from = x + row * x_stride;
        T* to = output + row * dim;
        float squares = 0;
        if (residual) {
            T* sum = residual + row * dim;
#pragma omp simd
            for (int64_t d = 0; d < dim; d++) sum[d] = narrow<T>(widen(sum[d]) + widen(from[d]));
            from = sum;
        }
#pragma omp simd reduction(+ : squares)
        for (int64_t d = 0; d < dim; d++) squares += widen(from[d]) * widen(from[d]);
        const float factor = 1.0f / std::sqrt(squares / float(dim) + eps);
#pragma omp simd
        for (int64_t d = 0; d < dim; d++) to[d] = narrow<T>(widen(from[d]) * factor * widen(weight[d]));
    }
}

template <typename T>
void rope(T* x, int64_t stride, int64_t heads, int64_t head_dim, const float* cos, const float* sin, int64_t half,
          const int64_t* positions, int64_t tokens) {
#pragma omp parallel for if (tokens * heads * head_dim > PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < tokens; t++) {
        const float* c = cos + positions[t] * half;
        const float* s = sin + positions[t] * half;
        for (int64_t h = 0; h < heads; h++) {
            T* first = x + t * stride + h * head_dim;
            T* second = first + half;
#pragma omp simd
            for (int64_t d = 0; d < half; d++) {
                const float a = widen(first[d]), b = widen(second[d]);
                first[d] = narrow<T>(a * c[d] - b * s[d]);
                second[d] = narrow<T>(b * c[d] + a * s[d]);
            }
        }
    }
}

template <typename T> void silu_mul(const T* gate_up, T* output, int64_t rows, int64_t dim) {
#pragma omp parallel for if (rows * dim > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        const T* gate = gate_up + row * 2 * dim;
        const T* up = gate + dim;
        T* to = output + row * dim;
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) {
            const Vec g = load(gate + d);
            store(to + d, g / (1.0f + exp(-g)) * load(up + d));
        }
        for (; d < dim; d++) {
            const float g = widen(gate[d]);
            to[d] = narrow<T>(g / (1.0f + std::exp(-g)) * widen(up[d]));
        }
    }
}

#define INSTANTIATE(T)                                                                                              \
    template void rms_norm(const T*, int64_t, T*, const T*, float, T*, int64_t, int64_t);                           \
    template void rope(T*, int64_t, int64_t, int64_t, const float*, const float*, int64_t, const int64_t*, int64_t); \
    template void silu_mul(const T*, T*, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
#undef INSTANTIATE

}  // namespace headwater
