// cuemu.h: CUDA for the tests: what device.cuh includes when no CUDA compiler reads it. The keywords and built-ins that
// kernels use, the primitives of device.cuh, and the entry that a test calls.
//
// It sees barriers, collectives, memory accesses and values. It does not see races between blocks, bank conflicts, the last
// bits of the fast functions, numbers of registers, or time.
#pragma once

#include <cmath>
#include <type_traits>

#include "memory.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time; a SharedArray takes its place in the arena anew in each
#define threadIdx (cuemu::machine.current->index)
#define blockIdx (cuemu::machine.block_index)
#define blockDim (cuemu::machine.block)
#define gridDim (cuemu::machine.grid)
#if defined(CUEMU_WITHOUT_BARRIERS)  // a fault for the tests to plant
#define __syncthreads() static_cast<void>(0)
#else
#define __syncthreads() cuemu::barrier(__FILE__, __LINE__)
#endif

// ---- warp collectives

namespace cuemu {

template <typename T>
void shuffle(Thread* warp, uint32_t mask) {
    for (int lane = 0; lane < kLanes; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const int source = warp[lane].request.argument;
        if (!(mask >> source & 1)) fail("lane %d shuffles from lane %d, outside the mask %08x", lane, source, mask);
        std::memcpy(warp[lane].request.out, warp[source].request.in, sizeof(T));
    }
}

inline void ballot(Thread* warp, uint32_t mask) {
    uint32_t votes = 0;
    for (int lane = 0; lane < kLanes; ++lane)
        if (mask >> lane & 1) votes |= static_cast<uint32_t>(warp[lane].request.argument) << lane;
    for (int lane = 0; lane < kLanes; ++lane)
        if (mask >> lane & 1) *static_cast<uint32_t*>(warp[lane].request.out) = votes;
}

inline void sync_warp(Thread* warp, uint32_t mask) {
    if (mask != 0xffffffffu) return;
    ++machine.warp_epoch[warp->warp()];
    share_knowledge(warp, kLanes);
}

template <typename T>
T shuffled(uint32_t mask, T value, int source) {
    T result;
    collective(shuffle<T>, mask, &value, &result, source);
    return result;
}

inline int lane() { return machine.current->lane(); }

}  // namespace cuemu

template <typename T>
T __shfl_sync(u32 mask, T value, int source) {
    return cuemu::shuffled(mask, value, source & 31);
}
template <typename T>
T __shfl_xor_sync(u32 mask, T value, int bits) {
    return cuemu::shuffled(mask, value, cuemu::lane() ^ bits);
}
template <typename T>
T __shfl_down_sync(u32 mask, T value, int step) {
    return cuemu::shuffled(mask, value, cuemu::lane() + step > 31 ? cuemu::lane() : cuemu::lane() + step);
}
template <typename T>
T __shfl_up_sync(u32 mask, T value, int step) {
    return cuemu::shuffled(mask, value, cuemu::lane() < step ? cuemu::lane() : cuemu::lane() - step);
}
inline u32 __ballot_sync(u32 mask, int vote) {
    u32 votes;
    cuemu::collective(cuemu::ballot, mask, nullptr, &votes, vote != 0);
    return votes;
}
inline void __syncwarp(u32 mask = 0xffffffffu) { cuemu::collective(cuemu::sync_warp, mask); }

// The compiler may not fuse these with their neighbours; nor does it, as its target has no such instruction.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }

// ---- the primitives of device.cuh

inline int first_lane(u32 mask) { return __builtin_ctz(mask); }

template <typename V>
V load(const void* p) {
    cuemu::check_access(p, sizeof(V), alignof(V), cuemu::Access::read);
    V value;
    std::memcpy(&value, p, sizeof(V));
    return value;
}

template <typename V>
void store(void* p, const V& value) {
    cuemu::check_access(p, sizeof(V), alignof(V), cuemu::Access::write);
    std::memcpy(p, &value, sizeof(V));
}

template <typename T, int kSize>
class SharedArray {
public:
    cuemu::SharedElement<T> operator[](int i) {
        if (i < 0 || i >= kSize) cuemu::fail("out of bounds: element %d of a shared array of %d", i, kSize);
        if (serial_ != cuemu::machine.serial) {
            if (!cuemu::shared.reserve(kSize * sizeof(T), 16, at_)) cuemu::fail("shared memory is full");
            serial_ = cuemu::machine.serial;
        }
        return cuemu::SharedElement<T>(cuemu::shared.data + at_ + i * sizeof(T));
    }

private:
    uint64_t serial_ = 0;
    size_t at_ = 0;
};

template <typename T>
cuemu::SharedPointer<T> dynamic_shared(int at_bytes = 0) {
    return cuemu::SharedPointer<T>(cuemu::shared.data + at_bytes);
}

template <typename V>
V load_once(const void* p) {
    static_assert(sizeof(V) == 16, "one instruction");
    if (cuemu::shared.holds(p)) cuemu::fail("shared memory is read as if it were global");
    return load<V>(p);
}

inline float exp2_fast(float x) {
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
inline float divide_fast(float a, float b) {
    return fabsf(b) > 0x1p126f && !std::isinf(b) ? 0.0f : a / b;
}
inline float rsqrt_fast(float x) { return 1.0f / sqrtf(x); }

inline float float_of_bits(u32 bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline u32 bits_of_float(float x) {
    u32 bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline u16 bf16_bits_of(float x) {
    const u32 bits = bits_of_float(x);
    if (std::isnan(x)) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline u16 fp16_bits_of(float x) {
    const u32 bits = bits_of_float(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (std::isnan(x)) return 0x7fff;
    if (size >= bits_of_float(65520.0f)) return static_cast<u16>(sign | 0x7c00);
    if (size < bits_of_float(0x1p-14f))  // subnormal: adding 1/2, whose last bit is theirs, rounds
        return static_cast<u16>(sign | (bits_of_float(float_of_bits(size) + 0.5f) - bits_of_float(0.5f)));
    return static_cast<u16>(sign | ((size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13));
}

inline float float_of_fp16_bits(u16 bits) {
    const u32 sign = static_cast<u32>(bits & 0x8000) << 16, size = bits & 0x7fff;
    if (size >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (size & 0x3ff) << 13);
    const float magnitude =
        size < 0x400 ? static_cast<float>(size) * 0x1p-24f : float_of_bits((size << 13) + (112u << 23));
    return sign ? -magnitude : magnitude;
}

inline u32 bf16_pair_bits_of(float low, float high) {
    return bf16_bits_of(low) | static_cast<u32>(bf16_bits_of(high)) << 16;
}
inline u32 fp16_pair_bits_of(float low, float high) {
    return fp16_bits_of(low) | static_cast<u32>(fp16_bits_of(high)) << 16;
}
inline float float_of_bf16_bits(u16 bits) { return float_of_bits(static_cast<u32>(bits) << 16); }
// A product of two such values is exact in float32, but for what is beyond it.
inline u32 multiply_bf16_pair(u32 x, u32 y) {
    const auto half = [](u32 bits) { return float_of_bf16_bits(static_cast<u16>(bits)); };
    return bf16_pair_bits_of(half(x) * half(y), half(x >> 16) * half(y >> 16));
}
inline u32 multiply_fp16_pair(u32 x, u32 y) {
    const auto half = [](u32 bits) { return float_of_fp16_bits(static_cast<u16>(bits)); };
    return fp16_pair_bits_of(half(x) * half(y), half(x >> 16) * half(y >> 16));
}

#include "matrices.h"
#include "warpgroups.h"

// ---- the entry of kernel number n: cuemu_launch_<n>(launch, values, bytes). values are pointers to the argument
// values, as cuLaunchKernel takes them; bytes[i] is the size of the tensor that value i points to.

struct bf16;
struct fp16;
struct e4m3;

namespace cuemu {

struct Launch {
    Dim3 grid, block;
    uint64_t shared_bytes;
    int32_t order;
};

template <typename T>
struct Name;
#define CUEMU_NAME(type, name) \
    template <>                \
    struct Name<type> {        \
        static constexpr const char* text = name; \
    };
CUEMU_NAME(bf16, "bf16")
CUEMU_NAME(fp16, "fp16")
CUEMU_NAME(float, "f32")
CUEMU_NAME(int, "i32")
CUEMU_NAME(u32, "u32")
CUEMU_NAME(i64, "i64")
CUEMU_NAME(e4m3, "e4m3")
CUEMU_NAME(u16, "u16")
CUEMU_NAME(u8, "u8")
#undef CUEMU_NAME

// "f32" for a value, "out f32" and "in f32" for pointers.
template <typename T>
std::string name_of() {
    using Pointee = std::remove_pointer_t<T>;
    const std::string name = Name<std::remove_const_t<Pointee>>::text;
    return !std::is_pointer_v<T> ? name : (std::is_const_v<Pointee> ? "in " : "out ") + name;
}

template <auto kernel, typename Function = decltype(kernel)>
struct Entry;

template <auto kernel, typename... Args>
struct Entry<kernel, void (*)(Args...)> {
    static constexpr auto kAll = std::index_sequence_for<Args...>();

    static std::string signature() {
        std::string all;
        ((all += (all.empty() ? "" : ", ") + name_of<Args>()), ...);
        return all;
    }

    static void call(void** values) { call(values, kAll); }

    static void note_extents(void** values, const uint64_t* bytes) {
        extents.clear();
        note_extents(values, bytes, kAll);
    }

private:
    template <size_t... i>
    static void call(void** values, std::index_sequence<i...>) {
        kernel(*static_cast<Args*>(values[i])...);
    }

    template <size_t... i>
    static void note_extents(void** values, const uint64_t* bytes, std::index_sequence<i...>) {
        (note_extent<Args>(values[i], bytes[i]), ...);
    }

    template <typename T>
    static void note_extent(void* value, uint64_t size) {
        if constexpr (std::is_pointer_v<T>) {
            const auto begin = *static_cast<uintptr_t*>(value);
            extents.push_back({begin, begin + size, !std::is_const_v<std::remove_pointer_t<T>>});
        }
    }
};

inline const char* refuse(const char* sentence) {
    machine.error = sentence;
    return machine.error.c_str();
}

// Null, or the sentence that says what went wrong.
inline const char* run(const Launch& launch, void (*body)(void**), void** values) {
    const uint64_t num_threads = launch.block.count(), num_blocks = launch.grid.count();
    if (!num_blocks || !num_threads) return refuse("an empty grid or block");
    if (num_threads > kMaxThreads) return refuse("more than 1024 threads in a block");
    if (launch.grid.y > 65535 || launch.grid.z > 65535) return refuse("more than 65535 blocks along y or z");
    if (launch.shared_bytes > kSharedBytes) return refuse("more than 227 KB of shared memory");
    if (!stacks()) return refuse("no memory for the stacks");
    machine.error.clear();
    machine.grid = launch.grid;
    machine.block = launch.block;
    machine.body = body;
    machine.values = values;
    machine.threads.resize(num_threads);
    Turns blocks(static_cast<int>(num_blocks), launch.order), threads(static_cast<int>(num_threads), launch.order);
    for (int i : blocks.next()) {
        size_t at;
        shared.clear();
        if (launch.shared_bytes) shared.reserve(launch.shared_bytes, 1024, at);
        start_block(launch.grid.at(i));
        if (!finish_block(threads)) return machine.error.c_str();
    }
    return nullptr;
}

}  // namespace cuemu

#define CUEMU_C extern "C" __attribute__((visibility("default")))
#define CUEMU_EXPORT(number, ...)                                                       \
    CUEMU_C const char* cuemu_signature_##number() {                                    \
        static const std::string text = cuemu::Entry<__VA_ARGS__>::signature();         \
        return text.c_str();                                                            \
    }                                                                                   \
    CUEMU_C const char* cuemu_launch_##number(const cuemu::Launch* launch, void** values, \
                                              const uint64_t* bytes) {                  \
        cuemu::Entry<__VA_ARGS__>::note_extents(values, bytes);                         \
        return cuemu::run(*launch, cuemu::Entry<__VA_ARGS__>::call, values);            \
    }
