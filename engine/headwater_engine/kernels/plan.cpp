#include "plan.h"

#include <algorithm>

#include "vec.h"

namespace headwater {
namespace {

#if defined(__AMX_BF16__)
constexpr int64_t TASK_ROWS = 48;  // three tiles high
#else
constexpr int64_t TASK_ROWS = 24;
#endif

class Planner {
   public:
    Planner(const Sequences& sequences, int64_t heads, int64_t kv_heads, int64_t window)
        : sequences_(sequences), window_(window), plan_{heads / kv_heads, kv_heads} {
        task_tokens_ = std::max<int64_t>(1, TASK_ROWS / plan_.group);
        parts_of_.resize(sequences.count);
    }

    Plan plan() {
        std::vector<int64_t> decoding;
        for (int64_t s = 0; s < sequences_.count; s++) {
            if (sequences_.tokens(s) == 1)
                decoding.push_back(s);
            else
                add_prompt(s);
        }
        // Sequences with a common prefix become neighbours.
        std::stable_sort(decoding.begin(), decoding.end(), [&](int64_t a, int64_t b) {
            return std::lexicographical_compare(sequences_.table(a), sequences_.table(a) + last_block(a),
                                                sequences_.table(b), sequences_.table(b) + last_block(b));
        });
        for (int64_t start = 0; start < sequences_.max_blocks; start += PART_BLOCKS) add_part(decoding, start);
        for (const int64_t s : decoding) add_merge(s);
        return std::move(plan_);
    }

   private:
    // Blocks of one sequence's context.
    struct Range {
        int64_t first, last;
        bool operator==(const Range&) const = default;
    };

    const Sequences& sequences_;
    const int64_t window_;
    Plan plan_;
    int64_t task_tokens_;
    std::vector<std::vector<Part>> parts_of_;

    int64_t last_block(int64_t s) const { return tiles(sequences_.context_lengths[s]); }
    // The first block that a token sees.
    int64_t first_block(int64_t position) const {
        return window_ > 0 ? std::max<int64_t>(0, position + 1 - window_) / TILE : 0;
    }
    // What a decoding sequence sees.
    Range seen(int64_t s) const { return {first_block(sequences_.context_lengths[s] - 1), last_block(s)}; }
    // And of that, the blocks of the part that begins with block `start`.
    Range part(int64_t s, int64_t start) const {
        const Range all = seen(s);
        return {std::max(all.first, start), std::min(all.last, start + PART_BLOCKS)};
    }

    bool share(int64_t a, int64_t b, int64_t start) const {
        const Range range = part(a, start);
        const int64_t whole = std::min(sequences_.context_lengths[a], sequences_.context_lengths[b]) / TILE;
        return range == part(b, start) && range.last <= whole &&
               std::equal(sequences_.table(a) + range.first, sequences_.table(a) + range.last,
                          sequences_.table(b) + range.first);
    }

    void add_prompt(int64_t s) {
        const int64_t tokens = sequences_.tokens(s), before = sequences_.context_lengths[s] - tokens;
        for (int64_t offset = 0; offset < tokens; offset += task_tokens_) {
            const int64_t count = std::min(task_tokens_, tokens - offset), position = before + offset;
            const int64_t first = int64_t(plan_.queries.size());
            for (int64_t i = 0; i < count; i++)
                plan_.queries.push_back({sequences_.query_starts[s] + offset + i, position + i});
            add_tasks(s, {first_block(position), tiles(position + count)}, first, false);
        }
    }

    // Of all sequences that decode, neighbours that have the same blocks in one task.
    void add_part(const std::vector<int64_t>& decoding, int64_t start) {
        for (size_t i = 0, next; i < decoding.size(); i = next) {
            const int64_t s = decoding[i];
            next = i + 1;
            const Range range = part(s, start);
            if (range.first >= range.last) continue;
            while (next < decoding.size() && int64_t(next - i) < task_tokens_ && share(s, decoding[next], start)) next++;
            const int64_t first = int64_t(plan_.queries.size());
            const bool partial = next - i > 1 || range != seen(s);
            const int64_t stride = int64_t(next - i) * plan_.group;
            for (size_t j = i; j < next; j++) {
                plan_.queries.push_back({sequences_.query_starts[decoding[j]], sequences_.context_lengths[decoding[j]] - 1});
                const int64_t row = plan_.partial_rows + int64_t(j - i) * plan_.group;
                if (partial) parts_of_[decoding[j]].push_back({row, stride});
            }
            add_tasks(s, range, first, partial);
        }
    }

    // One for each KV head, of the queries from `first` on.
    void add_tasks(int64_t s, Range blocks, int64_t first, bool partial) {
        const int64_t count = int64_t(plan_.queries.size()) - first;
        for (int64_t head = 0; head < plan_.kv_heads; head++) {
            plan_.tasks.push_back({head, s, blocks.first, blocks.last, first, count, partial ? plan_.partial_rows : -1});
            if (partial) plan_.partial_rows += count * plan_.group;
        }
    }

    void add_merge(int64_t s) {
        const std::vector<Part>& parts = parts_of_[s];
        if (parts.empty()) return;
        plan_.merges.push_back({sequences_.query_starts[s], int64_t(plan_.parts.size()), int64_t(parts.size())});
        plan_.parts.insert(plan_.parts.end(), parts.begin(), parts.end());
    }
};

}  // namespace

Plan plan_attention(const Sequences& sequences, int64_t heads, int64_t kv_heads, int64_t window) {
    return Planner(sequences, heads, kv_heads, window).plan();
}

}  // namespace headwater
