#include "cache.h"

#include <algorithm>
#include <cstring>

#include "rows.h"
#include "team.h"

namespace headwater {
namespace {

constexpr int64_t SHARED_TOKENS = 16;  // that one thread has at a time, at least

inline uint32_t join(bf16 first, bf16 second) { return uint32_t(second.bits) << 16 | first.bits; }

template <typename T> void write_key(const T* key, int64_t dim, int64_t offset, float* to) {
    for (int64_t d = 0; d < dim; d++) to[place<float>(d, offset)] = widen(key[d]);
}
template <typename T> void write_key(const T* key, int64_t dim, int64_t offset, bf16* to) {
    for (int64_t d = 0; d < dim; d += 2) {
        const bf16 second = d + 1 < dim ? narrow<bf16>(widen(key[d + 1])) : bf16{};
        const uint32_t pair = join(narrow<bf16>(widen(key[d])), second);
        std::memcpy(to + place<bf16>(d, offset), &pair, sizeof pair);
    }
}

template <typename T, typename C>
void write_value(const T* value, int64_t dim, int64_t offset, C* to) {
    for (int64_t d = 0; d < dim; d++) to[d / TILE * TILE * TILE + place<C>(offset, d % TILE)] = narrow<C>(widen(value[d]));
}

// The values of two tokens, the first of which has an even offset. Both or, where `second` is null, one and zeros: a
// pair is multiplied at once, so that the second must be a number before it is there.
template <typename T>
void write_value_pair(const T* first, const T* second, int64_t dim, int64_t offset, bf16* to) {
    for (int64_t start = 0; start < dim; start += TILE) {
        bf16* pairs = to + start * TILE + place<bf16>(offset, 0);
        const int64_t count = std::min<int64_t>(TILE, dim - start);
        for (int64_t d = 0; d < count; d++) {
            const bf16 other = second ? narrow<bf16>(widen(second[start + d])) : bf16{};
            const uint32_t pair = join(narrow<bf16>(widen(first[start + d])), other);
            std::memcpy(pairs + 2 * d, &pair, sizeof pair);
        }
    }
}

template <typename T, typename C>
void write_token(const Heads<T>& keys, const Heads<T>& values, const Slots<C>& to, int64_t t, int64_t tokens) {
    const int64_t key_size = packed_rows<C>(keys.dim) * TILE, value_size = TILE * padded(values.dim);
    const int64_t* slot = to.slots + t;
    const int64_t offset = *slot % TILE;
    const bool is_second = offset % 2 == 1 && t > 0 && slot[-1] == *slot - 1;
    const bool has_second = offset % 2 == 0 && t + 1 < tokens && slot[1] == *slot + 1;
    for (int64_t h = 0; h < keys.heads; h++) {
        const int64_t at = *slot / TILE * keys.heads + h;
        write_key(keys.at(t, h), keys.dim, offset, to.keys + at * key_size);
        const T* value = values.at(t, h);
        C* block = to.values + at * value_size;
        if constexpr (sizeof(C) == 2) {
            if (offset % 2 == 0) write_value_pair(value, has_second ? value + values.stride : nullptr, values.dim, offset, block);
            if (offset % 2 == 0 || is_second) continue;
        }
        write_value(value, values.dim, offset, block);
    }
}

template <typename T> void rotate(const Heads<T>& x, const T* norm, const Rotation<T>& rotation, int64_t t) {
    const int64_t from = rotation.positions[t] * rotation.half;
    for (int64_t h = 0; h < x.heads; h++) {
        T* head = x.at(t, h);
        if (norm) normalize(head, norm, rotation.eps, head, x.dim);
        rotate_head(head, rotation.cos + from, rotation.sin + from, rotation.half);
    }
}

}  // namespace

template <typename T, typename C> void write_cache(Heads<T> keys, Heads<T> values, Slots<C> to, int64_t tokens) {
    in_ranges(tokens, SHARED_TOKENS, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; t++) write_token(keys, values, to, t, tokens);
    });
}

template <typename T, typename C>
void place(Heads<T> queries, Heads<T> keys, Heads<T> values, const Rotation<T>& rotation, Slots<C> to, int64_t tokens) {
    in_ranges(tokens, SHARED_TOKENS, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; t++) {
            rotate(queries, rotation.query_norm, rotation, t);
            rotate(keys, rotation.key_norm, rotation, t);
            write_token(keys, values, to, t, tokens);
        }
    });
}

#define INSTANTIATE(T, C)                                                      \
    template void write_cache(Heads<T>, Heads<T>, Slots<C>, int64_t);          \
    template void place(Heads<T>, Heads<T>, Heads<T>, const Rotation<T>&, Slots<C>, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(float, bf16)
INSTANTIATE(bf16, bf16)
#undef INSTANTIATE

}  // namespace headwater
