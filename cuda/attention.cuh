// attention.cuh: what the attention kernels have in common: tiles of keys and values in shared memory, a warp's
// products with them, and the running softmax.
//
// A warp has 16 rows of queries, and of each row its lanes hold what mma_bf16 in device.cuh says of a and c: with
// g = lane / 4, rows g and g + 8. A score times Scoring::factor is a power of two; without a soft cap a score is a bare
// product, and its factor is multiplied on its way into the power.
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

// From products of queries and keys to scores, and from these to powers of two.
struct Scoring {
    float scale, cap;  // of a product, and what it is capped by; cap 0: it is not
    float factor;

    __device__ __forceinline__ Scoring(float scale, float soft_cap)
        : scale(soft_cap > 0.0f ? scale / soft_cap : scale), cap(soft_cap),
          factor((soft_cap > 0.0f ? 1.0f : scale) * 1.44269504088896341f) {}

    // cap * tanh(scale * product / cap)
    __device__ __forceinline__ float capped(float product) const {
        return cap - divide_fast(2.0f * cap, 1.0f + exp_fast(2.0f * scale * product));
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
        const auto rows = tile + row * kRowBytes;
        const KV *k = keys.k_cache + place * kHeadDim, *v = keys.v_cache + place * kHeadDim;
        if (num_wanted >= kGroupKeys) {
            copy<kThreads>(rows, k, v, thread, [](int) { return true; });
        } else {
            copy<kThreads>(rows, k, v, thread, [&](int key) { return key < num_wanted; });
        }
        if constexpr (kScaled) {
            constexpr int kQuarters = kGroupKeys / 4;
            if (thread < 2 * kQuarters) {
                const bool is_key = thread < kQuarters;
                const int first = thread % kQuarters * 4, at = kScales + ((is_key ? 0 : kKeys) + row + first) * 4;
                copy_async(&tile[at], (is_key ? keys.k_scales : keys.v_scales) + place + first, first < num_wanted);
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
                    mma<T>(products[j], a, even_pair_of<T>(first), odd_pair_of<T>(first));
                    mma<T>(products[j + 1], a, even_pair_of<T>(second), odd_pair_of<T>(second));
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

    // The scores of products with the keys of the tile.
    static __device__ __forceinline__ void score(float (&products)[kKeys / 8][4], SharedBytes tile,
                                                 const Scoring& scoring) {
        if constexpr (kScaled) {
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j) {
                const auto scales = key_scales(tile, j * 8 + threadIdx.x % 4 * 2);
#pragma unroll
                for (int i = 0; i < 4; ++i) products[j][i] *= scales[i % 2];
            }
        }
        if (scoring.cap > 0.0f) {
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) products[j][i] = scoring.capped(products[j][i]);
        }
    }

    // Of keys 0.. of the tile, row 0 and 1 of a lane see those from first[row] to behind[row] - 1.
    static __device__ __forceinline__ void mask(float (&scores)[kKeys / 8][4], const int (&first)[2],
                                                const int (&behind)[2]) {
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = j * 8 + threadIdx.x % 4 * 2 + i % 2;
                if (key < first[i / 2] || key >= behind[i / 2]) scores[j][i] = kMasked;
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
                    mma<T>(even, weights, even_pair_of<T>(low), even_pair_of<T>(high));
                    mma<T>(odd, weights, odd_pair_of<T>(low), odd_pair_of<T>(high));
                } else {
                    mma<T>(sums[chunk + i], weights, low, high);
                }
            }
        }
    }

    // Scales of keys key and key + 1.
    static __device__ __forceinline__ Vector<float, 2> key_scales(SharedBytes tile, int key) {
        return load<Vector<float, 2>>(&tile[kScales + key * 4]);
    }

    static __device__ __forceinline__ Vector<float, 2> value_scales(SharedBytes tile, int key) {
        return load<Vector<float, 2>>(&tile[kScales + (kKeys + key) * 4]);
    }

    // The dimension of sums[n][i].
    static __device__ __forceinline__ int dimension_of(int n, int i) {
        const int column = threadIdx.x % 4 * 2 + i % 2;
        return kScaled ? n / 2 * 16 + column * 2 + n % 2 : n * 8 + column;
    }

private:
    // 16 keys and their values, a chunk a thread and turn; the last turn may be of some threads only.
    template <int kThreads, typename Wanted>
    static __device__ __forceinline__ void copy(SharedBytes rows, const KV* k, const KV* v, int thread,
                                                Wanted wanted) {
        constexpr int kAll = kGroupKeys * kChunks, kPerChunk = kVectorBytes / static_cast<int>(sizeof(KV));
        if constexpr (kThreads % kChunks == 0 && kAll % kThreads == 0) {
            const int row = thread / kChunks, at = row * kRowBytes + thread % kChunks * kVectorBytes;
            return copy_column<0, kThreads>(&rows[at], k + thread * kPerChunk, v + thread * kPerChunk, row, wanted);
        }
#pragma unroll
        for (int turn = 0; turn < (kAll + kThreads - 1) / kThreads; ++turn) {
            const int i = thread + turn * kThreads, row = i / kChunks;
            if (kAll % kThreads != 0 && i >= kAll) break;
            const int at = row * kRowBytes + i % kChunks * kVectorBytes;
            copy_async(&rows[at], k + i * kPerChunk, wanted(row));
            copy_async(&rows[kValues + at], v + i * kPerChunk, wanted(row));
        }
    }

    // Turns kTurn.. of a thread that stays in its column: all addresses are known but the first.
    template <int kTurn, int kThreads, typename Wanted>
    static __device__ __forceinline__ void copy_column(void* to, const KV* k, const KV* v, int row, Wanted wanted) {
        constexpr int kFrom = kTurn * kThreads * kVectorBytes, kTo = kTurn * (kThreads / kChunks) * kRowBytes;
        const bool is_wanted = wanted(row + kTurn * (kThreads / kChunks));
        copy_async_at<kTo, kFrom>(to, k, is_wanted);
        copy_async_at<kTo + kValues, kFrom>(to, v, is_wanted);
        if constexpr ((kTurn + 1) * kThreads < kGroupKeys * kChunks)
            copy_column<kTurn + 1, kThreads>(to, k, v, row, wanted);
    }
};

// The running softmax of a warp's rows. Sums of weights are each lane's own until finish.
template <typename Tile, typename T, int kHeadDim, int kKeys>
struct Softmax {
    // By what weights times scales are lifted, so that those of small values keep their bits in fp16: the largest scale
    // that values of fp16 have, 65504 / 448, stays below infinity.
    static constexpr float kLift = Tile::kScaled && kIsFp16<T> ? 256.0f : 1.0f;

    float max[2] = {kMasked, kMasked};
    float total[2] = {0.0f, 0.0f};
    float sums[kHeadDim / 8][4] = {};

    // Take in the values of the tile with the weights of these scores.
    __device__ __forceinline__ void take(float (&scores)[kKeys / 8][4], float factor, SharedBytes tile) {
        raise(scores, factor);
#pragma unroll
        for (int group = 0; group < kKeys / kGroupKeys; ++group) {
            u32 weights[4];
            weigh(weights, scores, group, factor, tile);
            Tile::multiply_values(sums, weights, group, tile);
        }
    }

    // Make max that of the scores too, and what there is relative to it.
    __device__ __forceinline__ void raise(const float (&scores)[kKeys / 8][4], float factor) {
        float less[2];
        bool is_raised = false;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float found = max[row];
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j) found = fmaxf(found, fmaxf(scores[j][2 * row], scores[j][2 * row + 1]));
            found = fmaxf(found, __shfl_xor_sync(kEveryLane, found, 1));
            found = fmaxf(found, __shfl_xor_sync(kEveryLane, found, 2));
            less[row] = exp2_fast((max[row] - found) * factor);
            is_raised |= found > max[row];
            max[row] = found;
            total[row] *= less[row];
        }
        if (!__ballot_sync(kEveryLane, is_raised)) return;  // the more keys were seen, the rarer
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[n][i] *= less[i / 2];
    }

    // The weights of keys 16 * group.. as a product with their values takes them, behind raise; the total counts them.
    __device__ __forceinline__ void weigh(u32 (&weights)[4], const float (&scores)[kKeys / 8][4], int group, float factor,
                                          SharedBytes tile) {
        // Of a row that has seen nothing yet all weights are 0.
        const float down[2] = {max[0] > kMasked ? -max[0] * factor : 0.0f,
                               max[1] > kMasked ? -max[1] * factor : 0.0f};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const auto& of = scores[2 * group + half];
            float wide[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                wide[i] = exp2_fast(fmaf(of[i], factor, down[i / 2]));
                total[i / 2] += wide[i];
            }
            if constexpr (Tile::kScaled) {
                const int key = group * kGroupKeys + half * 8 + threadIdx.x % 4 * 2;
                const auto scales = Tile::value_scales(tile, key);
#pragma unroll
                for (int i = 0; i < 4; ++i)  // a masked key's scale may be anything
                    wide[i] = wide[i] > 0.0f ? wide[i] * (scales[i % 2] * kLift) : 0.0f;
            }
            weights[2 * half] = pair_of<T>(wide[0], wide[1]);
            weights[2 * half + 1] = pair_of<T>(wide[2], wide[3]);
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
        const float factor = total[row] > 0.0f ? divide_fast(1.0f / kLift, total[row]) : 0.0f;
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
};
