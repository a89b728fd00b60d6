// store_kv: copy each token's key and value to its place in the cache, bit for bit.
//
//   k, v              [num_tokens, num_kv_heads, head_dim], token t at k + t * k_stride elements, its heads contiguous
//   k_cache, v_cache  [num_blocks, num_kv_heads, block_size, head_dim], contiguous, written in place
//   slot_mapping      [num_tokens], block_id * block_size + offset, all different
//
//   T         bf16, fp16 or float, of states and caches alike
//   kWidth    elements that travel together: the largest power of two up to 16 bytes that divides head_dim and both
//             strides
//   kThreads  of a block
//   grid      num_tokens
//   block     kThreads
//
// Ladder
//   v1  A block a token; a head's row is contiguous on both sides. Expected at 8 heads of 128, bf16, 8 KB a token, on
//       an H200 that copies 4.3 TB/s: 0.1 us for 64 tokens, where the launch decides (2 us or more), 16 us for 8192
//       tokens. Not measured yet.
#include "types.cuh"

template <typename T, int kWidth, int kThreads>
__global__ void __launch_bounds__(kThreads)
store_kv(const T* __restrict__ k, const T* __restrict__ v, T* __restrict__ k_cache, T* __restrict__ v_cache,
         const i64* __restrict__ slot_mapping, int num_kv_heads, int block_size, int head_dim, i64 k_stride,
         i64 v_stride) {
    const i64 slot = load<i64>(slot_mapping + blockIdx.x);
    const i64 block_id = slot / block_size, offset = slot % block_size;
    k += blockIdx.x * k_stride;
    v += blockIdx.x * v_stride;
    for (int i = threadIdx.x * kWidth; i < num_kv_heads * head_dim; i += kThreads * kWidth) {
        const int head = i / head_dim;
        const i64 place = ((block_id * num_kv_heads + head) * block_size + offset) * head_dim + i % head_dim;
        store(k_cache + place, load<Vector<T, kWidth>>(k + i));
        store(v_cache + place, load<Vector<T, kWidth>>(v + i));
    }
}
