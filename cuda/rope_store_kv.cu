// rope_store_kv: what happens between the projection and attention, in one pass: queries and keys are normalised, if
// the model does that, and turned by their positions; queries stay in place, keys and values go to the cache. Each step
// is float32 and rounded to T, as by rms_norm, apply_rope and store_kv one after the other.
//
//   q                   [num_tokens, num_heads, head_dim], token t at q + t * q_stride elements, its heads contiguous;
//                       written in place
//   k, v                [num_tokens, num_kv_heads, head_dim], likewise; only read
//   q_weight, k_weight  [head_dim], of the norms, to which offset is added; nobody reads them where normed is 0
//   positions           [num_tokens], absolute, from 0
//   table               [num_positions, 2, num_pairs], cos then sin; every position is below num_positions. The first
//                       2 * num_pairs elements of a head are turned, the others stay; of 0 pairs there is no table
//   k_cache, v_cache    [num_blocks, num_kv_heads, block_size, head_dim], contiguous, written in place
//   k_scales, v_scales  [num_blocks, num_kv_heads, block_size], of e4m3: the largest element of the head over 448;
//                       otherwise nobody writes them
//   slot_mapping        [num_tokens], block_id * block_size + offset, all different; below 0: the token is not stored
//
//   T         bf16 or fp16
//   KV        T or e4m3
//   kHeadDim  even
//   num_pairs a multiple of kWidth, which the head's size decides: 4 of 256, 2 of 128, 1 of the others
//   kWarps    of a block; each has one head of the token, of its queries, then its keys, then its values
//   grid      (num_tokens, (num_heads + 2 * num_kv_heads) / kWarps, rounded up)
//   block     kWarps * 32
//
// Ladder
//   v1  A warp a head; its pairs stay in registers from the first load to the store. Expected at 32 and 8 heads of 128,
//       bf16, 21 KB a token with the turned queries, on an H200 that copies 4.3 TB/s: 0.3 us for 64 tokens, where the
//       launch decides (2 us or more), where three kernels took three launches; 40 us for 8192 tokens, where three
//       passes took 75. Not measured yet.
#include "types.cuh"

// The largest of a warp, in every lane.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kEveryLane, value, step));
    return value;
}

// A head in the registers of a warp: lane i has the runs of kWidth pairs i, i + 32, ..., each pair's first and second.
template <typename T, int kHeadDim>
struct Head {
    static constexpr int kPairs = kHeadDim / 2;
    static constexpr int kWidth = kPairs % 128 == 0 ? 4 : kPairs % 64 == 0 ? 2 : 1;
    static constexpr int kRuns = kPairs / kWidth, kTurns = (kRuns + kWarp - 1) / kWarp;
    static_assert(kHeadDim % 2 == 0, "pairs");
    using Run = Vector<float, kWidth>;

    Run first[kTurns] = {}, second[kTurns] = {};
    bool interleaved;  // pairs are neighbours, not num_pairs apart
    int num_pairs;     // that are turned; the elements behind them are paired too, and stay

    __device__ __forceinline__ Head(const T* x, bool interleaved, int num_pairs)
        : interleaved(interleaved), num_pairs(num_pairs) {
        each([&](int turn, int at) {
            if (!this->interleaved) {
                first[turn] = load_wide<T, kWidth>(x + first_of(at));
                second[turn] = load_wide<T, kWidth>(x + second_of(at));
                return;
            }
            const auto pairs = load_wide<T, 2 * kWidth>(x + 2 * at);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                first[turn][j] = pairs[2 * j];
                second[turn][j] = pairs[2 * j + 1];
            }
        });
    }

    // Where the first and the second of pair at lie: both of those that are turned before all others.
    __device__ __forceinline__ int first_of(int at) const { return at < num_pairs ? at : num_pairs + at; }
    __device__ __forceinline__ int second_of(int at) const { return at < num_pairs ? num_pairs + at : kPairs + at; }

    // Give each(turn, at) the first pair of each run of this lane.
    template <typename Each>
    static __device__ __forceinline__ void each(Each body) {
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int run = turn * kWarp + threadIdx.x % kWarp;
            if (run < kRuns) body(turn, run * kWidth);
        }
    }

    __device__ __forceinline__ void normalise(const T* weight, float offset, float eps) {
        float squares = 0.0f;
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn)
#pragma unroll
            for (int j = 0; j < kWidth; ++j)
                squares += first[turn][j] * first[turn][j] + second[turn][j] * second[turn][j];
        const float scale = rsqrt_fast(warp_sum(squares) / static_cast<float>(kHeadDim) + eps);
        const Head weights(weight, interleaved, num_pairs);
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn)
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                first[turn][j] = to_float(from_float<T>(first[turn][j] * scale * (weights.first[turn][j] + offset)));
                second[turn][j] = to_float(from_float<T>(second[turn][j] * scale * (weights.second[turn][j] + offset)));
            }
    }

    __device__ __forceinline__ void turn(const float* cos_row) {
        each([&](int turn, int at) {
            if (at >= num_pairs) return;
            const auto cos = load<Run>(cos_row + at), sin = load<Run>(cos_row + num_pairs + at);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                const float x = first[turn][j], y = second[turn][j];
                first[turn][j] = to_float(from_float<T>(x * cos[j] - y * sin[j]));
                second[turn][j] = to_float(from_float<T>(y * cos[j] + x * sin[j]));
            }
        });
    }

    // As Out, each element times factor.
    template <typename Out>
    __device__ __forceinline__ void store(Out* out, float factor) const {
        each([&](int turn, int at) {
            Run x = first[turn], y = second[turn];
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                x[j] *= factor;
                y[j] *= factor;
            }
            if (!interleaved) {
                store_narrow(out + first_of(at), x);
                store_narrow(out + second_of(at), y);
                return;
            }
            Vector<float, 2 * kWidth> pairs;
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                pairs[2 * j] = x[j];
                pairs[2 * j + 1] = y[j];
            }
            store_narrow(out + 2 * at, pairs);
        });
    }

    __device__ __forceinline__ float largest() const {
        float found = 0.0f;
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn)
#pragma unroll
            for (int j = 0; j < kWidth; ++j)
                found = fmaxf(found, fmaxf(fabsf(first[turn][j]), fabsf(second[turn][j])));
        return warp_max(found);
    }

    // Into place number key of a cache, of all its keys.
    template <typename KV>
    __device__ __forceinline__ void keep(KV* cache, float* scales, i64 key) const {
        float factor = 1.0f;
        if constexpr (sizeof(KV) == 1) {
            const float scale = largest() / 448.0f;
            factor = scale > 0.0f ? 1.0f / scale : 0.0f;
            if (threadIdx.x % kWarp == 0) ::store(scales + key, scale);
        }
        store(cache + key * kHeadDim, factor);
    }
};

template <typename T, typename KV, int kHeadDim, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
rope_store_kv(T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, const T* __restrict__ q_weight,
              const T* __restrict__ k_weight, const i64* __restrict__ positions, const float* __restrict__ table,
              KV* __restrict__ k_cache, KV* __restrict__ v_cache, float* __restrict__ k_scales,
              float* __restrict__ v_scales, const i64* __restrict__ slot_mapping, int num_heads, int num_kv_heads,
              int block_size, int num_pairs, i64 q_stride, i64 k_stride, i64 v_stride, int interleaved, int normed,
              float offset, float eps) {
    const int token = blockIdx.x, head = blockIdx.y * kWarps + threadIdx.x / kWarp;
    if (head >= num_heads + 2 * num_kv_heads) return;
    const float* cos_row = table + load<i64>(positions + token) * (2 * num_pairs);
    if (head < num_heads) {
        T* row = q + token * q_stride + head * kHeadDim;
        Head<T, kHeadDim> states(row, interleaved, num_pairs);
        if (normed) states.normalise(q_weight, offset, eps);
        states.turn(cos_row);
        return states.store(row, 1.0f);
    }
    const i64 slot = load<i64>(slot_mapping + token);
    if (slot < 0) return;
    const int kv_head = (head - num_heads) % num_kv_heads;
    const i64 key = (slot / block_size * num_kv_heads + kv_head) * block_size + slot % block_size;
    if (head < num_heads + num_kv_heads) {
        Head<T, kHeadDim> states(k + token * k_stride + kv_head * kHeadDim, interleaved, num_pairs);
        if (normed) states.normalise(k_weight, offset, eps);
        states.turn(cos_row);
        states.keep(k_cache, k_scales, key);
    } else {
        const Head<T, kHeadDim> states(v + token * v_stride + kv_head * kHeadDim, false, num_pairs);
        states.keep(v_cache, v_scales, key);
    }
}
