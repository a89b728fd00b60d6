// SipHash-2-4 with a 128-bit result (Aumasson and Bernstein, https://github.com/veorq/SipHash): a keyed hash whose
// collisions nobody can look for without the key. Words are read in the machine's byte order; on a little-endian
// machine the results are those of the reference implementation.

#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint64_t low, high;
} Hash128;

typedef struct {
    uint64_t v0, v1, v2, v3;
} SipState;

static inline uint64_t sip_rotl(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

static inline void sip_rounds(SipState* s, int count) {
    for (int i = 0; i < count; ++i) {
        s->v0 += s->v1, s->v1 = sip_rotl(s->v1, 13) ^ s->v0, s->v0 = sip_rotl(s->v0, 32);
        s->v2 += s->v3, s->v3 = sip_rotl(s->v3, 16) ^ s->v2;
        s->v0 += s->v3, s->v3 = sip_rotl(s->v3, 21) ^ s->v0;
        s->v2 += s->v1, s->v1 = sip_rotl(s->v1, 17) ^ s->v2, s->v2 = sip_rotl(s->v2, 32);
    }
}

static inline SipState sip_start(Hash128 key) {
    SipState s = {key.low ^ 0x736f6d6570736575u, key.high ^ 0x646f72616e646f6du ^ 0xee,
                  key.low ^ 0x6c7967656e657261u, key.high ^ 0x7465646279746573u};
    return s;
}

static inline void sip_word(SipState* s, uint64_t word) {
    s->v3 ^= word;
    sip_rounds(s, 2);
    s->v0 ^= word;
}

// Takes the last `size` bytes of a message of `length` bytes; what came before was a whole number of words.
static inline Hash128 sip_finish(SipState s, const void* bytes, size_t size, size_t length) {
    const unsigned char* at = (const unsigned char*)bytes;
    uint64_t word;
    for (; size >= 8; size -= 8, at += 8) {
        memcpy(&word, at, 8);
        sip_word(&s, word);
    }
    word = (uint64_t)length << 56;
    for (size_t i = 0; i < size; ++i) word |= (uint64_t)at[i] << (8 * i);
    sip_word(&s, word);

    Hash128 hash;
    s.v2 ^= 0xee;
    sip_rounds(&s, 4);
    hash.low = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
    s.v1 ^= 0xdd;
    sip_rounds(&s, 4);
    hash.high = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
    return hash;
}

// The hash of `size` bytes.
static inline Hash128 sip_hash(Hash128 key, const void* bytes, size_t size) {
    return sip_finish(sip_start(key), bytes, size, size);
}

// The hash of the 16 bytes of `parent` and, after them, `size` bytes.
static inline Hash128 sip_hash_after(Hash128 key, Hash128 parent, const void* bytes, size_t size) {
    SipState s = sip_start(key);
    sip_word(&s, parent.low);
    sip_word(&s, parent.high);
    return sip_finish(s, bytes, size, size + 16);
}
