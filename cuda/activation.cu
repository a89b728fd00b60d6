// activation_mul: out = activation(gate) * up, the gate of a gated MLP; float32, rounded once.
//
//   gate_up   [num_tokens, 2 * intermediate_size], contiguous, gate then up
//   out       [num_tokens, intermediate_size], contiguous
//
//   T           bf16, fp16 or float
//   Activation  Silu, Gelu or GeluTanh
//   kWidth      elements that travel together: the largest power of two up to 16 bytes that divides intermediate_size
//   kThreads    of a block; each owns kWidth neighbours of a row
//   grid        (num_tokens, intermediate_size / (kWidth * kThreads), rounded up)
//   block       kThreads
//
// Ladder
//   v1  One vector a thread: two loads, one store. Expected at intermediate_size 14336, bf16, 84 KB a token, on an H200
//       that copies 4.3 TB/s: 1.3 us for 64 tokens, where the launch decides (2 us or more), 164 us for 8192 tokens.
//       Not measured yet.
#include "types.cuh"

// 1 / (1 + e^-x); exp may overflow, its reciprocal is then 0.
__device__ __forceinline__ float sigmoid(float x) { return divide_fast(1.0f, 1.0f + exp_fast(-x)); }

struct Silu {
    static __device__ __forceinline__ float of(float x) { return x * sigmoid(x); }
};

// x times the normal distribution's share below x.
struct Gelu {
    static __device__ __forceinline__ float of(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
};

// The same with 0.5 * (1 + tanh(u)) for that share, which is sigmoid(2 u); u = sqrt(2 / pi) * (x + 0.044715 x^3).
struct GeluTanh {
    static __device__ __forceinline__ float of(float x) {
        const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
        return x * sigmoid(2.0f * u);
    }
};

template <typename T, typename Activation, int kWidth, int kThreads>
__global__ void __launch_bounds__(kThreads)
activation_mul(T* __restrict__ out, const T* __restrict__ gate_up, int intermediate_size) {
    const int i = (blockIdx.y * kThreads + threadIdx.x) * kWidth;
    if (i >= intermediate_size) return;
    const T* gate_row = gate_up + static_cast<i64>(blockIdx.x) * 2 * intermediate_size;
    auto values = load_wide<T, kWidth>(gate_row + i);
    const auto up = load_wide<T, kWidth>(gate_row + intermediate_size + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = Activation::of(values[j]) * up[j];
    store_narrow(out + static_cast<i64>(blockIdx.x) * intermediate_size + i, values);
}
