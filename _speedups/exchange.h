// exchange.h: where the ranks of one model meet, and leave each other what they have computed.
//
// They are processes of one machine that map the same memory, a file without a name that they have inherited. For every
// meeting each rank has a place to write into, of two in turn: who goes on writes into the other one while the slowest
// still reads, and comes back to the first only after a meeting that the slowest has come to. Places lie far apart in the
// file, which has memory only where something was written, so they grow without moving.
//
// Who waits long sleeps, as in team.h, and for as long as it takes: a rank that will never come is dead, or stopped, and
// whoever started the ranks ends them all.
#pragma once

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <utility>
#include <vector>

#include "team.h"

namespace trioserve {

// Memory of a file, shared with whoever maps the same.
class Mapping {
public:
    Mapping() = default;
    Mapping(int fd, int64_t offset, size_t num_bytes) : num_bytes_(num_bytes) {
        at_ = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, offset);
        if (at_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
    }
    ~Mapping() {
        if (at_ != nullptr && at_ != MAP_FAILED) munmap(at_, num_bytes_);
    }
    Mapping(Mapping&& other) noexcept { swap(other); }
    Mapping& operator=(Mapping&& other) noexcept {
        swap(other);
        return *this;
    }

    void* get() const { return at_; }
    size_t num_bytes() const { return num_bytes_; }

private:
    void swap(Mapping& other) {
        std::swap(at_, other.at_);
        std::swap(num_bytes_, other.num_bytes_);
    }

    void* at_ = nullptr;
    size_t num_bytes_ = 0;
};

class Exchange {
public:
    static constexpr int kMostRanks = 64;

    // fd: the file, empty when the first rank comes; it need not stay open.
    Exchange(int fd, int rank, int num_ranks) : fd_(dup(fd)), rank_(rank), num_ranks_(num_ranks) {
        if (fd_ < 0 || ftruncate(fd_, kEnd) != 0) throw std::system_error(errno, std::generic_category(), "ftruncate");
        posts_ = Mapping(fd_, 0, sizeof(Post) * static_cast<size_t>(num_ranks));
        for (std::vector<Mapping>& places : places_) places.resize(static_cast<size_t>(num_ranks));
        reserve(kLeast);
    }
    ~Exchange() {
        if (fd_ >= 0) close(fd_);
    }
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

    int rank() const { return rank_; }
    int num_ranks() const { return num_ranks_; }

    // Makes every place as large; what was written stays.
    void reserve(size_t num_bytes) {
        if (num_bytes <= places_[0][0].num_bytes()) return;
        if (num_bytes > static_cast<size_t>(kPlace)) throw std::system_error(ENOMEM, std::generic_category(), "exchange");
        const size_t num_whole = (num_bytes + kLeast - 1) / kLeast * kLeast;
        for (int turn = 0; turn < 2; ++turn)
            for (int rank = 0; rank < num_ranks_; ++rank)
                places_[turn][static_cast<size_t>(rank)] = Mapping(fd_, kPlace * (1 + turn * kMostRanks + rank), num_whole);
    }

    // Where this rank writes what it brings to the next meeting.
    template <typename T>
    T* mine() const {
        return place<T>(round_ & 1, rank_);
    }

    // What `rank` brought to the last meeting; until this rank comes to the next one.
    template <typename T>
    const T* of(int rank) const {
        return place<T>(~round_ & 1, rank);
    }

    // Returns when all ranks are here, by one thread of each.
    void meet() {
        const uint32_t round = ++round_;
        Post& own = post(rank_);
        own.round.store(round);
        if (own.num_asleep.load() > 0) futex(own, FUTEX_WAKE, INT_MAX);
        for (int rank = 0; rank < num_ranks_; ++rank)
            if (rank != rank_) wait_for(post(rank), round);
    }

    // In the file, a place that is nobody's: for what all write into together.
    static constexpr int64_t kCommon = int64_t{1} << 44;

private:
    static constexpr int64_t kPlace = int64_t{1} << 36;  // bytes from one place to the next
    static constexpr int64_t kEnd = kCommon << 1;
    static constexpr size_t kLeast = 1 << 20;
    static constexpr int kPatience = 4000;  // looks, some 50 us
    static_assert(kPlace * (1 + 2 * kMostRanks) <= kCommon);

    struct alignas(64) Post {
        std::atomic<uint32_t> round;  // how many meetings the rank has come to
        std::atomic<uint32_t> num_asleep;  // who wait for it
    };
    static_assert(std::atomic<uint32_t>::is_always_lock_free);

    Post& post(int rank) const { return static_cast<Post*>(posts_.get())[rank]; }

    template <typename T>
    T* place(uint32_t turn, int rank) const {
        return static_cast<T*>(places_[turn][static_cast<size_t>(rank)].get());
    }

    // Counts wrap around; nobody is ever two meetings ahead.
    static bool has_come(const Post& post, uint32_t round) {
        return static_cast<int32_t>(post.round.load(std::memory_order_acquire) - round) >= 0;
    }

    static void wait_for(Post& post, uint32_t round) {
        for (int looks = 0; looks < kPatience; ++looks) {
            if (has_come(post, round)) return;
            relax();
        }
        // Who comes either sees this, or has changed the count before the kernel looks at it.
        post.num_asleep.fetch_add(1);
        for (uint32_t seen; static_cast<int32_t>((seen = post.round.load()) - round) < 0;) futex(post, FUTEX_WAIT, seen);
        post.num_asleep.fetch_sub(1);
    }

    static void futex(Post& post, int operation, uint32_t value) {
        syscall(SYS_futex, &post.round, operation, value, nullptr, nullptr, 0);
    }

    const int fd_, rank_, num_ranks_;
    uint32_t round_ = 0;
    Mapping posts_;
    std::vector<Mapping> places_[2];  // [turn][rank]
};

// Which rank has token `id`, where `size` of them are shared out as evenly as they can be.
inline int owner_of(int64_t id, int64_t size, int num_ranks) {
    return static_cast<int>(((id + 1) * num_ranks - 1) / size);
}

}  // namespace trioserve
