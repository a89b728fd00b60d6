// apply_rope: rotate q and k in place by their positions; float32, rounded once.
//
//   q          [num_tokens, num_heads, head_dim], token t at q + t * q_stride elements, its heads contiguous
//   k          [num_tokens, num_kv_heads, head_dim], likewise with k_stride
//   positions  [num_tokens], absolute, from 0
//   table      [num_positions, 2, head_dim / 2], cos then sin; every position is below num_positions
//
//   T             bf16, fp16 or float
//   kInterleaved  pairs are neighbours, as in arXiv:2104.09864; otherwise the halves of a head, as in the HF checkpoints
//   kWidth        pairs that a thread turns at once: the largest power of two up to 16 bytes of T that divides
//                 head_dim / 2, q_stride and k_stride
//   kThreads      of a block
//   grid          num_tokens
//   block         kThreads
//
// Ladder
//   v1  A block a token, a thread a few pairs of a head; a pair is read and written by one thread. Expected at 32 and
//       8 heads of 128, bf16, 21 KB a token, on an H200 that copies 4.3 TB/s: 0.3 us for 64 tokens, where the launch
//       decides (2 us or more), 40 us for 8192 tokens. Not measured yet.
#include "types.cuh"

// Turn pairs at .. at + kWidth of one head.
template <typename T, bool kInterleaved, int kWidth>
__device__ __forceinline__ void turn(T* head, int at, int half_dim, const float* cos_row, const float* sin_row) {
    const auto cos = load<Vector<float, kWidth>>(cos_row + at);
    const auto sin = load<Vector<float, kWidth>>(sin_row + at);
    if constexpr (kInterleaved) {
        auto pairs = load_wide<T, 2 * kWidth>(head + 2 * at);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
            const float first = pairs[2 * j], second = pairs[2 * j + 1];
            pairs[2 * j] = first * cos[j] - second * sin[j];
            pairs[2 * j + 1] = second * cos[j] + first * sin[j];
        }
        store_narrow(head + 2 * at, pairs);
    } else {
        auto firsts = load_wide<T, kWidth>(head + at), seconds = load_wide<T, kWidth>(head + half_dim + at);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
            const float first = firsts[j], second = seconds[j];
            firsts[j] = first * cos[j] - second * sin[j];
            seconds[j] = second * cos[j] + first * sin[j];
        }
        store_narrow(head + at, firsts);
        store_narrow(head + half_dim + at, seconds);
    }
}

template <typename T, bool kInterleaved, int kWidth, int kThreads>
__global__ void __launch_bounds__(kThreads)
apply_rope(T* __restrict__ q, T* __restrict__ k, const i64* __restrict__ positions, const float* __restrict__ table,
           int num_heads, int num_kv_heads, int head_dim, i64 q_stride, i64 k_stride) {
    const int half_dim = head_dim / 2, runs = half_dim / kWidth;  // a run: the pairs that a thread turns at once
    const float* cos_row = table + load<i64>(positions + blockIdx.x) * head_dim;
    q += blockIdx.x * q_stride;
    k += blockIdx.x * k_stride;
    for (int run = threadIdx.x; run < (num_heads + num_kv_heads) * runs; run += kThreads) {
        const int head = run / runs;
        T* states = head < num_heads ? q + head * head_dim : k + (head - num_heads) * head_dim;
        turn<T, kInterleaved, kWidth>(states, run % runs * kWidth, half_dim, cos_row, cos_row + half_dim);
    }
}
