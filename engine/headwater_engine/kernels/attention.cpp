// Attention of ragged batches: prefill chunks and single decoding tokens alike.
//
// The work is cut into tasks (plan.h): one KV head of one sequence for a few of its new tokens, or of several sequences
// where they have a prefix in common. The query heads that share the KV head, times the tokens, are the task's rows. A task
// walks the block table, a span of blocks at a time:
//
//     scores  = rows x keys of the span         (a small product, TILE keys at once)
//     softmax, online: the running maximum and sum are corrected when a span raises the maximum (Milakov and
//                      Gimelshein, "Online normalizer calculation for softmax"; Dao et al., "FlashAttention")
//     output += weights x values of the span    (a small product, TILE dimensions at once)
//
// Where the context was cut into parts, the parts are put together in the end.
//
// On a CPU with AMX both products are its (attention_amx.h), be it for a prompt or for one token: a row's result must not
// depend on how many others there are.
#include "attention.h"

#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#include "attention_amx.h"
#include "team.h"
#include "tile.h"

namespace headwater {

constexpr int64_t SPAN_BLOCKS = PART_BLOCKS;
constexpr int64_t SPAN = SPAN_BLOCKS * TILE;  // keys between two corrections of the softmax
constexpr int64_t MERGED_TOKENS = 4;    // whose parts one thread puts together at a time
constexpr int64_t AT_ONCE = 8;          // rows whose maxima are found before their weights
// A maximum is raised where weights would be above 2^SLACK, and not for less: what a row has so far is corrected rarely then,
// and the CPU guesses right that it is not (the idea of FlashAttention-4's softmax).
constexpr float SLACK = 8;
constexpr float NEVER = -std::numeric_limits<float>::infinity();
constexpr float LOG2_E = 1.44269504f;

// Aligned, so that no vector lies in two cache lines.
template <typename T> struct LineAllocator {
    using value_type = T;
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
    void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t{64}); }
    bool operator==(const LineAllocator&) const = default;
};
template <typename T> using Aligned = std::vector<T, LineAllocator<T>>;

// What a task works on. All rows are padded to whole vectors.
template <typename T> struct Scratch {
    Aligned<T> queries, weights, last_values;
    Aligned<float> scores, output, maxima, sums;
    void fit(const AttentionShape& shape, int64_t rows) {
        queries.resize(rows * shape.key_dim);
        weights.resize(rows * SPAN);
        scores.resize(rows * SPAN);
        output.assign(rows * padded(shape.value_dim), 0.0f);
        maxima.assign(rows, NEVER);
        sums.assign(rows, 0.0f);
    }
};

// R rows of queries times the keys of P blocks. `next`: P blocks to fetch meanwhile, or null.
template <int R, int P, typename T, typename C>
__attribute__((noinline, flatten)) static void score(const T* queries, int64_t dim, const C* const* blocks,
                                                     const C* const* next, float* scores) {
    const C *panels[P], *ahead[P] = {};
    std::copy_n(blocks, P, panels);
    if (next) std::copy_n(next, P, ahead);
    Sums<R, P> sums;
    clear<R, P>(sums);
    accumulate<R, P>(sums, queries, dim, panels, dim, ahead);
    for_sums<R, P>([&](int r, int p, int v) { store(scores + r * SPAN + p * TILE + v * LANES, sums[r][p][v]); });
}

// output += R rows of weights times P * TILE dimensions of the values of a span's blocks, `keys` in all. `next`: as many
// blocks to fetch meanwhile, or null.
template <int R, int P, typename T, typename C>
__attribute__((noinline, flatten)) static void add_values(const T* weights, const C* const* blocks,
                                                          const C* const* next, int64_t first_tile, int64_t keys,
                                                          float* output, int64_t stride) {
    Sums<R, P> sums;
    const auto at = [&](int r, int p, int v) { return output + r * stride + p * TILE + v * LANES; };
    for_sums<R, P>([&](int r, int p, int v) { sums[r][p][v] = load(at(r, p, v)); });
    for (int64_t first = 0; first < keys; first += TILE) {
        const C *panels[P], *ahead[P] = {};
        for (int p = 0; p < P; p++) {
            const int64_t offset = (first_tile + p) * TILE * TILE;
            panels[p] = blocks[first / TILE] + offset;
            if (next) ahead[p] = next[first / TILE] + offset;
        }
        accumulate<R, P>(sums, weights + first, SPAN, panels, std::min<int64_t>(TILE, keys - first), ahead);
    }
    for_sums<R, P>([&](int r, int p, int v) { store(at(r, p, v), sums[r][p][v]); });
}

// Of values, a head of 64 or 128 dimensions has 4 or 8 tiles.
constexpr int value_tiles_for(int rows) { return LANES == 8 ? panels_for(rows) : rows <= 6 ? 4 : 2; }

// What a row sees of a span: of its keys, those from `first` to `last`. Up to `whole` they fill vectors.
struct Sight {
    int64_t first, whole, last;

    Sight(const AttentionShape& shape, int64_t span_start, int64_t keys, int64_t position) {
        const int64_t seen = position + 1 - span_start;
        last = std::clamp<int64_t>(seen, 0, keys);
        first = shape.window > 0 ? std::clamp<int64_t>(seen - shape.window, 0, last) : 0;
        whole = first == 0 ? last / LANES * LANES : 0;
    }
    IntVec sees(int64_t j) const {
        const IntVec key = LANE + int32_t(j);
        return (key >= int32_t(first)) & (key < int32_t(last));
    }
    float most(const float* scores) const {
        Vec most = spread(NEVER);
        for (int64_t j = 0; j < whole; j += LANES) most = max(most, load(scores + j));
        for (int64_t j = whole; j < last; j += LANES) most = max(most, select(sees(j), load(scores + j), spread(NEVER)));
        return max(most);
    }
};

// The scores of a row as powers of two, 1 at `maximum`, and 0 where it sees nothing. Returns their sum.
template <typename T>
static float weigh(const Sight& sight, const float* scores, float unit, float maximum, T* weights, int64_t end) {
    Vec total{};
    const auto weigh = [&](int64_t j, Vec weight) {
        total += weight;
        store(weights + j, weight);
    };
    const auto weight = [&](int64_t j) { return exp2(load(scores + j) * unit - maximum); };
    for (int64_t j = 0; j < sight.whole; j += LANES) weigh(j, weight(j));
    for (int64_t j = sight.whole; j < sight.last; j += LANES) weigh(j, select(sight.sees(j), weight(j), Vec{}));
    for (int64_t j = (sight.last + LANES - 1) / LANES * LANES; j < end; j += LANES) store(weights + j, Vec{});
    return sum(total);
}

// The blocks of a span, and how many of their tokens there are.
template <typename C> struct Span {
    const C *keys[SPAN_BLOCKS], *values[SPAN_BLOCKS];
    int64_t blocks, seen;
};

template <typename T, typename C> struct Batch {
    const T* queries;
    int64_t query_stride;
    const C *keys, *values;
    const Sequences& sequences;
    const Plan& plan;
    const AttentionShape& shape;

    // The blocks of one span of a task, the last one over and over where there are fewer.
    Span<C> span(const Task& task, int64_t first) const {
        Span<C> span;
        span.blocks = std::min(SPAN_BLOCKS, task.last_block - first);
        span.seen = std::min(span.blocks * TILE, sequences.context_lengths[task.sequence] - first * TILE);
        for (int64_t b = 0; b < SPAN_BLOCKS; b++) {
            const int64_t block = sequences.table(task.sequence)[first + std::min(b, span.blocks - 1)];
            const int64_t at = block * plan.kv_heads + task.kv_head;
            span.keys[b] = keys + at * packed_rows<C>(shape.key_dim) * TILE;
            span.values[b] = values + at * TILE * padded(shape.value_dim);
        }
        return span;
    }

    const Query& query(const Task& task, int64_t row) const { return plan.queries[task.first_query + row / plan.group]; }
    int64_t head(int64_t kv_head, int64_t row) const { return kv_head * plan.group + row % plan.group; }
};

// Masks and softmaxes the scores of a span into weights, and corrects what the rows have so far. Maxima are in units of ln 2:
// powers of two are cheaper than those of e. A few rows at a time, since a row's weights wait for its maximum.
template <typename T, typename C>
static void weigh_rows(const Batch<T, C>& batch, const Task& task, int64_t span_start, int64_t keys, Scratch<T>& scratch) {
    const AttentionShape& shape = batch.shape;
    const int64_t rows = task.queries * batch.plan.group, width = padded(shape.value_dim), end = padded(keys);
    const float unit = (shape.softcap > 0 ? 1.0f : shape.scale) * LOG2_E;
    if (shape.softcap > 0)
        for (int64_t row = 0; row < rows; row++)
            for (float* score = &scratch.scores[row * SPAN]; score < &scratch.scores[row * SPAN] + keys; score++)
                *score = shape.softcap * std::tanh(*score * shape.scale / shape.softcap);
    for (int64_t first = 0; first < rows; first += AT_ONCE) {
        const int64_t last = std::min(rows, first + AT_ONCE);
        for (int64_t row = first; row < last; row++) {
            const Sight sight(shape, span_start, keys, batch.query(task, row).position);
            const float most = sight.most(&scratch.scores[row * SPAN]) * unit;
            float &maximum = scratch.maxima[row], &sum = scratch.sums[row];
            if (!(most > maximum + SLACK)) continue;
            if (sum > 0) {
                const float correction = std::exp2(maximum - most);
                sum *= correction;
                float* output = &scratch.output[row * width];
                for (int64_t d = 0; d < width; d += LANES) store(output + d, load(output + d) * correction);
            }
            maximum = most;
        }
        for (int64_t row = first; row < last; row++) {
            const Sight sight(shape, span_start, keys, batch.query(task, row).position);
            T* weights = &scratch.weights[row * SPAN];
            if (scratch.maxima[row] == NEVER)  // nothing visible yet
                std::fill(weights, weights + end, T{});
            else
                scratch.sums[row] += weigh(sight, &scratch.scores[row * SPAN], unit, scratch.maxima[row], weights, end);
        }
    }
}

// The products of a task. Values are fetched while the scores of their span are computed, and the keys of the next span while
// values are added: blocks lie anywhere, so that the CPU's own prefetching begins anew with each.
template <typename T, typename C>
static void score_rows(Scratch<T>& scratch, int64_t rows, int64_t dim, const Span<C>& span) {
    in_strips(rows, [&](auto R, int64_t row, int64_t) {
        in_groups<panels_for(R)>(span.blocks, [&](auto P, int64_t first) {
            score<R, P>(&scratch.queries[row * dim], dim, span.keys + first, row ? nullptr : span.values + first,
                        &scratch.scores[row * SPAN + first * TILE]);
        });
    });
}
template <typename T, typename C>
static void add_rows(Scratch<T>& scratch, int64_t rows, int64_t width, const Span<C>& span, const Span<C>& next) {
    in_strips(rows, [&](auto R, int64_t row, int64_t) {
        in_groups<value_tiles_for(R)>(width / TILE, [&](auto P, int64_t first) {
            add_values<R, P>(&scratch.weights[row * SPAN], span.values, row ? nullptr : next.keys, first, span.seen,
                             &scratch.output[row * width + first * TILE], width);
        });
    });
}

#if defined(__AMX_BF16__)
// The same on tiles.
static void score_on_tiles(Scratch<bf16>& scratch, const amx::Strips& strips, int64_t dim, const Span<bf16>& span) {
    in_groups<4>(span.blocks, [&](auto P, int64_t first) {
        for (int64_t strip = 0; strip < strips.count; strip++) {
            const int64_t row = strip * strips.height;
            amx::score_strip<P>(&scratch.queries[row * dim], dim, span.keys + first, strip ? nullptr : span.values + first,
                                &scratch.scores[row * SPAN + first * TILE], SPAN);
        }
    });
}

// A tile multiplies all tokens of a block, and what lies where there is none yet may not be a number.
static void clear_unseen(Span<bf16>& span, int64_t width, Aligned<bf16>& copy) {
    const int64_t left = span.seen % TILE, size = TILE * TILE, there = packed_rows<bf16>(left) * TILE;
    if (left == 0) return;
    copy.assign(width * TILE, bf16{});
    const bf16*& values = span.values[span.seen / TILE];
    for (int64_t first = 0; first < width * TILE; first += size) std::copy_n(values + first, there, &copy[first]);
    values = copy.data();
}

static void add_on_tiles(Scratch<bf16>& scratch, const amx::Strips& strips, int64_t width, Span<bf16>& span,
                         const Span<bf16>& next) {
    clear_unseen(span, width, scratch.last_values);
    for (int64_t strip = 0; strip < strips.count; strip++)
        in_groups<4>(width / TILE, [&](auto P, int64_t first) {
            const int64_t row = strip * strips.height;
            amx::add_values_to_strip<P>(&scratch.weights[row * SPAN], SPAN, span.values, span.blocks,
                                        strip ? nullptr : next.keys, first, &scratch.output[row * width + first * TILE], width);
        });
}
#endif

// Accumulates the task's part of the context into the scratch's output, maxima and sums. `next` is fetched in the end.
template <typename T, typename C>
static void attend(const Batch<T, C>& batch, const Task& task, const Task& next, Scratch<T>& scratch) {
    const AttentionShape& shape = batch.shape;
    const int64_t rows = task.queries * batch.plan.group, dim = shape.key_dim, width = padded(shape.value_dim);
    [[maybe_unused]] const amx::Strips strips(rows);
    scratch.fit(shape, strips.rows());
    for (int64_t row = 0; row < rows; row++)
        std::copy_n(batch.queries + batch.query(task, row).token * batch.query_stride + batch.head(task.kv_head, row) * dim,
                    dim, &scratch.queries[row * dim]);
    const auto through = [&](const auto& score, const auto& add) {
        Span<C> span = batch.span(task, task.first_block), coming;
        for (int64_t block = task.first_block; block < task.last_block; block += SPAN_BLOCKS, span = coming) {
            const bool ends = block + SPAN_BLOCKS >= task.last_block;
            coming = batch.span(ends ? next : task, ends ? next.first_block : block + SPAN_BLOCKS);
            score(span);
            weigh_rows(batch, task, block * TILE, span.seen, scratch);
            add(span, coming);
        }
    };
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2)
        if (dim % amx::INPUTS == 0 && amx::granted()) {
            const amx::AttentionTiles tiles(strips.height);
            return through([&](Span<C>& span) { score_on_tiles(scratch, strips, dim, span); },
                           [&](Span<C>& span, Span<C>& coming) { add_on_tiles(scratch, strips, width, span, coming); });
        }
#endif
    through([&](Span<C>& span) { score_rows(scratch, rows, dim, span); },
            [&](Span<C>& span, Span<C>& coming) { add_rows(scratch, rows, width, span, coming); });
}

// A finished row to where its query's head has its place.
template <typename T>
static void write_row(const AttentionShape& shape, const float* output, float maximum, float sum, int64_t token,
                      int64_t head, T* to) {
    if (shape.sinks) sum += std::exp2(shape.sinks[head] * LOG2_E - maximum);
    const float share = 1.0f / sum;
    to += (token * shape.heads + head) * shape.value_dim;
    int64_t d = 0;
    for (; d + LANES <= shape.value_dim; d += LANES) store(to + d, load(output + d) * share);
    for (; d < shape.value_dim; d++) to[d] = narrow<T>(output[d] * share);
}

// What parts of contexts gave, row by row.
struct Partials {
    Aligned<float> output, maxima, sums;
    int64_t width = 0;

    void fit(int64_t rows, int64_t width_of_row) {
        width = width_of_row;
        if (int64_t(output.size()) < rows * width) output.resize(rows * width);
        if (int64_t(sums.size()) < rows) maxima.resize(rows), sums.resize(rows);
    }

    template <typename T> void take(const Scratch<T>& scratch, int64_t rows, int64_t first) {
        std::copy_n(scratch.output.data(), rows * width, &output[first * width]);
        std::copy_n(scratch.maxima.data(), rows, &maxima[first]);
        std::copy_n(scratch.sums.data(), rows, &sums[first]);
    }
};

// The parts of one row, put together.
struct Merged {
    Aligned<float> output, shares;
    float maximum, sum;

    // `rows`: of `partials`, in the order of the context. Each counts by its share of the whole sum. A token sees itself at
    // least, so that one of its parts has a maximum.
    void merge(const Partials& partials, const std::vector<int64_t>& rows) {
        maximum = NEVER, sum = 0;
        for (const int64_t row : rows) maximum = std::max(maximum, partials.maxima[row]);
        shares.assign(padded(int64_t(rows.size())), 0.0f);
        for (size_t n = 0; n < rows.size(); n++) shares[n] = partials.maxima[rows[n]] - maximum;
        for (size_t n = 0; n < rows.size(); n += LANES) store(&shares[n], exp2(load(&shares[n])));
        for (size_t n = 0; n < rows.size(); n++) sum += shares[n] * partials.sums[rows[n]];
        output.resize(partials.width);
        for (int64_t d = 0; d < partials.width; d += LANES) {
            Vec total{};
            for (size_t n = 0; n < rows.size(); n++) total += shares[n] * load(&partials.output[rows[n] * partials.width + d]);
            store(&output[d], total);
        }
    }
};

template <typename T, typename C>
void paged_attention(const T* queries, int64_t query_stride, const C* key_cache, const C* value_cache,
                     const Sequences& sequences, const Plan& plan, const AttentionShape& shape, T* output) {
    const Batch<T, C> batch{queries, query_stride, key_cache, value_cache, sequences, plan, shape};
    const int64_t count = int64_t(plan.tasks.size()), width = padded(shape.value_dim);
    static thread_local Partials own;  // so that no layer waits for memory
    Partials& partials = own;          // in the pieces, too, which are other threads'
    partials.fit(plan.partial_rows, width);
    in_pieces(count, [&](int64_t i) {
        static thread_local Scratch<T> scratch;
        const Task& task = plan.tasks[i];
        const int64_t rows = task.queries * plan.group;
        attend(batch, task, plan.tasks[std::min(count - 1, i + 1)], scratch);
        if (task.part >= 0) return partials.take(scratch, rows, task.part);
        for (int64_t row = 0; row < rows; row++)
            write_row(shape, &scratch.output[row * width], scratch.maxima[row], scratch.sums[row],
                      batch.query(task, row).token, batch.head(task.kv_head, row), output);
    });
    in_ranges(int64_t(plan.merges.size()), MERGED_TOKENS, [&](int64_t first, int64_t last) {
        static thread_local Merged merged;
        static thread_local std::vector<int64_t> rows;
        for (int64_t i = first; i < last; i++)
            for (int64_t head = 0; head < shape.heads; head++) {
                const Merge& merge = plan.merges[i];
                rows.clear();
                for (int64_t n = merge.first_part; n < merge.first_part + merge.parts; n++)
                    rows.push_back(plan.parts[n].first + head / plan.group * plan.parts[n].stride + head % plan.group);
                merged.merge(partials, rows);
                write_row(shape, merged.output.data(), merged.maximum, merged.sum, merge.token, head, output);
            }
    });
}

#define INSTANTIATE(T, C)                                                                               \
    template void paged_attention(const T*, int64_t, const C*, const C*, const Sequences&, const Plan&, \
                                  const AttentionShape&, T*);
INSTANTIATE(float, float)
INSTANTIATE(float, bf16)
INSTANTIATE(bf16, bf16)
#undef INSTANTIATE

}  // namespace headwater
