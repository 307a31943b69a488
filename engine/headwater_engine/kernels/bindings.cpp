// From torch's tensors to the kernels' pointers. Shapes and types are checked here, and only here.
//
// Other Python threads run while a kernel does, if it takes so long that it is worth it: each of them may keep the lock for
// five milliseconds, so that short kernels would mostly wait for it.
#include <ATen/Parallel.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <vector>

#include "attention.h"
#include "cache.h"
#include "elementwise.h"
#include "gemm.h"
#include "recording.h"
#include "sampling.h"
#include "team.h"

using at::Tensor;
using headwater::bf16;
using headwater::made;
using headwater::Recording;

namespace {

template <typename T> T* data(const Tensor& x) { return static_cast<T*>(x.data_ptr()); }

bool is_bf16(const Tensor& x) {
    TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "float32 or bfloat16, not ",
                x.scalar_type());
    return x.scalar_type() == at::kBFloat16;
}

// Calls f with a null pointer of the tensor's element type.
template <typename F> void by_type(const Tensor& x, F f) {
    if (is_bf16(x))
        f(static_cast<bf16*>(nullptr));
    else
        f(static_cast<float*>(nullptr));
}

// The same for activations and what is stored packed: bfloat16 ones take nothing wider.
template <typename F> void by_types(const Tensor& x, const Tensor& stored, F f) {
    if (is_bf16(x))
        f(static_cast<bf16*>(nullptr), static_cast<bf16*>(nullptr));
    else
        by_type(stored, [&](auto* s) { f(static_cast<float*>(nullptr), s); });
}

// While this is there, other Python threads run.
using Unlocked = std::optional<py::gil_scoped_release>;
constexpr int64_t LONG = 1 << 26;  // multiplications that take about half a millisecond

void unlock_if_long(Unlocked& unlocked, int64_t multiplications) {
    if (multiplications >= LONG) unlocked.emplace();
}

// Runs a kernel, and has it recorded where that is wanted: it holds by value all that it needs (recording.h).
template <typename F> void perform(int64_t multiplications, const F& kernel) {
    if (Recording* recording = Recording::current()) recording->add(kernel);
    Unlocked unlocked;
    unlock_if_long(unlocked, multiplications);
    kernel();
}

// [rows, ...] whose last dimensions are contiguous. Returns the elements between two rows.
int64_t row_stride(const Tensor& x) {
    int64_t expected = 1;
    for (int64_t d = x.dim() - 1; d > 0; d--) {
        TORCH_CHECK(x.size(d) == 1 || x.stride(d) == expected, "rows must be contiguous");
        expected *= x.size(d);
    }
    return x.dim() > 1 ? x.stride(0) : 1;
}

Tensor pack(const Tensor& weight) {
    Recording::refuse("pack");
    TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "a contiguous [outputs, inputs] weight");
    Tensor packed;
    const py::gil_scoped_release unlocked;
    by_type(weight, [&](auto* t) {
        using W = std::remove_pointer_t<decltype(t)>;
        packed = made({headwater::packed_size<W>(weight.size(0), weight.size(1))}, weight.scalar_type());
        headwater::pack(data<W>(weight), weight.size(0), weight.size(1), data<W>(packed));
    });
    return packed;
}

// The rows of a table [size, dim] that `rows` names, of type `to`: bfloat16 ones may be widened. take(from, rows, count, y)
// knows how they are stored.
template <typename F>
Tensor looked_up(const Tensor& table, const Tensor& rows, int64_t size, int64_t dim, at::ScalarType to, const F& take) {
    TORCH_CHECK(rows.scalar_type() == at::kLong && rows.is_contiguous(), "rows must be int64");
    TORCH_CHECK(is_bf16(table) || to == at::kFloat, "float32 rows stay float32");
    const int64_t* named = data<int64_t>(rows);
    const int64_t count = rows.numel();
    Tensor y = made({count, dim}, to);
    by_types(y, table, [&](auto* t, auto* w) {
        using Y = std::remove_pointer_t<decltype(t)>;
        using W = std::remove_pointer_t<decltype(w)>;
        perform(0, [=, from = data<W>(table), y = data<Y>(y)] {
            for (int64_t i = 0; i < count; i++)
                TORCH_CHECK_INDEX(named[i] >= 0 && named[i] < size, "row ", named[i], " of ", size);
            take(from, named, count, y);
        });
    });
    return y;
}

// Of a table as it is.
Tensor take_rows(const Tensor& table, const Tensor& rows, at::ScalarType to) {
    TORCH_CHECK(table.dim() == 2 && table.is_contiguous(), "a contiguous [size, dim] table");
    const int64_t dim = table.size(1);
    return looked_up(table, rows, table.size(0), dim, to, [=](auto* from, const int64_t* named, int64_t count, auto* y) {
        headwater::take_rows(from, named, count, dim, y);
    });
}

// Of a packed [outputs, inputs] weight.
Tensor unpack_rows(const Tensor& packed, const Tensor& rows, int64_t inputs, int64_t outputs, at::ScalarType to) {
    return looked_up(packed, rows, outputs, inputs, to, [=](auto* from, const int64_t* named, int64_t count, auto* y) {
        headwater::unpack_rows(from, named, count, inputs, y);
    });
}

// y is of x's type, or float32 if `wide`.
Tensor linear(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t inputs, int64_t outputs,
              bool wide) {
    TORCH_CHECK(x.dim() == 2 && x.size(1) == inputs, "x must be [rows, ", inputs, "]");
    TORCH_CHECK(is_bf16(packed) || !is_bf16(x), "mixed types");
    TORCH_CHECK(!bias || (bias->numel() == outputs && bias->scalar_type() == at::kFloat && bias->is_contiguous()),
                "bias must be [", outputs, "] float32");
    const int64_t rows = x.size(0), stride = row_stride(x);
    const float* biases = bias ? data<float>(*bias) : nullptr;
    Tensor y = made({rows, outputs}, wide ? at::kFloat : x.scalar_type());
    by_types(x, packed, [&](auto* t, auto* w) {
        using X = std::remove_pointer_t<decltype(t)>;
        using W = std::remove_pointer_t<decltype(w)>;
        TORCH_CHECK(packed.numel() == headwater::packed_size<W>(outputs, inputs), "not a weight of this shape");
        const auto run = [&](auto* to) {
            perform(rows * inputs * outputs, [=, x = data<X>(x), weights = data<W>(packed)] {
                headwater::gemm(x, stride, weights, biases, to, rows, inputs, outputs);
            });
        };
        if (wide)
            run(data<float>(y));
        else
            run(data<X>(y));
    });
    return y;
}

// `packed` is of [2 * outputs, inputs], in turns.
Tensor gated_linear(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t inputs, int64_t outputs) {
    TORCH_CHECK(x.dim() == 2 && x.size(1) == inputs, "x must be [rows, ", inputs, "]");
    TORCH_CHECK(headwater::takes_gated(inputs, outputs) && is_bf16(packed) && is_bf16(x) &&
                    packed.numel() == headwater::packed_size<bf16>(2 * outputs, inputs),
                "not a weight of this shape");
    TORCH_CHECK(!bias || (bias->numel() == 2 * outputs && bias->scalar_type() == at::kFloat && bias->is_contiguous()),
                "bias must be [", 2 * outputs, "] float32");
    const int64_t rows = x.size(0), stride = row_stride(x);
    const float* biases = bias ? data<float>(*bias) : nullptr;
    Tensor y = made({rows, outputs}, x.scalar_type());
    perform(rows * inputs * 2 * outputs, [=, x = data<bf16>(x), weights = data<bf16>(packed), y = data<bf16>(y)] {
        headwater::gated_gemm(x, stride, weights, biases, y, rows, inputs, outputs);
    });
    return y;
}

// [tokens, heads, dim]
template <typename T> headwater::Heads<T> heads_of(const Tensor& x) {
    return {data<T>(x), row_stride(x), x.size(1), x.size(2)};
}

// Whether tokens that have a key and a value, of `heads` heads each, can be written to these places of this cache.
void check_slots(const Tensor& slots, int64_t tokens, int64_t heads, int64_t key_dim, int64_t value_dim, const Tensor& key_cache,
                 const Tensor& value_cache) {
    TORCH_CHECK(slots.numel() == tokens && slots.scalar_type() == at::kLong && slots.is_contiguous(),
                "keys, values and slots must be of the same tokens");
    TORCH_CHECK(key_cache.size(1) == heads && key_cache.size(2) >= key_dim && value_cache.size(3) >= value_dim,
                "the cache has another shape");
}

// Calls f with the heads of keys and of values, and where their tokens go.
template <typename F>
void with_slots(const Tensor& keys, const Tensor& values, const Tensor& key_cache, const Tensor& value_cache,
                const Tensor& slots, F f) {
    TORCH_CHECK(keys.dim() == 3 && values.dim() == 3 && values.size(0) == keys.size(0) && values.size(1) == keys.size(1),
                "keys, values and slots must be of the same tokens");
    check_slots(slots, keys.size(0), keys.size(1), keys.size(2), values.size(2), key_cache, value_cache);
    TORCH_CHECK(keys.scalar_type() == values.scalar_type() && (is_bf16(key_cache) || !is_bf16(keys)), "mixed types");
    by_types(keys, key_cache, [&](auto* t, auto* c) {
        using T = std::remove_pointer_t<decltype(t)>;
        using C = std::remove_pointer_t<decltype(c)>;
        f(heads_of<T>(keys), heads_of<T>(values),
          headwater::Slots<C>{data<C>(key_cache), data<C>(value_cache), data<int64_t>(slots)});
    });
}

void write_cache(const Tensor& keys, const Tensor& values, const Tensor& key_cache, const Tensor& value_cache,
                 const Tensor& slots) {
    const int64_t tokens = keys.size(0);
    with_slots(keys, values, key_cache, value_cache, slots,
               [&](auto k, auto v, auto to) { perform(0, [=] { headwater::write_cache(k, v, to, tokens); }); });
}

// The weights of queries' and keys' norms.
using Norms = std::optional<std::pair<Tensor, Tensor>>;

// Of heads of x, of `dim` numbers each.
template <typename T>
headwater::Rotation<T> rotation_of(const Tensor& x, int64_t dim, const Tensor& cos, const Tensor& sin, const Tensor& positions,
                                   const Norms& norms, double eps) {
    TORCH_CHECK(cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat && cos.is_contiguous() &&
                    sin.is_contiguous() && cos.sizes() == sin.sizes() && dim >= 2 * cos.size(1),
                "cos and sin must be [positions, half] float32");
    TORCH_CHECK(positions.scalar_type() == at::kLong && positions.is_contiguous() && positions.numel() == x.size(0),
                "positions must be int64, of the same tokens");
    if (norms)
        for (const Tensor& weight : {norms->first, norms->second})
            TORCH_CHECK(weight.numel() == dim && weight.scalar_type() == x.scalar_type() && weight.is_contiguous(),
                        "norms must be [dim] of the heads' type");
    const T *of_queries = norms ? data<T>(norms->first) : nullptr, *of_keys = norms ? data<T>(norms->second) : nullptr;
    return {data<float>(cos), data<float>(sin), cos.size(1), data<int64_t>(positions), of_queries, of_keys, float(eps)};
}

void place(const Tensor& queries, const Tensor& keys, const Tensor& values, const Tensor& cos, const Tensor& sin,
           const Tensor& positions, const Tensor& key_cache, const Tensor& value_cache, const Tensor& slots, const Norms& norms,
           double eps) {
    for (const Tensor& x : {queries, keys})
        TORCH_CHECK(x.dim() == 3 && x.size(0) == keys.size(0) && x.size(2) == keys.size(2) &&
                        x.scalar_type() == keys.scalar_type(),
                    "queries and keys must be [tokens, heads, dim]");
    with_slots(keys, values, key_cache, value_cache, slots, [&]<typename T>(headwater::Heads<T> k, auto v, auto to) {
        const auto rotation = rotation_of<T>(keys, keys.size(2), cos, sin, positions, norms, eps);
        perform(0, [=, q = heads_of<T>(queries), tokens = keys.size(0)] { headwater::place(q, k, v, rotation, to, tokens); });
    });
}

headwater::Sequences sequences_of(const Tensor& block_tables, const Tensor& query_starts, const Tensor& context_lengths) {
    for (const Tensor& indices : {block_tables, query_starts, context_lengths})
        TORCH_CHECK(indices.scalar_type() == at::kInt && indices.is_contiguous(), "tables and lengths must be int32");
    TORCH_CHECK(query_starts.numel() == context_lengths.numel() + 1 && block_tables.size(0) == context_lengths.numel(),
                "tables and lengths must be of the same sequences");
    return {context_lengths.numel(), block_tables.size(1), data<int32_t>(block_tables), data<int32_t>(query_starts),
            data<int32_t>(context_lengths)};
}

// Shared with the recorded kernels that go by it, of which one makes it anew.
using Plan = std::shared_ptr<headwater::Plan>;

// Of attention, for a batch and layers of one kind. window 0: none.
Plan plan_attention(const Tensor& block_tables, const Tensor& query_starts, const Tensor& context_lengths, int64_t heads,
                    int64_t kv_heads, int64_t window) {
    TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0, heads, " heads over ", kv_heads, " KV heads");
    const headwater::Sequences sequences = sequences_of(block_tables, query_starts, context_lengths);
    const Plan plan = std::make_shared<headwater::Plan>();
    perform(0, [=] { *plan = headwater::plan_attention(sequences, heads, kv_heads, window); });
    return plan;
}

headwater::AttentionShape shape_of(const Plan& plan, int64_t heads, int64_t key_dim, int64_t value_dim, double scale,
                                   int64_t window, double softcap, const std::optional<Tensor>& sinks, const Tensor& key_cache) {
    TORCH_CHECK(plan->kv_heads == key_cache.size(1) && plan->group * plan->kv_heads == heads, "a plan for other heads");
    TORCH_CHECK(!sinks || (sinks->numel() == heads && sinks->scalar_type() == at::kFloat), "sinks must be [heads] float32");
    return {heads, key_dim, value_dim, float(scale), window, float(softcap), sinks ? data<float>(*sinks) : nullptr};
}

Tensor paged_attention(const Tensor& queries, const Tensor& key_cache, const Tensor& value_cache,
                       const Tensor& block_tables, const Tensor& query_starts, const Tensor& context_lengths,
                       const Plan& plan, int64_t value_dim, double scale, int64_t window, double softcap,
                       const std::optional<Tensor>& sinks) {
    TORCH_CHECK(queries.dim() == 3 && key_cache.dim() == 4 && queries.size(2) <= key_cache.size(2),
                "queries must be [tokens, heads, key dim] of the cache's key dim");
    TORCH_CHECK(is_bf16(key_cache) || !is_bf16(queries), "mixed types");
    const int64_t heads = queries.size(1);
    const auto shape = shape_of(plan, heads, queries.size(2), value_dim, scale, window, softcap, sinks, key_cache);
    const headwater::Sequences sequences = sequences_of(block_tables, query_starts, context_lengths);
    const int64_t stride = row_stride(queries), multiplications = queries.numel() * sequences.max_blocks * headwater::TILE;
    Tensor output = made({queries.size(0), heads, value_dim}, queries.scalar_type());
    by_types(queries, key_cache, [&](auto* t, auto* c) {
        using T = std::remove_pointer_t<decltype(t)>;
        using C = std::remove_pointer_t<decltype(c)>;
        perform(multiplications, [=, queries = data<T>(queries), keys = data<C>(key_cache), values = data<C>(value_cache),
                                  output = data<T>(output)] {
            headwater::paged_attention(queries, stride, keys, values, sequences, *plan, shape, output);
        });
    });
    return output;
}

// `place` and `paged_attention` at once, of what one product gave: x [tokens, (heads + 2 * kv heads) * dim] has the queries,
// keys and values of each token behind one another. Returns [tokens, heads * dim].
Tensor attend(const Tensor& x, const Tensor& key_cache, const Tensor& value_cache, int64_t dim, const Tensor& cos,
              const Tensor& sin, const Tensor& positions, const Tensor& slots, const Tensor& block_tables,
              const Tensor& query_starts, const Tensor& context_lengths, const Plan& plan, const Norms& norms, double eps,
              double scale, int64_t window, double softcap, const std::optional<Tensor>& sinks) {
    const int64_t tokens = x.size(0), kv_heads = plan->kv_heads, heads = plan->group * kv_heads, stride = row_stride(x);
    TORCH_CHECK(x.dim() == 2 && x.size(1) == (heads + 2 * kv_heads) * dim, "x must be [tokens, (heads + 2 * kv heads) * dim]");
    TORCH_CHECK(is_bf16(key_cache) || !is_bf16(x), "mixed types");
    check_slots(slots, tokens, kv_heads, dim, dim, key_cache, value_cache);
    const auto shape = shape_of(plan, heads, dim, dim, scale, window, softcap, sinks, key_cache);
    const headwater::Sequences sequences = sequences_of(block_tables, query_starts, context_lengths);
    Tensor output = made({tokens, heads * dim}, x.scalar_type());
    by_types(x, key_cache, [&](auto* t, auto* c) {
        using T = std::remove_pointer_t<decltype(t)>;
        using C = std::remove_pointer_t<decltype(c)>;
        T* const queries = data<T>(x);
        const headwater::Heads<T> keys{queries + heads * dim, stride, kv_heads, dim};
        const headwater::Heads<T> values{keys.data + kv_heads * dim, stride, kv_heads, dim};
        const headwater::Slots<C> to{data<C>(key_cache), data<C>(value_cache), data<int64_t>(slots)};
        const auto rotation = rotation_of<T>(x, dim, cos, sin, positions, norms, eps);
        perform(output.numel() * sequences.max_blocks * headwater::TILE, [=, output = data<T>(output)] {
            headwater::place({queries, stride, heads, dim}, keys, values, rotation, to, tokens);
            headwater::paged_attention(queries, stride, to.keys, to.values, sequences, *plan, shape, output);
        });
    });
    return output;
}

// x [..., dim], rows of which may lie apart in the first dimension; with several dimensions before the last, each of
// the first one's entries holds size(1) * ... rows behind one another.
Tensor rms_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight, double eps) {
    const int64_t dim = x.size(-1), outer = x.size(0);
    const int64_t inner = outer ? x.numel() / outer / dim : 1, stride = row_stride(x);
    TORCH_CHECK(weight.numel() == dim && weight.scalar_type() == x.scalar_type() && weight.is_contiguous(),
                "weight must be [", dim, "] of x's type");
    TORCH_CHECK(!residual || (residual->is_contiguous() && residual->numel() == x.numel() && inner == 1 &&
                              residual->scalar_type() == x.scalar_type()),
                "residual must be like x");
    Tensor output = made(x.sizes(), x.scalar_type());
    by_type(x, [&](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        T* sum = residual ? data<T>(*residual) : nullptr;
        perform(0, [=, x = data<T>(x), weight = data<T>(weight), output = data<T>(output)] {
            if (inner == 1 || stride == inner * dim)
                headwater::rms_norm(x, inner == 1 ? stride : dim, sum, weight, float(eps), output, outer * inner, dim);
            else
                for (int64_t i = 0; i < outer; i++)
                    headwater::rms_norm(x + i * stride, dim, sum, weight, float(eps), output + i * inner * dim, inner, dim);
        });
    });
    return output;
}

Tensor silu_mul(const Tensor& gate_up) {
    TORCH_CHECK(gate_up.dim() == 2 && gate_up.is_contiguous() && gate_up.size(1) % 2 == 0, "gate_up must be [tokens, 2 * n]");
    Tensor output = made({gate_up.size(0), gate_up.size(1) / 2}, gate_up.scalar_type());
    by_type(gate_up, [&](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        perform(0, [from = data<T>(gate_up), to = data<T>(output), rows = output.size(0), dim = output.size(1)] {
            headwater::silu_mul(from, to, rows, dim);
        });
    });
    return output;
}

// A [size] tensor of one type, contiguous.
template <typename T> T* checked(const Tensor& x, int64_t size, at::ScalarType type, const char* name) {
    TORCH_CHECK(x.is_contiguous() && x.numel() == size && x.scalar_type() == type, name, " must be [", size, "] of ", type);
    return data<T>(x);
}

using Penalties = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Masks = std::tuple<Tensor, Tensor>;
using Biases = std::tuple<Tensor, Tensor>;

std::tuple<Tensor, Tensor, Tensor> sample(const Tensor& logits, const Tensor& inverse_temperatures, const Tensor& keys, const Tensor& top_k,
              const Tensor& top_p, const Tensor& min_weight,
              const std::optional<Penalties>& penalties, const std::optional<Masks>& masks,
              const std::optional<Biases>& biases, const std::optional<Tensor>& unmasked, const std::optional<Tensor>& only) {
    Recording::refuse("sample");
    TORCH_CHECK(logits.dim() == 2, "logits must be [rows, vocabulary]");
    const int64_t rows = logits.size(0), vocabulary = logits.size(1);
    float* values = checked<float>(logits, logits.numel(), at::kFloat, "logits");
    headwater::SamplingRows batch{rows, vocabulary,
                                  checked<float>(inverse_temperatures, rows, at::kFloat, "inverse temperatures"),
                                  checked<int32_t>(keys, 2 * rows, at::kInt, "keys"),
                                  checked<int32_t>(top_k, rows, at::kInt, "top-k"),
                                  checked<float>(top_p, rows, at::kFloat, "top-p"),
                                  checked<int32_t>(min_weight, rows, at::kInt, "min-p")};
    if (penalties) {
        const auto& [counts, lines, repetition, presence, frequency] = *penalties;
        TORCH_CHECK(counts.dim() == 2 && counts.size(1) == vocabulary, "counts must be of the vocabulary");
        batch.counts = checked<int32_t>(counts, counts.numel(), at::kInt, "counts");
        batch.lines = checked<int32_t>(lines, rows, at::kInt, "rows of counts");
        batch.repetition = checked<float>(repetition, rows, at::kFloat, "repetition penalties");
        batch.presence = checked<float>(presence, rows, at::kFloat, "presence penalties");
        batch.frequency = checked<float>(frequency, rows, at::kFloat, "frequency penalties");
    }
    if (masks) {
        const auto& [bits, lines] = *masks;
        TORCH_CHECK(bits.dim() == 2 && 32 * bits.size(1) >= vocabulary, "bits must be of the vocabulary");
        batch.words = bits.size(1);
        batch.bits = checked<int32_t>(bits, bits.numel(), at::kInt, "bits");
        batch.bit_lines = checked<int32_t>(lines, rows, at::kInt, "rows of bits");
    }
    if (biases) {
        const auto& [places, shifts] = *biases;
        batch.biases = places.numel();
        batch.bias_places = checked<int64_t>(places, batch.biases, at::kLong, "places of biases");
        batch.bias_values = checked<float>(shifts, batch.biases, at::kFloat, "biases");
    }
    if (unmasked) batch.unmasked = checked<bool>(*unmasked, rows, at::kBool, "unmasked rows");
    const int64_t count = batch.count = only ? only->numel() : rows;
    if (only) batch.only = checked<int64_t>(*only, count, at::kLong, "rows that become tokens");
    for (int64_t n = 0; only && n < count; n++) TORCH_CHECK(uint64_t(batch.only[n]) < uint64_t(rows), "no such row");
    std::vector<headwater::Maximum> maxima(count);
    Unlocked unlocked;
    unlock_if_long(unlocked, count * vocabulary * 50);  // of a draw, which hashes and takes logarithms
    headwater::sample(values, batch, maxima.data());
    Tensor scores = made({count}, at::kFloat), best = made({count}, at::kFloat), tokens = made({count}, at::kLong);
    for (int64_t n = 0; n < count; n++)
        data<float>(scores)[n] = maxima[n].score, data<float>(best)[n] = maxima[n].best, data<int64_t>(tokens)[n] = maxima[n].token;
    return {scores, best, tokens};
}

}  // namespace

// What each kernel is called with: as many threads as torch would take.
struct Team {
    Team() { headwater::set_team_size(at::get_num_threads()); }
};

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    const py::call_guard<Team> team;
    m.def("pack", &pack, team);
    m.def("take_rows", &take_rows, team);
    m.def("unpack_rows", &unpack_rows, team);
    m.def("linear", &linear, team);
    m.def("takes_gated", &headwater::takes_gated);
    m.def("gated_linear", &gated_linear, team);
    m.def("write_cache", &write_cache, team);
    m.def("place", &place, team);
    py::class_<headwater::Plan, Plan>(m, "Plan").def("__len__", [](const headwater::Plan& plan) { return plan.tasks.size(); });
    m.def("plan_attention", &plan_attention);
    m.def("paged_attention", &paged_attention, team);
    m.def("attend", &attend, team);
    m.def("rms_norm", &rms_norm, team);
    m.def("silu_mul", &silu_mul, team);
    m.def("sample", &sample, team);
    using headwater::Scratch;
    py::class_<Scratch, std::shared_ptr<Scratch>>(m, "Scratch").def(py::init());
    py::class_<Recording>(m, "Recording")
        .def(py::init<std::shared_ptr<Scratch>>())
        .def("begin", &Recording::begin)
        .def("end", &Recording::end)
        .def("run", &Recording::run, py::call_guard<Team, py::gil_scoped_release>());
}
