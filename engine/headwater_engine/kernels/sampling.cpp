// One thread takes a row from its logits to its token, so that the row stays in that core's cache.
//
// No row is sorted. Filters leave few tokens as a rule, and `Candidates` are a superset of those that is found cheaply,
// by the largest logit of each group of GROUP. What is cut off of them is found by bisection: over the logits' own
// bits, which, read as integers, are in the logits' order.
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
#include <climits>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "team.h"

namespace headwater {
namespace {

constexpr int64_t GROUP = 64;
constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float WEIGHT_ONE = 1 << 30;
constexpr float WEIGHTLESS = 30.0f;  // below the largest logit by so much, times the temperature: the weight is 0

uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

float log_of(float x) {
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

float noise_of(uint32_t bits) {
    float v = (float(int32_t(bits)) + 0.5f) * 0x1p-31f;
    v = v < 1 - 0x1p-24f ? v : 1 - 0x1p-24f;
    const float u = 1.0f - v;
    const float precise = log_of(u) * (v / (u - 1.0f));
    return -log_of(u == 1.0f ? v : precise);
}

// Never less than noise_of(bits), which is at most -log(bits / 2^31), and soon computed. 0.01: more than is rounded.
float most_noise_of(uint32_t bits) { return 0.6931472f * float(std::countl_zero(bits)) + 0.01f; }

// e^x of x <= 0, in units of 1 / WEIGHT_ONE.
int32_t weight_of(float x) {
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
int32_t order_of(float x) {
    const int32_t bits = std::bit_cast<int32_t>(x + 0.0f);
    return bits ^ ((bits >> 31) & INT_MAX);
}

void shift(float* logits, int64_t row, const SamplingRows& b) {
    if (b.counts && b.lines[row] >= 0) {
        const int32_t* counts = b.counts + b.lines[row] * b.vocabulary;
        const float repetition = b.repetition[row], presence = b.presence[row], frequency = b.frequency[row];
        for (int64_t t = 0; t < b.vocabulary; t++) {
            const float x = logits[t], divided = x / repetition, multiplied = x * repetition;
            const float repeated = counts[t] > 0 ? (x > 0 ? divided : multiplied) : x;
            const float shifted = repeated - (presence + frequency * float(counts[t] >> 1));
            logits[t] = counts[t] > 1 ? shifted : repeated;
        }
    }
    if (b.bits && b.bit_lines[row] >= 0) {
        const auto* bits = reinterpret_cast<const uint32_t*>(b.bits + b.bit_lines[row] * b.words);
        for (int64_t t = 0; t < b.vocabulary; t++) logits[t] += bits[t / 32] >> t % 32 & 1 ? 0.0f : -INFINITE;
    }
    const int64_t* end = b.bias_places + b.biases;
    for (const int64_t* p = std::lower_bound(b.bias_places, end, row * b.vocabulary);
         p < end && *p < (row + 1) * b.vocabulary; p++)
        logits[*p - row * b.vocabulary] += b.bias_values[p - b.bias_places];
}

// How much of `total` top-p asks for, at least the first token's.
int64_t enough_of(float top_p, int64_t total) {
    return std::max<int64_t>(1, int64_t(std::ceil(double(total) * double(top_p))));
}

// The largest of each group of logits. Returns the largest of all, or NaN where one is NaN or infinite.
float find_tops(const float* logits, int64_t vocabulary, std::vector<float>& tops) {
    tops.clear();
    int32_t broken = 0;
    for (int64_t first = 0; first < vocabulary; first += GROUP) {
        const int64_t last = std::min(vocabulary, first + GROUP);
        float top = -INFINITE;
#pragma omp simd reduction(max : top) reduction(| : broken)
        for (int64_t t = first; t < last; t++) {
            top = logits[t] > top ? logits[t] : top;
            broken |= !(logits[t] < INFINITE);
        }
        tops.push_back(top);
    }
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
};

// Tokens that may be drawn, in ascending order.
struct Candidates {
    std::vector<int32_t> tokens, orders, weights;

    size_t size() const { return tokens.size(); }
    int64_t total() const { return std::accumulate(weights.begin(), weights.end(), int64_t(0)); }

    // Those of the logits from `lowest` on.
    void take(const Row& row, float lowest) {
        size_t found = 0;
        for (int64_t first = 0; first < row.vocabulary; first += GROUP) {
            if (row.tops[first / GROUP] < lowest) continue;
            tokens.resize(found + GROUP);
            for (int64_t t = first; t < std::min(row.vocabulary, first + GROUP); t++) {
                tokens[found] = int32_t(t);
                found += row.logits[t] >= lowest;
            }
        }
        tokens.resize(found);
        orders.resize(size());
        weights.resize(size());
        for (size_t i = 0; i < size(); i++) orders[i] = order_of(row.logits[tokens[i]]);
        for (size_t i = 0; i < size(); i++) weights[i] = row.weight(tokens[i]);
    }

    template <typename F> void keep_if(F keeps) {
        size_t kept = 0;
        for (size_t i = 0; i < size(); i++) {
            const bool stays = keeps(i);
            tokens[kept] = tokens[i];
            orders[kept] = orders[i];
            weights[kept] = weights[i];
            kept += stays;
        }
        for (auto* each : {&tokens, &orders, &weights}) each->resize(kept);
    }

    // Keeps the largest, of equals the first, until their sizes add up to `enough`.
    template <typename Size> void keep_largest(int64_t enough, Size size_of) {
        const auto larger = [&](int32_t order) {
            int64_t sum = 0;
            for (size_t i = 0; i < size(); i++) sum += orders[i] > order ? size_of(i) : 0;
            return sum;
        };
        // The last that is kept is the smallest order whose larger ones are not enough.
        const auto [smallest, largest] = std::minmax_element(orders.begin(), orders.end());
        int64_t below = int64_t(*smallest) - 1, last = *largest;
        while (last - below > 1) {
            const int64_t middle = below + (last - below) / 2;
            (larger(int32_t(middle)) < enough ? last : below) = middle;
        }
        int64_t sum = larger(int32_t(last));
        keep_if([&](size_t i) {
            if (orders[i] != last) return orders[i] > last;
            const bool keeps = sum < enough;
            sum += size_of(i);
            return keeps;
        });
    }

    void keep_top_k(int64_t k) {
        keep_largest(k, [](size_t) { return int64_t(1); });
    }
    void keep_top_p(float top_p, int64_t total) {
        keep_largest(enough_of(top_p, total), [&](size_t i) { return int64_t(weights[i]); });
    }
};

// The k-th largest logit is at least this: so many groups have a logit that is.
float least_of_top_k(const std::vector<float>& tops, int64_t k) {
    if (k > int64_t(tops.size())) return -INFINITE;
    std::vector<float> sorted = tops;
    std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
    return sorted[k - 1];
}

void filter(Candidates& candidates, const Row& row, int64_t top_k, float top_p, int32_t min_weight) {
    if (top_k < row.vocabulary) {
        candidates.take(row, least_of_top_k(row.tops, top_k));
        candidates.keep_top_k(top_k);
        if (top_p < 1) candidates.keep_top_p(top_p, candidates.total());
    } else if (top_p < 1) {
        int64_t total = 0;
        for (int64_t t = 0; t < row.vocabulary; t++) total += row.weight(t);
        float depth = 4;  // as a rule, what is wanted lies above it
        do
            candidates.take(row, row.below(depth)), depth *= 2;
        while (candidates.total() < enough_of(top_p, total));
        candidates.keep_top_p(top_p, total);
    } else {
        candidates.take(row, row.below(std::log(WEIGHT_ONE / float(min_weight)) + 1));
    }
    candidates.keep_if([&](size_t i) { return candidates.weights[i] >= min_weight; });
}

// Of `count` tokens, token_of(0), token_of(1), ..., ascending, the one with the largest score: scaled logit and noise.
// top_of(first): at least the largest logit of the GROUP of them that starts there.
template <typename F, typename G> Maximum draw(const Row& row, Key key, int64_t count, F token_of, G top_of) {
    const auto score = [&](int64_t token, uint32_t bits) {
        return row.logits[token] * row.inverse_temperature + noise_of(bits);
    };
    int64_t drawn = row.first_best();
    float best = std::nextafter(score(drawn, key.bits(uint32_t(drawn))), -INFINITE);  // it has its turn below
    for (int64_t first = 0; first < count; first += GROUP) {
        const int64_t size = std::min(GROUP, count - first);
        uint32_t bits[GROUP], least = UINT32_MAX;
#pragma omp simd reduction(min : least)
        for (int64_t i = 0; i < size; i++) {
            bits[i] = key.bits(uint32_t(token_of(first + i)));
            least = bits[i] < least ? bits[i] : least;
        }
        // As a rule, the largest logit and the largest noise together would be too little.
        if (top_of(first) * row.inverse_temperature + most_noise_of(least) < best) continue;
        float scores[GROUP], top = -INFINITE;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < size; i++) {
            scores[i] = score(token_of(first + i), bits[i]);
            top = scores[i] > top ? scores[i] : top;
        }
        if (top > best) {
            best = top;
            drawn = token_of(first + (std::find(scores, scores + size, top) - scores));
        }
    }
    return {best, row.best, drawn};
}

Maximum sample_row(float* logits, int64_t r, const SamplingRows& b) {
    static thread_local std::vector<float> tops;
    static thread_local Candidates candidates;
    shift(logits, r, b);
    const Row row{logits, b.vocabulary, tops, find_tops(logits, b.vocabulary, tops), b.inverse_temperatures[r]};
    if (!std::isfinite(row.best)) return {row.best, row.best, -1};
    if (row.inverse_temperature == 0) return {row.best, row.best, row.first_best()};
    const Key key{uint32_t(b.keys[r]), uint32_t(b.keys[b.rows + r])};
    if (b.top_k[r] >= b.vocabulary && b.top_p[r] >= 1 && b.min_weight[r] == 0)
        return draw(
            row, key, b.vocabulary, [](int64_t i) { return i; }, [&](int64_t first) { return tops[first / GROUP]; });
    filter(candidates, row, b.top_k[r], b.top_p[r], b.min_weight[r]);
    return draw(
        row, key, candidates.size(), [&](int64_t i) { return candidates.tokens[i]; }, [&](int64_t) { return row.best; });
}

}  // namespace

void sample(float* logits, const SamplingRows& batch, Maximum* maxima) {
    in_pieces(batch.rows, [&](int64_t row) { maxima[row] = sample_row(logits + row * batch.vocabulary, row, batch); });
}

}  // namespace headwater
