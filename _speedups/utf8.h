// What a few bytes of UTF-8 are: a character, the beginning of one, or neither (Unicode 15, table 3-7).

#pragma once

#include <stdint.h>

// Judges 1 to 4 bytes: 1 is a whole character, 0 the beginning of one, -1 neither.
static inline int utf8_state(const uint8_t* at, int size) {
    const uint8_t lead = at[0];
    const int length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if ((lead >= 0x80 && lead < 0xC2) || lead > 0xF4 || size > length) return -1;
    for (int i = 1; i < size; ++i) {
        if ((at[i] & 0xC0) != 0x80) return -1;
    }
    if (size > 1) {
        const uint8_t second = at[1];
        if ((lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90)) return -1;  // overlong
        if (lead == 0xED && second > 0x9F) return -1;                                       // surrogates
        if (lead == 0xF4 && second > 0x8F) return -1;                                       // beyond U+10FFFF
    }
    return size == length;
}
