// Vectors of float, as wide as the machine's, and what the kernels do with them.
//
// GCC's and Clang's vector types stand in for intrinsics: the same lines become AVX2, AVX-512 or NEON. Only what has no
// operator, as AVX-512's dot product of bfloat16, is an intrinsic where there is one. bfloat16 becomes float, exactly, by
// a shift.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace headwater {

struct bf16 {
    uint16_t bits;
};

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int TILE = 16;  // columns that a micro-kernel computes at once: keys of a KV block, outputs of a product
constexpr int VECS = TILE / LANES;
constexpr int64_t tiles(int64_t columns) { return (columns + TILE - 1) / TILE; }
constexpr int64_t padded(int64_t columns) { return tiles(columns) * TILE; }

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef uint32_t WordVec __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(LANES * 2)));

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

template <typename T> T narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline bf16 narrow<bf16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits += 0x7FFF + ((bits >> 16) & 1);  // to the nearest, ties to even
    return {uint16_t(bits >> 16)};
}

inline Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
inline Vec load(const bf16* from) {
    HalfVec half;
    std::memcpy(&half, from, sizeof half);
    return (Vec)(__builtin_convertvector(half, WordVec) << 16);
}

// A packed matrix: rows of TILE columns, which are read at once. bfloat16 rows lie in pairs, element by
// element: a load, a shift and a mask widen two vectors, where widening each by itself would take as long as the
// arithmetic on it, and AVX-512's dot product of bfloat16 takes such pairs as they are.
template <typename W> constexpr int64_t place(int64_t row, int64_t column) {
    if constexpr (sizeof(W) == 2)
        return row / 2 * 2 * TILE + 2 * column + row % 2;
    else
        return row * TILE + column;
}
template <typename W> constexpr int64_t packed_rows(int64_t rows) { return sizeof(W) == 2 ? rows + rows % 2 : rows; }

// Vector v of a row: the first or the second of the pair of rows at `pair`.
inline Vec load_row(const float* pair, int which, int v) { return load(pair + which * TILE + v * LANES); }
inline Vec load_row(const bf16* pair, int which, int v) {
    WordVec words;
    std::memcpy(&words, pair + v * 2 * LANES, sizeof words);
    return (Vec)(which ? words & 0xFFFF0000u : words << 16);
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
inline void store(bf16* to, Vec v) {
#if defined(__AVX512BF16__)
    const auto half = _mm512_cvtneps_pbh((__m512)v);
#else
    WordVec bits = (WordVec)v;
    bits += 0x7FFF + ((bits >> 16) & 1);
    const HalfVec half = __builtin_convertvector(bits >> 16, HalfVec);
#endif
    std::memcpy(to, &half, sizeof half);
}

inline Vec spread(float x) { return x - Vec{}; }  // x + 0 would cost an addition: it is not x for -0
inline Vec select(IntVec where, Vec yes, Vec no) { return where ? yes : no; }
// Of two, one of which is NaN, the second. GCC 12 does not always find AVX-512's instruction for it.
#if defined(__AVX512F__)
inline Vec max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vec min(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
#else
inline Vec max(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec min(Vec a, Vec b) { return select(a < b, a, b); }
#endif

template <int... lane> constexpr IntVec lanes(std::integer_sequence<int, lane...>) { return IntVec{lane...}; }
constexpr IntVec LANE = lanes(std::make_integer_sequence<int, LANES>{});  // 0, 1, 2 ...

// The vector with its lanes i and i ^ distance exchanged.
template <int... lane> inline Vec exchanged(Vec v, int distance, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
    Vec to = {v[lane ^ distance]...};
    return to;
#else
    return __builtin_shuffle(v, IntVec{(lane ^ distance)...});
#endif
}
template <typename F> inline float reduce(Vec v, F f) {
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        v = f(v, exchanged(v, distance, std::make_integer_sequence<int, LANES>{}));
    return v[0];
}
inline float sum(Vec v) {
    return reduce(v, [](Vec a, Vec b) { return a + b; });
}
inline float max(Vec v) {
    return reduce(v, [](Vec a, Vec b) { return max(a, b); });
}

// 2^n of integers from -126 to 127.
inline Vec power_of_two(Vec n) { return (Vec)((__builtin_convertvector(n, IntVec) + 127) << 23); }

// e^x to about 2 units in the last place. Below -87, where float has no normal numbers left, e^-87: a CPU takes some 150
// cycles for a result that is smaller. The range is reduced to |r| <= ln(2) / 2, a polynomial does the rest (Cody and Waite;
// coefficients of Cephes' expf).
inline Vec exp(Vec x) {
    x = max(spread(-87.0f), min(spread(88.0f), x));  // in this order, NaN stays NaN
    const float shift = 12582912.0f;                 // 1.5 * 2^23: adding it rounds to an integer
    const Vec n = (x * 1.44269504f + shift) - shift;
    const Vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
    Vec p = spread(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * power_of_two(n);
}

// 2^x of x up to 100, as precise, in half the operations; at least 2^-125. Coefficients of Cephes' exp2f. What rounds x to an
// integer leaves it in its lowest bits, from where it is added to the exponent of the polynomial.
inline Vec exp2(Vec x) {
    x = max(spread(-125.0f), x);
    const Vec shifted = x + 12582912.0f;
    const Vec r = x - (shifted - 12582912.0f);
    Vec p = spread(1.535336188e-4f);
    p = p * r + 1.339887440e-3f;
    p = p * r + 9.618437357e-3f;
    p = p * r + 5.550332471e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472029e-1f;
    p = p * r + 1.0f;
    return (Vec)((IntVec)p + ((IntVec)shifted << 23));
}

using std::exp;  // beside that of vectors

// Of a vector or a number.
template <typename V> inline V silu(V x) {
    return x / (1.0f + exp(-x));
}

}  // namespace headwater
