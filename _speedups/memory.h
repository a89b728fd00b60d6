// memory.h: zeroed memory on huge pages where it is large: reading weights through 4 KB pages costs a tenth of the bandwidth.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace trioserve {

// `count` elements of T, all bits 0, at a multiple of 64 bytes.
template <typename T>
class Memory {
public:
    Memory() = default;

    explicit Memory(size_t count) {
        if (count == 0) return;
        const size_t page = count * sizeof(T) >= kHuge / 2 ? kHuge : 4096;
        num_bytes_ = count * sizeof(T);
        const size_t num_whole = (num_bytes_ + page - 1) / page * page;
        const size_t slack = page == kHuge ? kHuge : 0;  // to begin on a huge page
        num_mapped_ = num_whole + slack;
        void* mapped = mmap(nullptr, num_mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        mapped_ = mapped;
        at_ = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(mapped) + slack) / page * page);
#if defined(MADV_HUGEPAGE)
        if (page == kHuge) madvise(at_, num_whole, MADV_HUGEPAGE);
#endif
    }

    ~Memory() {
        if (mapped_ != nullptr) munmap(mapped_, num_mapped_);
    }

    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept {
        swap(other);
        return *this;
    }

    T* get() const { return at_; }
    bool empty() const { return at_ == nullptr; }
    size_t num_bytes() const { return num_bytes_; }  // of the elements; pages may be more

private:
    static constexpr size_t kHuge = 2 << 20;

    void swap(Memory& other) {
        std::swap(at_, other.at_);
        std::swap(mapped_, other.mapped_);
        std::swap(num_bytes_, other.num_bytes_);
        std::swap(num_mapped_, other.num_mapped_);
    }

    T* at_ = nullptr;
    void* mapped_ = nullptr;
    size_t num_bytes_ = 0, num_mapped_ = 0;
};

// Rows of `stride` elements, as many as the largest step so far had; what no step writes stays 0.
template <typename T>
class Table {
public:
    Table() = default;
    explicit Table(int64_t stride) : stride_(stride) {}

    // Makes room for `num_rows`; what was there is lost if it had less.
    void reserve(int64_t num_rows) {
        if (num_rows <= num_rows_) return;
        memory_ = Memory<T>(static_cast<size_t>(num_rows * stride_));
        num_rows_ = num_rows;
    }

    T* row(int64_t i) const { return memory_.get() + i * stride_; }
    int64_t stride() const { return stride_; }

private:
    Memory<T> memory_;
    int64_t stride_ = 0, num_rows_ = 0;
};

}  // namespace trioserve
