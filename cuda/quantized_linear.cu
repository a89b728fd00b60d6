// channel_linear, group_linear: out = x weight^T + bias for few tokens, whose weights are codes of 8 or 4 bits; float32
// accumulation, rounded once. channel_linear_single, group_linear_single: the same for one token. merge_products: the
// sum of what the blocks of a split depth have found.
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
//   bias     [out_size], or null
//   out      [num_tokens, out_size], contiguous
//   sums     [num_splits, num_tokens, out_size] float32, of each part of the depth; null: it has one part, and out is
//            written at once. merge_products adds them up in the order of the parts, and the bias to that
//
//   T        bf16 or fp16
//   Code     u8, signs and magnitudes, or e4m3
//   kFine    whether group_size is 32; otherwise it is a multiple of 64
//   kTiles   of 8 tokens, 1 or 2
//   kWarps   of a block, which share a tile's slabs
//   in_size  a multiple of the slab
//   grid     out_size / 16 rounded up, num_splits, num_tokens / (8 kTiles) rounded up; merge_products: out_size /
//            kThreads rounded up, num_tokens
//   block    kWarps * 32; merge_products: kThreads
//   shared   none but what is declared
//
// A split is a run of slabs. The warps of a block take every so manieth of it, and their sums are added in the order of
// the warps. So how a token's sums are made depends on the sizes and on num_splits alone, not on how many tokens there
// are; but those for one token have another order than the rest.
//
// A code becomes a number by one multiplication: as the last bits of a 16-bit float it is that many of the least
// subnormal, and times a power of two exactly code / whole(). The tensor cores multiply by whole codes; scales come in
// float32 at a group's end, where the offset counts with the sum of the group's x, a product with ones.
//
// Ladder
//   v1  Weights as the first operand, tokens as the second, so that 8 tokens waste nothing; a permutation of the columns
//       makes what a lane needs of x 16 neighbouring bytes. Expected for 4096 x 4096 on an H200 that copies 4.3 TB/s: 16.8
//       MB of 8 bits in 3.9 us, 9.4 MB of 4 bits in groups of 128 in 2.1 us, all of a Llama-3-8B layer 51 and 27 us. A
//       multiprocessor then reads 19 bytes a cycle, 38 codes of 4 bits: some 50 operations beside the tensor cores.
//       group_linear spilled for some types while blocks were not bound to two a multiprocessor (NVRTC 13.0, sm_80).
//       Not measured yet.
//   v2  A warp has four slabs on their way, always: asked for a turn before they are used. In v1 the compiler had left one
//       or two between the matrix instructions, whatever was unrolled, as its listing for sm_90a shows. Two blocks have 32
//       KB under way on a multiprocessor; 4.3 TB/s at 800 ns want 26 KB on each of 132. Not measured yet.
//   v3  The depth split where a matrix has too few rows for two blocks a multiprocessor. Expected for 1280 x 8192 of 8 bits:
//       80 blocks wait for memory 8 times, 6.4 us; 240 take as long as the bytes, 2.4 us, and merge_products about as much
//       again. Not measured yet.
#include "codes.cuh"

constexpr int kTileTokens = 8;
constexpr int kAhead = 4;  // slabs of a warp that are on their way

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

// The slabs of this thread's warp: first, first + kWarps and so on, before end. kAhead of them are on their way.
template <int kWarps, int kAhead>
struct Slabs {
    static constexpr int kStep = kAhead * kWarps;
    const u8* weight;  // what this lane needs of slab 0
    int first, end;
    Words ahead[kAhead];

    __device__ __forceinline__ Slabs(const void* tiles, int num_slabs) {
        const int splits = static_cast<int>(gridDim.y), size = (num_slabs + splits - 1) / splits;
        const int split = static_cast<int>(blockIdx.y), lane = threadIdx.x % kWarp;
        weight = static_cast<const u8*>(tiles) + (static_cast<i64>(blockIdx.x) * num_slabs * kWarp + lane) * kVectorBytes;
        first = split * size + static_cast<int>(threadIdx.x) / kWarp;
        end = smaller(num_slabs, (split + 1) * size);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) fetch(i, first + i * kWarps);
    }

    __device__ __forceinline__ void fetch(int i, int slab) {
        if (slab < end) ahead[i] = load_once<Words>(weight + static_cast<i64>(slab) * kWarp * kVectorBytes);
    }

    // Of slab, which is the i-th of those on their way; another one takes its place.
    __device__ __forceinline__ Words take(int i, int slab) {
        const Words words = ahead[i];
        fetch(i, slab + kStep);
        return words;
    }
};

// The tokens of this block.
template <int kTiles>
struct Run {
    int first, num_tokens;

    __device__ __forceinline__ explicit Run(int all) {
        first = static_cast<int>(blockIdx.z) * kTiles * kTileTokens;
        num_tokens = smaller(all - first, kTiles * kTileTokens);
    }
};

// Where the results of a block's tokens go, the first of which is token first of all.
template <typename T>
struct Results {
    T* out;
    float* sums;
    const T* bias;
    int out_size;

    __device__ __forceinline__ Results(T* out, float* sums, const T* bias, int first, int num_tokens, int out_size)
        : out(out + static_cast<i64>(first) * out_size), sums(sums), bias(bias), out_size(out_size) {
        if (sums != nullptr) this->sums += (static_cast<i64>(blockIdx.y) * num_tokens + first) * out_size;
    }

    __device__ __forceinline__ void put(int token, int row, float sum) const {
        const i64 at = static_cast<i64>(token) * out_size + row;
        if (sums != nullptr) store(sums + at, sum);
        else put_whole(out + at, bias, row, sum);
    }

    static __device__ __forceinline__ void put_whole(T* out, const T* bias, int row, float sum) {
        if (bias != nullptr) sum += to_float(load<T>(bias + row));
        store(out, from_float<T>(sum));
    }
};

// Adds the warps' sums and writes them.
//   place  (token, row of the tile) -> one warp's place in shared memory
template <int kWarps, typename T, typename Floats, typename Place>
__device__ __forceinline__ void finish(const Results<T>& results, Floats& floats, int num_tokens, int stride,
                                       const Place& place) {
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < num_tokens * kTileRows; i += kWarps * kWarp) {
        const int token = i / kTileRows, row = blockIdx.x * kTileRows + i % kTileRows;
        if (row >= results.out_size) continue;
        const int at = place(token, i % kTileRows);
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < kWarps; ++warp) sum += static_cast<float>(floats[warp * stride + at]);
        results.put(token, row, sum);
    }
}

// The same of a warp's results of matrix instructions.
template <int kWarps, typename T, int kTiles>
__device__ __forceinline__ void finish_tiles(const Results<T>& results, const float (&sums)[kTiles][4], int num_tokens) {
    constexpr int kStride = kTiles * 4 * kWarp;
    __shared__ SharedArray<float, kWarps * kStride> floats;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) floats[warp * kStride + (n * 4 + i) * kWarp + lane] = sums[n][i];
    finish<kWarps>(results, floats, num_tokens, kStride, [](int token, int row) {
        const int i = row / 8 * 2 + token % 2, of = row % 8 * 4 + token % kTileTokens / 2;
        return (token / kTileTokens * 4 + i) * kWarp + of;
    });
}

// And of a single token's: a lane has a part of rows g and g + 8.
template <int kWarps, typename T>
__device__ __forceinline__ void finish_single(const Results<T>& results, float (&sums)[2]) {
    __shared__ SharedArray<float, kWarps * kTileRows> floats;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int step = 1; step < 4; step *= 2) sums[row] += __shfl_xor_sync(kEveryLane, sums[row], step);
        if (lane % 4 == 0) floats[warp * kTileRows + row * 8 + lane / 4] = sums[row];
    }
    finish<kWarps>(results, floats, 1, kTileRows, [](int, int row) { return row; });
}

template <typename T, typename Code, int kTiles, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 3)
channel_linear(T* __restrict__ out, float* __restrict__ sums, const T* __restrict__ x, const Code* __restrict__ weight,
               const float* __restrict__ scales, const T* __restrict__ bias, int num_tokens, int in_size, int out_size,
               i64 x_stride) {
    const int lane = threadIdx.x % kWarp;
    Slabs<kWarps, kAhead> slabs(weight, in_size / kHalf);
    const Run<kTiles> run(num_tokens);
    const Tokens<T, kTiles> tokens(x + run.first * x_stride, x_stride, run.num_tokens, lane);
    float products[kTiles][4] = {};
    for (int turn = slabs.first; turn < slabs.end; turn += slabs.kStep)
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int slab = turn + i * kWarps;
            if (slab >= slabs.end) break;
            u32 a[2][4];
            unpack_bytes<T, Code>(a, slabs.take(i, slab));
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
                const Words b = tokens.at(n, slab * kHalf);
                mma<T>(products[n], a[0], b[0], b[1]);
                mma<T>(products[n], a[1], b[2], b[3]);
            }
        }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float scale = scale_of(scales, lane / 4 + i / 2 * 8, out_size) * Bytes<T, Code>::whole_code();
#pragma unroll
        for (int n = 0; n < kTiles; ++n) products[n][i] *= scale;
    }
    finish_tiles<kWarps>(Results<T>(out, sums, bias, run.first, num_tokens, out_size), products, run.num_tokens);
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
__global__ void __launch_bounds__(kWarps * 32, 3)
channel_linear_single(T* __restrict__ out, float* __restrict__ sums, const T* __restrict__ x,
                      const Code* __restrict__ weight, const float* __restrict__ scales, const T* __restrict__ bias,
                      int in_size, int out_size) {
    const int lane = threadIdx.x % kWarp;
    Slabs<kWarps, kAhead> slabs(weight, in_size / kHalf);
    float products[2] = {};
    for (int turn = slabs.first; turn < slabs.end; turn += slabs.kStep)
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int slab = turn + i * kWarps;
            if (slab >= slabs.end) break;
            u32 a[2][4];
            unpack_bytes<T, Code>(a, slabs.take(i, slab));
            multiply_single<T>(products, a, load<Words>(x + slab * kHalf + lane % 4 * 8));
        }
#pragma unroll
    for (int row = 0; row < 2; ++row)
        products[row] *= scale_of(scales, lane / 4 + row * 8, out_size) * Bytes<T, Code>::whole_code();
    finish_single<kWarps>(Results<T>(out, sums, bias, 0, 1, out_size), products);
}

// Adds the products of a slab of nibbles, group by group.
//   group  part of the slab -> its group
template <typename T, bool kFine, int kTiles, typename GroupOf>
__device__ __forceinline__ void add_slab(float (&weighed)[kTiles][4], const Words& words, const Tokens<T, kTiles>& tokens,
                                         int slab, const GroupOf& group_of) {
    constexpr int kParts = kFine ? 2 : 1;  // groups of a slab
    const u32 one = pair_of<T>(1.0f, 1.0f), ones[4] = {one, one, one, one};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        const Group<T> group = group_of(part);
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
                weighed[n][i] += group.scale[i / 2] * products[n][i] + group.offset[i / 2] * totals[n][i];
    }
}

// The same with a single token, x from this lane's columns of the first slab on.
template <typename T, bool kFine, typename GroupOf>
__device__ __forceinline__ void add_slab_single(float (&weighed)[2], const Words& words, const T* x, int slab,
                                                const GroupOf& group_of) {
    constexpr int kParts = kFine ? 2 : 1;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        const Group<T> group = group_of(part);
        float products[2] = {}, total = 0.0f;
#pragma unroll
        for (int half = part; half < 2; half += kParts) {
            u32 a[2][4];
            unpack_nibbles<T>(a, words, half);
            const Words of_x = load<Words>(x + (2 * slab + half) * kHalf);
            multiply_single<T>(products, a, of_x);
#pragma unroll
            for (int i = 0; i < 4; ++i) total += widen_pair<T>(of_x[i])[0] + widen_pair<T>(of_x[i])[1];
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) weighed[row] += group.scale[row] * products[row] + group.offset[row] * total;
    }
}

template <typename T, bool kFine, int kTiles, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 2)
group_linear(T* __restrict__ out, float* __restrict__ sums, const T* __restrict__ x, const u8* __restrict__ weight,
             const T* __restrict__ scales, const T* __restrict__ bias, int num_tokens, int in_size, int out_size,
             int group_size, int has_zero_points, i64 x_stride) {
    const int lane = threadIdx.x % kWarp, num_groups = in_size / group_size;
    Slabs<kWarps, kAhead> slabs(weight, in_size / (2 * kHalf));
    const Run<kTiles> run(num_tokens);
    const Tokens<T, kTiles> tokens(x + run.first * x_stride, x_stride, run.num_tokens, lane);
    float weighed[kTiles][4] = {};
    for (int turn = slabs.first; turn < slabs.end; turn += slabs.kStep)
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int slab = turn + i * kWarps;
            if (slab >= slabs.end) break;
            add_slab<T, kFine, kTiles>(weighed, slabs.take(i, slab), tokens, slab, [&](int part) {
                const int group = slab * 2 * kHalf / group_size + part;
                return Group<T>(scales, num_groups, group, has_zero_points, lane);
            });
        }
    finish_tiles<kWarps>(Results<T>(out, sums, bias, run.first, num_tokens, out_size), weighed, run.num_tokens);
}

template <typename T, bool kFine, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 3)
group_linear_single(T* __restrict__ out, float* __restrict__ sums, const T* __restrict__ x,
                    const u8* __restrict__ weight, const T* __restrict__ scales, const T* __restrict__ bias, int in_size,
                    int out_size, int group_size, int has_zero_points) {
    const int lane = threadIdx.x % kWarp, num_groups = in_size / group_size;
    Slabs<kWarps, kAhead> slabs(weight, in_size / (2 * kHalf));
    float weighed[2] = {};
    for (int turn = slabs.first; turn < slabs.end; turn += slabs.kStep)
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int slab = turn + i * kWarps;
            if (slab >= slabs.end) break;
            add_slab_single<T, kFine>(weighed, slabs.take(i, slab), x + lane % 4 * 8, slab, [&](int part) {
                const int group = slab * 2 * kHalf / group_size + part;
                return Group<T>(scales, num_groups, group, has_zero_points, lane);
            });
        }
    finish_single<kWarps>(Results<T>(out, sums, bias, 0, 1, out_size), weighed);
}

template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads)
merge_products(T* __restrict__ out, const float* __restrict__ sums, const T* __restrict__ bias, int num_splits,
               int num_tokens, int out_size) {
    const int row = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
    if (row >= out_size) return;
    const i64 at = static_cast<i64>(blockIdx.y) * out_size + row, size = static_cast<i64>(num_tokens) * out_size;
    float sum = 0.0f;
#pragma unroll 4
    for (int split = 0; split < num_splits; ++split) sum += load<float>(sums + split * size + at);
    Results<T>::put_whole(out + at, bias, row, sum);
}
