// The inner loop of every product here: a few rows times a few panels, with all sums in registers.
//
// A panel is a packed matrix (vec.h) of TILE columns: the outputs of a weight, the keys of a block, the dimensions of
// values. Rows are float, or bfloat16 where the panels are, too. Then two inputs are multiplied at a time by AVX-512's
// dot product of pairs; a CPU without it puts it together from shifts and products, which is right but slow.
//
// Each sum is taken in the order of the inputs, whatever the number of rows and panels.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace headwater {

#if defined(__AVX512F__)
constexpr int MOST_ROWS = 9;  // times three panels: 27 of 32 registers hold sums
constexpr int panels_for(int rows) { return rows <= 4 ? 6 : 3; }
#else
constexpr int MOST_ROWS = 6;  // times two vectors: 12 of 16 registers hold sums
constexpr int panels_for(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#endif

template <int R, int P> using Sums = Vec[R][P][VECS];

// Calls f(0), f(1) ... f(N - 1), written out. GCC holds an array in registers from start to end only if every place in it
// is a constant before anything else is done to the code. So functions that have sums are `flatten`: all they call
// becomes part of them at once. And `noinline`: among a caller's variables there would be too few registers.
template <int N, typename F> inline void unroll(F f) {
    [&]<int... i>(std::integer_sequence<int, i...>) { (f(i), ...); }(std::make_integer_sequence<int, N>{});
}

// Calls f(r, p, v) for every vector of sums.
template <int R, int P, typename F> inline void for_sums(F f) {
    unroll<R * P * VECS>([&](int i) { f(i / VECS / P, i / VECS % P, i % VECS); });
}

template <int R, int P> inline void clear(Sums<R, P>& sums) {
    for_sums<R, P>([&](int r, int p, int v) { sums[r][p][v] = Vec{}; });
}

// sums + w[0] * x[0] + w[1] * x[1], of LANES pairs w and one pair x.
inline Vec add_dot(Vec sums, WordVec w, uint32_t x) {
#if defined(__AVX512BF16__)
    return (Vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)w, (__m512bh)_mm512_set1_epi32(int(x)));
#else
    const WordVec pairs = x - WordVec{};
    sums += (Vec)(w << 16) * (Vec)(pairs << 16);
    return sums + (Vec)(w & 0xFFFF0000u) * (Vec)(pairs & 0xFFFF0000u);
#endif
}

// v, held in a register. Else GCC reads it from memory for every use, and the reads become the bottleneck.
inline Vec keep(Vec v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#endif
    return v;
}

// COUNT, 1 or 2, inputs of R rows that are `stride` apart, times those of P panels.
template <int COUNT, int R, int P, typename W>
inline void add_pair(Sums<R, P>& sums, const float* x, int64_t stride, const W* const (&pairs)[P]) {
    // With 32 registers, each x is spread once for all panels. With 16, that would push sums out.
    constexpr int AT_ONCE = LANES == 16 ? P : 1;
    unroll<COUNT * P / AT_ONCE>([&](int turn) {
        const int which = turn / (P / AT_ONCE), first = turn % (P / AT_ONCE) * AT_ONCE;
        Vec w[AT_ONCE][VECS];
        for_sums<1, AT_ONCE>([&](int, int p, int v) { w[p][v] = keep(load_row(pairs[first + p], which, v)); });
        for_sums<R, AT_ONCE>(
            [&](int r, int p, int v) { sums[r][first + p][v] += spread(x[r * stride + which]) * w[p][v]; });
    });
}
template <int COUNT, int R, int P>
inline void add_pair(Sums<R, P>& sums, const bf16* x, int64_t stride, const bf16* const (&pairs)[P]) {
    WordVec w[P][VECS];
    for_sums<1, P>([&](int, int p, int v) { std::memcpy(&w[p][v], pairs[p] + v * 2 * LANES, sizeof(WordVec)); });
    for_sums<R, P>([&](int r, int p, int v) {
        uint32_t pair = 0;  // a second input that is not there must not be read: it could be NaN
        std::memcpy(&pair, x + r * stride, COUNT * sizeof(bf16));
        sums[r][p][v] = add_dot(sums[r][p][v], w[p][v], pair);
    });
}

// sums += the R rows at x, `stride` apart, times the P panels, over `inputs` inputs. `ahead`: panels to fetch meanwhile,
// since they will be needed soon; none where the first is null.
template <int R, int P, int A, typename X, typename W>
inline void accumulate(Sums<R, P>& sums, const X* x, int64_t stride, const W* const (&panels)[P], int64_t inputs,
                       const W* const (&ahead)[A]) {
    const W* pairs[P];
    const auto at = [&](int64_t i) {
        for (int p = 0; p < P; p++) pairs[p] = panels[p] + i * TILE;
    };
    int64_t i = 0;
    for (; i + 2 <= inputs; i += 2) {
        at(i);
        if (ahead[0])
            for (int a = 0; a < A; a++)
                for (int64_t line = 0; line < 2 * TILE; line += 64 / int64_t(sizeof(W)))
                    __builtin_prefetch(ahead[a] + i * TILE + line, 0, 2);
        add_pair<2, R, P>(sums, x + i, stride, pairs);
    }
    if (i < inputs) at(i), add_pair<1, R, P>(sums, x + i, stride, pairs);
}

// Calls f with a compile-time number of rows, and the first of them: strips of nearly the same height, since a last one
// of one or two rows would cost as much as a full one.
template <typename F> inline void in_strips(int64_t rows, F f) {
    const int64_t strips = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t strip = 0; strip < strips; strip++) {
        const int64_t row = rows * strip / strips;
        const auto call = [&](auto count) { f(count, row, strip); };
        switch (rows * (strip + 1) / strips - row) {
            case 1: call(std::integral_constant<int, 1>{}); break;
            case 2: call(std::integral_constant<int, 2>{}); break;
            case 3: call(std::integral_constant<int, 3>{}); break;
            case 4: call(std::integral_constant<int, 4>{}); break;
            case 5: call(std::integral_constant<int, 5>{}); break;
            case 6: call(std::integral_constant<int, 6>{}); break;
#if defined(__AVX512F__)
            case 7: call(std::integral_constant<int, 7>{}); break;
            case 8: call(std::integral_constant<int, 8>{}); break;
            case 9: call(std::integral_constant<int, 9>{}); break;
#endif
        }
    }
}

// Calls f(P, first) until `panels` panels are covered: P at a time, and one by one what is left.
template <int P, typename F> inline void in_groups(int64_t panels, F f) {
    int64_t panel = 0;
    for (; panel + P <= panels; panel += P) f(std::integral_constant<int, P>{}, panel);
    for (; panel < panels; panel++) f(std::integral_constant<int, 1>{}, panel);
}

}  // namespace headwater
