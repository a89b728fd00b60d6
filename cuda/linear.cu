// invariant_linear: out = x weight^T + bias; float32 accumulation, rounded once. A token's sums are made in one order,
// whatever else is in the batch: alone, beside others and at any place it has the same bits.
//
//   x        [num_tokens, in_size], token t at x + t * x_stride elements, x_stride a multiple of 8
//   weight   [out_size, in_size], contiguous
//   bias     [out_size], where there is one: has_bias; otherwise nobody reads it
//   out      [num_tokens, out_size], contiguous
//
//   T             bf16 or fp16
//   kRowWarps     warps of a block along the rows of weight, and
//   kTokenWarps   along tokens
//   kRowParts     of 16 rows that a warp has, and
//   kTokenParts   of 8 tokens, an even number
//   kStages       of 64 columns that are copied ahead
//   in_size       a multiple of 8
//   grid          the tiles of kRowWarps * kRowParts * 16 rows and kTokenWarps * kTokenParts * 8 tokens, as tile_of says
//   block         kRowWarps * kTokenWarps * 32
//   shared        kStages of Product<..>::kStageBytes
//
// Why the order is one: a sum is one accumulator of m16n8k16 instructions, weights the first operand and tokens the
// second, that takes the columns 16 at a time from the first to the last; columns behind the last are zeros, up to a
// multiple of 64. No size of a tile changes that, so the launch may choose any of them for any batch. Nothing is split
// along the columns: a chain of 4096 / 16 dependent instructions takes some 5 us, which is below the 8 us of reading
// the weights of 4096 rows.
//
// Ladder
//   v1  Stages by cp.async, one barrier each; rows of a stage are 128 bytes, their chunks permuted so that eight rows'
//       lie in different banks; tokens of neighbouring tiles together, so that what a wave of blocks reads stays in the
//       L2. Results go through shared memory, so that a warp stores neighbours. Expected on an H200: up to 64 tokens bound
//       by the weights' bytes where there are tiles for all multiprocessors; 128 x 128 tiles load 16 bytes of shared memory
//       for 683 FLOP, which allows the 4096 a clock of mma.sync. Not measured yet.
#include "types.cuh"

using SharedBytes = decltype(dynamic_shared<u8>());

constexpr int kDepth = 64;                             // columns of a stage
constexpr int kChunks = kDepth * 2 / kVectorBytes;     // of a row of a stage
constexpr int kBand = 8;                               // tiles of tokens whose blocks are neighbours

// Where a chunk of a row lies in a stage.
__device__ __forceinline__ int chunk_at(int row, int chunk) {
    return (row * kChunks + (chunk ^ row % kChunks)) * kVectorBytes;
}

// The rows that a thread copies of a tile of kRows: every kStep-th, always the same chunk of it.
template <typename T, int kRows, int kThreads>
struct Fetch {
    static constexpr int kStep = kThreads / kChunks;
    static_assert(kStep % kChunks == 0 && kRows % kStep == 0, "a thread's rows are permuted alike");

    const T* first;  // of column 0 of the first row
    i64 step;        // elements from one row to the next
    int rows;        // that there are from the first on
    int columns;     // that there are from this chunk on
    int at;          // in a stage

    __device__ __forceinline__ Fetch(const T* matrix, i64 stride, int first_row, int num_rows, int num_columns) {
        const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
        first = matrix + (first_row + row) * stride + chunk * 8;
        step = kStep * stride;
        rows = num_rows - first_row - row;
        columns = num_columns - chunk * 8;
        at = chunk_at(row, chunk);
    }

    __device__ __forceinline__ void start(SharedBytes stage, int column) const {
#pragma unroll
        for (int turn = 0; turn < kRows / kStep; ++turn) {
            const bool wanted = turn * kStep < rows && column < columns;
            copy_async(&stage[at + turn * kStep * kChunks * kVectorBytes], first + turn * step + column, wanted);
        }
    }
};

// A warp's part of a block's tile.
template <typename T, int kRowWarps, int kTokenWarps, int kRowParts, int kTokenParts>
struct Product {
    static constexpr int kRows = kRowWarps * kRowParts * 16, kTokens = kTokenWarps * kTokenParts * 8;
    static constexpr int kTokensAt = kRows * kChunks * kVectorBytes;  // in a stage
    static constexpr int kStageBytes = kTokensAt + kTokens * kChunks * kVectorBytes;
    static constexpr int kThreads = kRowWarps * kTokenWarps * kWarp;
    static constexpr int kStride = kRows + 8;  // of a token's results, so that those of 4 lie in different banks
    static_assert(kTokenParts % 2 == 0, "two parts are loaded at a time");

    int first_row, first_token;  // in the tile
    float sums[kRowParts][kTokenParts][4] = {};

    __device__ __forceinline__ Product()
        : first_row(threadIdx.x / kWarp % kRowWarps * kRowParts * 16),
          first_token(threadIdx.x / kWarp / kRowWarps * kTokenParts * 8) {}

    // sums += weights times tokens of a stage.
    __device__ __forceinline__ void add(SharedBytes stage) {
        constexpr int kPartBytes = 16 * kChunks * kVectorBytes;
        const int lane = threadIdx.x % kWarp, row = lane % 16, token = lane / 16 * 8 + lane % 8;
        const auto rows = stage + chunk_at(first_row, 0), tokens = stage + (kTokensAt + chunk_at(first_token, 0));
#pragma unroll
        for (int chunk = 0; chunk < kChunks; chunk += 2) {
            const int of_row = chunk_at(row, chunk + lane / 16), of_token = chunk_at(token, chunk + lane / 8 % 2);
            u32 a[kRowParts][4];
#pragma unroll
            for (int m = 0; m < kRowParts; ++m) load_matrices(a[m], &rows[of_row + m * kPartBytes]);
#pragma unroll
            for (int n = 0; n < kTokenParts; n += 2) {
                u32 b[4];
                load_matrices(b, &tokens[of_token + n / 2 * kPartBytes]);
#pragma unroll
                for (int m = 0; m < kRowParts; ++m) {
                    mma<T>(sums[m][n], a[m], b[0], b[1]);
                    mma<T>(sums[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // Round the sums, with a bias for each of the tile's rows, to results [kTokens, kStride].
    template <typename Bias, typename Results>
    __device__ __forceinline__ void finish(Results results, const Bias& bias_of) const {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int m = 0; m < kRowParts; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = first_row + m * 16 + half * 8 + lane / 4;
                const float bias = bias_of(row);
#pragma unroll
                for (int n = 0; n < kTokenParts; ++n)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int token = first_token + n * 8 + lane % 4 * 2 + i;
                        results[token * kStride + row] = from_float<T>(sums[m][n][2 * half + i] + bias).bits;
                    }
            }
    }
};

// The tile of a block: kBand tiles of tokens have their blocks together, those of one tile of rows next to each other.
struct TilePlace {
    int row_tile, token_tile;
};
__device__ __forceinline__ TilePlace tile_of(int block, int row_tiles, int token_tiles) {
    const int band = block / (kBand * row_tiles), in_band = block - band * kBand * row_tiles;
    const int width = smaller(kBand, token_tiles - band * kBand);
    return {in_band / width, band * kBand + in_band % width};
}

template <typename T, int kRowWarps, int kTokenWarps, int kRowParts, int kTokenParts, int kStages>
__global__ void __launch_bounds__(kRowWarps * kTokenWarps * 32, 2)
invariant_linear(T* __restrict__ out, const T* __restrict__ x, const T* __restrict__ weight,
                 const T* __restrict__ bias, int num_tokens, int in_size, int out_size, int has_bias, i64 x_stride) {
    using Tile = Product<T, kRowWarps, kTokenWarps, kRowParts, kTokenParts>;
    constexpr int kRows = Tile::kRows, kTokens = Tile::kTokens;
    const TilePlace place = tile_of(blockIdx.x, (out_size + kRows - 1) / kRows, (num_tokens + kTokens - 1) / kTokens);
    const int first_row = place.row_tile * kRows, first_token = place.token_tile * kTokens;
    const Fetch<T, kRows, Tile::kThreads> weights(weight, in_size, first_row, out_size, in_size);
    const Fetch<T, kTokens, Tile::kThreads> tokens(x, x_stride, first_token, num_tokens, in_size);
    const auto stages = dynamic_shared<u8>();
    const auto fetch = [&](int slot, int column) {
        if (column < in_size) {
            const auto stage = stages + slot * Tile::kStageBytes;
            weights.start(stage, column);
            tokens.start(stage + Tile::kTokensAt, column);
        }
        commit_copies();
    };

    for (int slot = 0; slot < kStages - 1; ++slot) fetch(slot, slot * kDepth);
    Tile product;
    int slot = 0;
#pragma unroll 1
    for (int column = 0; column < in_size; column += kDepth) {
        wait_copies<kStages - 2>();
        __syncthreads();  // all have this stage, and are done with the one that is filled anew
        fetch(slot == 0 ? kStages - 1 : slot - 1, column + (kStages - 1) * kDepth);
        product.add(stages + slot * Tile::kStageBytes);
        slot = slot == kStages - 1 ? 0 : slot + 1;
    }
    wait_copies<0>();
    __syncthreads();

    const auto results = dynamic_shared<u16>();
    product.finish(results, [&](int row) {
        return has_bias && first_row + row < out_size ? to_float(load<T>(bias + first_row + row)) : 0.0f;
    });
    __syncthreads();
    for (int i = threadIdx.x; i < kTokens * kRows; i += Tile::kThreads) {
        const int token = first_token + i / kRows, row = first_row + i % kRows;
        if (token >= num_tokens || row >= out_size) continue;
        store(out + static_cast<i64>(token) * out_size + row, T{results[i / kRows * Tile::kStride + i % kRows]});
    }
}
