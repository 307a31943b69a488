// Attention of ragged batches: prefill chunks and single decoding tokens alike.
//
// The work is cut into tasks: one KV head of one sequence for a few of its new tokens. The query heads that share the
// KV head, times the tokens, are the task's rows. A task walks the block table, a span of blocks at a time:
//
//     scores  = rows x keys of the span         (a small product, TILE keys at once)
//     softmax, online: the running maximum and sum are corrected when a span raises the maximum (Milakov and
//                      Gimelshein, "Online normalizer calculation for softmax"; Dao et al., "FlashAttention")
//     output += weights x values of the span    (a small product, TILE dimensions at once)
//
// Where there are fewer tasks than would keep all cores busy, as when a single long sequence decodes, the context is
// cut as well, and the parts are put together in the end. A row's result depends on its own sequence alone, except for
// that cut, whose place depends on the context's length but not on the batch.
#include "attention.h"

#include <omp.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace headwater {

constexpr int64_t SPAN_BLOCKS = 8;
constexpr int64_t SPAN = SPAN_BLOCKS * TILE;  // keys between two corrections of the softmax
constexpr int64_t TASK_ROWS = 24;
constexpr int64_t PART_BLOCKS = 64;  // blocks of context in one part of a decoding task
constexpr float NEVER = -std::numeric_limits<float>::infinity();

template <typename T, typename C>
void write_cache(const T* keys, int64_t key_stride, const T* values, int64_t value_stride, C* key_cache, C* value_cache,
                 const int64_t* slots, int64_t tokens, int64_t kv_heads, int64_t key_dim, int64_t value_dim) {
    const int64_t padded_value_dim = (value_dim + TILE - 1) / TILE * TILE;
#pragma omp parallel for if (tokens > 16)
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t block = slots[t] / TILE, offset = slots[t] % TILE;
        for (int64_t h = 0; h < kv_heads; h++) {
            const T* key = keys + t * key_stride + h * key_dim;
            C* key_to = key_cache + (block * kv_heads + h) * key_dim * TILE + place<C>(int(offset));
            for (int64_t d = 0; d < key_dim; d++) key_to[d * TILE] = narrow<C>(widen(key[d]));
            const T* value = values + t * value_stride + h * value_dim;
            C* value_to = value_cache + ((block * kv_heads + h) * TILE + offset) * padded_value_dim;
            for (int64_t d = 0; d < value_dim; d++)
                value_to[d / TILE * TILE + place<C>(int(d % TILE))] = narrow<C>(widen(value[d]));
        }
    }
}

struct Task {
    int64_t sequence, kv_head;
    int64_t first_token, tokens;     // in the flat batch
    int64_t first_position;          // of its first token
    int64_t first_block, last_block; // of the context
    int64_t part;                    // where a cut context's partial result goes; -1: not cut
};

// What a task, or a part of one, works on. All rows are padded to whole vectors.
struct Scratch {
    std::vector<float> queries, scores, output, maxima, sums;
    void fit(const AttentionShape& shape, int64_t rows) {
        queries.resize(rows * shape.key_dim);
        scores.resize(rows * SPAN);
        output.assign(rows * padded(shape.value_dim), 0.0f);
        maxima.assign(rows, NEVER);
        sums.assign(rows, 0.0f);
    }
    static int64_t padded(int64_t dim) { return (dim + TILE - 1) / TILE * TILE; }
};

// R rows of queries times the TILE keys of one block.
template <int R, typename C>
__attribute__((noinline)) static void score_block(const float* queries, int64_t dim, const C* keys, float* scores) {
    Vec sums[R][VECS] = {};
    for (int64_t d = 0; d < dim; d++) {
        Vec k[VECS];
        load_tile(keys + d * TILE, k);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < VECS; v++) sums[r][v] += spread(queries[r * dim + d]) * k[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECS; v++) store(scores + r * SPAN + v * LANES, sums[r][v]);
}

// R rows of weights times TILE dimensions of the values of a span's blocks, `keys` in all.
template <int R, typename C>
__attribute__((noinline)) static void add_values(const float* weights, const C* const* blocks, int64_t first_dim,
                                                 int64_t dim, int64_t keys, float* output, int64_t stride) {
    Vec sums[R][VECS];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECS; v++) sums[r][v] = load(output + r * stride + v * LANES);
    for (int64_t first = 0; first < keys; first += TILE) {
        const C* values = blocks[first / TILE] + first_dim;
        const int64_t count = std::min<int64_t>(TILE, keys - first);
        for (int64_t j = 0; j < count; j++) {
            Vec x[VECS];
            load_tile(values + j * dim, x);
            for (int r = 0; r < R; r++)
                for (int v = 0; v < VECS; v++) sums[r][v] += spread(weights[r * SPAN + first + j]) * x[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECS; v++) store(output + r * stride + v * LANES, sums[r][v]);
}

// Calls f with a compile-time number of rows: ROWS at a time, then what is left.
template <typename F> static void in_strips(int64_t rows, F f) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS) f(std::integral_constant<int, ROWS>{}, row);
    switch (rows - row) {
        case 1: return f(std::integral_constant<int, 1>{}, row);
        case 2: return f(std::integral_constant<int, 2>{}, row);
        case 3: return f(std::integral_constant<int, 3>{}, row);
        case 4: return f(std::integral_constant<int, 4>{}, row);
        case 5: return f(std::integral_constant<int, 5>{}, row);
    }
}

// Masks and softmaxes the scores of a span into weights, and corrects the row's output so far.
static void weigh_row(float* scores, int64_t span_start, int64_t keys, int64_t position, const AttentionShape& shape,
                      float& maximum, float& sum, float* output, int64_t width) {
    const int64_t padded = (keys + TILE - 1) / TILE * TILE;
    if (shape.softcap > 0)
        for (int64_t j = 0; j < keys; j++) scores[j] = shape.softcap * std::tanh(scores[j] / shape.softcap);
    const int64_t visible = std::min(keys, position + 1 - span_start);
    for (int64_t j = std::max<int64_t>(visible, 0); j < padded; j++) scores[j] = NEVER;
    if (shape.window > 0)
        for (int64_t j = 0; j < std::min(visible, position + 1 - shape.window - span_start); j++) scores[j] = NEVER;
    Vec most = spread(NEVER);
    for (int64_t j = 0; j < padded; j += LANES) most = max(most, load(scores + j));
    const float raised = std::max(maximum, max(most));
    if (raised == NEVER) {  // nothing visible yet
        std::fill(scores, scores + padded, 0.0f);
        return;
    }
    Vec total{};
    for (int64_t j = 0; j < padded; j += LANES) {
        const Vec weight = exp(load(scores + j) - raised);
        total += weight;
        store(scores + j, weight);
    }
    if (raised > maximum) {
        const float correction = std::exp(maximum - raised);
        sum *= correction;
        for (int64_t d = 0; d < width; d += LANES) store(output + d, load(output + d) * correction);
        maximum = raised;
    }
    sum += headwater::sum(total);
}

// Blocks lie anywhere, so that the CPU's own prefetching begins anew with each, after it was waited for.
template <typename C> static void prefetch(const C* from, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(C))) __builtin_prefetch(from + i);
}

// Accumulates the task's part of the context into the scratch's output, maxima and sums.
template <typename T, typename C>
static void attend(const Task& task, const T* queries, int64_t query_stride, const C* key_cache, const C* value_cache,
                   const int32_t* table, int64_t context, const AttentionShape& shape, Scratch& scratch) {
    const int64_t group = shape.heads / shape.kv_heads, rows = task.tokens * group;
    const int64_t width = Scratch::padded(shape.value_dim);
    scratch.fit(shape, rows);
    for (int64_t row = 0; row < rows; row++) {
        const T* query = queries + (task.first_token + row / group) * query_stride +
                         (task.kv_head * group + row % group) * shape.key_dim;
        for (int64_t d = 0; d < shape.key_dim; d++)
            scratch.queries[row * shape.key_dim + d] = widen(query[d]) * shape.scale;
    }
    const auto keys_of = [&](int64_t block) {
        return key_cache + (table[block] * shape.kv_heads + task.kv_head) * shape.key_dim * TILE;
    };
    const auto values_of = [&](int64_t block) {
        return value_cache + (table[block] * shape.kv_heads + task.kv_head) * TILE * width;
    };
    for (int64_t block = task.first_block; block < task.last_block; block += SPAN_BLOCKS) {
        const int64_t blocks = std::min(SPAN_BLOCKS, task.last_block - block);
        const int64_t keys = std::min(blocks * TILE, context - block * TILE);
        for (int64_t b = 0; b < blocks; b++) {
            const C* at = keys_of(block + b);
            if (block + b + 1 < task.last_block) prefetch(keys_of(block + b + 1), shape.key_dim * TILE);
            prefetch(values_of(block + b), width * TILE);
            in_strips(rows, [&](auto R, int64_t row) {
                score_block<R>(&scratch.queries[row * shape.key_dim], shape.key_dim, at,
                               &scratch.scores[row * SPAN + b * TILE]);
            });
        }
        for (int64_t row = 0; row < rows; row++)
            weigh_row(&scratch.scores[row * SPAN], block * TILE, keys, task.first_position + row / group, shape,
                      scratch.maxima[row], scratch.sums[row], &scratch.output[row * width], width);
        const C* values[SPAN_BLOCKS];
        for (int64_t b = 0; b < blocks; b++) values[b] = values_of(block + b);
        for (int64_t d = 0; d < width; d += TILE)
            in_strips(rows, [&](auto R, int64_t row) {
                add_values<R>(&scratch.scores[row * SPAN], values, d, width, keys, &scratch.output[row * width + d],
                              width);
            });
    }
}

template <typename T>
static void write_rows(const Task& task, const AttentionShape& shape, Scratch& scratch, T* output) {
    const int64_t group = shape.heads / shape.kv_heads, width = Scratch::padded(shape.value_dim);
    for (int64_t row = 0; row < task.tokens * group; row++) {
        const int64_t head = task.kv_head * group + row % group;
        float sum = scratch.sums[row];
        if (shape.sinks) sum += std::exp(shape.sinks[head] - scratch.maxima[row]);
        T* to = output + ((task.first_token + row / group) * shape.heads + head) * shape.value_dim;
        for (int64_t d = 0; d < shape.value_dim; d++) to[d] = narrow<T>(scratch.output[row * width + d] / sum);
    }
}

// Puts the parts of one cut task together, in their order.
static void merge(Scratch& total, const Scratch& part, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        const float maximum = std::max(total.maxima[row], part.maxima[row]);
        if (maximum == NEVER) continue;
        const float a = std::exp(total.maxima[row] - maximum), b = std::exp(part.maxima[row] - maximum);
        total.maxima[row] = maximum;
        total.sums[row] = total.sums[row] * a + part.sums[row] * b;
        for (int64_t d = 0; d < width; d++)
            total.output[row * width + d] = total.output[row * width + d] * a + part.output[row * width + d] * b;
    }
}

static std::vector<Task> plan(const int32_t* query_starts, const int32_t* context_lengths, const AttentionShape& shape,
                              int64_t& parts) {
    const int64_t tile_tokens = std::max<int64_t>(1, TASK_ROWS / (shape.heads / shape.kv_heads));
    std::vector<Task> tasks;
    for (int64_t s = 0; s < shape.sequences; s++) {
        const int64_t new_tokens = query_starts[s + 1] - query_starts[s];
        for (int64_t offset = 0; offset < new_tokens; offset += tile_tokens) {
            const int64_t tokens = std::min(tile_tokens, new_tokens - offset);
            const int64_t first = context_lengths[s] - new_tokens + offset, end = first + tokens;
            const int64_t seen = shape.window > 0 ? std::max<int64_t>(0, first + 1 - shape.window) / TILE : 0;
            const int64_t last = (end + TILE - 1) / TILE;
            const bool cut = new_tokens == 1 && last - seen > PART_BLOCKS;
            for (int64_t head = 0; head < shape.kv_heads; head++)
                for (int64_t from = seen; from < last; from += cut ? PART_BLOCKS : last - seen)
                    tasks.push_back({s, head, query_starts[s] + offset, tokens, first, from,
                                     cut ? std::min(last, from + PART_BLOCKS) : last, cut ? parts++ : -1});
        }
    }
    return tasks;
}

template <typename T, typename C>
void paged_attention(const T* queries, int64_t query_stride, const C* key_cache, const C* value_cache,
                     const int32_t* block_tables, const int32_t* query_starts, const int32_t* context_lengths,
                     const AttentionShape& shape, T* output) {
    int64_t parts = 0;
    const std::vector<Task> tasks = plan(query_starts, context_lengths, shape, parts);
    std::vector<Scratch> partial(parts);
    const int64_t count = int64_t(tasks.size());
#pragma omp parallel for schedule(dynamic) if (count > 1)
    for (int64_t i = 0; i < count; i++) {
        static thread_local Scratch own;
        const Task& task = tasks[i];
        Scratch& scratch = task.part < 0 ? own : partial[task.part];
        attend(task, queries, query_stride, key_cache, value_cache, block_tables + task.sequence * shape.max_blocks,
               context_lengths[task.sequence], shape, scratch);
        if (task.part < 0) write_rows(task, shape, scratch, output);
    }
    const int64_t group = shape.heads / shape.kv_heads;
    for (int64_t i = 0; i < count;) {
        int64_t next = i + 1;
        if (tasks[i].part >= 0) {
            Scratch& total = partial[tasks[i].part];
            for (; next < count && tasks[next].part >= 0 && tasks[next].sequence == tasks[i].sequence &&
                   tasks[next].kv_head == tasks[i].kv_head;
                 next++)
                merge(total, partial[tasks[next].part], group, Scratch::padded(shape.value_dim));
            write_rows(tasks[i], shape, total, output);
        }
        i = next;
    }
}

#define INSTANTIATE(T, C)                                                                                             \
    template void write_cache(const T*, int64_t, const T*, int64_t, C*, C*, const int64_t*, int64_t, int64_t, int64_t, \
                              int64_t);                                                                               \
    template void paged_attention(const T*, int64_t, const C*, const C*, const int32_t*, const int32_t*,              \
                                  const int32_t*, const AttentionShape&, T*);
INSTANTIATE(float, float)
INSTANTIATE(float, bf16)
INSTANTIATE(bf16, bf16)
#undef INSTANTIATE

}  // namespace headwater
