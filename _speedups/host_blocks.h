// The blocks of host memory behind a block pool: which full KV blocks lie there, found by the hash of their content. All
// are in one circular list, the least recently used first, those that hold nothing before them. What a plan uses stays
// until the next plan is begun: it is copied from or to only then.

#pragma once

#include <stdint.h>
#include <stdlib.h>

#include "siphash.h"

typedef struct {
    Hash128 hash;      // of what it holds, if it holds anything
    int32_t before;    // neighbours in the list
    int32_t after;
    uint32_t plan;     // that used it last
    int32_t is_filled;
} HostBlock;

typedef struct {
    int32_t count;
    int32_t num_filled;
    uint32_t plan;         // that is being made
    uint32_t mask;
    HostBlock* blocks;     // [count + 1], the last is the end of the list
    int32_t* slots;        // [mask + 1] with linear probing, never more than half full; -1: empty
} HostBlocks;

static inline void host_close(HostBlocks* host) {
    free(host->blocks);
    free(host->slots);
}

// Whether there was memory for `count` blocks.
static inline int host_open(HostBlocks* host, int32_t count) {
    host->count = count;
    host->plan = 1;
    while (host->mask < 2 * (uint32_t)count) host->mask = 2 * host->mask + 1;
    host->blocks = (HostBlock*)calloc((size_t)count + 1, sizeof(HostBlock));
    host->slots = (int32_t*)malloc(((size_t)host->mask + 1) * sizeof(int32_t));
    if (!host->blocks || !host->slots) return 0;
    for (uint32_t slot = 0; slot <= host->mask; ++slot) host->slots[slot] = -1;
    for (int32_t id = 0; id <= count; ++id) {
        host->blocks[id].before = id ? id - 1 : count;
        host->blocks[id].after = id < count ? id + 1 : 0;
    }
    return 1;
}

static inline uint32_t host_slot(const HostBlocks* host, Hash128 hash) {
    uint32_t slot = (uint32_t)hash.low & host->mask;
    for (; host->slots[slot] >= 0; slot = (slot + 1) & host->mask) {
        const Hash128* other = &host->blocks[host->slots[slot]].hash;
        if (other->low == hash.low && other->high == hash.high) break;
    }
    return slot;
}

// The block that holds what has this hash, or -1.
static inline int32_t host_find(const HostBlocks* host, Hash128 hash) { return host->slots[host_slot(host, hash)]; }

// The plan that is being made uses the block, which is now the last to be written over.
static inline void host_use(HostBlocks* host, int32_t id) {
    HostBlock* block = &host->blocks[id];
    const int32_t last = host->blocks[host->count].before;
    block->plan = host->plan;
    if (last == id) return;
    host->blocks[block->before].after = block->after;
    host->blocks[block->after].before = block->before;
    block->before = last;
    block->after = host->count;
    host->blocks[last].after = id;
    host->blocks[host->count].before = id;
}

static inline void host_unmap(HostBlocks* host, int32_t id) {
    uint32_t hole = host_slot(host, host->blocks[id].hash);
    for (uint32_t slot = (hole + 1) & host->mask; host->slots[slot] >= 0; slot = (slot + 1) & host->mask) {
        const uint32_t wanted = (uint32_t)host->blocks[host->slots[slot]].hash.low & host->mask;
        if (((slot - wanted) & host->mask) >= ((slot - hole) & host->mask)) {
            host->slots[hole] = host->slots[slot];
            hole = slot;
        }
    }
    host->slots[hole] = -1;
    host->blocks[id].is_filled = 0;
    host->num_filled -= 1;
}

// A block to copy to what has this hash and is not here yet, or -1 where the plan uses all there are.
static inline int32_t host_enter(HostBlocks* host, Hash128 hash) {
    const int32_t id = host->blocks[host->count].after;
    if (id == host->count || host->blocks[id].plan == host->plan) return -1;
    if (host->blocks[id].is_filled) host_unmap(host, id);
    host->blocks[id].hash = hash;
    host->blocks[id].is_filled = 1;
    host->num_filled += 1;
    host->slots[host_slot(host, hash)] = id;
    host_use(host, id);
    return id;
}

static inline void host_forget_all(HostBlocks* host) {
    for (int32_t id = 0; id < host->count; ++id) host->blocks[id].is_filled = 0;
    for (uint32_t slot = 0; slot <= host->mask; ++slot) host->slots[slot] = -1;
    host->num_filled = 0;
}

// What is written down twice and does not agree, or NULL.
static inline const char* host_fault(const HostBlocks* host) {
    int32_t num_listed = 0, num_filled = 0, num_mapped = 0;
    int has_new = 0;
    for (int32_t id = host->blocks[host->count].after; id != host->count; id = host->blocks[id].after) {
        const HostBlock* block = &host->blocks[id];
        if (++num_listed > host->count) return "the list of host blocks has no end";
        if (host->blocks[block->after].before != id) return "a host block does not know its neighbour";
        if (has_new && block->plan != host->plan) return "a host block of an older plan is behind one of this plan";
        has_new |= block->plan == host->plan;
        num_filled += block->is_filled;
        if (block->is_filled && host_find(host, block->hash) != id) return "the map does not lead to a host block";
    }
    for (uint32_t slot = 0; slot <= host->mask; ++slot) num_mapped += host->slots[slot] >= 0;
    if (num_listed != host->count) return "a host block is lost";
    return num_filled == host->num_filled && num_mapped == num_filled ? NULL : "host blocks are counted wrongly";
}
