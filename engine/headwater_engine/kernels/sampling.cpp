// One thread takes a row from its logits to its token, so that the row stays in that core's cache.
//
// No row is sorted. What filters leave of it is all above some logit, the *cut*, and of those equal to it the first few. The
// cut is closed in on by guesses: a sum over what lies above a guess says on which side of it the cut is. Once few tokens
// are between the nearest two guesses, it is found among them by bisection over the logits' own bits, which, read as
// integers, are in the logits' order. The largest logit of each group of GROUP says which groups need not be looked at.
//
// Tokens are those of the reference, to the last one, so that every operation rounds as it does there: no product may be
// fused with a sum. All loops are plain, and the compiler makes vectors of them (GCC, once it knows that nobody waits for a
// trap of a division whose result is not taken).
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#endif

#include "sampling.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <climits>
#include <cstring>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>
#include <vector>

#include "team.h"

namespace headwater {
namespace {

constexpr int64_t GROUP = 64;
constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float WEIGHT_ONE = 1 << 30;
constexpr float WEIGHTLESS = 21.0f;  // below the largest logit by so much, times the temperature: the weight is 0
constexpr int64_t FIRM_WEIGHT = 1 << 12;  // from here on, rounding down takes less than the hundredth that `is_firm` spares
constexpr int64_t FEW = 512;         // candidates that take less time than one more look at a row

inline uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

inline float log_of(float x) {
    const int32_t bits = std::bit_cast<int32_t>(x), n = (bits - 0x3F3504F3) >> 23;
    const float r = std::bit_cast<float>(bits - (n << 23)) - 1.0f;
    float p = 7.0376836292e-2f;
    p = p * r + -1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r + -1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r + -1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r + -2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    const float square = r * r;
    const float y = p * r * square + float(n) * -2.12194440e-4f - 0.5f * square;
    return r + y + float(n) * 0.693359375f;
}

// The words of one row's key. Each token has bits of its own, the fewer the larger its noise.
struct Key {
    uint32_t low, high;

    uint32_t bits(uint32_t token) const { return mix(mix(token + low) + high) >> 1; }
};

inline float noise_of(uint32_t bits) {
    float v = (float(int32_t(bits)) + 0.5f) * 0x1p-31f;
    v = v < 1 - 0x1p-24f ? v : 1 - 0x1p-24f;
    const float u = 1.0f - v;
    const float precise = log_of(u) * (v / (u - 1.0f));
    return -log_of(u == 1.0f ? v : precise);
}

constexpr float MOST_NOISE = 22.3f;

// Never less than noise_of(bits), which is at most -log(bits / 2^31), and soon computed. 0.01: more than is rounded.
inline float most_noise_of(uint32_t bits) { return 0.6931472f * float(std::countl_zero(bits)) + 0.01f; }

// e^x of x <= 0, in units of 1 / WEIGHT_ONE.
inline int32_t weight_of(float x) {
    x = x > -WEIGHTLESS ? x : -WEIGHTLESS;
    const float shift = 12582912.0f;
    const float n = (x * 1.44269504f + shift) - shift;
    const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return int32_t(p * std::bit_cast<float>((int32_t(n) + 127) << 23) * WEIGHT_ONE);
}

// An integer in the order of x; -0 is 0.
inline int32_t order_of(float x) {
    const int32_t bits = std::bit_cast<int32_t>(x + 0.0f);
    return bits ^ ((bits >> 31) & INT_MAX);
}

// Calls f(first, size) for each GROUP of `count` things. The size is a constant for all but the last one.
template <typename F> void in_groups_of(int64_t count, F f) {
    int64_t first = 0;
    for (; first + GROUP <= count; first += GROUP) f(first, std::integral_constant<int64_t, GROUP>{});
    if (first < count) f(first, count - first);
}

// Changes the logits of some tokens of one row. Most have no counts.
template <typename N>
void penalize(float* logits, const int32_t* counts, N size, float repetition, float presence, float frequency) {
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int32_t i = 0; i < int32_t(size); i++) any |= counts[i];
    if (!any) return;
    for (int32_t i = 0; i < int32_t(size); i++) {
        const float x = logits[i], divided = x / repetition, multiplied = x * repetition;
        const float repeated = counts[i] > 0 ? (x > 0 ? divided : multiplied) : x;
        const float shifted = repeated - (presence + frequency * float(counts[i] >> 1));
        logits[i] = counts[i] > 1 ? shifted : repeated;
    }
}

// Bits of a group's tokens that may come; behind the vocabulary stands anything.
inline uint64_t allowed_in(const int32_t* bits, int64_t size) {
    return uint32_t(bits[0]) | uint64_t(size > 32 ? uint32_t(bits[1]) : 0) << 32;
}

// Takes the logits of those that must not come away.
template <typename N> void mask(float* logits, uint64_t allowed, N size) {
    for (int32_t first = 0; first < int32_t(size); first += 32, allowed >>= 32) {
        const uint32_t bits = uint32_t(allowed);
        for (int32_t i = 0; i < std::min(32, int32_t(size) - first); i++)
            logits[first + i] = bits >> i & 1 ? logits[first + i] : -INFINITE;
    }
}

// Penalties, masks and biases of one row, and the largest of each group of its logits then. A group of which nothing may
// come keeps its logits, and nobody reads them. Returns the largest of all, or NaN where one is NaN or infinite.
float shift(float* logits, int64_t row, const SamplingRows& b, std::vector<float>& tops) {
    const int32_t* counts = b.counts && b.lines[row] >= 0 ? b.counts + b.lines[row] * b.vocabulary : nullptr;
    const int32_t* bits = b.bits && b.bit_lines[row] >= 0 ? b.bits + b.bit_lines[row] * b.words : nullptr;
    const int64_t *end = b.bias_places + b.biases, start = row * b.vocabulary;
    const int64_t* bias = std::lower_bound(b.bias_places, end, start);
    int32_t broken = 0;
    tops.clear();
    in_groups_of(b.vocabulary, [&](int64_t first, auto size) {
        float* own = logits + first;
        const uint64_t allowed = bits ? allowed_in(bits + first / 32, size) : ~0ull;
        if (!allowed) {
            while (bias < end && *bias < start + first + size) bias++;
            tops.push_back(-INFINITE);
            return;
        }
        if (counts) penalize(own, counts + first, size, b.repetition[row], b.presence[row], b.frequency[row]);
        if (~allowed) mask(own, allowed, size);
        for (; bias < end && *bias < start + first + size; bias++) logits[*bias - start] += b.bias_values[bias - b.bias_places];
        float top = -INFINITE;
#pragma omp simd reduction(max : top) reduction(| : broken)
        for (int32_t i = 0; i < int32_t(size); i++) {
            top = own[i] > top ? own[i] : top;
            broken |= !(own[i] < INFINITE);
        }
        tops.push_back(top);
    });
    return broken ? std::nanf("") : *std::max_element(tops.begin(), tops.end());
}

struct Row {
    const float* logits;
    int64_t vocabulary;
    const std::vector<float>& tops;
    float best;
    float inverse_temperature;

    int32_t weight(int64_t token) const { return weight_of((logits[token] - best) * inverse_temperature); }
    // The logit whose share of the largest one's probability is e^-depth.
    float below(float depth) const { return best - depth / inverse_temperature; }
    int64_t first_best() const {
        const int64_t group = std::find(tops.begin(), tops.end(), best) - tops.begin();
        return std::find(logits + group * GROUP, logits + vocabulary, best) - logits;
    }
    // Calls f(first, size) for the groups that have a logit from `lowest` on, and any that may come.
    template <typename F> void for_groups(float lowest, F f) const {
        lowest = std::max(lowest, -FLT_MAX);
        in_groups_of(vocabulary, [&](int64_t first, auto size) {
            if (tops[first / GROUP] >= lowest) f(first, size);
        });
    }
};

// What may be drawn: tokens whose logit is larger, and of those equal to it the ones up to `last`.
struct Cut {
    float logit = -INFINITE;
    int32_t last = INT32_MAX;

    // Without branches, which vectors have not.
    bool keeps(float x, int32_t token) const { return (x > logit) | ((x == logit) & (token <= last)); }
};

// Of tokens with a logit above this one: how many at most, and their sizes in all.
struct Level {
    float logit;
    int64_t count, size;
};

// `sizes`: of all tokens, or of those in the groups that have a logit above this one.
Level level_of(const Row& row, float logit, const int32_t* sizes) {
    Level level{logit, 0, 0};
    row.for_groups(logit, [&, logit, sizes](int64_t first, auto size) {
        const float* logits = row.logits + first;
        const int32_t* own = sizes + first;
        int32_t count = 0;
        int64_t sum = 0;
#pragma omp simd reduction(+ : count, sum)
        for (int32_t i = 0; i < int32_t(size); i++) {
            count += logits[i] > logit;
            sum += logits[i] > logit ? own[i] : 0;
        }
        level.count += count;
        level.size += sum;
    });
    return level;
}

// The tokens between two levels.
struct Candidates {
    std::vector<int32_t> tokens, orders, sizes;

    void take(const Row& row, float low, float high, const int32_t* sizes_of_all) {
        tokens.clear();
        row.for_groups(low, [&, low, high](int64_t first, auto size) {
            const float* logits = row.logits + first;
            uint8_t between[GROUP] = {};
            for (int32_t i = 0; i < int32_t(size); i++) between[i] = (logits[i] > low) & (logits[i] <= high);
            for (int64_t i = 0; i < GROUP; i += 8) {  // eight at a time: most are not
                uint64_t eight;
                std::memcpy(&eight, between + i, 8);
                for (; eight; eight &= eight - 1) tokens.push_back(int32_t(first + i + std::countr_zero(eight) / 8));
            }
        });
        orders.resize(tokens.size());
        sizes.resize(tokens.size());
        for (size_t i = 0; i < tokens.size(); i++) orders[i] = order_of(row.logits[tokens[i]]);
        for (size_t i = 0; i < tokens.size(); i++) sizes[i] = sizes_of_all[tokens[i]];
    }
    int64_t larger(int32_t order) const {
        int64_t sum = 0;
        for (size_t i = 0; i < tokens.size(); i++) sum += orders[i] > order ? sizes[i] : 0;
        return sum;
    }
};

// Keeps the largest logits, of equals the first, until their sizes add up to `enough`. As far as is known, the cut is above
// the level `low`.
Cut cut_off(const Row& row, Level low, int64_t enough, const int32_t* sizes) {
    if (low.size < enough) return {};
    Level high{row.best, 0, 0};  // not enough
    // As a rule, the cut lies a little below the largest logit.
    for (float depth = 4; low.count - high.count > FEW; depth *= 2) {
        float guess = row.below(depth);
        if (guess <= low.logit) guess = std::max(low.logit, -FLT_MAX) / 2 + high.logit / 2;
        if (!(low.logit < guess && guess < high.logit)) break;  // there is none between
        const Level level = level_of(row, guess, sizes);
        (level.size < enough ? high : low) = level;
    }
    static thread_local Candidates between;
    between.take(row, low.logit, high.logit, sizes);
    // The last that is kept has the smallest order whose larger ones are not enough.
    int64_t below = order_of(low.logit), order = order_of(high.logit);
    while (order - below > 1) {
        const int64_t middle = below + (order - below) / 2;
        (high.size + between.larger(int32_t(middle)) < enough ? order : below) = middle;
    }
    Cut cut;
    int64_t sum = high.size + between.larger(int32_t(order));
    for (size_t i = 0; i < between.tokens.size() && sum < enough; i++)
        if (between.orders[i] == order) {
            cut = {row.logits[between.tokens[i]], between.tokens[i]};
            sum += between.sizes[i];
        }
    return cut;
}

Cut cut_top_k(const Row& row, int64_t k) {
    static thread_local std::vector<int32_t> ones;
    ones.resize(row.vocabulary, 1);
    float lowest = -INFINITE;
    if (k <= int64_t(row.tops.size())) {  // so many groups have a logit that is as large, so the cut is no lower
        static thread_local std::vector<float> sorted;
        sorted = row.tops;
        std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
        lowest = std::nextafter(sorted[k - 1], -INFINITE);
    }
    return cut_off(row, level_of(row, lowest, ones.data()), k, ones.data());
}

// `among`: what is left of the row.
Cut cut_top_p(const Row& row, float top_p, const Cut& among) {
    static thread_local std::vector<int32_t> weights;
    weights.resize(row.vocabulary);
    const float lowest = std::max(among.logit, row.below(WEIGHTLESS));
    int64_t total = 0, left = 0;
    row.for_groups(lowest, [&, among, best = row.best, inverse = row.inverse_temperature](int64_t first, auto size) {
        const float* logits = row.logits + first;
        int32_t* own = weights.data() + first;
        const int32_t at = int32_t(first);
        int64_t sum = 0;
        int32_t count = 0;
#pragma omp simd reduction(+ : sum, count)
        for (int32_t i = 0; i < int32_t(size); i++) {
            own[i] = weight_of((logits[i] - best) * inverse);
            sum += among.keeps(logits[i], at + i) ? own[i] : 0;
            count += logits[i] >= among.logit;
        }
        total += sum;
        left += count;
    });
    // At least the first token's.
    const int64_t enough = std::max<int64_t>(1, int64_t(std::ceil(double(total) * double(top_p))));
    const Level low{std::nextafter(lowest, -INFINITE), left, total};
    return cut_off(row, low, enough, weights.data());
}

// The token with the largest score, scaled logit and noise, of those that the cut and min-p leave.
Maximum draw(const Row& row, Key key, const Cut& cut, int32_t min_weight) {
    int64_t drawn = row.first_best();
    const float first_score = row.best * row.inverse_temperature + noise_of(key.bits(uint32_t(drawn)));
    float best = std::nextafter(first_score, -INFINITE);  // it has its turn below
    float lowest = cut.logit;
    if (min_weight) lowest = std::max(lowest, row.below(std::log(WEIGHT_ONE / float(min_weight)) + 1));
    row.for_groups(lowest, [&, key, cut, min_weight](int64_t first, auto size) {
        const float *logits = row.logits + first, inverse = row.inverse_temperature;
        if (row.tops[first / GROUP] * inverse + MOST_NOISE < best) return;
        const Key own{key.low + uint32_t(first), key.high};
        uint32_t bits[GROUP], least = UINT32_MAX;
#pragma omp simd reduction(min : least)
        for (int32_t i = 0; i < int32_t(size); i++) {
            bits[i] = own.bits(uint32_t(i));
            least = bits[i] < least ? bits[i] : least;
        }
        // As a rule, the largest logit and the largest noise together would be too little.
        if (row.tops[first / GROUP] * inverse + most_noise_of(least) < best) return;
        float scores[GROUP], top = -INFINITE;
        const float likeliest = row.best;
        const int32_t at = int32_t(first);
#pragma omp simd reduction(max : top)
        for (int32_t i = 0; i < int32_t(size); i++) {
            const bool is_likely = weight_of((logits[i] - likeliest) * inverse) >= min_weight;
            const float score = logits[i] * inverse + noise_of(bits[i]);
            scores[i] = cut.keeps(logits[i], at + i) & is_likely ? score : -INFINITE;
            top = scores[i] > top ? scores[i] : top;
        }
        if (top > best) {
            best = top;
            drawn = first + (std::find(scores, scores + size, top) - scores);
        }
    });
    return {best, row.best, drawn};
}

// Whether a mask that has this token, which was drawn, would leave it the one that is drawn. False: that is not known.
bool is_firm(const Row& row, Key key, const Cut& cut, float top_p, int32_t min_weight, const Maximum& drawn) {
    // What top-k and top-p leave but one token of, they leave but that one of if there are fewer others.
    if (cut.logit == row.best && cut.last == row.first_best()) return true;
    // With fewer others, filters may leave tokens that they took away here. None may have a larger score.
    if (drawn.score == -INFINITE || draw(row, key, {}, 0).token != drawn.token) return false;
    // Nor may they take it away. Weights are larger where the likeliest token is gone, so a small one's rounding counts.
    const Cut before{row.logits[drawn.token], int32_t(drawn.token) - 1};
    const int64_t weight = row.weight(drawn.token);
    if (weight < FIRM_WEIGHT || weight * 99 < int64_t(min_weight) * 100) return false;
    if (top_p >= 1) return true;
    int64_t likelier = 0;
    row.for_groups(before.logit, [&](int64_t first, auto size) {
        for (int64_t token = first; token < first + size; token++)
            likelier += before.keeps(row.logits[token], int32_t(token)) ? row.weight(token) : 0;
    });
    // The worst mask has all that are likelier, and none that are less so.
    return double(likelier) * (1.0 - double(top_p)) * 1.01 < double(weight) * double(top_p);
}

Maximum sample_row(float* logits, int64_t r, const SamplingRows& b) {
    static thread_local std::vector<float> tops;
    const Row row{logits, b.vocabulary, tops, shift(logits, r, b, tops), b.inverse_temperatures[r]};
    if (!std::isfinite(row.best)) return {row.best, row.best, -1};
    if (row.inverse_temperature == 0) return {row.best, row.best, row.first_best()};
    const Key key{uint32_t(b.keys[r]), uint32_t(b.keys[b.rows + r])};
    const bool cuts = b.top_k[r] < b.vocabulary || b.top_p[r] < 1;
    Cut cut;
    if (b.top_k[r] < b.vocabulary) cut = cut_top_k(row, b.top_k[r]);
    if (b.top_p[r] < 1) cut = cut_top_p(row, b.top_p[r], cut);
    Maximum drawn = draw(row, key, cut, b.min_weight[r]);
    const bool filters = cuts || b.min_weight[r] > 0;
    if (filters && b.unmasked && b.unmasked[r] && !is_firm(row, key, cut, b.top_p[r], b.min_weight[r], drawn)) drawn.token = -1;
    return drawn;
}

}  // namespace

void sample(float* logits, const SamplingRows& batch, Maximum* maxima) {
    in_pieces(batch.count, [&](int64_t n) {
        const int64_t row = batch.only ? batch.only[n] : n;
        maxima[n] = sample_row(logits + row * batch.vocabulary, row, batch);
    });
}

}  // namespace headwater
