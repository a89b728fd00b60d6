"""``python -m trioserve.reference docs``: writes docs/settings.md and docs/migration.md from the tables in the code."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trioserve.flags import ALIASES, aliases_of
from trioserve.not_obeyed import NOT_OBEYED, NotObeyed
from trioserve.settings import CONFIG_VARIABLE, ENV_PREFIX, GROUPS, Settings

VLLM: Final = """
model tokenizer tokenizer_mode tokenizer_revision trust_remote_code dtype seed hf_config_path allowed_local_media_path
allowed_media_domains revision code_revision rope_scaling rope_theta max_model_len quantization enforce_eager
max_logprobs logprobs_mode disable_sliding_window disable_cascade_attn skip_tokenizer_init enable_prompt_embeds
served_model_name config_format hf_token hf_overrides pooler_config override_pooler_config logits_processor_pattern
generation_config override_generation_config enable_sleep_mode model_impl override_attention_dtype logits_processors
io_processor_plugin task runner convert load_format download_dir safetensors_load_strategy model_loader_extra_config
ignore_patterns use_tqdm_on_load pt_load_map_location reasoning_parser reasoning_parser_plugin
structured_outputs_config guided_decoding_backend guided_decoding_disable_fallback
guided_decoding_disable_any_whitespace guided_decoding_disable_additional_properties distributed_executor_backend
pipeline_parallel_size tensor_parallel_size decode_context_parallel_size data_parallel_size data_parallel_rank
data_parallel_start_rank data_parallel_size_local data_parallel_address data_parallel_rpc_port data_parallel_backend
data_parallel_hybrid_lb data_parallel_external_lb enable_expert_parallel all2all_backend enable_dbo enable_eplb
eplb_config expert_placement_strategy max_parallel_loading_workers ray_workers_use_nsight disable_custom_all_reduce
worker_cls worker_extension_cls nnodes node_rank master_addr master_port headless block_size gpu_memory_utilization
kv_cache_memory_bytes swap_space kv_cache_dtype num_gpu_blocks_override enable_prefix_caching
prefix_caching_hash_algo cpu_offload_gb kv_offloading_size calculate_kv_scales kv_sharing_fast_prefill
mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size limit_mm_per_prompt enable_mm_embeds media_io_kwargs
mm_processor_kwargs mm_processor_cache_gb mm_processor_cache_type mm_shm_cache_max_object_size_mb mm_encoder_tp_mode
mm_encoder_attn_backend interleave_mm_strings skip_mm_profiling video_pruning_rate disable_mm_preprocessor_cache
language_model_only enable_lora max_loras max_lora_rank lora_extra_vocab_size lora_dtype max_cpu_loras
fully_sharded_loras default_mm_loras lora_modules show_hidden_metrics_for_version otlp_traces_endpoint
collect_detailed_traces max_num_batched_tokens max_num_seqs max_num_queued_reqs max_num_queued_tokens
max_num_partial_prefills max_long_partial_prefills long_prefill_token_threshold num_lookahead_slots
scheduling_policy enable_chunked_prefill disable_chunked_mm_input scheduler_cls disable_hybrid_kv_cache_manager
async_scheduling stream_interval compilation_config cudagraph_capture_sizes max_cudagraph_capture_size
cuda_graph_sizes max_seq_len_to_capture attention_backend speculative_config speculative_model
num_speculative_tokens quantization_param_path device kv_transfer_config kv_events_config additional_config
disable_log_stats aggregate_engine_logging disable_log_requests enable_log_requests chat_template
chat_template_content_format trust_request_chat_template default_chat_template_kwargs response_role
return_tokens_as_token_ids enable_auto_tool_choice exclude_tools_when_tool_choice_none tool_call_parser
tool_parser_plugin tool_server log_config_file max_log_len enable_prompt_tokens_details enable_server_load_tracking
enable_force_include_usage enable_tokenizer_info_endpoint enable_log_outputs enable_log_deltas log_error_stack
tokens_only fingerprint_mode fingerprint_value host port uds uvicorn_log_level disable_uvicorn_access_log
disable_access_log_for_endpoints allow_credentials allowed_origins allowed_methods allowed_headers api_key
ssl_keyfile ssl_certfile ssl_ca_certs enable_ssl_refresh ssl_cert_reqs ssl_ciphers root_path middleware
enable_request_id_headers disable_fastapi_docs enable_offline_docs h11_max_incomplete_event_size h11_max_header_count
disable_frontend_multiprocessing api_server_count config grpc shutdown_timeout
"""
"""Flags of ``vllm serve``, present and past."""

FASTDEPLOY: Final = """
model host port workers metrics_port controller_port max_waiting_time max_concurrency enable_mm_output
timeout_graceful_shutdown timeout api_key served_model_name revision model_config_name tokenizer tokenizer_base_url
max_model_len tensor_parallel_size block_size task runner convert override_pooler_config max_num_seqs
mm_processor_kwargs limit_mm_per_prompt max_encoder_cache max_processor_cache reasoning_parser chat_template
tool_call_parser tool_parser_plugin enable_mm speculative_config dynamic_load_weight load_strategy quantization
guided_decoding_backend guided_decoding_disable_any_whitespace gpu_memory_utilization num_gpu_blocks_override
max_num_batched_tokens kv_cache_ratio prealloc_dec_block_slot_num_threshold ips swap_space cache_queue_port
use_warmup enable_prefix_caching disable_custom_all_reduce use_internode_ll_two_stage disable_sequence_parallel_moe
engine_worker_queue_port splitwise_role data_parallel_size local_data_parallel_id enable_expert_parallel
cache_transfer_protocol pd_comm_port rdma_comm_ports innode_prefill_ports enable_chunked_prefill
max_num_partial_prefills max_long_partial_prefills long_prefill_token_threshold static_decode_blocks
disable_chunked_mm_input scheduler_name scheduler_max_size scheduler_ttl scheduler_host scheduler_port scheduler_db
scheduler_password scheduler_topic scheduler_min_load_score scheduler_load_shards_num scheduler_sync_period
scheduler_expire_period scheduler_release_load_expire_period scheduler_reader_parallel scheduler_writer_parallel
scheduler_reader_batch_size scheduler_writer_batch_size use_cudagraph graph_optimization_config plas_attention_config
enable_logprob max_logprobs logprobs_mode seed enable_early_stop early_stop_config load_choices lm_head_fp32
logits_processors router enable_eplb eplb_config
"""
"""Flags of ``python -m fastdeploy.entrypoints.openai.api_server``."""

LMDEPLOY: Final = """
model_path server_name server_port allow_origins allow_credentials allow_methods allow_headers proxy_url
max_concurrent_requests allowed_media_domains backend log_level api_keys ssl model_name max_log_len
disable_fastapi_docs allow_terminate_by_client enable_abort_handling trust_remote_code chat_template tool_call_parser
reasoning_parser revision download_dir generation_config adapters device eager_mode logprobs_mode dllm_block_length
dllm_unmasking_strategy dllm_denoising_steps dllm_confidence_threshold enable_return_routed_experts
distributed_executor_backend kernel_block_size prefix_cache_state_budget prefix_cache_decode_state_interval
language_model_only dtype tp session_len max_batch_size cache_max_entry_count cache_block_seq_len
enable_prefix_caching max_prefill_token_num quant_policy model_format hf_overrides disable_metrics dp ep
enable_microbatch enable_eplb role migration_backend cudagraph_capture_batch_sizes node_rank nnodes cp
rope_scaling_factor num_tokens_per_iter max_prefill_iters async communicator dist_init_addr vision_max_batch_size
speculative_algorithm speculative_draft_model speculative_num_draft_tokens dp_rank
"""
"""Flags of ``lmdeploy serve api_server``."""

SYSTEMS: Final[Mapping[str, str]] = {"vLLM": VLLM, "FastDeploy": FASTDEPLOY, "LMDeploy": LMDEPLOY}

NOTES: Final[Mapping[str, str]] = {
    "cache_max_entry_count": "a share of the memory that is free beside the weights, of the GPU or else of the host",
    "enable_chunked_prefill": "on unless it is turned off; then max_num_batched_tokens must be at least max_model_len",
    "enable_prefix_caching": "on unless it is turned off",
    "gpu_memory_utilization": "0.9 by default; on a CPU nothing else, use `cache_max_entry_count`",
    "host": "127.0.0.1 by default, so that nobody else reaches it",
    "kv_cache_dtype": "auto, bfloat16, fp8 or fp8_e4m3, on a CPU int8; codes have a scale for each token and KV head",
    "kv_cache_ratio": "of the blocks, what prompts may take while others run",
    "max_concurrency": "above it 429 with Retry-After",
    "max_concurrent_requests": "above it 429 with Retry-After, where LMDeploy lets requests wait",
    "max_num_queued_reqs": "above it 429 with Retry-After, where vLLM answers 503",
    "max_num_queued_tokens": "above it 429 with Retry-After, where vLLM answers 503",
    "max_num_seqs": "256 by default on GPUs, 128 on a CPU",
    "max_num_batched_tokens": "2048 by default on GPUs, 512 on a CPU: longer prompts are cut",
    "port": "8000 by default",
    "seed": "once given, requests that bring no seed draw from it",
    "server_port": "8000 by default, where LMDeploy takes 23333",
    "shutdown_timeout": "300 by default, 0 aborts at once; `drain_delay_s` comes before it",
    "swap_space": "0 by default: GiB for each GPU, for prefixes; only 0 on a CPU",
    "tensor_parallel_size": "a GPU for each rank, on a CPU its share of the cores",
    "timeout_graceful_shutdown": "300 by default, 0 aborts at once; `drain_delay_s` comes before it",
    "tp": "a GPU for each rank, on a CPU its share of the cores",
    "trust_request_chat_template": "a template of a request is rendered in a process of its own",
}
"""What else there is to say of a flag that is obeyed."""

_SETTINGS_HEAD: Final = f"""\
# Settings

Defaults < `trioserve.toml` in the working directory, or the file that `{CONFIG_VARIABLE}` names <
`{ENV_PREFIX}*` variables < flags. The setting `max_num_seqs` is the key `max_num_seqs`, the variable
`{ENV_PREFIX}MAX_NUM_SEQS` and the flag `--max-num-seqs`. A wrong value, a name that is no setting and two
values of one setting stop the start with one sentence and exit code 78. Times are in seconds where a
name ends in `_s`, in milliseconds where it ends in `_ms`.

A flag may be written with underscores, and `--flag VALUE` as `--flag=VALUE`. A switch stands alone for true, as
`--no-flag` for false, or takes true or false. `--model` may be left out before the model's name. Flags that
take several values may be repeated. `trioserve serve --show-settings` prints what holds and where it comes
from, in the form of a `trioserve.toml`, secrets left out.

Other servers' names for the same setting, in the last column, are obeyed in all three places;
[migration](migration.md) lists their flags one by one. This page is written by `python -m trioserve.reference
docs`.
"""

_MIGRATION_HEAD: Final = """\
# Coming from another server

The flags of other servers and what becomes of them, as flags, variables and keys of the file alike. Each is
obeyed under its own name, obeyed because it asks for what is the case here anyway, or refused: then the server
does not start, ends with exit code 78 and says in one sentence why. [Settings](settings.md) says what each
setting does. This page is written by `python -m trioserve.reference docs`.
"""


def main(argv: list[str] | None = None) -> int:
    """Write the pages; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trioserve.reference", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


def pages() -> dict[str, str]:
    """The text of each page, by the name of its file."""
    return {"settings.md": _settings_page(), "migration.md": _migration_page()}


def _settings_page() -> str:
    parts = [_SETTINGS_HEAD]
    for group in GROUPS:
        rows = [
            [f"`{name}`", _default(field), _plain(field.description or ""), _code_list(aliases_of(name))]
            for name, field in group.model_fields.items()
        ]
        parts.append(f"## {group.__doc__}\n\n{_table(['setting', 'default', 'what', 'also'], rows)}")
    return "\n".join(parts)


def _migration_page() -> str:
    parts = [_MIGRATION_HEAD]
    for system, flags in SYSTEMS.items():
        rows = [[f"`--{name.replace('_', '-')}`", *_fate(name)] for name in sorted(set(flags.split()))]
        parts.append(f"## {system}\n\n{_table(['flag', 'here', ''], rows)}")
    return "\n".join(parts)


def _fate(name: str) -> tuple[str, str]:
    """What becomes of a flag, and what to say of it."""
    target = ALIASES.get(name, name)
    if target in Settings.model_fields:
        return f"`{target}`", NOTES.get(name, "")
    return _verdict(NOT_OBEYED[target])


def _verdict(entry: NotObeyed) -> tuple[str, str]:
    if entry.harmless is None:
        return "accepted", entry.reason
    named = sorted(value for value in entry.harmless if value not in ("", "none", "null"))
    return (f"only {_code_list(named)}" if named else "refused"), entry.reason


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return str(field.default_factory)
    value = field.default
    if value is None or value == ():
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value, default=str)}`"


def _plain(text: str) -> str:
    return text.replace("``", "`").replace("\n", " ").replace("|", "\\|")


def _code_list(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
