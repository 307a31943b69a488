// The paged KV cache, and how keys and values get there.
//
// Of each block of TILE tokens and each KV head, keys are a packed matrix (vec.h) [key dim][TILE keys], and values one
// of [TILE tokens][TILE dimensions] for every TILE dimensions: panels, as the inner loop of products takes them.
#pragma once

#include <cstdint>

#include "vec.h"

namespace headwater {

// Heads of T tokens: [tokens, heads, dim] with `stride` between tokens.
template <typename T> struct Heads {
    T* data;
    int64_t stride, heads, dim;

    T* at(int64_t token, int64_t head) const { return data + token * stride + head * dim; }
};

// The blocks of one layer, and where tokens go: slots [tokens] are block * TILE + place in the block.
template <typename C> struct Slots {
    C *keys, *values;
    const int64_t* slots;
};

template <typename T, typename C> void write_cache(Heads<T> keys, Heads<T> values, Slots<C> to, int64_t tokens);

// What comes before the rotation of a head, and how it is rotated: cos and sin [positions, half], weights [dim] or null.
template <typename T> struct Rotation {
    const float *cos, *sin;
    int64_t half;
    const int64_t* positions;  // [tokens]
    const T *query_norm, *key_norm;
    float eps;
};

// All that lies between the product and attention: norms of heads and their rotation, in place, and keys and values to the
// cache. A token at a time, so that its heads are read once.
template <typename T, typename C>
void place(Heads<T> queries, Heads<T> keys, Heads<T> values, const Rotation<T>& rotation, Slots<C> to, int64_t tokens);

}  // namespace headwater
