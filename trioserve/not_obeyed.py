"""Flags of other servers that are not obeyed here, each with a sentence that says why and what to do instead.

A value that asks for what is the case here anyway is accepted. A flag that becomes a setting leaves this table.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_NOTHING: Final = frozenset({"", "none", "null"})
"""Values with which a flag that takes one asks for nothing."""


@dataclass(frozen=True, slots=True)
class NotObeyed:
    """A flag that other servers have."""

    reason: str
    """Why it is not obeyed and what to do instead, or why some values of it are obeyed at no cost."""
    harmless: frozenset[str] | None
    """Values that ask for what is the case anyway, in lower case; None: every value does."""
    is_switch: bool
    """Whether it stands without a value on a command line."""

    def allows(self, value: Any) -> bool:
        """Whether ``value`` asks for what is the case here anyway."""
        return self.harmless is None or as_text(value).lower() in self.harmless


def _flags(
    names: str, reason: str, *harmless: str, switch: bool = False, any_value: bool = False
) -> dict[str, NotObeyed]:
    """One reason for several flags; a switch may always be off unless ``harmless`` says when it may be what."""
    allowed = frozenset(harmless) or (frozenset({"false"}) if switch else frozenset())
    entry = NotObeyed(reason, None if any_value else allowed | _NOTHING, switch)
    return dict.fromkeys(names.split(), entry)


_ONE_REPLICA: Final = "one server is one replica; start one more for each and put a proxy in front"
_ONE_MACHINE: Final = (
    "ranks of other machines come in by rank_listen and trioserve join; see docs/operations.md"
)
_NO_SPLIT: Final = "every rank has a part of all layers, by tensor_parallel_size, and there is no other split"
_NO_EXPERTS: Final = "models with experts are not served here"
_ONE_PHASE: Final = "prefill and decode always run in the same server"
_AS_STORED: Final = (
    "weights are kept as dtype, quantization and the checkpoint say, the KV cache as kv_cache_dtype says"
)
_NO_DRAFTS: Final = "tokens are guessed without a second model; set speculative_config instead"
_NO_ADAPTERS: Final = "adapters are not served; merge them into the weights first"
_TEXT_ONLY: Final = "only text is served here; leave it out"
_NO_FOREIGN_CODE: Final = "no code but this server's own is ever loaded; leave it out"
_GRAPHS: Final = "which graphs a GPU captures is decided here; enforce_eager says whether it does"
_ORDER: Final = (
    "a step's budget goes to prompts in the order of their arrival; max_num_batched_tokens bounds it"
)
_NO_SHARED_QUEUE: Final = "servers share no queue; put a proxy in front that balances"
_NO_PORT: Final = "the ranks are reached through socket pairs, so no port is needed"
_NO_TRACES: Final = "there are no traces; the log and /health tell what there is to tell"
_NO_POOLING: Final = "this server generates text, nothing else"
_CONFIG_JSON: Final = "config.json decides; change it in a copy of the model's folder"
_LOADS: Final = "weights are read from memory-mapped safetensors, each rank its own; leave it out"
_OFFLOAD: Final = "weights stay where they are computed with; quantization makes them smaller"
_STATELESS: Final = "weights stay loaded for as long as the server runs; restart it instead"

NOT_OBEYED: Final[Mapping[str, NotObeyed]] = {
    # more devices, processes and machines
    **_flags("data_parallel_size dp data_parallel_size_local", _ONE_REPLICA, "1"),
    **_flags("data_parallel_rank data_parallel_start_rank dp_rank local_data_parallel_id", _ONE_REPLICA, "0"),
    **_flags("data_parallel_address data_parallel_rpc_port data_parallel_backend", _ONE_REPLICA),
    **_flags("data_parallel_hybrid_lb data_parallel_external_lb", _ONE_REPLICA, switch=True),
    **_flags(
        "proxy_url router", "a proxy is told of its servers, not the servers of their proxy; leave it out"
    ),
    **_flags("pipeline_parallel_size decode_context_parallel_size cp", _NO_SPLIT, "1"),
    **_flags("distributed_executor_backend", "ranks are processes, as with mp, or join by rank_listen", "mp"),
    **_flags("nnodes", _ONE_MACHINE, "1"),
    **_flags("node_rank", _ONE_MACHINE, "0"),
    **_flags("ips dist_init_addr master_addr master_port", _ONE_MACHINE),
    **_flags("headless ray_workers_use_nsight", _ONE_MACHINE, switch=True),
    **_flags("enable_expert_parallel enable_eplb enable_dbo enable_microbatch", _NO_EXPERTS, switch=True),
    **_flags("enable_return_routed_experts", _NO_EXPERTS, switch=True),
    **_flags("ep", _NO_EXPERTS, "1"),
    **_flags("eplb_config all2all_backend expert_placement_strategy", _NO_EXPERTS),
    **_flags(
        "disable_custom_all_reduce disable_sequence_parallel_moe use_internode_ll_two_stage",
        "there is none to disable; either value is obeyed",
        switch=True,
        any_value=True,
    ),
    **_flags("communicator", _NO_SPLIT, "nccl"),
    **_flags("splitwise_role", _ONE_PHASE, "mixed"),
    **_flags("role", _ONE_PHASE, "hybrid"),
    **_flags("kv_transfer_config kv_events_config pd_comm_port rdma_comm_ports", _ONE_PHASE),
    **_flags("innode_prefill_ports migration_backend", _ONE_PHASE),
    **_flags("cache_transfer_protocol", _ONE_PHASE, "ipc"),
    **_flags("engine_worker_queue_port cache_queue_port", _NO_PORT, any_value=True),
    **_flags("controller_port", "there is no controller here", "-1"),
    # weights and KV cache
    **_flags("quantization_param_path", _AS_STORED),
    **_flags("quant_policy", "kv_cache_dtype says it; int8 instead of 8", "0"),
    **_flags("model_format", _AS_STORED, "hf"),
    **_flags("calculate_kv_scales lm_head_fp32", _AS_STORED, switch=True),
    **_flags("override_attention_dtype", _AS_STORED),
    **_flags("hf_token", "set HF_TOKEN in the environment, where the hub's client looks for it"),
    **_flags("load_choices", _LOADS, "default", "default_v1"),
    **_flags("load_strategy", _LOADS, "normal"),
    **_flags("safetensors_load_strategy", _LOADS, "lazy"),
    **_flags("max_parallel_loading_workers model_loader_extra_config ignore_patterns", _LOADS),
    **_flags("pt_load_map_location", _LOADS, "cpu"),
    **_flags("use_tqdm_on_load", "the log tells how far loading is; leave it out", switch=True),
    **_flags("dynamic_load_weight enable_sleep_mode", _STATELESS, "false", "0", switch=True),
    **_flags("hf_overrides rope_scaling rope_theta hf_config_path", _CONFIG_JSON),
    **_flags("rope_scaling_factor", _CONFIG_JSON, "0", "0.0"),
    **_flags("config_format", _CONFIG_JSON, "auto", "hf"),
    **_flags("model_config_name", _CONFIG_JSON, "config.json"),
    **_flags("disable_sliding_window", _CONFIG_JSON, switch=True),
    **_flags("cpu_offload_gb", _OFFLOAD, "0", "0.0"),
    **_flags("kv_offloading_size", "swap_space says it, for each GPU", "0", "0.0"),
    **_flags("prefix_caching_hash_algo", "prompts are found by a keyed 128-bit hash, always; leave it out"),
    **_flags(
        "disable_hybrid_kv_cache_manager",
        "all layers share one kind of block, as with it",
        "true",
        switch=True,
    ),
    **_flags(
        "static_decode_blocks prealloc_dec_block_slot_num_threshold",
        "an answer takes blocks as it grows; kv_cache_ratio keeps a share back for answers",
    ),
    **_flags("kernel_block_size", "kernels work on blocks of block_size tokens", "-1"),
    **_flags(
        "prefix_cache_state_budget prefix_cache_decode_state_interval", "no model with a state is served", "0"
    ),
    **_flags(
        "mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size", "no model with a state is served", "auto"
    ),
    **_flags("kv_sharing_fast_prefill", "no model shares its KV between layers here", switch=True),
    # steps
    **_flags("max_num_partial_prefills max_long_partial_prefills", _ORDER),
    **_flags("long_prefill_token_threshold num_tokens_per_iter", _ORDER, "0"),
    **_flags("max_prefill_iters", _ORDER, "1"),
    **_flags("disable_chunked_mm_input", _TEXT_ONLY, switch=True),
    **_flags(
        "scheduling_policy",
        "first come, first served, and a request's priority always counts, as with priority",
        "priority",
    ),
    **_flags("async_scheduling", "steps always overlap", "true", switch=True),
    **_flags("async", "steps always overlap", "1"),
    **_flags("stream_interval", "every token is sent as it comes, unless its reader is slow", "1"),
    **_flags("scheduler_name", _NO_SHARED_QUEUE, "local"),
    **_flags("scheduler_max_size", "max_num_queued_reqs bounds the line", "-1"),
    **_flags("scheduler_ttl", "request_timeout_s bounds the time of a request"),
    **_flags(
        "scheduler_host scheduler_port scheduler_db scheduler_password scheduler_topic", _NO_SHARED_QUEUE
    ),
    **_flags("scheduler_min_load_score scheduler_load_shards_num scheduler_sync_period", _NO_SHARED_QUEUE),
    **_flags("scheduler_expire_period scheduler_release_load_expire_period", _NO_SHARED_QUEUE),
    **_flags("scheduler_reader_parallel scheduler_writer_parallel", _NO_SHARED_QUEUE),
    **_flags("scheduler_reader_batch_size scheduler_writer_batch_size", _NO_SHARED_QUEUE),
    **_flags(
        "max_waiting_time", "request_timeout_s bounds a request's time, max_num_queued_reqs the line", "-1"
    ),
    **_flags("timeout", "step_timeout_s says when works that do not answer are restarted", "0"),
    # compilation
    **_flags(
        "disable_cascade_attn",
        "there is none to disable; either value is obeyed",
        switch=True,
        any_value=True,
    ),
    **_flags(
        "compilation_config cudagraph_capture_sizes max_cudagraph_capture_size cuda_graph_sizes", _GRAPHS
    ),
    **_flags("cudagraph_capture_batch_sizes max_seq_len_to_capture graph_optimization_config", _GRAPHS),
    **_flags("use_cudagraph", "a GPU uses graphs unless enforce_eager is set", "true", switch=True),
    **_flags(
        "attention_backend plas_attention_config",
        "the attention kernel is chosen by the CPU or GPU; leave it out",
    ),
    **_flags("backend", "there is one engine here; leave it out"),
    **_flags("additional_config", "every setting has a name of its own here"),
    # speculation, adapters, images
    **_flags("speculative_model speculative_algorithm speculative_draft_model", _NO_DRAFTS),
    **_flags("speculative_num_draft_tokens num_speculative_tokens", _NO_DRAFTS),
    **_flags("num_lookahead_slots", _NO_DRAFTS, "0"),
    **_flags("enable_lora fully_sharded_loras", _NO_ADAPTERS, switch=True),
    **_flags("lora_modules max_loras max_lora_rank max_cpu_loras lora_dtype adapters", _NO_ADAPTERS),
    **_flags("lora_extra_vocab_size default_mm_loras", _NO_ADAPTERS),
    **_flags("limit_mm_per_prompt mm_processor_kwargs media_io_kwargs mm_encoder_tp_mode", _TEXT_ONLY),
    **_flags(
        "mm_processor_cache_gb mm_processor_cache_type mm_encoder_attn_backend video_pruning_rate", _TEXT_ONLY
    ),
    **_flags("mm_shm_cache_max_object_size_mb max_encoder_cache max_processor_cache", _TEXT_ONLY),
    **_flags("allowed_local_media_path allowed_media_domains", _TEXT_ONLY),
    **_flags("vision_max_batch_size", _TEXT_ONLY),
    **_flags(
        "enable_mm enable_mm_output enable_mm_embeds interleave_mm_strings skip_mm_profiling",
        _TEXT_ONLY,
        switch=True,
    ),
    **_flags("disable_mm_preprocessor_cache enable_prompt_embeds", _TEXT_ONLY, switch=True),
    **_flags("language_model_only", "only text is served here, as with it", "true", switch=True),
    **_flags(
        "dllm_block_length dllm_unmasking_strategy dllm_denoising_steps dllm_confidence_threshold",
        _NO_POOLING,
    ),
    **_flags("task", _NO_POOLING, "generate", "auto"),
    **_flags("runner", _NO_POOLING, "generate", "auto"),
    **_flags("convert", _NO_POOLING, "none", "auto"),
    **_flags("pooler_config override_pooler_config", _NO_POOLING),
    # other people's code
    **_flags("trust_remote_code", _NO_FOREIGN_CODE, switch=True),
    **_flags(
        "code_revision logits_processors logits_processor_pattern io_processor_plugin", _NO_FOREIGN_CODE
    ),
    **_flags(
        "worker_extension_cls scheduler_cls middleware",
        _NO_FOREIGN_CODE,
    ),
    **_flags(
        "tool_parser_plugin",
        "no code file is loaded: install a package with an entry point trioserve.tool_parsers (docs/tools.md)",
    ),
    **_flags(
        "reasoning_parser_plugin",
        "no code file is loaded: install a package with an entry point trioserve.reasoning_parsers "
        "(docs/reasoning.md)",
    ),
    **_flags("worker_cls", _NO_FOREIGN_CODE, "auto"),
    **_flags("model_impl", _NO_FOREIGN_CODE, "auto"),
    # prompts and answers
    **_flags(
        "tokenizer_mode",
        "tokenizer.json is used where there is one, the model's own tokenizer elsewhere",
        "auto",
    ),
    **_flags("tokenizer_base_url", "the tokenizer runs in this server; name one by tokenizer"),
    **_flags(
        "skip_tokenizer_init",
        "the tokenizer is always loaded; requests may send token ids all the same",
        switch=True,
    ),
    **_flags("structured_outputs_config", "its parts are settings: guided_decoding_backend and its kin"),
    **_flags(
        "enable_auto_tool_choice",
        "the model may always choose, where tool_call_parser knows how it calls; either value is obeyed",
        switch=True,
        any_value=True,
    ),
    **_flags(
        "exclude_tools_when_tool_choice_none",
        "a request whose tool_choice is none shows the model no tools",
        "true",
        switch=True,
    ),
    **_flags(
        "guided_decoding_disable_fallback",
        "there is no fallback: what is not supported is refused",
        switch=True,
        any_value=True,
    ),
    **_flags(
        "guided_decoding_disable_additional_properties",
        "write additionalProperties into the schema",
        switch=True,
    ),
    **_flags("tool_server", "no tools are run here; clients run their own"),
    **_flags(
        "chat_template_content_format",
        "templates get content as the client sent it, text parts joined",
        "auto",
    ),
    **_flags(
        "default_chat_template_kwargs",
        "templates get no arguments of their own; write them into chat_template",
    ),
    **_flags("response_role", "answers are the assistant's", "assistant"),
    **_flags("logprobs_mode", "logprobs are those before temperature and filters", "raw_logprobs"),
    **_flags("return_tokens_as_token_ids", "logprobs name tokens by their text and their bytes", switch=True),
    **_flags("enable_prompt_tokens_details", "usage always tells the cached tokens", "true", switch=True),
    **_flags(
        "enable_force_include_usage", "a stream tells its usage where the request asks for it", switch=True
    ),
    **_flags("enable_request_id_headers", "every answer carries x-request-id", "true", switch=True),
    **_flags(
        "fingerprint_mode fingerprint_value", "system_fingerprint tells model and version, nothing else"
    ),
    # the door
    **_flags(
        "config",
        "settings come from trioserve.toml or the file that TRIOSERVE_CONFIG names; YAML is not read",
    ),
    **_flags("enable_server_load_tracking", "/health tells what runs and what waits", switch=True),
    **_flags(
        "enable_offline_docs",
        "the pages that document the API load nothing from elsewhere, always",
        switch=True,
        any_value=True,
    ),
    **_flags("allow_terminate_by_client", "only signals end the server", switch=True),
    **_flags("enable_abort_handling", "a request is aborted by closing its connection, always", switch=True),
    **_flags(
        "h11_max_incomplete_event_size h11_max_header_count",
        "max_header_bytes bounds a request's line and headers",
    ),
    **_flags("grpc tokens_only", "only HTTP with OpenAI's shapes is served", switch=True),
    **_flags("disable_frontend_multiprocessing", "the model always has a process of its own", switch=True),
    # the log
    **_flags("disable_log_requests", "prompts and answers are never logged, as with it", "true", switch=True),
    **_flags("enable_log_requests enable_log_outputs", "prompts and answers are never logged", switch=True),
    **_flags("enable_log_deltas", "prompts and answers are never logged", switch=True),
    **_flags("max_log_len", "prompts are never logged, at whatever length", any_value=True),
    **_flags("disable_log_stats", "the log has no statistics, as with it", "true", switch=True),
    **_flags(
        "aggregate_engine_logging log_error_stack",
        "log_level and log_format say what the log holds",
        switch=True,
    ),
    **_flags("log_config_file", "log_level and log_format say what the log holds"),
    **_flags(
        "disable_uvicorn_access_log", "log_level = warning leaves the lines of requests out", switch=True
    ),
    **_flags("disable_access_log_for_endpoints", "log_level = warning leaves the lines of requests out"),
    **_flags("otlp_traces_endpoint collect_detailed_traces", _NO_TRACES),
    **_flags("show_hidden_metrics_for_version", _NO_TRACES),
    **_flags("disable_metrics", "/metrics is always served, and costs next to nothing", "false", switch=True),
    **_flags("ssl_ciphers", "TLS 1.2 and later with OpenSSL's own choice; hypercorn has --ciphers"),
    **_flags("ssl", "give ssl_certfile and ssl_keyfile", switch=True),
    **_flags("enable_ssl_refresh", "certificates are read at the start; restart to change them", switch=True),
}


def as_text(value: Any) -> str:
    """A value as a command line would have it."""
    return value.strip() if isinstance(value, str) else json.dumps(value, default=str)
