# distutils: language = c++
# cython: language_level = 3, boundscheck = False, wraparound = False, auto_pickle = False, autotestdict = False
"""From logits to tokens, on the CPU; ``sampling.h`` and ``choice.h`` say how."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libcpp.memory cimport unique_ptr
from libcpp.vector cimport vector


cdef extern from "sampling.h" namespace "trioserve" nogil:
    cdef enum class Isa(int):
        portable
        avx2
        avx512

    ctypedef vector[int32_t] Ids

    cppclass BadWords:
        void forbid(Ids word) except +

    cppclass Edits:
        Ids allowed
        Ids stops
        int64_t first_stop
        Ids bias_ids
        vector[float] biases
        bint has_penalties
        float repetition
        float frequency
        float presence
        BadWords bad_words
        void add(int32_t id, bint is_output) except +

    struct Scope:
        double temperature
        double top_p

    cppclass Recipe:
        bint is_greedy
        double temperature
        double top_p
        double min_p
        int top_k
        uint64_t seed
        int num_top
        Scope scope
        double certain_above
        unique_ptr[Edits] edits

    struct Rows:
        float* logits
        int num_rows
        int size
        const int64_t* slots
        const int64_t* positions
        const int32_t* masks
        int num_words
        const int64_t* mask_of
        int64_t* token_ids
        int most_top
        double* logprobs
        int64_t* top_ids
        uint8_t* is_certain

    cppclass CRecipes "trioserve::Recipes":
        CRecipes(int num_slots) except +
        Recipe& operator[](int64_t slot)
        int size()
        void choose(const Rows& rows, int num_threads, Isa isa) except +

    bint has_isa(Isa isa)
    double uniform(uint64_t seed, int64_t position)
    void score_row(double*, int64_t*, const float*, int, int64_t, int, const Scope&, Isa) except +
    void power_row(float*, const float*, int, Isa) except +


cdef dict _ISAS = {"portable": Isa.portable, "avx2": Isa.avx2, "avx512": Isa.avx512}


def available_isas():
    """Names of the instruction sets that this processor has kernels for, the best one last."""
    return tuple(name for name, isa in _ISAS.items() if has_isa(<Isa><int>isa))


def weight_of(const float[::1] x, *, str isa):
    """2**x as ``Recipes.choose`` computes it, for tests: 0 below -125 and where x is no number; x is at most 0."""
    cdef vector[float] out
    cdef Isa chosen = <Isa><int>_ISAS[isa]
    out.resize(x.shape[0])
    if x.shape[0]:
        power_row(out.data(), &x[0], <int>x.shape[0], chosen)
    return list(out)


def number_of(uint64_t seed, int64_t position):
    """The number in [0, 1) that the draw at ``position`` takes, for tests."""
    return uniform(seed, position)


@cython.final
cdef class Recipes:
    """How the tokens of each slot are chosen, and the choice for all rows of a step."""

    cdef unique_ptr[CRecipes] _all
    cdef int64_t _vocab_size

    def __cinit__(self, int num_slots, int vocab_size):
        self._all.reset(new CRecipes(num_slots))
        self._vocab_size = vocab_size

    def admit(
        self, int64_t slot, *, bint is_greedy, double temperature, int top_k, double top_p, double min_p,
        uint64_t seed, int num_top, double scope_temperature, double scope_top_p, double certain_above
    ):
        """Take ``slot`` for a sequence without edits."""
        cdef Recipe* recipe = self._checked(slot)
        recipe.is_greedy, recipe.temperature, recipe.top_k = is_greedy, temperature, top_k
        recipe.top_p, recipe.min_p, recipe.seed = top_p, min_p, seed
        recipe.num_top = <int>min(<int64_t>num_top, self._vocab_size)
        recipe.scope.temperature, recipe.scope.top_p = scope_temperature, scope_top_p
        recipe.certain_above = certain_above
        recipe.edits.reset()

    def edit(
        self, int64_t slot, const int32_t[::1] token_ids, int64_t num_prompt_tokens, *, allowed_ids, stop_ids,
        int64_t first_stop, bias, bad_words, double repetition, double frequency, double presence
    ):
        """Edit the logits of ``slot``, which has been admitted, from now on."""
        cdef unique_ptr[Edits] edits
        cdef Py_ssize_t place
        edits.reset(new Edits())
        edits.get().allowed = self._ids(allowed_ids)
        edits.get().stops = self._ids(stop_ids)
        edits.get().first_stop = first_stop
        biases = {token_id: value for token_id, value in bias if 0 <= token_id < self._vocab_size}
        for token_id, value in biases.items():
            edits.get().bias_ids.push_back(token_id)
            edits.get().biases.push_back(value)
        for word in bad_words:
            if word and 0 <= word[len(word) - 1] < self._vocab_size:
                edits.get().bad_words.forbid(word)
        edits.get().has_penalties = repetition != 1.0 or frequency != 0.0 or presence != 0.0
        edits.get().repetition, edits.get().frequency = <float>repetition, <float>frequency
        edits.get().presence = <float>presence
        for place in range(token_ids.shape[0]):
            if 0 <= token_ids[place] < self._vocab_size:
                edits.get().add(token_ids[place], place >= num_prompt_tokens)
        self._checked(slot).edits.swap(edits)

    def release(self, int64_t slot):
        """Forget the edits of ``slot`` and what they have counted."""
        self._checked(slot).edits.reset()

    def add(self, int64_t slot, token_ids):
        """Let the edits of ``slot`` know of tokens that ``choose`` has had nothing to do with."""
        cdef Recipe* recipe = self._checked(slot)
        cdef int32_t token_id
        if recipe.edits.get() != NULL:
            for token_id in token_ids:
                if 0 <= token_id < self._vocab_size:
                    recipe.edits.get().add(token_id, True)

    def choose(
        self, float[:, ::1] logits, const int64_t[::1] slots, const int64_t[::1] positions,
        const int32_t[:, ::1] masks, const int64_t[::1] mask_of, int64_t[::1] token_ids,
        double[:, ::1] logprobs, int64_t[:, ::1] top_ids, uint8_t[::1] is_certain, *, int num_threads, str isa
    ):
        """Choose a token for each row that has none, and say how likely those of all rows are."""
        cdef Rows rows
        cdef Py_ssize_t num_rows = logits.shape[0], row
        cdef Isa chosen = <Isa><int>_ISAS[isa]
        cdef int most_top = -1
        if logits.shape[1] != self._vocab_size or not (
            slots.shape[0] == positions.shape[0] == token_ids.shape[0] == is_certain.shape[0] == num_rows
        ):
            raise ValueError(
                f"{num_rows} rows of {logits.shape[1]} logits for {slots.shape[0]} slots, {positions.shape[0]} "
                f"positions and a vocabulary of {self._vocab_size}, room for {token_ids.shape[0]} and "
                f"{is_certain.shape[0]}"
            )
        for row in range(num_rows):
            most_top = max(most_top, self._checked(slots[row]).num_top)
            if token_ids[row] >= self._vocab_size:
                raise ValueError(f"token {token_ids[row]} of {self._vocab_size}")
        self._check_masks(masks, mask_of, num_rows)
        if most_top >= 0 and not (
            logprobs.shape[0] == top_ids.shape[0] == num_rows and logprobs.shape[1] == 1 + top_ids.shape[1] > most_top
        ):
            raise ValueError(
                f"{num_rows} rows of up to {most_top} alternatives, room for {logprobs.shape[0]} of "
                f"{logprobs.shape[1] - 1} and {top_ids.shape[0]} of {top_ids.shape[1]}"
            )
        if num_rows == 0 or self._vocab_size == 0:
            return
        rows.logits, rows.num_rows, rows.size = &logits[0, 0], <int>num_rows, <int>self._vocab_size
        rows.slots, rows.positions = &slots[0], &positions[0]
        rows.masks = &masks[0, 0] if mask_of.shape[0] else NULL
        rows.mask_of = &mask_of[0] if mask_of.shape[0] else NULL
        rows.num_words = <int>masks.shape[1]
        rows.token_ids, rows.is_certain = &token_ids[0], &is_certain[0]
        rows.most_top = <int>top_ids.shape[1]
        rows.logprobs = &logprobs[0, 0] if most_top >= 0 else NULL
        rows.top_ids = &top_ids[0, 0] if most_top > 0 else NULL
        with nogil:
            self._all.get().choose(rows, num_threads, chosen)

    cdef Ids _ids(self, token_ids) except *:
        cdef Ids kept
        for token_id in token_ids:
            if 0 <= token_id < self._vocab_size:
                kept.push_back(token_id)
        return kept

    cdef Recipe* _checked(self, int64_t slot) except NULL:
        if not 0 <= slot < self._all.get().size():
            raise ValueError(f"slot {slot} of {self._all.get().size()}")
        return &self._all.get()[0][slot]

    cdef int _check_masks(
        self, const int32_t[:, ::1] masks, const int64_t[::1] mask_of, Py_ssize_t num_rows
    ) except -1:
        cdef Py_ssize_t row
        if mask_of.shape[0] == 0:
            return 0
        if mask_of.shape[0] != num_rows or masks.shape[1] != (self._vocab_size + 31) // 32:
            raise ValueError(
                f"masks of {masks.shape[1]} words for {mask_of.shape[0]} of {num_rows} rows "
                f"of {self._vocab_size} logits"
            )
        for row in range(num_rows):
            if mask_of[row] >= masks.shape[0]:
                raise ValueError(f"mask {mask_of[row]} of {masks.shape[0]}")
        return 0


def score(
    const float[::1] logits, int64_t token_id, double[::1] logprobs, int64_t[::1] top_ids,
    *, double temperature, double top_p, str isa
):
    """The log probabilities of a token and of the likeliest in one row."""
    cdef Scope scope
    cdef Py_ssize_t size = logits.shape[0], num_top = top_ids.shape[0]
    cdef Isa chosen = <Isa><int>_ISAS[isa]
    if not 0 <= token_id < size or num_top > size or logprobs.shape[0] != 1 + num_top:
        raise ValueError(
            f"token {token_id} and {num_top} others of {size}, room for {logprobs.shape[0]} log probabilities"
        )
    scope.temperature, scope.top_p = temperature, top_p
    with nogil:
        score_row(
            &logprobs[0], &top_ids[0] if num_top else NULL, &logits[0], <int>size, token_id, <int>num_top, scope, chosen
        )
