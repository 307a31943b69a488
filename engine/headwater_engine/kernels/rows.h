// What is done to one row of numbers: a hidden state, or a head of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace headwater {

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

// to = from / rms(from) * weight; both may be the same.
template <typename T> inline void normalize(const T* from, const T* weight, float eps, T* to, int64_t dim) {
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
}

// The first 2 * half numbers of a head, by the angles of its position: first half against second half.
template <typename T> inline void rotate_head(T* head, const float* cos, const float* sin, int64_t half) {
    by_vectors(half, [&](int64_t d, auto one) {
        const auto a = get(head + d, one), b = get(head + half + d, one);
        const auto cos_d = get(cos + d, one), sin_d = get(sin + d, one);
        put(head + d, a * cos_d - b * sin_d);
        put(head + half + d, b * cos_d + a * sin_d);
    });
}

}  // namespace headwater
