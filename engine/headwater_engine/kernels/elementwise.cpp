// One pass over the data each: at these sizes the cost is reading and writing it.
#include "elementwise.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "team.h"

namespace headwater {

constexpr int64_t PIECE_ELEMENTS = 16 * 1024;  // below two of them, to tell the other threads costs more than it saves

// Calls f(row) for all rows, which are of `dim` elements.
template <typename F> static void for_rows(int64_t rows, int64_t dim, F f) {
    in_ranges(rows, std::max<int64_t>(1, PIECE_ELEMENTS / std::max<int64_t>(1, dim)), [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) f(row);
    });
}

// Calls f for every whole vector, then for every element that is left: then the second argument is true.
template <typename F> inline void by_vectors(int64_t dim, F f) {
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) f(d, std::false_type{});
    for (; d < dim; d++) f(d, std::true_type{});
}
template <typename T> inline Vec get(const T* from, std::false_type) { return load(from); }
template <typename T> inline float get(const T* from, std::true_type) { return widen(*from); }
template <typename T> inline void put(T* to, Vec v) { store(to, v); }
template <typename T> inline void put(T* to, float x) { *to = narrow<T>(x); }
using std::exp;  // beside that of vectors

template <typename T>
void rms_norm(const T* x, int64_t x_stride, T* residual, const T* weight, float eps, T* output, int64_t rows,
              int64_t dim) {
    for_rows(rows, dim, [&](int64_t row) {
        const T* from = x + row * x_stride;
        T* to = output + row * dim;
        if (residual) {
            T* sum = residual + row * dim;
            by_vectors(dim, [&](int64_t d, auto one) { put(sum + d, get(sum + d, one) + get(from + d, one)); });
            from = sum;
        }
        Vec squares{};
        float rest = 0;
        by_vectors(dim, [&](int64_t d, auto one) {
            const auto value = get(from + d, one);
            if constexpr (one)
                rest += value * value;
            else
                squares += value * value;
        });
        const float factor = 1.0f / std::sqrt((sum(squares) + rest) / float(dim) + eps);
        by_vectors(dim, [&](int64_t d, auto one) { put(to + d, get(from + d, one) * factor * get(weight + d, one)); });
    });
}

template <typename T>
void rope(T* x, int64_t stride, int64_t heads, int64_t head_dim, const float* cos, const float* sin, int64_t half,
          const int64_t* positions, int64_t tokens) {
    for_rows(tokens, heads * head_dim, [&](int64_t t) {
        const float* c = cos + positions[t] * half;
        const float* s = sin + positions[t] * half;
        for (int64_t h = 0; h < heads; h++) {
            T* first = x + t * stride + h * head_dim;
            T* second = first + half;
            by_vectors(half, [&](int64_t d, auto one) {
                const auto a = get(first + d, one), b = get(second + d, one);
                const auto cos_d = get(c + d, one), sin_d = get(s + d, one);
                put(first + d, a * cos_d - b * sin_d);
                put(second + d, b * cos_d + a * sin_d);
            });
        }
    });
}

template <typename T> void silu_mul(const T* gate_up, T* output, int64_t rows, int64_t dim) {
    for_rows(rows, dim, [&](int64_t row) {
        const T* gate = gate_up + row * 2 * dim;
        const T* up = gate + dim;
        T* to = output + row * dim;
        by_vectors(dim, [&](int64_t d, auto one) {
            const auto g = get(gate + d, one);
            put(to + d, g / (1.0f + exp(-g)) * get(up + d, one));
        });
    });
}

#define INSTANTIATE(T)                                                                                              \
    template void rms_norm(const T*, int64_t, T*, const T*, float, T*, int64_t, int64_t);                           \
    template void rope(T*, int64_t, int64_t, int64_t, const float*, const float*, int64_t, const int64_t*, int64_t); \
    template void silu_mul(const T*, T*, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(bf16)
#undef INSTANTIATE

}  // namespace headwater
