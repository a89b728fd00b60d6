// rms_norm: out = x * rsqrt(mean(x^2) + eps) * (weight + offset), a row at a time; float32 accumulation, rounded once.
// add_rms_norm: residual += x_scale * x in place, rounded, and the same of that sum.
// add_normed: residual += x_scale * rms_norm(x, x_weight), each rounded, and with normed the same of that sum; otherwise
//             nobody writes out.
//
//   x         [num_tokens, num_heads, hidden_size], token t at x + t * x_stride elements, its heads contiguous;
//             the others have no heads: [num_tokens, hidden_size]
//   residual  [num_tokens, hidden_size], contiguous, written in place
//   weight    [hidden_size], and x_weight; without normed nobody reads weight
//   out       the shape of x, contiguous
//
//   T         bf16, fp16 or float
//   kWidth    elements that travel together: the largest power of two up to 16 bytes that divides hidden_size and
//             x_stride. The sizes decide it, never an address: a row's order of summation, and so its last bit, does
//             not depend on its place in the batch. An odd hidden_size is right and slow.
//   kThreads  along x, that share a row: 32, for heads, to 1024. They are part of that order too.
//   kRows     rows of a block, along y: 1 where a row has more than one warp.
//   grid      rows / kRows, rounded up; the rows of rms_norm are num_tokens * num_heads, of the others num_tokens
//   block     (kThreads, kRows)
//
// Ladder
//   v1  Two passes over the row, the second out of the L1 cache; shuffles, then one exchange through shared memory.
//       Loops are unrolled by two, for two loads in flight: left to itself the compiler takes four, and for some of
//       the instantiations spills (nvcc 13.0, sm_80).
//       Expected at hidden_size 4096, bf16, on an H200 that copies 4.3 TB/s: alone, 16 KB a token; with the sum,
//       32 KB a token; so 0.25 and 0.5 us for 64 tokens, where the launch decides (2 us or more), and 31 and 62 us
//       for 8192 tokens. add_normed moves what add_rms_norm moves, in place of two launches more. Not measured yet.
#include "types.cuh"

// rsqrt(mean(row^2) + eps) from each thread's part of the sum of squares.
template <int kThreads>
__device__ __forceinline__ float row_scale(float squares, int hidden_size, float eps) {
    return rsqrt_fast(row_sum<kThreads>(squares) / static_cast<float>(hidden_size) + eps);
}

template <int kSize>
__device__ __forceinline__ float plus_squares(float sum, const Vector<float, kSize>& values) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) sum += values[j] * values[j];
    return sum;
}

// out = row * scale * (weight + offset). Each thread rereads what it read, or wrote, itself.
template <typename T, int kWidth, int kThreads>
__device__ __forceinline__ void scale_row(T* out, const T* row, const T* weight, int hidden_size, float scale,
                                          float offset) {
#pragma unroll 2
    for (int i = threadIdx.x * kWidth; i < hidden_size; i += kThreads * kWidth) {
        auto values = load_wide<T, kWidth>(row + i);
        const auto weights = load_wide<T, kWidth>(weight + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[j] = values[j] * scale * (weights[j] + offset);
        store_narrow(out + i, values);
    }
}

template <typename T, int kWidth, int kThreads, int kRows>
__global__ void __launch_bounds__(kThreads * kRows)
rms_norm(T* __restrict__ out, const T* __restrict__ x, const T* __restrict__ weight, int num_tokens, int num_heads,
         i64 x_stride, int hidden_size, float offset, float eps) {
    static_assert(kRows == 1 || kThreads == kWarp, "rows that share a block are of one warp each");
    const int row = blockIdx.x * kRows + threadIdx.y;
    if (row >= num_tokens * num_heads) return;  // whole warps, and none of a block that has a barrier
    x += row / num_heads * x_stride + static_cast<i64>(row % num_heads) * hidden_size;
    out += static_cast<i64>(row) * hidden_size;
    float squares = 0.0f;
#pragma unroll 2
    for (int i = threadIdx.x * kWidth; i < hidden_size; i += kThreads * kWidth)
        squares = plus_squares(squares, load_wide<T, kWidth>(x + i));
    const float scale = row_scale<kThreads>(squares, hidden_size, eps);
    scale_row<T, kWidth, kThreads>(out, x, weight, hidden_size, scale, offset);
}

template <typename T, int kWidth, int kThreads>
__global__ void __launch_bounds__(kThreads)
add_rms_norm(T* __restrict__ out, const T* __restrict__ x, T* __restrict__ residual, const T* __restrict__ weight,
             i64 x_stride, int hidden_size, float offset, float x_scale, float eps) {
    x += blockIdx.x * x_stride;
    residual += static_cast<i64>(blockIdx.x) * hidden_size;
    out += static_cast<i64>(blockIdx.x) * hidden_size;
    float squares = 0.0f;
#pragma unroll 2
    for (int i = threadIdx.x * kWidth; i < hidden_size; i += kThreads * kWidth) {
        auto total = load_wide<T, kWidth>(residual + i);
        const auto added = load_wide<T, kWidth>(x + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) total[j] += x_scale * added[j];
        const auto rounded = narrow<T>(total);  // what the next layer will see is what is normalised
        store(residual + i, rounded);
        squares = plus_squares(squares, widen(rounded));
    }
    const float scale = row_scale<kThreads>(squares, hidden_size, eps);
    scale_row<T, kWidth, kThreads>(out, residual, weight, hidden_size, scale, offset);
}

template <typename T, int kWidth, int kThreads>
__global__ void __launch_bounds__(kThreads)
add_normed(T* __restrict__ out, const T* __restrict__ x, T* __restrict__ residual, const T* __restrict__ x_weight,
           const T* __restrict__ weight, i64 x_stride, int hidden_size, int normed, float offset, float x_scale,
           float eps) {
    x += blockIdx.x * x_stride;
    residual += static_cast<i64>(blockIdx.x) * hidden_size;
    float squares = 0.0f;
#pragma unroll 2
    for (int i = threadIdx.x * kWidth; i < hidden_size; i += kThreads * kWidth)
        squares = plus_squares(squares, load_wide<T, kWidth>(x + i));
    const float scale = row_scale<kThreads>(squares, hidden_size, eps);
    squares = 0.0f;
#pragma unroll 2
    for (int i = threadIdx.x * kWidth; i < hidden_size; i += kThreads * kWidth) {
        auto total = load_wide<T, kWidth>(residual + i);
        const auto added = load_wide<T, kWidth>(x + i), weights = load_wide<T, kWidth>(x_weight + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
            total[j] += x_scale * to_float(from_float<T>(added[j] * scale * (weights[j] + offset)));
        const auto rounded = narrow<T>(total);
        store(residual + i, rounded);
        squares = plus_squares(squares, widen(rounded));
    }
    if (!normed) return;
    const float total_scale = row_scale<kThreads>(squares, hidden_size, eps);
    scale_row<T, kWidth, kThreads>(out + static_cast<i64>(blockIdx.x) * hidden_size, residual, weight, hidden_size,
                                   total_scale, offset);
}
