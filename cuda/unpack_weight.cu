// unpack_channel, unpack_group: the matrix that codes of 8 or 4 bits stand for; float32, rounded once.
//
//   weight   [out_size / 16 rounded up, num_slabs, 32, 16] bytes, as quantized_linear.cu says
//   scales   likewise: unpack_channel's [out_size] float32, unpack_group's of T
//   out      [out_size, in_size], contiguous
//
//   T        bf16 or fp16
//   Code     u8, signs and magnitudes, or e4m3
//   kFine    whether group_size is 32; otherwise it is a multiple of 64
//   kWarps   of a block, which share a tile's slabs
//   in_size  a multiple of the slab
//   grid     out_size / 16, rounded up
//   block    kWarps * 32
//
// Ladder
//   v1  A lane has eight neighbours of two rows, or of each half of a slab: it loads 16 bytes and stores 16 at a time, 64
//       in a row with the lanes beside it. Expected for 4096 x 4096 on an H200 that copies 4.3 TB/s, codes read and
//       numbers written: 50 MB of 8 bits in 12 us, 42 MB of 4 bits in 10 us. Not measured yet.
#include "codes.cuh"

// What a lane has of half a slab of 64, or of a slab of 32, to where it belongs.
//   scale, offset  of its two rows: scale * number + offset
template <typename T>
__device__ __forceinline__ void store_rows(T* out, const u32 (&a)[2][4], const float (&scale)[2],
                                           const float (&offset)[2], int column, int in_size, int out_size) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int at = blockIdx.x * kTileRows + row * 8 + lane / 4;
        if (at >= out_size) continue;
        Vector<float, 8> numbers;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const auto pair = widen_pair<T>(a[i / 2][i % 2 * 2 + row]);
            numbers[2 * i] = scale[row] * pair[0] + offset[row];
            numbers[2 * i + 1] = scale[row] * pair[1] + offset[row];
        }
        store_narrow(out + static_cast<i64>(at) * in_size + column + lane % 4 * 8, numbers);
    }
}

template <typename T, typename Code, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
unpack_channel(T* __restrict__ out, const Code* __restrict__ weight, const float* __restrict__ scales, int in_size,
               int out_size) {
    const int lane = threadIdx.x % kWarp, num_slabs = in_size / kHalf;
    const float none[2] = {};
    float scale[2];
#pragma unroll
    for (int row = 0; row < 2; ++row)
        scale[row] = scale_of(scales, lane / 4 + row * 8, out_size) * Bytes<T, Code>::whole_code();
#pragma unroll 2
    for (int slab = threadIdx.x / kWarp; slab < num_slabs; slab += kWarps) {
        u32 a[2][4];
        unpack_bytes<T, Code>(a, slab_of(weight, num_slabs, slab, lane));
        store_rows(out, a, scale, none, slab * kHalf, in_size, out_size);
    }
}

template <typename T, bool kFine, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
unpack_group(T* __restrict__ out, const u8* __restrict__ weight, const T* __restrict__ scales, int in_size,
             int out_size, int group_size, int has_zero_points) {
    constexpr int kParts = kFine ? 2 : 1;  // groups of a slab
    const int lane = threadIdx.x % kWarp, num_slabs = in_size / (2 * kHalf), num_groups = in_size / group_size;
    for (int slab = threadIdx.x / kWarp; slab < num_slabs; slab += kWarps) {
        const Words words = slab_of(weight, num_slabs, slab, lane);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const Group<T> group(scales, num_groups, slab * 2 * kHalf / group_size + part, has_zero_points, lane);
#pragma unroll
            for (int half = part; half < 2; half += kParts) {
                u32 a[2][4];
                unpack_nibbles<T>(a, words, half);
                store_rows(out, a, group.scale, group.offset, (2 * slab + half) * kHalf, in_size, out_size);
            }
        }
    }
}
