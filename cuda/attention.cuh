// attention.cuh: what the attention kernels have in common: tiles of keys and values in shared memory, a warp's
// products with them, and the running softmax.
//
// A warp has 16 rows of queries, and of each row its lanes hold what mma_bf16 in device.cuh says of a and c: with
// g = lane / 4, rows g and g + 8. All scores are powers of two: log2(e) is part of their scale.
//
// Keys and values of e4m3 have one float32 scale for each token and KV head. They are turned into T on their way into
// registers, by permutations that cost nothing: a product does not care in which order its dimensions are summed, so
// those of queries and keys are paired as their bytes lie in a register; and the values' dimensions come out as even
// and odd ones, which the stores at the end put right.
#pragma once

#include "types.cuh"

using SharedBytes = decltype(dynamic_shared<u8>());
using SharedFloats = decltype(dynamic_shared<float>());

constexpr float kMasked = -1e30f;  // a score of what must not be seen; its power of two is 0 beside any other
constexpr int kRows = 16;          // of a warp
constexpr int kGroupKeys = 16;     // neighbours in a KV block, whose size is a multiple of it

// From products of queries and keys to scores.
struct Scoring {
    float scale, cap;  // of a product; log2(e) * soft_cap, or 0

    __device__ __forceinline__ Scoring(float scale_of_product, float soft_cap)
        : scale(soft_cap > 0.0f ? scale_of_product / soft_cap : scale_of_product * 1.44269504088896341f),
          cap(soft_cap * 1.44269504088896341f) {}

    __device__ __forceinline__ float of(float product) const {
        const float x = product * scale;
        return cap > 0.0f ? cap - divide_fast(2.0f * cap, 1.0f + exp_fast(2.0f * x)) : x;  // cap * tanh(x)
    }
};

// One KV head of one sequence in the paged cache.
template <typename KV, int kHeadDim>
struct PagedKeys {
    const KV *k_cache, *v_cache;
    const float *k_scales, *v_scales;
    const int* block_table;
    int num_kv_heads, kv_head, block_size;

    __device__ __forceinline__ int block_of(int key) const { return load<int>(block_table + key / block_size); }

    // Key offset of a block, counted through the whole cache.
    __device__ __forceinline__ i64 place_of(i64 block_id, int offset) const {
        return (block_id * num_kv_heads + kv_head) * block_size + offset;
    }
};

// kKeys keys, their values and, of e4m3, their scales in shared memory. Rows have 16 bytes between them, so that 8 of
// them lie in different banks.
template <typename T, typename KV, int kHeadDim, int kKeys>
struct Tile {
    static constexpr bool kScaled = sizeof(KV) == 1;
    static constexpr int kChunks = kHeadDim * static_cast<int>(sizeof(KV)) / kVectorBytes;  // of a row
    static constexpr int kRowBytes = (kChunks + 1) * kVectorBytes;
    static constexpr int kValues = kKeys * kRowBytes;  // where they begin
    static constexpr int kScales = 2 * kValues;        // of keys, then of values
    static constexpr int kBytes = kScales + (kScaled ? 2 * kKeys * 4 : 0);
    static constexpr int kSteps = kHeadDim / 16;       // of a product with a key
    static_assert(kHeadDim % 16 == 0 && kKeys % kGroupKeys == 0, "whole matrices");

    // Start to copy the 16 keys from a place on to rows row.., by kThreads threads; behind num_wanted come zeros.
    template <int kThreads>
    static __device__ __forceinline__ void fetch(SharedBytes tile, int row, const PagedKeys<KV, kHeadDim>& keys,
                                                 i64 place, int num_wanted, int thread) {
        constexpr int kPerChunk = kVectorBytes / static_cast<int>(sizeof(KV));
#pragma unroll
        for (int i = thread; i < kGroupKeys * kChunks; i += kThreads) {
            const int at = (row + i / kChunks) * kRowBytes + i % kChunks * kVectorBytes;
            const bool wanted = i / kChunks < num_wanted;
            copy_async(&tile[at], keys.k_cache + place * kHeadDim + i * kPerChunk, wanted);
            copy_async(&tile[kValues + at], keys.v_cache + place * kHeadDim + i * kPerChunk, wanted);
        }
        if constexpr (kScaled) {
            constexpr int kQuarters = kGroupKeys / 4;
            for (int i = thread; i < 2 * kQuarters; i += kThreads) {
                const int at = kScales + (i / kQuarters * kKeys + row + i % kQuarters * 4) * 4;
                const float* scales = i < kQuarters ? keys.k_scales : keys.v_scales;
                copy_async(&tile[at], scales + place + i % kQuarters * 4, i % kQuarters * 4 < num_wanted);
            }
        }
    }

    // Rows g and g + 8 of a warp's queries, in registers, or where those are scarce read anew for each tile, out of L1.
    template <bool kKept>
    struct Queries {
        const T *first, *second;  // rows; null where there is none
        u32 kept[kKept ? kSteps : 1][4];

        __device__ __forceinline__ Queries(const T* first_row, const T* second_row)
            : first(first_row), second(second_row) {
            if constexpr (kKept) {
#pragma unroll
                for (int step = 0; step < kSteps; ++step) read(kept[step], step);
            }
        }

        __device__ __forceinline__ void get(u32 (&a)[4], int step) const {
            if constexpr (kKept) {
#pragma unroll
                for (int i = 0; i < 4; ++i) a[i] = kept[step][i];
            } else {
                read(a, step);
            }
        }

    private:
        __device__ __forceinline__ void read(u32 (&a)[4], int step) const {
            read_row(a[0], a[2], first, step);
            read_row(a[1], a[3], second, step);
        }

        // What is multiplied with the keys' b0 and b1 of a step: dimensions 2 t, 2 t + 1 and 2 t + 8, 2 t + 9 as
        // lanes have them, or, of e4m3, 4 t, 4 t + 2 and 4 t + 1, 4 t + 3: bytes 0, 2 and 1, 3 of a register.
        static __device__ __forceinline__ void read_row(u32& low, u32& high, const T* row, int step) {
            const int t = threadIdx.x % 4;
            low = high = 0;
            if (row == nullptr) return;
            if constexpr (kScaled) {
                const auto x = load<Vector<u16, 4>>(row + step * 16 + t * 4);
                low = x[0] | static_cast<u32>(x[2]) << 16;
                high = x[1] | static_cast<u32>(x[3]) << 16;
            } else {
                low = load<u32>(row + step * 16 + t * 2);
                high = load<u32>(row + step * 16 + t * 2 + 8);
            }
        }
    };

    // products[j] += queries with keys 8 * j.. of the tile.
    template <bool kKept>
    static __device__ __forceinline__ void multiply_keys(float (&products)[kKeys / 8][4], const Queries<kKept>& queries,
                                                         SharedBytes tile) {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            u32 a[4];
            queries.get(a, step);
#pragma unroll
            for (int j = 0; j < kKeys / 8; j += 2) {
                if constexpr (kScaled) {
                    const int at = (j * 8 + lane / 4) * kRowBytes + step * 16 + lane % 4 * 4;
                    const u32 first = load<u32>(&tile[at]), second = load<u32>(&tile[at + 8 * kRowBytes]);
                    mma<T>(products[j], a, pair_of_e4m3<T>(first), pair_of_e4m3<T>(first >> 8));
                    mma<T>(products[j + 1], a, pair_of_e4m3<T>(second), pair_of_e4m3<T>(second >> 8));
                } else {
                    u32 b[4];
                    const int row = j * 8 + lane / 16 * 8 + lane % 8;
                    load_matrices(b, &tile[row * kRowBytes + step * 32 + lane / 8 % 2 * 16]);
                    mma<T>(products[j], a, b[0], b[1]);
                    mma<T>(products[j + 1], a, b[2], b[3]);
                }
            }
        }
    }

    // The scores of products with keys base.. of the tile; seen(key, row) says which keys rows 0 and 1 of a lane see.
    template <typename Seen>
    static __device__ __forceinline__ void score(float (&products)[kKeys / 8][4], SharedBytes tile, int base,
                                                 const Scoring& scoring, Seen seen) {
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
            const int column = j * 8 + threadIdx.x % 4 * 2;
            const auto scales = key_scales(tile, column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float found = scoring.of(products[j][i] * scales[i % 2]);
                products[j][i] = seen(base + column + i % 2, i / 2) ? found : kMasked;
            }
        }
    }

    // sums += weights, of keys 16 * group.., with their values.
    static __device__ __forceinline__ void multiply_values(float (&sums)[kHeadDim / 8][4], const u32 (&weights)[4],
                                                           int group, SharedBytes tile) {
        const int lane = threadIdx.x % kWarp, row = group * kGroupKeys + lane % 16;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; chunk += 2) {
            u32 b[4];
            const int mine = smaller(chunk + lane / 16, kChunks - 1);
            load_matrices_transposed(b, &tile[kValues + row * kRowBytes + mine * kVectorBytes]);
#pragma unroll
            for (int i = 0; i < 2 && chunk + i < kChunks; ++i) {
                const u32 low = b[2 * i], high = b[2 * i + 1];
                if constexpr (kScaled) {
                    float(&even)[4] = sums[2 * (chunk + i)];
                    float(&odd)[4] = sums[2 * (chunk + i) + 1];
                    mma<T>(even, weights, pair_of_e4m3<T>(low), pair_of_e4m3<T>(high));
                    mma<T>(odd, weights, pair_of_e4m3<T>(low >> 8), pair_of_e4m3<T>(high >> 8));
                } else {
                    mma<T>(sums[chunk + i], weights, low, high);
                }
            }
        }
    }

    // Scales of keys key and key + 1, 1 where there are none.
    static __device__ __forceinline__ Vector<float, 2> key_scales(SharedBytes tile, int key) {
        if constexpr (kScaled) return load<Vector<float, 2>>(&tile[kScales + key * 4]);
        return {{1.0f, 1.0f}};
    }

    static __device__ __forceinline__ Vector<float, 2> value_scales(SharedBytes tile, int key) {
        if constexpr (kScaled) return load<Vector<float, 2>>(&tile[kScales + (kKeys + key) * 4]);
        return {{1.0f, 1.0f}};
    }

    // The dimension of sums[n][i], i even, and of its neighbour sums[n][i + 1].
    static __device__ __forceinline__ int dimension_of(int n, int i) {
        const int column = threadIdx.x % 4 * 2 + i % 2;
        return kScaled ? n / 2 * 16 + column * 2 + n % 2 : n * 8 + column;
    }
};

// The running softmax of a warp's rows. Sums of weights are each lane's own until finish.
template <typename Tile, typename T, int kHeadDim, int kKeys>
struct Softmax {
    float max[2] = {kMasked, kMasked};
    float total[2] = {0.0f, 0.0f};
    float sums[kHeadDim / 8][4] = {};

    // Take in the values of the tile with the weights of these scores.
    __device__ __forceinline__ void take(float (&scores)[kKeys / 8][4], SharedBytes tile) {
        raise(scores);
        const int t = threadIdx.x % 4 * 2;
#pragma unroll
        for (int group = 0; group < kKeys / kGroupKeys; ++group) {
            u32 weights[4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const auto& of = scores[2 * group + half];
                const auto scales = Tile::value_scales(tile, group * kGroupKeys + half * 8 + t);
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const float first = exp2_fast(of[2 * row] - max[row]);
                    const float second = exp2_fast(of[2 * row + 1] - max[row]);
                    total[row] += first + second;
                    weights[2 * half + row] = pair_of<T>(scaled(first, scales[0]), scaled(second, scales[1]));
                }
            }
            Tile::multiply_values(sums, weights, group, tile);
        }
    }

    // Make total that of the row, in each of its lanes.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            total[row] += __shfl_xor_sync(kEveryLane, total[row], 1);
            total[row] += __shfl_xor_sync(kEveryLane, total[row], 2);
        }
    }

    // The row's result, behind finish.
    __device__ __forceinline__ void store(T* out, int row) const {
        const float factor = total[row] > 0.0f ? divide_fast(1.0f, total[row]) : 0.0f;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; n += Tile::kScaled ? 2 : 1) {
            T* at = out + Tile::dimension_of(n, 0);
            const float first = sums[n][2 * row] * factor, second = sums[n][2 * row + 1] * factor;
            if constexpr (Tile::kScaled) {
                const auto& odd = sums[n + 1];
                store_narrow(at, Vector<float, 4>{{first, odd[2 * row] * factor, second, odd[2 * row + 1] * factor}});
            } else {
                store_narrow(at, Vector<float, 2>{{first, second}});
            }
        }
    }

private:
    // A masked key's scale may be anything.
    static __device__ __forceinline__ float scaled(float weight, float scale) {
        return Tile::kScaled ? (weight > 0.0f ? weight * scale : 0.0f) : weight;
    }

    // Make max that of the scores too, and what there is relative to it.
    __device__ __forceinline__ void raise(const float (&scores)[kKeys / 8][4]) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float found = max[row];
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j) found = fmaxf(found, fmaxf(scores[j][2 * row], scores[j][2 * row + 1]));
            found = fmaxf(found, __shfl_xor_sync(kEveryLane, found, 1));
            found = fmaxf(found, __shfl_xor_sync(kEveryLane, found, 2));
            const float factor = exp2_fast(max[row] - found);
            max[row] = found;
            total[row] *= factor;
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n) {
                sums[n][2 * row] *= factor;
                sums[n][2 * row + 1] *= factor;
            }
        }
    }
};
