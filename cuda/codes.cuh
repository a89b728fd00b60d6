// codes.cuh: weights of 8 and 4 bits as quantized_linear.cu says that they lie, on their way to numbers.
//
// A code becomes a number by one multiplication: as the last bits of a 16-bit float it is that many of the least
// subnormal, and times a power of two exactly code / whole().
#pragma once

#include "types.cuh"

constexpr int kTileRows = 16;
constexpr int kHalf = 32;  // columns that two matrix instructions take

using Words = Vector<u32, 4>;

// How many of what numbers_of makes of a code are that code.
template <typename T>
__device__ __forceinline__ constexpr float whole();
template <>
__device__ __forceinline__ constexpr float whole<bf16>() {
    return 64.0f;  // 2^-133 * 2^127 = 1 / 64
}
template <>
__device__ __forceinline__ constexpr float whole<fp16>() {
    return 512.0f;  // 2^-24 * 2^15 = 1 / 512
}

// Two whole numbers up to 255 in the halves' last bits, signs in their first, as T and a whole()th.
template <typename T>
__device__ __forceinline__ u32 numbers_of(u32 codes);
template <>
__device__ __forceinline__ u32 numbers_of<bf16>(u32 codes) {
    return multiply_bf16_pair(codes, 0x7f007f00u);
}
template <>
__device__ __forceinline__ u32 numbers_of<fp16>(u32 codes) {
    return multiply_fp16_pair(codes, 0x78007800u);
}

// Two of four codes of 8 bits, bytes 0 and 2 or bytes 1 and 3, as T.
template <typename T, typename Code>
struct Bytes;
template <typename T>
struct Bytes<T, u8> {
    static __device__ __forceinline__ float whole_code() { return whole<T>(); }
    static __device__ __forceinline__ u32 even(u32 codes) {
        return numbers_of<T>((codes << 8 & 0x80008000u) | (codes & 0x007f007fu));
    }
    static __device__ __forceinline__ u32 odd(u32 codes) {
        return numbers_of<T>((codes & 0x80008000u) | (codes >> 8 & 0x007f007fu));
    }
};
template <typename T>
struct Bytes<T, e4m3> {
    static __device__ __forceinline__ float whole_code() { return 1.0f; }
    static __device__ __forceinline__ u32 even(u32 codes) { return even_pair_of<T>(codes); }
    static __device__ __forceinline__ u32 odd(u32 codes) { return odd_pair_of<T>(codes); }
};

// Operands of both matrix instructions of half a slab of 64, or of a slab of 32: a[j] for the j-th.
template <typename T, typename Code>
__device__ __forceinline__ void unpack_bytes(u32 (&a)[2][4], const Words& words) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            a[j][row] = Bytes<T, Code>::even(words[2 * j + row]);
            a[j][2 + row] = Bytes<T, Code>::odd(words[2 * j + row]);
        }
}
template <typename T>
__device__ __forceinline__ void unpack_nibbles(u32 (&a)[2][4], const Words& words, int half) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int row = 0; row < 2; ++row)
#pragma unroll
            for (int p = 0; p < 2; ++p)
                a[j][2 * p + row] = numbers_of<T>(words[2 * half + row] >> 4 * (2 * j + p) & 0x000f000fu);
}

// The halves of a pair.
template <typename T>
__device__ __forceinline__ Vector<float, 2> widen_pair(u32 pair) {
    return {{to_float(T{static_cast<u16>(pair)}), to_float(T{static_cast<u16>(pair >> 16)})}};
}

// What a lane has of a slab of this block's tile.
__device__ __forceinline__ Words slab_of(const void* weight, int num_slabs, int slab, int lane) {
    const i64 at = (static_cast<i64>(blockIdx.x) * num_slabs + slab) * kWarp + lane;
    return load_once<Words>(static_cast<const u8*>(weight) + at * kVectorBytes);
}

// A row's scale; rows behind the last have none.
__device__ __forceinline__ float scale_of(const float* scales, int row, int out_size) {
    row += blockIdx.x * kTileRows;
    return row < out_size ? load<float>(scales + row) : 0.0f;
}

// What a lane's two rows have in a group: weight = scale * whole() * number + offset.
template <typename T>
struct Group {
    float scale[2], offset[2];

    __device__ __forceinline__ Group(const T* scales, int num_groups, int group, bool has_zero_points, int lane) {
        const i64 first = (static_cast<i64>(blockIdx.x) * num_groups + group) * kTileRows + lane / 4;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const auto both = load_wide<T, 2>(scales + (first + row * 8) * 2);
            scale[row] = both[0] * whole<T>();
            offset[row] = has_zero_points ? -both[0] * both[1] : both[1];
        }
    }
};
