// What attention does in a step, task by task: the same in all layers of one shape, so that it is worked out once a step.
//
// A task is one KV head of a run of blocks, for a few rows: the query heads that share the KV head, times tokens. The
// tokens of a prompt are cut into tasks, each of which sees its whole context. The context of a token that decodes is cut
// into parts of PART_BLOCKS blocks, whose results are put together in the end; so one long sequence keeps all cores busy.
//
//     part             0                 1             2
//     sequence A   [ 7  3  8  1 ]   [ 4  9  2  5 ]   [ 6 ]        numbers of blocks, with PART_BLOCKS = 4
//     sequence B   [ 7  3  8  1 ]   [ 4  9 11 12 ]   [13 14 ]     part 0 is one task for both
//
// Where sequences have a prefix in common, their tables name the same blocks. A part that several of them have is one task
// for the rows of all, which reads keys and values once ("cascade": Ye et al., "Cascade Inference", 2024). Where parts begin
// depends on nothing but the place in a context, and rows of a task know nothing of one another. So a row's result is the
// same, to the last bit, whoever else is in the batch.
#pragma once

#include <cstdint>
#include <vector>

namespace headwater {

constexpr int64_t PART_BLOCKS = 12;

// The sequences of a batch, as in `AttentionBatch` of interface.py.
struct Sequences {
    int64_t count, max_blocks;
    const int32_t *tables, *query_starts, *context_lengths;

    int64_t tokens(int64_t s) const { return query_starts[s + 1] - query_starts[s]; }
    const int32_t* table(int64_t s) const { return tables + s * max_blocks; }
};

struct Query {
    int64_t token;     // in the flat batch
    int64_t position;  // in its sequence
};

struct Task {
    int64_t kv_head;
    int64_t sequence;                // whose table names the blocks
    int64_t first_block, last_block; // of its context
    int64_t first_query, queries;    // in the plan's list
    int64_t part;                    // where the first row's partial result goes; -1: the result is whole
};

// The partial results of one token in one part: with each KV head, `stride` rows further on.
struct Part {
    int64_t first, stride;
};

// A token whose result is put together.
struct Merge {
    int64_t token;
    int64_t first_part, parts;  // in the plan's list, in the order of the context
};

struct Plan {
    int64_t group, kv_heads;  // query heads that share a KV head
    std::vector<Task> tasks;
    std::vector<Query> queries;
    std::vector<Merge> merges;
    std::vector<Part> parts;
    int64_t partial_rows = 0;
};

// `window`: tokens that a token sees, itself included; 0: all.
Plan plan_attention(const Sequences& sequences, int64_t heads, int64_t kv_heads, int64_t window);

}  // namespace headwater
