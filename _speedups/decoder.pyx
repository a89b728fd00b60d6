# distutils: language = c++
# cython: language_level = 3, boundscheck = False, wraparound = False, auto_pickle = False, autotestdict = False
"""A step of a whole decoder on the CPU as one call; ``decoder.h`` says how.

The one caller, ``trioserve.model.native``, has checked shapes, types and contiguity: addresses are taken as given.
"""

cimport cython
from libc.stdint cimport int64_t, uintptr_t
from libcpp.memory cimport unique_ptr
from libcpp.vector cimport vector


cdef extern from "decoder.h" namespace "trioserve" nogil:
    cdef enum class Isa(int):
        portable
        avx2
        avx512
        avx512_vnni
        avx512_bf16
        amx
        amx_emulated

    cdef enum class CFormat "trioserve::Format"(int):
        bf16
        int8
        int4

    cdef enum class CActivation "trioserve::Activation"(int):
        silu
        gelu
        gelu_tanh

    cdef enum class NormKind(int):
        none
        rms
        layer

    cdef enum class KvFormat(int):
        bf16
        int8
        fp8

    cppclass bf16:
        pass

    cppclass CExchange "trioserve::Exchange":
        pass

    cppclass Panels:
        pass

    struct Weights:
        const bf16** pieces
        int64_t* num_rows
        int64_t* strides
        int depth
        const void* grids

    cppclass Floats "trioserve::Memory<float>":
        pass

    int MAX_PIECES "trioserve::Weights::kMaxPieces"

    struct DecoderShape:
        int num_layers
        int hidden_size
        int intermediate_size
        int num_heads
        int num_kv_heads
        int head_dim
        int vocab_size
        int num_positions
        float eps
        CActivation activation
        bint interleaved
        int num_pairs
        const bf16* embeddings
        KvFormat kv_format
        NormKind norm_kind
        bint heads_together
        bint is_parallel
        float embedding_scale
        float residual_scale
        float attention_scale
        float logits_scale
        float attention_bound
        float logits_bound
        CExchange* exchange
        int first_token

    struct NormWeights:
        Floats weights
        Floats bias

    struct Layer:
        Panels qkv
        Panels o
        Panels gate_up
        Panels down
        Floats qkv_bias
        Floats o_bias
        Floats gate_up_bias
        Floats down_bias
        NormWeights before_attention
        NormWeights after_attention
        NormWeights before_mlp
        NormWeights after_mlp
        Floats q_norm
        Floats k_norm
        const float* rope_table
        int sliding_window

    struct Step:
        const int64_t* token_ids
        const int64_t* positions
        const int64_t* slot_mapping
        const int* cu_seqlens_q
        const int* seq_lens
        const int* block_tables
        const int64_t* sample_rows
        char** k_caches
        char** v_caches
        bf16* hidden
        int num_tokens
        int num_seqs
        int num_samples
        int max_blocks
        int num_blocks
        int block_size

    cppclass CDecoder "trioserve::Decoder":
        CDecoder(const DecoderShape&, int num_threads, vector[int] cpus, int64_t alone_work, Isa isa) except +
        Layer& layer(int i)
        Panels& head()
        NormWeights& final_norm()
        int num_threads()
        size_t num_bytes()
        void pack(Panels&, const Weights&, int num_columns, bint gated, CFormat) except +
        void copy(Floats& to, const float* numbers, int size) except +
        void copy_gated(Floats& to, const float* numbers) except +
        const char* fault_of(const Step&)
        void forward(const Step&) except +
        void logits(float* out, const bf16* hidden, int num_rows) except +
        double time_products(int which, int num_rows) except +

    bint has_isa(Isa isa)


cdef str _EMULATED = "amx_emulated"
cdef dict _ISAS = {
    "portable": Isa.portable, "avx2": Isa.avx2, "avx512": Isa.avx512,
    "avx512_vnni": Isa.avx512_vnni, "avx512_bf16": Isa.avx512_bf16, "amx": Isa.amx, _EMULATED: Isa.amx_emulated,
}
cdef dict _FORMATS = {"bf16": CFormat.bf16, "int8": CFormat.int8, "int4": CFormat.int4}
cdef dict _KV_FORMATS = {"bfloat16": KvFormat.bf16, "int8": KvFormat.int8, "fp8": KvFormat.fp8}
cdef dict _NORM_KINDS = {"rms": NormKind.rms, "layer": NormKind.layer}
cdef dict _ACTIVATIONS = {
    "silu": CActivation.silu, "gelu": CActivation.gelu, "gelu_tanh": CActivation.gelu_tanh
}


cdef tuple _PRODUCTS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")


def available_isas():
    """Names of the instruction sets that this processor has kernels for, the best one last.

    Where it has AVX-512, "amx_emulated" will do as well: the kernels of "amx" with the matrix unit in plain C++, for tests.
    """
    return tuple(name for name, isa in _ISAS.items() if name != _EMULATED and has_isa(<Isa><int>isa))


cdef struct Matrix:     # that is to be packed
    Panels* panels
    Weights weights
    int num_columns
    bint gated
    CFormat format


cdef Weights _weights(pieces, int64_t num_rows, int depth, uintptr_t grids) except *:
    """A matrix of so many rows from its pieces: of each the address, the number of rows and their stride. Where there are
    ``grids``, it is in one piece, of codes."""
    cdef Weights weights
    cdef int i
    assert not grids or len(pieces) == 1, f"{len(pieces)} pieces of codes"
    assert len(pieces) <= MAX_PIECES, f"{len(pieces)} pieces"
    assert sum(count for _, count, _ in pieces) == num_rows, f"not {num_rows} rows"
    for i, (address, count, stride) in enumerate(pieces):
        weights.pieces[i], weights.num_rows[i], weights.strides[i] = <const bf16*><uintptr_t>address, count, stride
    weights.depth, weights.grids = depth, <const void*>grids
    return weights


@cython.final
cdef class Decoder:
    """A decoder and the threads that run it; one call at a time."""

    cdef unique_ptr[CDecoder] _decoder
    cdef vector[Matrix] _taken
    cdef DecoderShape _shape
    cdef readonly str isa

    def __cinit__(
        self, *, int num_layers, int hidden_size, int intermediate_size, int num_heads, int num_kv_heads, int head_dim,
        int vocab_size, int num_positions, int num_pairs, float rms_norm_eps, str norm_kind, bint heads_together,
        str activation, bint is_interleaved, bint is_parallel, scales, uintptr_t embeddings, int num_threads, cpus,
        int64_t alone_work, str isa, str kv_format, uintptr_t exchange=0, int first_token=0
    ):
        cdef DecoderShape* shape = &self._shape
        shape.num_layers, shape.hidden_size, shape.intermediate_size = num_layers, hidden_size, intermediate_size
        shape.num_heads, shape.num_kv_heads, shape.head_dim = num_heads, num_kv_heads, head_dim
        shape.vocab_size, shape.num_positions, shape.eps = vocab_size, num_positions, rms_norm_eps
        shape.activation, shape.interleaved = <CActivation><int>_ACTIVATIONS[activation], is_interleaved
        shape.embeddings, shape.num_pairs = <const bf16*>embeddings, num_pairs
        shape.kv_format = <KvFormat><int>_KV_FORMATS[kv_format]
        shape.norm_kind, shape.heads_together = <NormKind><int>_NORM_KINDS[norm_kind], heads_together
        shape.is_parallel = is_parallel
        shape.embedding_scale, shape.residual_scale = scales["embedding"], scales["residual"]
        shape.attention_scale, shape.attention_bound = scales["attention"], scales["attention_bound"]
        shape.logits_scale, shape.logits_bound = scales["logits"], scales["logits_bound"]
        shape.exchange, shape.first_token = <CExchange*>exchange, first_token
        self.isa = isa
        self._decoder.reset(new CDecoder(self._shape, num_threads, cpus, alone_work, <Isa><int>_ISAS[isa]))

    @property
    def num_threads(self):
        """How many threads run a step, the caller's included."""
        return self._decoder.get().num_threads()

    @property
    def num_bytes(self):
        """Memory of all matrices packed so far."""
        return self._decoder.get().num_bytes()

    def set_layer(
        self, int layer, *, qkv_proj, o_proj, gate_up_proj, down_proj, formats, grids, int sliding_window,
        uintptr_t rope_table
    ):
        """Take the matrices of a layer, each in pieces, (address, number of rows, stride), and the format that each is to have;
        ``pack`` reads them. Where there is an address among ``grids``, the matrix is in codes of this format, and there lies
        what they stand for. ``rope_table`` is read by every step, 0: heads are not rotated."""
        cdef CDecoder* decoder = self._decoder.get()
        cdef Layer* to = &decoder.layer(layer)
        cdef DecoderShape* shape = &self._shape
        cdef int head_size = shape.num_heads * shape.head_dim
        cdef int qkv_size = head_size + 2 * shape.num_kv_heads * shape.head_dim
        cdef Weights qkv = _weights(qkv_proj, qkv_size, shape.hidden_size, grids["qkv_proj"])
        cdef Weights o = _weights(o_proj, shape.hidden_size, head_size, grids["o_proj"])
        cdef Weights gate_up = _weights(
            gate_up_proj, 2 * shape.intermediate_size, shape.hidden_size, grids["gate_up_proj"]
        )
        cdef Weights down = _weights(down_proj, shape.hidden_size, shape.intermediate_size, grids["down_proj"])
        to.sliding_window, to.rope_table = sliding_window, <const float*>rope_table
        self._take(to.qkv, qkv, qkv_size, False, formats["qkv_proj"])
        self._take(to.o, o, shape.hidden_size, False, formats["o_proj"])
        self._take(to.gate_up, gate_up, shape.intermediate_size, True, formats["gate_up_proj"])
        self._take(to.down, down, shape.hidden_size, False, formats["down_proj"])

    def set_norms(self, int layer, *, weights, biases):
        """Copy a layer's norms, float32; an address is 0 where there is no such norm, or none of its bias."""
        cdef CDecoder* decoder = self._decoder.get()
        cdef Layer* to = &decoder.layer(layer)
        cdef int size = self._shape.head_dim
        cdef bint whole = self._shape.heads_together
        self._copy_norm(to.before_attention, weights["before_attention"], biases["before_attention"])
        self._copy_norm(to.after_attention, weights["after_attention"], biases["after_attention"])
        self._copy_norm(to.before_mlp, weights["before_mlp"], biases["before_mlp"])
        self._copy_norm(to.after_mlp, weights["after_mlp"], biases["after_mlp"])
        cdef uintptr_t q_norm = weights["q_norm"], k_norm = weights["k_norm"]
        if q_norm:
            decoder.copy(to.q_norm, <const float*>q_norm, size * self._shape.num_heads if whole else size)
            decoder.copy(to.k_norm, <const float*>k_norm, size * self._shape.num_kv_heads if whole else size)

    cdef _copy_norm(self, NormWeights& to, uintptr_t weights, uintptr_t bias):
        if weights:
            self._decoder.get().copy(to.weights, <const float*>weights, self._shape.hidden_size)
        if bias:
            self._decoder.get().copy(to.bias, <const float*>bias, self._shape.hidden_size)

    def set_biases(
        self, int layer, *, uintptr_t qkv_proj, uintptr_t o_proj, uintptr_t gate_up_proj, uintptr_t down_proj
    ):
        """Copy a layer's biases, float32; 0 for each that it does not have."""
        cdef CDecoder* decoder = self._decoder.get()
        cdef Layer* to = &decoder.layer(layer)
        cdef int num_heads = self._shape.num_heads + 2 * self._shape.num_kv_heads
        if qkv_proj:
            decoder.copy(to.qkv_bias, <const float*>qkv_proj, num_heads * self._shape.head_dim)
        if o_proj:
            decoder.copy(to.o_bias, <const float*>o_proj, self._shape.hidden_size)
        if gate_up_proj:
            decoder.copy_gated(to.gate_up_bias, <const float*>gate_up_proj)
        if down_proj:
            decoder.copy(to.down_bias, <const float*>down_proj, self._shape.hidden_size)

    def set_head(self, *, uintptr_t norm, uintptr_t norm_bias, lm_head, str head_format, uintptr_t grids=0):
        """Copy the last norm, float32, its bias may be 0, and take the head as a matrix of a layer: of all tokens, or of those
        from ``first_token`` on that are here."""
        cdef CDecoder* decoder = self._decoder.get()
        cdef int num_tokens = sum(count for _, count, _ in lm_head)
        cdef Weights weights = _weights(lm_head, num_tokens, self._shape.hidden_size, grids)
        assert self._shape.first_token + num_tokens <= self._shape.vocab_size, f"{num_tokens} tokens"
        self._copy_norm(decoder.final_norm(), norm, norm_bias)
        self._take(decoder.head(), weights, num_tokens, False, head_format)

    def pack(self):
        """Pack all matrices taken since the last time, as one call without the interpreter's lock; they are not needed
        after."""
        cdef CDecoder* decoder = self._decoder.get()
        cdef size_t i
        with nogil:
            for i in range(self._taken.size()):
                decoder.pack(
                    self._taken[i].panels[0], self._taken[i].weights, self._taken[i].num_columns, self._taken[i].gated,
                    self._taken[i].format
                )
        self._taken.clear()

    cdef _take(self, Panels& panels, Weights weights, int num_columns, bint gated, str format):
        self._taken.push_back(Matrix(&panels, weights, num_columns, gated, <CFormat><int>_FORMATS[format]))

    def forward(
        self, uintptr_t hidden, *, uintptr_t token_ids, uintptr_t positions, uintptr_t slot_mapping,
        uintptr_t cu_seqlens_q, uintptr_t seq_lens, uintptr_t block_tables, uintptr_t sample_rows, k_caches, v_caches,
        int num_tokens, int num_seqs, int num_samples, int max_blocks, int num_blocks, int block_size
    ):
        """Run a step; the addresses are of the tensors of a ForwardBatch.

        Raises:
            IndexError: One of them points outside of what it indexes; nothing was written.
        """
        cdef CDecoder* decoder = self._decoder.get()
        cdef vector[uintptr_t] keys = k_caches, values = v_caches
        cdef Step step
        step.token_ids, step.positions = <const int64_t*>token_ids, <const int64_t*>positions
        step.slot_mapping, step.sample_rows = <const int64_t*>slot_mapping, <const int64_t*>sample_rows
        step.cu_seqlens_q, step.seq_lens = <const int*>cu_seqlens_q, <const int*>seq_lens
        step.block_tables, step.hidden = <const int*>block_tables, <bf16*>hidden
        step.k_caches, step.v_caches = <char**>keys.data(), <char**>values.data()
        step.num_tokens, step.num_seqs, step.num_samples = num_tokens, num_seqs, num_samples
        step.max_blocks, step.num_blocks, step.block_size = max_blocks, num_blocks, block_size
        cdef const char* fault = decoder.fault_of(step)
        if fault[0]:
            raise IndexError(f"{fault.decode()} of the step: out of range")
        with nogil:
            decoder.forward(step)

    def compute_logits(self, uintptr_t out, uintptr_t hidden, *, int num_rows):
        """``out`` [num_rows, vocab_size], float32, of ``hidden`` [num_rows, hidden_size]."""
        with nogil:
            self._decoder.get().logits(<float*>out, <const bf16*>hidden, num_rows)

    def time_products(self, str name, *, int num_rows):
        """Seconds that the products of ``num_rows`` rows with one matrix take in all layers together, one after another;
        "lm_head": with the head alone. For benchmarks."""
        cdef int which = _PRODUCTS.index(name)
        cdef double seconds
        with nogil:
            seconds = self._decoder.get().time_products(which, num_rows)
        return seconds
