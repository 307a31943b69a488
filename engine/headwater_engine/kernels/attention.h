// Attention over the paged KV cache (cache.h).
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

// queries [tokens, heads, key_dim] with `query_stride` between tokens; output [tokens, heads, value_dim], contiguous. The
// plan is one for these sequences, and this number of heads and window.
template <typename T, typename C>
void paged_attention(const T* queries, int64_t query_stride, const C* key_cache, const C* value_cache,
                     const Sequences& sequences, const Plan& plan, const AttentionShape& shape, T* output);

}  // namespace headwater
