// weigh_logits, choose_tokens, score_tokens: from edited logits (edit_logits.cu) to tokens, and from logits to log
// probabilities, with the filters, ties and random numbers of the CPU's sampler.
//
// min-p and top-k look at the distribution that temperature makes, top-p at what they leave of it, renormalised. Each
// keeps whatever is as likely as the last that it keeps. Nothing is sorted: a border is found by bisecting the bits of
// floats, over the row until few enough logits are undecided, then over these in shared memory. A draw takes one number
// in [0, 1) from (seed, position) and finds where the running sum of the weights, in the order of ids, passes it.
//
//   edited     [num_rows, num_groups * 4096] float32, and maxima [num_rows, num_groups * 32], as edit_logits writes them
//   slots      [num_rows]
//   positions  [num_rows], which token of its sequence a row's becomes, from 0
//   scales     [num_slots], log2(e) / temperature; 0: the likeliest token is wanted, or no log probabilities are
//   top_k      [num_slots], 0: off
//   top_p      [num_slots], 1: off
//   min_p      [num_slots], 0: off
//   seeds      [num_slots], the 64 bits of a seed
//   masks      [num_masks, num_words] and mask_of [num_rows], as edit_logits takes them: where no logit is above -inf, the
//              first token that the grammar allows is chosen, 0 where there is none
//   counts     [num_slots, vocab_size] as edit_logits reads them, written: the chosen token counts as output, up to 32767
//   penalties  [num_slots, 3], those of edit_logits; 1, 0, 0: nothing is counted
//   sums       [num_rows, num_groups], of the weights, in units of 2^-44; written by weigh_logits, read by the others
//   token_ids  [num_rows], written by choose_tokens, read by score_tokens
//   logprobs   [num_rows, 1 + max_top], of the token and then of the likeliest; none is below -9999
//   top_ids    [num_rows, max_top], likeliest first, equals in the order of their ids; -1 where a slot wants fewer
//   num_top    [num_slots], how many it wants, at most vocab_size
//
//   kThreads   of a block, whole warps; 4096 is a multiple of 4 kThreads
//   grid       weigh_logits (num_groups, num_rows), the others (num_rows)
//   block      kThreads
//
// Ladder
//   v1  Edits and sums take many multiprocessors a row, the choice takes one. With the maxima it reads the 128 logits of
//       those runs only that may matter. Expected for 64 rows of 131072 on an H200: sums out of the L2 cache 10 us; a
//       choice among few candidates 1024 maxima and some 40 rounds of a block, 15 us; a flat distribution some ten times
//       its row out of the L2 cache, 50 us. Left to itself the compiler takes 32 registers for score_tokens on sm_100a
//       and spills, so blocks of a row are two a multiprocessor at most. Not measured yet.
#include "sampling.cuh"

constexpr int kHeld = 4096;          // keys that a block keeps in shared memory
constexpr float kLowest = -9999.0f;  // stands for minus infinity, which JSON cannot say

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
weigh_logits(i64* __restrict__ sums, const float* __restrict__ edited, const float* __restrict__ maxima,
             const int* __restrict__ slots, const float* __restrict__ scales) {
    const int group = blockIdx.x, row = blockIdx.y;
    Row x(edited, maxima, row, gridDim.x, load<float>(scales + load<int>(slots + row)));
    if (x.scale == 0.0f) return;
    x.look<kThreads>();
    u64 sum = 0;
    for (int at = threadIdx.x * kVector; at < kGroup; at += kThreads * kVector) {
        const Logits values = load<Logits>(x.values + group * kGroup + at);
#pragma unroll
        for (int j = 0; j < kVector; ++j) sum += units_of(x.weight(values[j]));
    }
    sum = block_total<kThreads>(sum);
    if (threadIdx.x == 0) store(sums + row * gridDim.x + group, static_cast<i64>(sum));
}

// A number in [0, 1) with 53 random bits, without state; splitmix64, the seed mixed before the position is added.
__device__ __forceinline__ u64 mixed(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
__device__ __forceinline__ double uniform(u64 seed, i64 position) {
    constexpr u64 golden = 0x9E3779B97F4A7C15ull;
    const u64 bits = mixed(mixed(seed + golden) + (static_cast<u64>(position) + 1) * golden);
    return static_cast<double>(bits >> 11) * 0x1p-53;
}

// What a descent sees of logits: whole numbers in the order in which they are kept, each worth one.
struct ByLogit {
    __device__ __forceinline__ u32 key(float x) const { return in_order(x); }
    __device__ __forceinline__ u64 worth(u32) const { return 1; }
};

// The weights that filters have left so far, each worth itself.
struct ByWeight {
    const Row& row;
    float border, least;  // among logits and among weights

    __device__ __forceinline__ float weight(float x) const {
        const float found = x >= border ? row.weight(x) : 0.0f;
        return found >= least ? found : 0.0f;
    }
    __device__ __forceinline__ u32 key(float x) const { return bits_of_float(weight(x)); }
    __device__ __forceinline__ u64 worth(u32 key) const { return units_of(float_of_bits(key)); }
};

struct Tally {
    u64 worth;
    int count;
};

// Finds borders among the keys of a row; one block.
template <typename Order, int kThreads>
struct Descent {
    const Row& row;
    const Order order;

    // The keys from `border` up.
    __device__ __forceinline__ Tally from(u32 border) const {
        Tally tally = {0, 0};
        row.each<kThreads>([&](float most) { return order.key(most) >= border; },
                           [&](const Logits& x, int) {
#pragma unroll
                               for (int j = 0; j < kVector; ++j) {
                                   const u32 key = order.key(x[j]);
                                   if (key >= border) tally.worth += order.worth(key), ++tally.count;
                               }
                           });
        return {block_total<kThreads>(tally.worth), block_total<kThreads>(tally.count)};
    }

    // Gathers in any order the keys from `reached` to below `beyond`, at most kHeld.
    template <typename Held>
    __device__ __forceinline__ int hold(Held& held, u32 reached, u32 beyond) const {
        const auto wanted = [&](float most) { return order.key(most) >= reached; };
        const auto is_within = [&](u32 key) { return key >= reached && key < beyond; };
        u64 count = 0;
        row.each<kThreads>(wanted, [&](const Logits& x, int) {
#pragma unroll
            for (int j = 0; j < kVector; ++j) count += is_within(order.key(x[j]));
        });
        int at = static_cast<int>(block_sum_before<kThreads>(count));
        const int all = block_total<kThreads>(static_cast<int>(count));
        row.each<kThreads>(wanted, [&](const Logits& x, int) {
#pragma unroll
            for (int j = 0; j < kVector; ++j)
                if (is_within(order.key(x[j]))) held[at++] = order.key(x[j]);
        });
        __syncthreads();
        return all;
    }

    // The largest key of which those from it up are worth `target`; `reached` where none above it is. All keys are below
    // `beyond`.
    template <typename Held>
    __device__ __forceinline__ u32 find(Held& held, u64 target, u32 reached, u32 beyond) const {
        Tally lower = from(reached), upper = {0, 0};
        while (beyond - reached > 1 && lower.count - upper.count > kHeld) {
            const u32 middle = reached + (beyond - reached) / 2;
            const Tally found = from(middle);
            if (found.worth >= target) reached = middle, lower = found;
            else beyond = middle, upper = found;
        }
        if (beyond - reached <= 1) return reached;
        const int count = hold(held, reached, beyond);
        while (beyond - reached > 1) {
            const u32 middle = reached + (beyond - reached) / 2;
            u64 worth = 0;
            for (int i = threadIdx.x; i < count; i += kThreads)
                if (held[i] >= middle) worth += order.worth(held[i]);
            worth = upper.worth + block_total<kThreads>(worth);
            if (worth >= target) reached = middle;
            else beyond = middle;
        }
        return reached;
    }
};

// A logit that at least k of the row reach, where it can be told from the maxima of its runs: k of these do.
template <int kThreads>
__device__ __forceinline__ u32 key_of_maxima(const Row& row, int k) {
    u32 reached = in_order(nothing()), beyond = in_order(row.most) + 1;
    if (2 * static_cast<i64>(k) > row.num_groups * kRuns) return reached;
    while (beyond - reached > 1) {
        const u32 middle = reached + (beyond - reached) / 2;
        int count = 0;
        for (int i = threadIdx.x; i < row.num_groups * kRuns; i += kThreads)
            count += in_order(load<float>(row.maxima + i)) >= middle;
        count = block_total<kThreads>(count);
        if (count == k) return middle;
        if (count > k) reached = middle;
        else beyond = middle;
    }
    return reached;
}

// The first token with this logit, which some token has; one block.
template <int kThreads>
__device__ __forceinline__ int first_with(const Row& row, float value) {
    int found = 0x7fffffff;
    row.each<kThreads>([&](float most) { return most >= value; },
                       [&](const Logits& x, int id) {
#pragma unroll
                           for (int j = kVector - 1; j >= 0; --j)
                               if (x[j] == value) found = smaller(found, id + j);
                       });
    return -block_largest<kThreads>(-found);
}

// The first token that the mask allows, 0 where there is none.
template <int kThreads>
__device__ __forceinline__ int first_allowed(const int* mask, int vocab_size) {
    int found = vocab_size;
    for (int id = threadIdx.x; mask != nullptr && id < vocab_size && found == vocab_size; id += kThreads)
        if (static_cast<u32>(load<int>(mask + id / 32)) >> (id % 32) & 1) found = id;
    found = -block_largest<kThreads>(-found);
    return found < vocab_size ? found : 0;
}

// Where the running sum of the weights passes the share `number` of all; -1 where there are no weights.
//   sums  shared [kMostGroups]: of the groups
template <int kThreads, typename Sums>
__device__ __forceinline__ int draw(const ByWeight& of, Sums& sums, double number) {
    __shared__ SharedArray<int, 1> chosen;
    const Row& row = of.row;
    u64 total = 0;
    for (int i = 0; i < row.num_groups; ++i) total += static_cast<u64>(sums[i]);
    if (total == 0) return -1;
    u64 target = static_cast<u64>(number * static_cast<double>(total));
    if (target >= total) target = total - 1;
    int group = 0;
    while (target >= sums[group]) target -= static_cast<u64>(sums[group++]);

    constexpr int kOwn = kGroup / kThreads;  // neighbours of a thread
    const int first = group * kGroup + threadIdx.x * kOwn;
    u64 own = 0;
#pragma unroll
    for (int i = 0; i < kOwn; i += kVector) {
        const Logits x = load<Logits>(row.values + first + i);
#pragma unroll
        for (int j = 0; j < kVector; ++j) own += units_of(of.weight(x[j]));
    }
    const u64 before = block_sum_before<kThreads>(own);
    if (before <= target && target < before + own) {
        u64 sum = before;
        int at = -1;
        while (sum <= target) sum += units_of(of.weight(load<float>(row.values + first + ++at)));
        chosen[0] = first + at;
    }
    __syncthreads();
    return chosen[0];
}

// The number of units that are enough for top-p.
__device__ __forceinline__ u64 share_of(float top_p, u64 total) {
    const double wanted = static_cast<double>(top_p) * static_cast<double>(total);
    const u64 whole = static_cast<u64>(wanted);
    return whole + (static_cast<double>(whole) < wanted);
}

// The least weight that top-p keeps. What lies below (1 - top_p) * total / size sums to less than 1 - top_p, so the border
// is not among it.
template <int kThreads, typename Held>
__device__ __forceinline__ float find_nucleus(const ByWeight& of, Held& held, float top_p, u64 total) {
    const float share = static_cast<float>(total) / kUnits / static_cast<float>(of.row.num_groups * kGroup);
    const float least = fminf(0.5f * (1.0f - top_p) * share, 0.5f);
    const Descent<ByWeight, kThreads> descent{of.row, of};
    return float_of_bits(descent.find(held, share_of(top_p, total), bits_of_float(least), bits_of_float(1.0f) + 1));
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads, 2)
choose_tokens(int* __restrict__ token_ids, u16* __restrict__ counts, const float* __restrict__ edited,
              const float* __restrict__ maxima, const i64* __restrict__ sums, const int* __restrict__ slots,
              const i64* __restrict__ positions, const float* __restrict__ scales, const int* __restrict__ top_k,
              const float* __restrict__ top_p, const float* __restrict__ min_p, const i64* __restrict__ seeds,
              const int* __restrict__ masks, const int* __restrict__ mask_of, const float* __restrict__ penalties,
              int vocab_size, int num_words, int num_groups) {
    __shared__ SharedArray<u32, kHeld> held;
    __shared__ SharedArray<u64, kMostGroups> kept;
    const int number = blockIdx.x, slot = load<int>(slots + number);
    Row row(edited, maxima, number, num_groups, load<float>(scales + slot));
    row.look<kThreads>();
    int found = -1;
    if (!(row.most > nothing())) {
        const int which = load<int>(mask_of + number);
        found = first_allowed<kThreads>(which < 0 ? nullptr : masks + static_cast<i64>(which) * num_words, vocab_size);
    } else if (row.scale > 0.0f) {
        const int k = load<int>(top_k + slot);
        const float p = load<float>(top_p + slot);
        ByWeight of{row, nothing(), load<float>(min_p + slot)};
        const bool is_limited = 0 < k && k < vocab_size;
        if (is_limited) {
            const Descent<ByLogit, kThreads> descent{row, {}};
            of.border = out_of_order(descent.find(held, k, key_of_maxima<kThreads>(row, k), in_order(row.most) + 1));
        }
        const auto sum_up = [&] {  // what filters have left of each group
            for (int group = threadIdx.x / kWarp; group < num_groups; group += kThreads / kWarp) {
                u64 sum = 0;
                row.each_of_group(group, [&](float most) { return of.weight(most) > 0.0f; },
                                  [&](const Logits& x, int) {
#pragma unroll
                                      for (int j = 0; j < kVector; ++j) sum += units_of(of.weight(x[j]));
                                  });
                sum = warp_total(sum);
                if (threadIdx.x % kWarp == 0) kept[group] = sum;
            }
            __syncthreads();
        };
        if (is_limited || of.least > 0.0f) {
            sum_up();
        } else {
            for (int i = threadIdx.x; i < num_groups; i += kThreads)
                kept[i] = static_cast<u64>(load<i64>(sums + static_cast<i64>(number) * num_groups + i));
            __syncthreads();
        }
        if (p < 1.0f) {
            u64 total = 0;
            for (int i = 0; i < num_groups; ++i) total += static_cast<u64>(kept[i]);
            if (total > 0) of.least = larger_of(of.least, find_nucleus<kThreads>(of, held, p, total));
            __syncthreads();
            sum_up();
        }
        found = draw<kThreads>(of, kept, uniform(static_cast<u64>(load<i64>(seeds + slot)), load<i64>(positions + number)));
    }
    if (found < 0) found = first_with<kThreads>(row, row.most);
    if (threadIdx.x != 0) return;
    store(token_ids + number, found);
    const float* penalty = penalties + slot * 3;
    if (load<float>(penalty) == 1.0f && load<float>(penalty + 1) == 0.0f && load<float>(penalty + 2) == 0.0f) return;
    u16* count = counts + static_cast<i64>(slot) * vocab_size + found;
    const u16 before = load<u16>(count);
    store(count, static_cast<u16>(0x8000 | smaller((before & 0x7fff) + 1, 0x7fff)));
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads, 2)
score_tokens(float* __restrict__ logprobs, int* __restrict__ top_ids, const int* __restrict__ token_ids,
             const float* __restrict__ edited, const float* __restrict__ maxima, const i64* __restrict__ sums,
             const int* __restrict__ slots, const float* __restrict__ scales, const float* __restrict__ top_p,
             const int* __restrict__ num_top, int max_top, int num_groups) {
    __shared__ SharedArray<u32, kHeld> held;
    const int number = blockIdx.x, slot = load<int>(slots + number);
    Row row(edited, maxima, number, num_groups, load<float>(scales + slot));
    if (row.scale == 0.0f) return;
    row.look<kThreads>();
    u64 total = 0;
    for (int i = 0; i < num_groups; ++i) total += static_cast<u64>(load<i64>(sums + static_cast<i64>(number) * num_groups + i));
    ByWeight of{row, nothing(), 0.0f};
    const float p = load<float>(top_p + slot);
    if (p < 1.0f && total > 0) {
        of.least = find_nucleus<kThreads>(of, held, p, total);
        total = Descent<ByWeight, kThreads>{row, of}.from(1).worth;
    }
    const float log_total = logf(static_cast<float>(total) / kUnits);
    const auto logprob = [&](float x) {
        if (total == 0 || (of.least > 0.0f && of.weight(x) == 0.0f)) return kLowest;
        return fmaxf((x - row.most) * row.scale * 0.69314718055994531f - log_total, kLowest);
    };
    const int id = load<int>(token_ids + number), count = load<int>(num_top + slot);
    float* out = logprobs + static_cast<i64>(number) * (1 + max_top);
    if (threadIdx.x == 0) store(out, logprob(load<float>(row.values + id)));
    float last = 0.0f;
    int last_id = -1;
    for (int i = 0; i < max_top; ++i) {
        const auto is_next = [&](float x, int at) { return i == 0 || x < last || (x == last && at > last_id); };
        if (i < count) {
            float most = nothing();
            row.each<kThreads>([&](float of_run) { return of_run >= most; },
                               [&](const Logits& x, int at) {
#pragma unroll
                                   for (int j = 0; j < kVector; ++j)
                                       if (is_next(x[j], at + j)) most = larger_of(most, x[j]);
                               });
            most = block_largest<kThreads>(most);
            int first = 0x7fffffff;
            row.each<kThreads>([&](float of_run) { return of_run >= most; },
                               [&](const Logits& x, int at) {
#pragma unroll
                                   for (int j = kVector - 1; j >= 0; --j)
                                       if (x[j] == most && is_next(most, at + j)) first = smaller(first, at + j);
                               });
            last_id = -block_largest<kThreads>(-first);
            last = most;
        }
        if (threadIdx.x != 0) continue;
        store(top_ids + static_cast<i64>(number) * max_top + i, i < count ? last_id : -1);
        store(out + 1 + i, i < count ? logprob(last) : kLowest);
    }
}
