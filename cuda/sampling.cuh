// sampling.cuh: rows of logits as the sampling kernels read them, what logits weigh, and sums over a block.
//
// A row of edited logits is float32, filled up with -inf to whole groups of 4096, which are 32 runs of 128. Beside it lie
// the maxima of its runs, so that whoever looks for large logits reads few of the others. There is no NaN in it.
//
// Weights are 2^((x - most) * scale), bit for bit those of the CPU's sampler: no product is fused with a sum. They are
// summed as whole numbers of 2^-44, so that a sum does not depend on its order, and neither on threads or blocks.
#pragma once

#include "types.cuh"

using u64 = unsigned long long;

constexpr int kVector = 4;                           // logits that a lane reads at once
constexpr int kRun = kWarp * kVector;                // logits of which the maximum is kept
constexpr int kRuns = kWarp;                         // of a group
constexpr int kGroup = kRun * kRuns;                 // logits that are one block's where a row has several
constexpr int kMostGroups = 256;                     // of a row
constexpr float kFaintest = -125.0f;                 // a token 2^125 times less likely than the likeliest weighs nothing
constexpr float kUnits = 17592186044416.0f;          // 2^44, of weight 1

using Logits = Vector<float, kVector>;

__device__ __forceinline__ float nothing() { return float_of_bits(0xff800000u); }

// Whole numbers in the order of the floats, and back.
__device__ __forceinline__ u32 in_order(float x) {
    const u32 bits = bits_of_float(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float out_of_order(u32 key) {
    return float_of_bits(key >> 31 ? key & 0x7fffffffu : ~key);
}

// p * x + c, rounded twice.
__device__ __forceinline__ float step_of(float p, float x, float c) { return __fadd_rn(__fmul_rn(p, x), c); }

// 2^((x - most) * scale), 0 where that is below 2^kFaintest or no number; within 1.2 units in the last place.
__device__ __forceinline__ float weight_of(float x, float most, float scale) {
    const float scaled = __fmul_rn(__fadd_rn(x, -most), scale);
    if (!(scaled >= kFaintest)) return 0.0f;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
    const float shifted = __fadd_rn(scaled, shift);
    const float part = __fadd_rn(scaled, -__fadd_rn(shifted, -shift));  // in [-0.5, 0.5], exact
    float p = 1.5353362e-4f;
    p = step_of(p, part, 1.3398875e-3f);
    p = step_of(p, part, 9.61843692e-3f);
    p = step_of(p, part, 5.55033237e-2f);
    p = step_of(p, part, 2.40226477e-1f);
    p = step_of(p, part, 6.93147182e-1f);
    p = step_of(p, part, 1.0f);
    return float_of_bits(bits_of_float(p) + (bits_of_float(shifted) << 23));
}

__device__ __forceinline__ u64 units_of(float weight) { return static_cast<u64>(weight * kUnits); }

template <typename T>
__device__ __forceinline__ T larger_of(T a, T b) {
    return a > b ? a : b;
}

template <typename T>
__device__ __forceinline__ T warp_total(T value) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kEveryLane, value, step);
    return value;
}

template <typename T>
__device__ __forceinline__ T warp_largest(T value) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
        value = larger_of(value, __shfl_xor_sync(kEveryLane, value, step));
    return value;
}

// The sum over a block of whole numbers, in every thread; all call this.
template <int kThreads, typename T>
__device__ __forceinline__ T block_total(T value) {
    __shared__ SharedArray<T, kThreads / kWarp> totals;
    value = warp_total(value);
    if (threadIdx.x % kWarp == 0) totals[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int warp = 0; warp < kThreads / kWarp; ++warp) value += static_cast<T>(totals[warp]);
    __syncthreads();  // the next call may write
    return value;
}

// The largest, likewise.
template <int kThreads, typename T>
__device__ __forceinline__ T block_largest(T value) {
    __shared__ SharedArray<T, kThreads / kWarp> found;
    value = warp_largest(value);
    if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = found[0];
#pragma unroll
    for (int warp = 1; warp < kThreads / kWarp; ++warp) value = larger_of(value, static_cast<T>(found[warp]));
    __syncthreads();
    return value;
}

// The sum of the values of the threads before this one.
template <int kThreads>
__device__ __forceinline__ u64 block_sum_before(u64 value) {
    __shared__ SharedArray<u64, kThreads / kWarp> totals;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    u64 sum = value;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
        const u64 other = __shfl_up_sync(kEveryLane, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == kWarp - 1) totals[warp] = sum;
    __syncthreads();
    sum -= value;
    for (int i = 0; i < warp; ++i) sum += static_cast<u64>(totals[i]);
    __syncthreads();
    return sum;
}

// One row, and what its logits weigh.
struct Row {
    const float* values;  // [num_groups * kGroup]
    const float* maxima;  // [num_groups * kRuns]
    int num_groups;
    float most, scale;

    __device__ __forceinline__ Row(const float* edited, const float* all_maxima, int row, int num_groups, float scale)
        : values(edited + static_cast<i64>(row) * num_groups * kGroup),
          maxima(all_maxima + static_cast<i64>(row) * num_groups * kRuns), num_groups(num_groups), most(nothing()),
          scale(scale) {}

    // Find the largest logit; all threads of a block call this.
    template <int kThreads>
    __device__ __forceinline__ void look() {
        float found = nothing();
        for (int i = threadIdx.x; i < num_groups * kRuns; i += kThreads)
            found = larger_of(found, load<float>(maxima + i));
        most = block_largest<kThreads>(found);
    }

    __device__ __forceinline__ float weight(float x) const { return weight_of(x, most, scale); }

    // Calls take(values, first id) of a lane's four logits in each run of a group whose maximum is wanted. A warp calls
    // this, and its lanes come to each run together.
    template <typename Wanted, typename Take>
    __device__ __forceinline__ void each_of_group(int group, const Wanted& wanted, const Take& take) const {
        const int lane = threadIdx.x % kWarp;
        u32 runs = __ballot_sync(kEveryLane, wanted(load<float>(maxima + group * kRuns + lane)));
        while (runs != 0) {
            const int at = (group * kRuns + first_lane(runs)) * kRun + lane * kVector;
            runs &= runs - 1;
            take(load<Logits>(values + at), at);
        }
    }

    // The same of all groups, a warp of the block taking every so manieth.
    template <int kThreads, typename Wanted, typename Take>
    __device__ __forceinline__ void each(const Wanted& wanted, const Take& take) const {
        for (int group = threadIdx.x / kWarp; group < num_groups; group += kThreads / kWarp)
            each_of_group(group, wanted, take);
    }
};
