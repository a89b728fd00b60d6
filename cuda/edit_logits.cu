// survey_logits, edit_logits: logits as the model made them become those that are chosen from, by what each row's slot
// asks for, in the order mask of the grammar, allowed ids, bans, bias, repetition, frequency, presence.
//
// A grammar that allows nothing counts for nothing. Where none of the allowed ids has a logit above -inf, they count for
// nothing; nor do bans where they leave nothing. Which of them count is the survey's answer, for a row as a whole; it is
// needed only where there are any.
//
//   logits     [num_rows, vocab_size], contiguous
//   slots      [num_rows]
//   positions  [num_rows], which token of its sequence a row's becomes, from 0
//   masks      [num_masks, num_words], bit i % 32 of word i / 32 says whether the grammar allows token i
//   mask_of    [num_rows], which of the masks, -1: none
//   allowed    [num_lists, num_words], the same for allowed ids
//   allowed_of [num_slots], which of these, -1: all ids are allowed
//   ban_ids    [num_slots, max_bans], distinct; -1 ends a list
//   ban_until  [num_slots, max_bans], the first position at which the id may be chosen
//   bias_ids   [num_slots, max_biases], distinct; -1 ends a list
//   biases     [num_slots, max_biases]
//   counts     [num_slots, vocab_size]: bit 15 says whether the sequence has the token, the others how often its output
//   penalties  [num_slots, 3]: repetition, frequency, presence; 1, 0, 0: the counts are not read
//   outcomes   [num_rows, num_groups]: of a group of 4096 tokens, in bit (mask + 2 allowed + 4 bans) whether a logit above
//              -inf is left by these together, in bit 8 whether the mask allows any
//   edited     [num_rows, num_groups * 4096] float32, -inf for what is not allowed, no number or behind the vocabulary
//   maxima     [num_rows, num_groups * 32], of its runs of 128
//
//   has_edits  0: nothing but logits is read and edited is what the model made. has_lists 0: there are neither masks nor
//              allowed ids nor bans, so no outcomes
//   T          bf16, fp16 or float
//   kWidth     logits that travel together, 1, 2 or 4: it divides vocab_size
//   kThreads   of a block, whole warps
//   grid       (num_groups, num_rows)
//   block      kThreads
//   shared     4096 floats
//
// Ladder
//   v1  Values wait in shared memory for the sparse edits, of which each block takes those of its tokens. Two passes over
//       the logits where there are lists, one where there are none. Expected for 64 rows of 131072 in bf16 on an H200
//       that copies 4.3 TB/s: 16.8 MB in and 33.5 MB out, 12 us; the survey 4 us. Left to itself
//       nvcc 13.0 takes 32 registers on sm_80 and spills two, so four blocks a multiprocessor are asked for. Not measured
//       yet.
#include "sampling.cuh"

constexpr u32 kMasked = 1, kNarrowed = 2, kBanned = 4, kMaskAllows = 256;  // the first three: bits of a combination
constexpr u16 kSeen = 0x8000;                                              // of a count

// The combinations, one bit each, that have a bit set.
__device__ constexpr u32 combinations_with(u32 bit) {
    u32 found = 0;
    for (u32 i = 0; i < 8; ++i)
        if (i & bit) found |= 1u << i;
    return found;
}

__device__ __forceinline__ bool has_bit(const int* words, int i) {
    return static_cast<u32>(load<int>(words + i / 32)) >> (i % 32) & 1;
}

// What a row's slot allows and bans.
struct Lists {
    const int* mask = nullptr;     // null: the grammar allows all
    const int* allowed = nullptr;  // null: likewise
    const int* ban_ids;
    const i64* ban_until;
    i64 position;
    int max_bans;

    __device__ __forceinline__ Lists(const int* masks, int which, const int* all_allowed, int list, int num_words,
                                     const int* ban_ids, const i64* ban_until, i64 position, int max_bans)
        : ban_ids(ban_ids), ban_until(ban_until), position(position), max_bans(max_bans) {
        if (which >= 0) mask = masks + static_cast<i64>(which) * num_words;
        if (list >= 0) allowed = all_allowed + static_cast<i64>(list) * num_words;
    }

    // Which of 32 tokens from `id` on are banned.
    __device__ __forceinline__ u32 banned_from(int id) const {
        u32 word = 0;
        for (int i = 0; i < max_bans; ++i) {
            const int banned = load<int>(ban_ids + i);
            if (banned < 0) break;
            if (banned >= id && banned < id + 32 && position < load<i64>(ban_until + i)) word |= 1u << (banned - id);
        }
        return word;
    }

    __device__ __forceinline__ bool masks_out(int id) const { return mask != nullptr && !has_bit(mask, id); }
    __device__ __forceinline__ bool narrows_out(int id) const { return allowed != nullptr && !has_bit(allowed, id); }
};

// The bans of a block's group, as bits.
template <typename Words, int kThreads>
__device__ __forceinline__ void note_bans(Words& banned, const Lists& lists, int first_id) {
    for (int i = threadIdx.x; i < kGroup / 32; i += kThreads) banned[i] = lists.banned_from(first_id + i * 32);
    __syncthreads();
}

// Four logits from token `id` on; -inf for what is no number or behind the vocabulary.
template <typename T, int kWidth>
__device__ __forceinline__ Logits logits_from(const T* row, int id, int vocab_size) {
    Logits x;
#pragma unroll
    for (int i = 0; i < kVector; i += kWidth) {
        Vector<float, kWidth> part = {};
        const bool inside = id + i < vocab_size;
        if (inside) part = load_wide<T, kWidth>(row + id + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) x[i + j] = inside && part[j] == part[j] ? part[j] : nothing();
    }
    return x;
}

template <typename T, int kWidth, int kThreads>
__global__ void __launch_bounds__(kThreads)
survey_logits(int* __restrict__ outcomes, const T* __restrict__ logits, const int* __restrict__ slots,
              const i64* __restrict__ positions, const int* __restrict__ masks, const int* __restrict__ mask_of,
              const int* __restrict__ allowed, const int* __restrict__ allowed_of, const int* __restrict__ ban_ids,
              const i64* __restrict__ ban_until, int vocab_size, int num_words, int max_bans) {
    __shared__ SharedArray<u32, kGroup / 32> banned;
    const int row = blockIdx.y, first_id = blockIdx.x * kGroup, slot = load<int>(slots + row);
    const Lists lists(masks, load<int>(mask_of + row), allowed, load<int>(allowed_of + slot), num_words,
                      ban_ids + static_cast<i64>(slot) * max_bans, ban_until + static_cast<i64>(slot) * max_bans,
                      load<i64>(positions + row), max_bans);
    note_bans<SharedArray<u32, kGroup / 32>, kThreads>(banned, lists, first_id);
    u32 found = 0;
    for (int at = threadIdx.x * kVector; at < kGroup; at += kThreads * kVector) {
        const Logits x = logits_from<T, kWidth>(logits + static_cast<i64>(row) * vocab_size, first_id + at, vocab_size);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
            const int id = first_id + at + j;
            if (id >= vocab_size) continue;
            u32 combinations = 0xff;
            if (lists.masks_out(id)) combinations &= ~combinations_with(kMasked);
            else found |= kMaskAllows;
            if (!(x[j] > nothing())) continue;
            if (lists.narrows_out(id)) combinations &= ~combinations_with(kNarrowed);
            if (banned[(at + j) / 32] >> (at + j) % 32 & 1) combinations &= ~combinations_with(kBanned);
            found |= combinations;
        }
    }
    u32 all = 0;
#pragma unroll
    for (int bit = 0; bit < 9; ++bit) all |= (__ballot_sync(kEveryLane, found >> bit & 1) != 0) << bit;
    __shared__ SharedArray<u32, kThreads / kWarp> of_warps;
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = all;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < kThreads / kWarp; ++warp) all |= static_cast<u32>(of_warps[warp]);
    store(outcomes + row * gridDim.x + blockIdx.x, static_cast<int>(all));
}

// Which of mask, allowed ids and bans count for a row, by what its survey found.
__device__ __forceinline__ u32 what_counts(const int* outcomes, int num_groups) {
    u32 found = 0;
    for (int i = threadIdx.x % kWarp; i < num_groups; i += kWarp) found |= static_cast<u32>(load<int>(outcomes + i));
    u32 all = 0;
#pragma unroll
    for (int bit = 0; bit < 9; ++bit) all |= (__ballot_sync(kEveryLane, found >> bit & 1) != 0) << bit;
    u32 counting = all & kMaskAllows ? kMasked : 0;
    if (all >> (counting | kNarrowed) & 1) counting |= kNarrowed;
    if (all >> (counting | kBanned) & 1) counting |= kBanned;
    return counting;
}

struct Penalties {
    float repetition, frequency, presence;

    __device__ __forceinline__ explicit Penalties(const float* of_slot)
        : repetition(load<float>(of_slot)), frequency(load<float>(of_slot + 1)), presence(load<float>(of_slot + 2)) {}

    __device__ __forceinline__ bool exist() const { return repetition != 1.0f || frequency != 0.0f || presence != 0.0f; }

    __device__ __forceinline__ float apply(float x, u16 count) const {
        if (!(count & kSeen)) return x;
        const float times = static_cast<float>(count & (kSeen - 1));
        x = x > 0.0f ? x / repetition : __fmul_rn(x, repetition);
        x = __fadd_rn(x, -__fmul_rn(frequency, times));
        return times > 0.0f ? __fadd_rn(x, -presence) : x;
    }
};

template <typename T, int kWidth, int kThreads>
__global__ void __launch_bounds__(kThreads, 4)
edit_logits(float* __restrict__ edited, float* __restrict__ maxima, const T* __restrict__ logits,
            const int* __restrict__ slots, const i64* __restrict__ positions, const int* __restrict__ masks,
            const int* __restrict__ mask_of, const int* __restrict__ allowed, const int* __restrict__ allowed_of,
            const int* __restrict__ ban_ids, const i64* __restrict__ ban_until, const int* __restrict__ bias_ids,
            const float* __restrict__ biases, const u16* __restrict__ counts, const float* __restrict__ penalties,
            const int* __restrict__ outcomes, int vocab_size, int num_words, int max_bans, int max_biases, int has_edits,
            int has_lists) {
    constexpr int kWarps = kThreads / kWarp;
    __shared__ SharedArray<u32, kGroup / 32> banned;
    auto values = dynamic_shared<float>();
    const int group = blockIdx.x, row = blockIdx.y, first_id = group * kGroup, lane = threadIdx.x % kWarp;
    const T* from = logits + static_cast<i64>(row) * vocab_size;
    const i64 to = (static_cast<i64>(row) * gridDim.x + group) * kGroup;
    const auto finish_run = [&](int at, const Logits& x) {
        store(edited + to + at + lane * kVector, x);
        const float most = warp_largest(larger_of(larger_of(x[0], x[1]), larger_of(x[2], x[3])));
        if (lane == 0) store(maxima + (to + at) / kRun, most);
    };
    if (!has_edits) {
        for (int at = threadIdx.x / kWarp * kRun; at < kGroup; at += kWarps * kRun)
            finish_run(at, logits_from<T, kWidth>(from, first_id + at + lane * kVector, vocab_size));
        return;
    }

    const int slot = load<int>(slots + row);
    const Lists lists(masks, load<int>(mask_of + row), allowed, load<int>(allowed_of + slot), num_words,
                      ban_ids + static_cast<i64>(slot) * max_bans, ban_until + static_cast<i64>(slot) * max_bans,
                      load<i64>(positions + row), max_bans);
    const u32 counting = has_lists ? what_counts(outcomes + row * gridDim.x, gridDim.x) : 0;
    if (counting & kBanned) note_bans<SharedArray<u32, kGroup / 32>, kThreads>(banned, lists, first_id);
    for (int at = threadIdx.x * kVector; at < kGroup; at += kThreads * kVector) {
        Logits x = logits_from<T, kWidth>(from, first_id + at, vocab_size);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
            const int id = first_id + at + j;
            if (counting == 0 || id >= vocab_size) continue;
            const bool is_out = (counting & kMasked && lists.masks_out(id)) ||
                                (counting & kNarrowed && lists.narrows_out(id)) ||
                                (counting & kBanned && banned[(at + j) / 32] >> (at + j) % 32 & 1);
            if (is_out) x[j] = nothing();
        }
        store(&values[at], x);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < max_biases; i += kThreads) {
        const int id = load<int>(bias_ids + static_cast<i64>(slot) * max_biases + i);
        if (id < 0) break;
        if (id >= first_id && id < smaller(first_id + kGroup, vocab_size))
            values[id - first_id] += load<float>(biases + static_cast<i64>(slot) * max_biases + i);
    }
    __syncthreads();
    const Penalties penalty(penalties + slot * 3);
    for (int at = threadIdx.x / kWarp * kRun; at < kGroup; at += kWarps * kRun) {
        Logits x = load<Logits>(&values[at + lane * kVector]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
            const int id = first_id + at + lane * kVector + j;
            if (penalty.exist() && id < vocab_size)
                x[j] = penalty.apply(x[j], load<u16>(counts + static_cast<i64>(slot) * vocab_size + id));
        }
        finish_run(at, x);
    }
}
