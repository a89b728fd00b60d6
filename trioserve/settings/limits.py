"""Settings that bound what a request may ask for."""

from pydantic import Field

from trioserve.settings.values import Count, Seconds, SettingsGroup


class LimitSettings(SettingsGroup):
    """Limits"""

    max_num_queued_reqs: Count = 1024
    """Sequences that may wait; above it new requests get 429."""
    max_num_queued_tokens: Count = 1 << 20
    """Prompt tokens that may wait; above it new requests get 429."""
    max_concurrency: Count | None = None
    """POST requests that are served at a time, waiting ones included; above it new ones get 429. By default the line
    and the running sequences are the only bounds."""
    max_concurrency_per_key: Count | None = None
    """The same of each key; without keys of all clients together."""
    max_requests_per_minute: Count | None = None
    """POST requests that a key may send in a minute, after which it gets 429; without keys all clients together."""
    max_body_bytes: Count = 16 << 20
    """Of a request's body; a longer one gets 413."""
    max_body_values: Count = 1 << 16
    """Texts, lists and objects that a request's body may hold; of numbers and the like it may hold 16 times as many."""
    max_header_bytes: int = Field(default=32 * 1024, ge=1024, le=1 << 20)
    """Of a request's line and headers, 32 for each header besides; a longer one gets 431."""
    body_timeout_s: Seconds = 60.0
    """Time a client has to send the body."""
    max_messages: Count = 2048
    """Of one chat request."""
    max_n: Count = 128
    """Choices of one request, over all its prompts."""
    max_stop: Count = 16
    """Stop strings of one request."""
    max_stop_chars: Count = 1024
    """Of one stop string."""
    enable_logprob: bool = True
    """Whether requests may ask for log probabilities."""
    max_logprobs: int = Field(default=20, ge=0, le=1000)
    """Alternatives that a request may ask for at each token, of the answer or of the prompt."""
    max_prompt_logprob_values: Count = 1 << 20
    """Log probabilities of prompts that one request may ask for: tokens x sequences x (alternatives + 1)."""
    max_token_ids: Count = 1 << 14
    """Entries in each of allowed_token_ids, bad_words_token_ids, logit_bias and stop_token_ids."""
    max_bad_words: Count = 128
    """Words in bad_words and in bad_words_token_ids together."""
    max_bad_word_length: Count = 128
    """Characters or token ids of one bad word."""
    max_repetition_pattern: Count = 1024
    """Tokens of the longest pattern that repetition_detection may name."""
    max_grammar_bytes: Count = 1 << 18
    """Of a request's schema, regular expression, choices or grammar."""
    max_grammar_depth: Count = 64
    """Levels of a schema, groups in groups of a regular expression."""
    grammar_timeout_s: Seconds = 3.0
    """Time that examining and compiling one may take."""
    grammar_memory_bytes: int = Field(default=1 << 30, ge=1 << 24)
    """Memory that it may take."""
    max_cached_grammars: Count = 256
    """Grammars that are kept ready for the next request that has the same."""
    max_tools: Count = 128
    """Tools of one request."""
    max_tokenize_len: Count = 1 << 20
    """Characters, or token ids, of one request to /tokenize, /detokenize and their kin; a million take a second."""
    request_timeout_s: Seconds = 3600.0
    """Time a request may take in all; 0: no limit."""
    strict_requests: bool = False
    """Whether fields that no server defines are refused, instead of ignored."""
    trust_request_chat_template: bool = False
    """Whether a request may bring its own chat template; it is rendered in a process of its own."""
    template_timeout_s: Seconds = 5.0
    """Time that such a template may take."""
    template_memory_bytes: int = Field(default=256 << 20, ge=1 << 20)
    """Memory that such a template may take."""
