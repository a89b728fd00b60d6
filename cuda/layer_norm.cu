// add_layer_norm: residual += x_scale * x in place, rounded; out = (residual - mean) * rsqrt(variance + eps) * weight + bias,
// a row at a time; float32 accumulation, rounded once.
//
//   x         [num_tokens, hidden_size], token t at x + t * x_stride elements
//   residual  [num_tokens, hidden_size], contiguous, written in place
//   weight    [hidden_size], and bias, which nobody reads where has_bias is 0
//   out       [num_tokens, hidden_size], contiguous
//
//   T         bf16 or fp16
//   kWidth    elements that travel together: the largest power of two up to 16 bytes that divides hidden_size and
//             x_stride; the sizes decide it, never an address
//   kThreads  of a block, which has a row
//   grid      num_tokens
//   block     kThreads
//
// Ladder
//   v1  Three passes over the row, the second and third out of the L1 cache: the sum, the squares of what differs from
//       the mean, the result. Expected as add_rms_norm, whose memory traffic it has. Not measured yet.
#include "types.cuh"

template <typename T, int kWidth, int kThreads>
__global__ void __launch_bounds__(kThreads)
add_layer_norm(T* __restrict__ out, const T* __restrict__ x, T* __restrict__ residual, const T* __restrict__ weight,
               const T* __restrict__ bias, i64 x_stride, int hidden_size, int has_bias, float x_scale, float eps) {
    x += blockIdx.x * x_stride;
    residual += static_cast<i64>(blockIdx.x) * hidden_size;
    out += static_cast<i64>(blockIdx.x) * hidden_size;
    float sum = 0.0f;
#pragma unroll 2
    for (int i = threadIdx.x * kWidth; i < hidden_size; i += kThreads * kWidth) {
        auto total = load_wide<T, kWidth>(residual + i);
        const auto added = load_wide<T, kWidth>(x + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) total[j] += x_scale * added[j];
        const auto rounded = narrow<T>(total);  // what the next layer will see is what is normalised
        store(residual + i, rounded);
        const auto seen = widen(rounded);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sum += seen[j];
    }
    const float mean = row_sum<kThreads>(sum) / static_cast<float>(hidden_size);
    float squares = 0.0f;
#pragma unroll 2
    for (int i = threadIdx.x * kWidth; i < hidden_size; i += kThreads * kWidth) {
        const auto seen = load_wide<T, kWidth>(residual + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) squares += (seen[j] - mean) * (seen[j] - mean);
    }
    const float scale = rsqrt_fast(row_sum<kThreads>(squares) / static_cast<float>(hidden_size) + eps);
#pragma unroll 2
    for (int i = threadIdx.x * kWidth; i < hidden_size; i += kThreads * kWidth) {
        auto values = load_wide<T, kWidth>(residual + i);
        const auto weights = load_wide<T, kWidth>(weight + i);
        const auto biases = has_bias ? load_wide<T, kWidth>(bias + i) : Vector<float, kWidth>{};
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[j] = (values[j] - mean) * scale * weights[j] + biases[j];
        store_narrow(out + i, values);
    }
}
