// Attention over the paged KV cache.
//
// Of each block of TILE tokens and each KV head, keys are a packed matrix (vec.h) [key dim][TILE keys], and values one
// of [TILE tokens][TILE dimensions] for every TILE dimensions: panels, as the inner loop of products takes them.
#pragma once

#include <cstdint>

#include "plan.h"
#include "vec.h"

namespace headwater {

struct AttentionShape {
    int64_t heads, key_dim, value_dim;
    float scale;
    int64_t window;       // tokens that a token sees, itself included; 0: all
    float softcap;        // 0: none
    const float* sinks;   // [heads] or null
};

template <typename T, typename C>
void write_cache(const T* keys, int64_t key_stride, const T* values, int64_t value_stride, C* key_cache, C* value_cache,
                 const int64_t* slots, int64_t tokens, int64_t kv_heads, int64_t key_dim, int64_t value_dim);

// queries [tokens, heads, key_dim] with `query_stride` between tokens; output [tokens, heads, value_dim], contiguous. The
// plan is one for these sequences, and this number of heads and window.
template <typename T, typename C>
void paged_attention(const T* queries, int64_t query_stride, const C* key_cache, const C* value_cache,
                     const Sequences& sequences, const Plan& plan, const AttentionShape& shape, T* output);

}  // namespace headwater
