// Looks for one string in text that comes in pieces (Knuth, Morris, Pratt): every character is looked at once, and at
// any time `matched` says how much of the end of the text may be the beginning of the string.

#pragma once

#include <Python.h>
#include <stdint.h>

typedef struct {
    Py_UCS4* text;     // [length]
    int32_t* border;   // [length] of text[: i + 1], the longest proper prefix that is also a suffix
    int32_t length;
    int32_t matched;   // the longest prefix of text, short of all of it, that the text so far ends with
} StopSearch;

// Extends a match of `matched` characters by one, or falls back to the longest shorter one that `character` extends.
static inline int32_t stop_next(const StopSearch* stop, int32_t matched, Py_UCS4 character) {
    while (matched && character != stop->text[matched]) matched = stop->border[matched - 1];
    return matched + (character == stop->text[matched]);
}

// Begins a search for the `length` characters that are in `text` already.
static inline void stop_begin(StopSearch* stop) {
    stop->matched = 0;
    stop->border[0] = 0;
    for (int32_t i = 1; i < stop->length; ++i) {
        stop->border[i] = stop_next(stop, stop->border[i - 1], stop->text[i]);
    }
}

// Takes `size` more characters; returns the index of the one that completes the string, or -1.
static inline Py_ssize_t stop_feed(StopSearch* stop, int kind, const void* data, Py_ssize_t size) {
    int32_t matched = stop->matched;
    for (Py_ssize_t i = 0; i < size; ++i) {
        matched = stop_next(stop, matched, PyUnicode_READ(kind, data, i));
        if (matched == stop->length) return i;
    }
    stop->matched = matched;
    return -1;
}
