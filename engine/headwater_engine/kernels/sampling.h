// From logits to tokens: penalties, masks, top-k, top-p, min-p, and the draw. `reference_sampling.py` is the definition.
#pragma once

#include <cstdint>

namespace headwater {

// As in `SamplingBatch` of interface.py. `counts` is null where no row has penalties, `bits` where no row has a mask;
// biases are sorted by place. `unmasked` is null where no row is.
struct SamplingRows {
    int64_t rows, vocabulary;
    const float* inverse_temperatures;
    const int32_t* keys;  // [2, rows]
    const int32_t* top_k;
    const float* top_p;
    const int32_t* min_weight;
    const int32_t* counts;  // [lines, vocabulary]
    const int32_t* lines;
    const float *repetition, *presence, *frequency;
    int64_t words;  // of a row of bits
    const int32_t* bits;
    const int32_t* bit_lines;
    int64_t biases;
    const int64_t* bias_places;
    const float* bias_values;
    const bool* unmasked;
    int64_t count;  // of the rows that become tokens
    const int64_t* only;  // these; null: all of them
};

// As in `Maxima` of interface.py.
struct Maximum {
    float score, best;
    int64_t token;
};

// Changes the logits [rows, vocabulary]. `maxima` [count].
void sample(float* logits, const SamplingRows& batch, Maximum* maxima);

}  // namespace headwater
