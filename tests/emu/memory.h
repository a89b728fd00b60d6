// memory.h: every access of a kernel, checked. Global memory is the arguments of the launch, shared memory is one arena.
//
// Each shared byte remembers who wrote it and who read it last, and when: an access that no barrier orders after that
// is a race, found whatever the order of the threads. A read of a byte that no thread of the block wrote is an error.
// An asynchronous copy arrives as late as the program allows, when it is waited for; until then nobody may touch its
// bytes, and then it counts as written by the thread that waited.
#pragma once

#include <array>

#include "machine.h"

namespace cuemu {

constexpr size_t kSharedBytes = 227 << 10;  // that a block may have, sm_90
constexpr size_t kGapBytes = 64;            // between shared arrays, nobody's

enum class Access : uint8_t { read, write };

struct Extent {
    uintptr_t begin, end;
    bool writable;
};
inline std::vector<Extent> extents;  // of the tensors of this launch

constexpr int kNobody = -1, kSeveral = -2;

// A past access: by whom, after how many barriers of the block and of the warp, and in which step of the thread.
struct Past {
    int16_t thread = kNobody, warp = kNobody;
    uint32_t epoch = 0, warp_epoch = 0, step = 0;

    bool is_before(const Past& now) const {
        return thread == kNobody || thread == now.thread || epoch < now.epoch ||
               (warp == now.warp && warp_epoch < now.warp_epoch) || knows(now.thread, thread, step);
    }
    // Both, as one that comes after either comes after what this stands for.
    Past with(const Past& now) const {
        if (is_before(now)) return now;
        return {kSeveral, warp == now.warp ? warp : int16_t{kSeveral}, now.epoch, now.warp_epoch, 0};
    }
};

struct Shared {
    struct Byte {
        bool reserved = false, awaited = false;
        Past written, read;
    };
    alignas(1024) char data[kSharedBytes];
    std::vector<Byte> bytes = std::vector<Byte>(kSharedBytes);
    // Of each 16 bytes and each warp the last group of products that reads them; empty while there is none.
    using Readers = std::array<uint32_t, kMaxThreads / kLanes>;
    std::vector<Readers> products;
    size_t used = 0;

    bool holds(const void* p) const { return p >= data && p < data + kSharedBytes; }

    void clear() {
        for (size_t i = 0; i < used; ++i) bytes[i] = Byte();
        used = 0;
        products.clear();
    }

    // False where it does not fit.
    bool reserve(size_t size, size_t alignment, size_t& at) {
        at = (used + alignment - 1) / alignment * alignment;
        if (at + size > kSharedBytes) return false;
        for (size_t i = at; i < at + size; ++i) bytes[i].reserved = true;
        used = at + size + kGapBytes < kSharedBytes ? at + size + kGapBytes : kSharedBytes;
        return true;
    }

    void note(const void* p, size_t size, Access access) {
        const Thread& self = *machine.current;
        const Past now{static_cast<int16_t>(self.number), static_cast<int16_t>(self.warp()), machine.epoch,
                       machine.warp_epoch[self.warp()], self.step};
        const size_t begin = static_cast<const char*>(p) - data;
        for (size_t i = begin; i < begin + size; ++i) {
            if (i >= kSharedBytes || !bytes[i].reserved) fail("out of bounds: byte %zu of shared memory", i);
            if (bytes[i].awaited) fail("byte %zu of shared memory is touched, a copy to it is on its way", i);
            access == Access::read ? note_read(bytes[i], i, now) : note_write(bytes[i], i, now);
        }
        if (access == Access::write && !products.empty())
            for (size_t i = begin / kChunk; i <= (begin + size - 1) / kChunk; ++i) note_write_of_chunk(products[i], i);
    }

    // The 16 bytes from i on are read by matrix instructions of a warpgroup, warps first.., of which every thread knows
    // at least so much.
    void note_products(size_t i, const Known& known, int first, uint32_t group) {
        if (products.empty()) products.resize(kSharedBytes / kChunk);
        for (size_t at = i; at < i + kChunk; ++at) {
            if (at >= kSharedBytes || !bytes[at].reserved) fail("out of bounds: byte %zu of shared memory", at);
            if (bytes[at].awaited) fail("byte %zu of shared memory is multiplied, a copy to it is on its way", at);
            const Past& written = bytes[at].written;
            if (written.thread == kNobody) fail("byte %zu of shared memory is multiplied, nobody wrote it", at);
            if (written.epoch == machine.epoch && known[written.thread] < written.step)
                fail("race: byte %zu of shared memory is multiplied, thread %d wrote it with no barrier between", at,
                     written.thread);
            if (known[published_at(written.thread)] < written.step)
                fail("byte %zu of shared memory is multiplied, thread %d wrote it and did not publish it", at,
                     written.thread);
        }
        for (int warp = first; warp < first + 4; ++warp) products[i / kChunk][warp] = group;
    }

    void await(const void* p, size_t size, bool awaited) {
        const size_t begin = static_cast<const char*>(p) - data;
        for (size_t i = begin; i < begin + size; ++i) bytes[i].awaited = awaited;
    }

private:
    static constexpr size_t kChunk = 16;

    static void note_write_of_chunk(Readers& readers, size_t chunk) {
        const Known& known = machine.current->known;
        for (size_t warp = 0; warp < machine.warp_epoch.size(); ++warp) {
            if (readers[warp] > known[ended_at(static_cast<int>(warp))])
                fail("race: byte %zu of shared memory is written, a product of warp %zu may still read it",
                     chunk * kChunk, warp);
            readers[warp] = 0;
        }
    }
    static void note_read(Byte& byte, size_t i, const Past& now) {
        if (byte.written.thread == kNobody) fail("byte %zu of shared memory is read, nobody wrote it", i);
        if (!byte.written.is_before(now))
            fail("race: byte %zu of shared memory is read, thread %d wrote it with no barrier between", i,
                 byte.written.thread);
        byte.read = byte.read.with(now);
    }
    static void note_write(Byte& byte, size_t i, const Past& now) {
        if (!byte.written.is_before(now))
            fail("race: byte %zu of shared memory is written, thread %d wrote it with no barrier between", i,
                 byte.written.thread);
        if (!byte.read.is_before(now))
            fail("race: byte %zu of shared memory is written, others read it with no barrier between", i);
        byte.written = now;
        byte.read = Past();
    }
};
inline Shared shared;

inline void check_access(const void* p, size_t size, size_t alignment, Access access) {
    const auto at = reinterpret_cast<uintptr_t>(p);
    const char* verb = access == Access::read ? "load" : "store";
    if (at % alignment) fail("misaligned: %s of %zu bytes at ...%02x", verb, size, static_cast<unsigned>(at & 0xff));
    if (shared.holds(p)) return shared.note(p, size, access);
    for (const Extent& extent : extents) {
        if (at < extent.begin || at + size > extent.end) continue;
        if (access == Access::write && !extent.writable) continue;
        return;
    }
    fail("out of bounds: %s of %zu bytes outside of the arguments that it may touch", verb, size);
}

// What a shared array or pointer yields for one element: reading and assigning are accesses.
template <typename T>
class SharedElement {
public:
    explicit SharedElement(char* at) : at_(at) {}
    operator T() const {
        check_access(at_, sizeof(T), alignof(T), Access::read);
        T value;
        std::memcpy(&value, at_, sizeof(T));
        return value;
    }
    SharedElement& operator=(const T& value) {
        check_access(at_, sizeof(T), alignof(T), Access::write);
        std::memcpy(at_, &value, sizeof(T));
        return *this;
    }
    SharedElement& operator=(const SharedElement& other) { return *this = static_cast<T>(other); }
    SharedElement& operator+=(const T& value) { return *this = static_cast<T>(*this) + value; }
    T* operator&() const { return reinterpret_cast<T*>(at_); }

private:
    char* at_;
};

template <typename T>
class SharedPointer {
public:
    explicit SharedPointer(char* at) : at_(at) {}
    SharedElement<T> operator[](int64_t i) const { return SharedElement<T>(at_ + i * static_cast<int64_t>(sizeof(T))); }
    SharedPointer operator+(int64_t i) const { return SharedPointer(at_ + i * static_cast<int64_t>(sizeof(T))); }

private:
    char* at_;
};

}  // namespace cuemu
