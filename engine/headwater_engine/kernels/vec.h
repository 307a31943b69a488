// Vectors of float, as wide as the machine's, and what the kernels do with them.
//
// GCC's and Clang's vector types stand in for intrinsics: the same lines become AVX2, AVX-512 or NEON. bfloat16 is
// storage only: it becomes float, exactly, by a shift, and all arithmetic is float.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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
constexpr int ROWS = 6;  // rows at once: ROWS * VECS accumulators stay in registers

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

// The TILE numbers of one row of a packed matrix. bfloat16 lies in pairs, (0, 8), (1, 9) and so on: one load, a shift
// and a mask widen two vectors, where widening each by itself would take as long as the arithmetic on it.
constexpr bool PAIRED = VECS == 2;
template <typename T> constexpr int place(int column) { return column; }
template <> constexpr int place<bf16>(int column) { return PAIRED ? column % LANES * 2 + column / LANES : column; }

inline void load_tile(const float* from, Vec* to) {
    for (int v = 0; v < VECS; v++) to[v] = load(from + v * LANES);
}
inline void load_tile(const bf16* from, Vec* to) {
    if constexpr (PAIRED) {
        WordVec pairs;
        std::memcpy(&pairs, from, sizeof pairs);
        to[0] = (Vec)(pairs << 16);
        to[1] = (Vec)(pairs & 0xFFFF0000u);
    } else {
        to[0] = load(from);
    }
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
inline void store(bf16* to, Vec v) {
    WordVec bits = (WordVec)v;
    bits += 0x7FFF + ((bits >> 16) & 1);
    const HalfVec half = __builtin_convertvector(bits >> 16, HalfVec);
    std::memcpy(to, &half, sizeof half);
}

inline Vec spread(float x) { return x - Vec{}; }  // x + 0 would cost an addition: it is not x for -0
inline Vec select(IntVec where, Vec yes, Vec no) { return where ? yes : no; }
inline Vec max(Vec a, Vec b) { return select(a > b, a, b); }

inline float sum(Vec v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}
inline float max(Vec v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

// e^x to about 2 units in the last place; 0 below -87, where float has no normal numbers left. The range is reduced to
// |r| <= ln(2) / 2, a polynomial does the rest (Cody and Waite; coefficients of Cephes' expf).
inline Vec exp(Vec x) {
    const IntVec tiny = x < -87.0f;
    x = select(x > 88.0f, spread(88.0f), select(tiny, spread(-87.0f), x));
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Vec n = (x * 1.44269504f + shift) - shift;
    const Vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
    Vec p = spread(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
    return select(tiny, Vec{}, p * (Vec)power);
}

}  // namespace headwater
