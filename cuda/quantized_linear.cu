// channel_linear, group_linear: out = x weight^T for 1 to 16 tokens, whose weights are codes of 8 or 4 bits; float32
// accumulation, rounded once. channel_linear_single, group_linear_single: the same for one token.
//
//   x        [num_tokens, in_size], token t at x + t * x_stride elements, x_stride a multiple of 8
//   weight   [out_size / 16 rounded up, num_slabs, 32, 16] bytes: of a tile of 16 rows of the matrix, slab by slab along
//            in_size, what each lane of a warp needs, in one load. Rows behind out_size are there and count for nothing.
//            With g = lane / 4 and t = lane % 4 the lane has, of rows g and g + 8,
//              codes of 8 bits, a slab of 32: columns 8 t .. 8 t + 7. Word 2 j + r is of row g + 8 r and columns 4 j ..
//                4 j + 3 of these, in the bytes 0, 2, 1, 3
//              codes of 4 bits, a slab of 64: columns 32 h + 8 t .. 32 h + 8 t + 7. Word 2 h + r is of row g + 8 r; column
//                2 p of these is in bits 4 p .. 4 p + 3, column 2 p + 1 sixteen bits above
//            Codes of 8 bits are e4m3 or signs and magnitudes up to 127, bit 7 the sign; those of 4 bits are 0 to 15.
//   scales   channel_linear: [out_size] float32, weight = scale * code
//            group_linear: [tiles, in_size / group_size, 16, 2] of x's type, scale and offset: weight = scale * code + offset,
//            or with has_zero_points scale * (code - offset)
//   out      [num_tokens, out_size], contiguous
//
//   T        bf16 or fp16
//   Code     u8, signs and magnitudes, or e4m3
//   kFine    whether group_size is 32; otherwise it is a multiple of 64
//   kTiles   of 8 tokens, 1 or 2
//   kWarps   of a block, which share a tile's slabs
//   in_size  a multiple of the slab
//   grid     out_size / 16, rounded up
//   block    kWarps * 32
//   shared   none but what is declared
//
// The warps of a block take every so manieth slab, and their sums are added in the order of the warps. So how a token's
// sums are made depends on the sizes alone, and for two tokens and more not on how many there are.
//
// How a code becomes a number says codes.cuh. The tensor cores multiply by whole codes; scales come in float32 at a
// group's end, where the offset counts with the sum of the group's x, a product with ones.
//
// Ladder
//   v1  Weights as the first operand, tokens as the second, so that 8 tokens waste nothing; a permutation of the columns
//       makes what a lane needs of x 16 neighbouring bytes. Expected for 4096 x 4096 on an H200 that copies 4.3 TB/s: 16.8
//       MB of 8 bits in 3.9 us, 9.4 MB of 4 bits in groups of 128 in 2.1 us, all of a Llama-3-8B layer 51 and 27 us. A
//       multiprocessor then reads 19 bytes a cycle, 38 codes of 4 bits: some 50 operations beside the tensor cores.
//       group_linear spilled for some types while blocks were not bound to two a multiprocessor (NVRTC 13.0, sm_80).
//       Not measured yet.
#include "codes.cuh"

constexpr int kTileTokens = 8;

// What a lane needs of some tokens' x: eight neighbours, the operands of two instructions for each tile.
template <typename T, int kTiles>
struct Tokens {
    const T* rows[kTiles];  // null behind the last token

    __device__ __forceinline__ Tokens(const T* x, i64 x_stride, int num_tokens, int lane) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
            const int token = n * kTileTokens + lane / 4;
            rows[n] = token < num_tokens ? x + token * x_stride + lane % 4 * 8 : nullptr;
        }
    }

    __device__ __forceinline__ Words at(int n, int column) const {
        return rows[n] != nullptr ? load<Words>(rows[n] + column) : Words{};
    }
};

// Adds the warps' sums and writes them.
//   sum  (token, row of the tile) -> one warp's place in shared memory
template <typename T, int kWarps, typename Floats, typename Place>
__device__ __forceinline__ void finish(T* out, Floats& floats, int num_tokens, int out_size, int stride,
                                       const Place& place) {
    __syncthreads();
    for (int i = threadIdx.x; i < num_tokens * kTileRows; i += kWarps * kWarp) {
        const int token = i / kTileRows, row = blockIdx.x * kTileRows + i % kTileRows;
        if (row >= out_size) continue;
        const int at = place(token, i % kTileRows);
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < kWarps; ++warp) sum += static_cast<float>(floats[warp * stride + at]);
        store(out + static_cast<i64>(token) * out_size + row, from_float<T>(sum));
    }
}

// The same of a warp's results of matrix instructions.
template <typename T, int kTiles, int kWarps>
__device__ __forceinline__ void finish_tiles(T* out, const float (&sums)[kTiles][4], int num_tokens, int out_size) {
    constexpr int kStride = kTiles * 4 * kWarp;
    __shared__ SharedArray<float, kWarps * kStride> floats;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) floats[warp * kStride + (n * 4 + i) * kWarp + lane] = sums[n][i];
    finish<T, kWarps>(out, floats, num_tokens, out_size, kStride, [](int token, int row) {
        const int i = row / 8 * 2 + token % 2, of = row % 8 * 4 + token % kTileTokens / 2;
        return (token / kTileTokens * 4 + i) * kWarp + of;
    });
}

// And of a single token's: a lane has a part of rows g and g + 8.
template <typename T, int kWarps>
__device__ __forceinline__ void finish_single(T* out, float (&sums)[2], int out_size) {
    __shared__ SharedArray<float, kWarps * kTileRows> floats;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int step = 1; step < 4; step *= 2) sums[row] += __shfl_xor_sync(kEveryLane, sums[row], step);
        if (lane % 4 == 0) floats[warp * kTileRows + row * 8 + lane / 4] = sums[row];
    }
    finish<T, kWarps>(out, floats, 1, out_size, kTileRows, [](int, int row) { return row; });
}

template <typename T, typename Code, int kTiles, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
channel_linear(T* __restrict__ out, const T* __restrict__ x, const Code* __restrict__ weight,
               const float* __restrict__ scales, int num_tokens, int in_size, int out_size, i64 x_stride) {
    const int lane = threadIdx.x % kWarp, num_slabs = in_size / kHalf;
    const Tokens<T, kTiles> tokens(x, x_stride, num_tokens, lane);
    float sums[kTiles][4] = {};
#pragma unroll 4
    for (int slab = threadIdx.x / kWarp; slab < num_slabs; slab += kWarps) {
        u32 a[2][4];
        unpack_bytes<T, Code>(a, slab_of(weight, num_slabs, slab, lane));
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
            const Words b = tokens.at(n, slab * kHalf);
            mma<T>(sums[n], a[0], b[0], b[1]);
            mma<T>(sums[n], a[1], b[2], b[3]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float scale = scale_of(scales, lane / 4 + i / 2 * 8, out_size) * Bytes<T, Code>::whole_code();
#pragma unroll
        for (int n = 0; n < kTiles; ++n) sums[n][i] *= scale;
    }
    finish_tiles<T, kTiles, kWarps>(out, sums, num_tokens, out_size);
}

// The products of half a slab with one token, of both rows.
//   sums [2], to be added to
template <typename T>
__device__ __forceinline__ void multiply_single(float (&sums)[2], const u32 (&a)[2][4], const Words& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Vector<float, 2> of_x = widen_pair<T>(x[i]);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const Vector<float, 2> of_row = widen_pair<T>(a[i / 2][i % 2 * 2 + row]);
            sums[row] += of_row[0] * of_x[0];
            sums[row] += of_row[1] * of_x[1];
        }
    }
}

template <typename T, typename Code, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
channel_linear_single(T* __restrict__ out, const T* __restrict__ x, const Code* __restrict__ weight,
                      const float* __restrict__ scales, int in_size, int out_size) {
    const int lane = threadIdx.x % kWarp, num_slabs = in_size / kHalf;
    float sums[2] = {};
#pragma unroll 4
    for (int slab = threadIdx.x / kWarp; slab < num_slabs; slab += kWarps) {
        u32 a[2][4];
        unpack_bytes<T, Code>(a, slab_of(weight, num_slabs, slab, lane));
        multiply_single<T>(sums, a, load<Words>(x + slab * kHalf + lane % 4 * 8));
    }
#pragma unroll
    for (int row = 0; row < 2; ++row)
        sums[row] *= scale_of(scales, lane / 4 + row * 8, out_size) * Bytes<T, Code>::whole_code();
    finish_single<T, kWarps>(out, sums, out_size);
}

template <typename T, bool kFine, int kTiles, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 2)
group_linear(T* __restrict__ out, const T* __restrict__ x, const u8* __restrict__ weight, const T* __restrict__ scales,
             int num_tokens, int in_size, int out_size, int group_size, int has_zero_points, i64 x_stride) {
    constexpr int kParts = kFine ? 2 : 1;  // groups of a slab
    const int lane = threadIdx.x % kWarp, num_slabs = in_size / (2 * kHalf), num_groups = in_size / group_size;
    const Tokens<T, kTiles> tokens(x, x_stride, num_tokens, lane);
    const u32 one = pair_of<T>(1.0f, 1.0f), ones[4] = {one, one, one, one};
    float sums[kTiles][4] = {};
#pragma unroll 2
    for (int slab = threadIdx.x / kWarp; slab < num_slabs; slab += kWarps) {
        const Words words = slab_of(weight, num_slabs, slab, lane);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const Group<T> group(scales, num_groups, slab * 2 * kHalf / group_size + part, has_zero_points, lane);
            float products[kTiles][4] = {}, totals[kTiles][4] = {};
#pragma unroll
            for (int half = part; half < 2; half += kParts) {
                u32 a[2][4];
                unpack_nibbles<T>(a, words, half);
#pragma unroll
                for (int n = 0; n < kTiles; ++n) {
                    const Words b = tokens.at(n, (2 * slab + half) * kHalf);
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        mma<T>(products[n], a[j], b[2 * j], b[2 * j + 1]);
                        mma<T>(totals[n], ones, b[2 * j], b[2 * j + 1]);
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    sums[n][i] += group.scale[i / 2] * products[n][i] + group.offset[i / 2] * totals[n][i];
        }
    }
    finish_tiles<T, kTiles, kWarps>(out, sums, num_tokens, out_size);
}

template <typename T, bool kFine, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
group_linear_single(T* __restrict__ out, const T* __restrict__ x, const u8* __restrict__ weight,
                    const T* __restrict__ scales, int in_size, int out_size, int group_size, int has_zero_points) {
    constexpr int kParts = kFine ? 2 : 1;
    const int lane = threadIdx.x % kWarp, num_slabs = in_size / (2 * kHalf), num_groups = in_size / group_size;
    float sums[2] = {};
#pragma unroll 2
    for (int slab = threadIdx.x / kWarp; slab < num_slabs; slab += kWarps) {
        const Words words = slab_of(weight, num_slabs, slab, lane);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const Group<T> group(scales, num_groups, slab * 2 * kHalf / group_size + part, has_zero_points, lane);
            float products[2] = {}, total = 0.0f;
#pragma unroll
            for (int half = part; half < 2; half += kParts) {
                u32 a[2][4];
                unpack_nibbles<T>(a, words, half);
                const Words of_x = load<Words>(x + (2 * slab + half) * kHalf + lane % 4 * 8);
                multiply_single<T>(products, a, of_x);
#pragma unroll
                for (int i = 0; i < 4; ++i) total += widen_pair<T>(of_x[i])[0] + widen_pair<T>(of_x[i])[1];
            }
#pragma unroll
            for (int row = 0; row < 2; ++row) sums[row] += group.scale[row] * products[row] + group.offset[row] * total;
        }
    }
    finish_single<T, kWarps>(out, sums, out_size);
}
