"""vLLM: https://docs.vllm.ai."""

import os
from collections.abc import Mapping

from blocks.engines.known import KnownEngine, LocalCommand, LocalStart
from blocks.files import ROOT
from blocks.ports.fleet import ModelKind

FLAGS = """
    additional-config aggregate-engine-logging all2all-backend allow-credentials allow-deprecated-quantization
    allowed-headers allowed-local-media-path allowed-media-domains allowed-methods allowed-origins
    anthropic-disabled-thinking-effort api-key api-server-count async-scheduling attention-backend attention-config
    aux-output-config block-size chat-template chat-template-content-format code-revision cohere-format
    cohere-is-reasoning-model collect-detailed-traces compilation-config config config-format convert
    cp-kv-cache-interleave-size cpu-distributed-timeout-seconds cpu-offload-gb cpu-offload-params
    cudagraph-capture-sizes cudagraph-metrics custom-histogram-buckets data-parallel-address data-parallel-backend
    data-parallel-external-lb data-parallel-hybrid-lb data-parallel-multi-port-external-lb data-parallel-rank
    data-parallel-rpc-port data-parallel-size data-parallel-size-local data-parallel-start-rank
    data-parallel-supervisor-port dbo-decode-token-threshold dbo-prefill-token-threshold dcp-comm-backend
    dcp-kv-cache-interleave-size dcp-q-replicate decode-context-parallel-size default-chat-template-kwargs
    default-mm-loras device-ids device-memory-utilization diffusion-config disable-access-log-for-endpoints
    disable-cascade-attn disable-chunked-mm-input disable-custom-all-reduce disable-fastapi-docs
    disable-hybrid-kv-cache-manager disable-log-stats disable-nccl-for-dp-synchronization disable-sliding-window
    disable-uvicorn-access-log distributed-executor-backend distributed-timeout-seconds download-dir
    dp-supervisor-probe-failure-threshold dp-supervisor-probe-interval-s dp-supervisor-probe-timeout-s
    dp-sync-interval dtype ec-manager-config ec-transfer-config elastic-ep-max-dp-size enable-auto-tool-choice
    enable-batch-sharded-sampling enable-chunked-prefill enable-cumem-allocator enable-dbo enable-elastic-ep
    enable-ep-weight-filter enable-eplb enable-expert-parallel enable-fault-tolerance enable-flash-late-interaction
    enable-flashinfer-autotune enable-force-include-usage enable-hc-sp enable-layerwise-nvtx-tracing
    enable-log-deltas enable-log-outputs enable-log-requests enable-logging-iteration-details enable-lora
    enable-mamba-cache-stochastic-rounding enable-mamba-shared-prefix-checkpoint enable-mfu-metrics
    enable-mixed-moe-lora-format enable-mm-embeds enable-moe-shared-loras enable-nccl-comm-suspend
    enable-offline-docs enable-per-request-metrics enable-prefix-caching enable-prompt-embeds
    enable-prompt-tokens-details enable-request-id-headers enable-return-routed-experts enable-scale-out
    enable-server-load-tracking enable-shm-tensor-arena enable-sleep-mode enable-ssl-refresh
    enable-tokenizer-info-endpoint enable-tower-connector-lora enable-trace-replay enforce-eager engram-config
    eplb-config exclude-tools-when-tool-choice-none expert-placement-strategy fail-on-environ-validation
    fault-tolerance-config fingerprint-mode fingerprint-value fully-sharded-loras gdn-prefill-backend
    generation-config gpu-memory-utilization grpc grpc-port h11-max-header-count h11-max-incomplete-event-size
    headless hf-config-path hf-overrides hf-token host ignore-patterns interleave-mm-strings io-processor-plugin
    ir-op-priority jit-monitor-mode jit-monitor-verbose kda-decode-backend kda-prefill-backend kernel-config
    kv-cache-dtype kv-cache-dtype-skip-layers kv-cache-memory-bytes kv-cache-metrics kv-cache-metrics-sample
    kv-events-config kv-offloading-backend kv-offloading-size kv-sharing-fast-prefill kv-transfer-config
    language-model-only limit-mm-per-prompt linear-backend load-format log-config-file log-error-stack log-level
    logging-config logits-processors logprobs-mode long-prefill-token-threshold
    long-prefill-token-threshold-adaptive lora-dtype lora-modules lora-target-modules mamba-backend mamba-block-size
    mamba-cache-dtype mamba-cache-mode mamba-cache-philox-rounds mamba-ssm-cache-dtype mamba-ssu-algorithm
    master-addr master-port max-cpu-loras max-cudagraph-capture-size max-log-len max-logprobs max-lora-cls-labels
    max-lora-rank max-loras max-model-len max-num-active-seqs max-num-batched-tokens max-num-queued-reqs
    max-num-queued-tokens max-num-scheduled-tokens max-num-seqs max-parallel-loading-workers media-io-kwargs
    middleware mm-device-do-normalize mm-encoder-attn-backend mm-encoder-attn-dtype mm-encoder-fp8-scale-path
    mm-encoder-fp8-scale-save-margin mm-encoder-fp8-scale-save-path mm-encoder-only mm-encoder-tp-mode
    mm-hasher-algorithm mm-ipc-gpu-memory-gb mm-processor-cache-gb mm-processor-cache-type mm-processor-device
    mm-processor-kwargs mm-shm-cache-max-object-size-mb mm-tensor-ipc model model-class-overrides model-impl
    model-loader-extra-config moe-backend monokernel nnodes node-rank num-gpu-blocks-override numa-bind
    numa-bind-cpus numa-bind-nodes offload-backend offload-group-size offload-num-in-group offload-params
    offload-prefetch-step optimization-level otlp-traces-endpoint override-generation-config
    per-request-spec-decode-metrics performance-mode pipeline-parallel-size pooler-config port
    prefill-context-parallel-size prefill-schedule-interval prefix-cache-retention-interval prefix-caching-hash-algo
    prefix-match-unit profiler-config pt-load-map-location quantization quantization-config ray-workers-use-nsight
    reasoning-config reasoning-effort-map reasoning-parser reasoning-parser-plugin renderer-num-workers
    replayssm-buffer-len response-role return-sampling-mask return-tokens-as-token-ids revision root-path runner
    safetensors-load-strategy safetensors-prefetch-block-size safetensors-prefetch-num-threads scheduler-cls
    scheduler-reserve-full-isl scheduling-policy seed served-model-name show-hidden-metrics-for-version
    shutdown-timeout skip-mm-profiling skip-tokenizer-init sleep-mode-backend sleep-mode-offload-cudagraph
    sleep-preserve-parameter-names sparse-indexer-topk-backend spec-method spec-model spec-tokens
    specialize-active-lora speculative-config sse-keep-alive-interval ssl-ca-certs ssl-cert-reqs ssl-certfile
    ssl-ciphers ssl-keyfile stream-interval structured-outputs-config swa-bounded-replay tensor-parallel-size
    tokenizer tokenizer-mode tokenizer-revision tokens-only tool-call-parser tool-parser-plugin tool-server
    tool-strict-level trust-remote-code trust-request-chat-template trust-request-mm-kwargs ubatch-size uds
    use-fp64-gumbel use-replayssm use-tqdm-on-load uvicorn-log-level video-pruning-method video-pruning-rate
    watchdog-config watermark watermark-config weight-transfer-config worker-cls worker-extension-cls
"""
"""Of `vllm serve` 0.33.0, read from its wheel: each `add_argument` of vllm/engine/arg_utils.py and
vllm/entrypoints/common/cli_args.py, and each field of the latter's FrontendArgs."""

VARIABLES = """
    ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE
    ALLOW_INSECURE_SERIALIZATION ALLOW_LONG_MAX_MODEL_LEN ALLOW_RUNTIME_LORA_UPDATING ALLREDUCE_USE_FLASHINFER
    ALLREDUCE_USE_FLASHINFER_PCIE_IPC ALLREDUCE_USE_SYMM_MEM API_KEY ASSETS_CACHE ASSETS_CACHE_MODEL_CLEAN
    AUDIO_FETCH_TIMEOUT B12X_MOE_FP4_FORCE_A16 BATCH_INVARIANT BEAM_ALWAYS_CONSTRAIN_OUTPUT
    BLOCKSCALE_FP8_GEMM_FLASHINFER BUILD_COMMIT BUILD_PIPELINE BUILD_URL CACHE_ROOT CHAT_TEMPLATE_FUEL
    CHAT_TEMPLATE_RENDER_TIMEOUT COHERE2_ATTN_MOE_DUAL_STREAM_TOKEN_THRESHOLD COMPILE_CACHE_SAVE_FORMAT
    COMPUTE_NANS_IN_LOGITS CONFIGURE_LOGGING CONFIG_ROOT CPU_ATTN_SPLIT_KV CPU_CI_ENV CPU_INT4_W4A8
    CPU_KVCACHE_SPACE CPU_NUM_OF_RESERVED_CPU CPU_OMP_THREADS_BIND CUDART_SO_PATH CUDA_COMPATIBILITY_PATH
    CUSTOM_SCOPES_FOR_PROFILING DBO_COMM_SMS DCP_Q_REPLICATE DEBUG_DUMP_PATH DEBUG_LOG_API_SERVER_RESPONSE
    DEBUG_MFU_METRICS DEBUG_WORKSPACE DEEPEPLL_NVFP4_DISPATCH DEEPEP_BUFFER_SIZE_MB
    DEEPEP_HIGH_THROUGHPUT_FORCE_INTRA_NODE DEEPEP_LOW_LATENCY_USE_MNNVL DEEPEP_V2_ALLOW_HYBRID_MODE
    DEEPEP_V2_ALLOW_MULTIPLE_REDUCTION DEEPEP_V2_PREFER_OVERLAP DEEP_GEMM_WARMUP DISABLED_KERNELS
    DISABLE_COMPILE_CACHE DISABLE_DSV4_MEGAMOE_SHARED_EXPERT_FUSION DISABLE_LOG_LOGO DISABLE_PYNCCL
    DISABLE_REQUEST_ID_RANDOMIZATION DISABLE_SHARED_EXPERTS_STREAM DISTRIBUTED_USE_SPLIT_GROUP DOCKER_BUILD_CONTEXT
    DO_NOT_TRACK DP_MASTER_IP DP_MASTER_PORT DP_RANK DP_RANK_LOCAL DP_SIZE EC_SIDE_CHANNEL_HOST EC_SIDE_CHANNEL_PORT
    ELASTIC_EP_DRAIN_REQUESTS ELASTIC_EP_SCALE_UP_LAUNCH ENABLE_COHERE_API ENABLE_CUDAGRAPH_GC
    ENABLE_CUDA_COMPATIBILITY ENABLE_FLA_PACKED_RECURRENT_DECODE ENABLE_GEMM_RS ENABLE_HPC_OPS
    ENABLE_INDUCTOR_COORDINATE_DESCENT_TUNING ENABLE_INDUCTOR_MAX_AUTOTUNE ENABLE_PREGRAD_PASSES
    ENABLE_RESPONSES_API_STORE ENABLE_STARTUP_PLAN ENABLE_V1_MULTIPROCESSING ENFORCE_STRICT_TOOL_CALLING
    ENGINE_READY_TIMEOUT_S EXECUTE_MODEL_TIMEOUT_SECONDS FASTSAFETENSORS_QUEUE_SIZE FLASHINFER_ALLREDUCE_BACKEND
    FLASHINFER_AUTOTUNE_CACHE_DIR FLASHINFER_AUTOTUNE_SKIP_OPS FLASHINFER_MOE_A2A_LOW_PRECISION_COMBINE
    FLASHINFER_WORKSPACE_BUFFER_SIZE FLOAT32_MATMUL_PRECISION FORCE_AOT_LOAD GC_DEBUG GDN_DECODE_KERNEL
    GPT_OSS_HARMONY_SYSTEM_INSTRUCTIONS GPT_OSS_SYSTEM_TOOL_MCP_LABELS GPU_NIC_PCIE_MAPPING GPU_SYNC_CHECK
    HAS_FLASHINFER_CUBIN HOST_IP HTTP_MAX_REQUEST_BODY_SIZE HTTP_TIMEOUT_KEEP_ALIVE HUMMING_INPUT_QUANT_CONFIG
    HUMMING_MOE_GEMM_TYPE HUMMING_ONLINE_QUANT_CONFIG HUMMING_USE_F16_ACCUM IMAGE_FETCH_TIMEOUT IMAGE_TAG
    KEEP_ALIVE_ON_ENGINE_DEATH KIMI_K3_AUX_ATTN_RES_STREAM KIMI_K3_GEMM_AR KIMI_K3_SHARD_SP_SHARED_EXPERT
    KV_CACHE_LAYOUT KV_EVENTS_USE_INT_BLOCK_HASHES KV_OFFLOAD_MAX_BATCH_DESCRIPTORS LOGGING_COLOR
    LOGGING_CONFIG_PATH LOGGING_LEVEL LOGGING_PREFIX LOGGING_STREAM LOG_BATCHSIZE_INTERVAL LOG_MODEL_INSPECTION
    LOG_STATS_INTERVAL LOOPBACK_IP LORA_DISABLE_PDL LORA_ENABLE_DUAL_STREAM LORA_RESOLVER_CACHE_DIR
    LORA_RESOLVER_HF_REPO_LIST MAIN_CUDA_VERSION MARLIN_INPUT_DTYPE MARLIN_USE_ATOMIC_ADD MAX_AUDIO_CLIP_FILESIZE_MB
    MAX_AUDIO_DECODE_BYTES MAX_AUDIO_DECODE_DURATION_S MAX_AUDIO_PREPROCESS_WORKERS MAX_BAD_WORDS_TOTAL_TOKENS
    MAX_COMPLETION_PROMPTS MAX_EMBED_DECODE_BYTES MAX_IMAGE_PIXELS MAX_MEDIA_DOWNLOAD_SIZE_MB
    MAX_MEDIA_REQUEST_DECODE_BYTES MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB MAX_NUM_BAD_WORDS MAX_N_SEQUENCES
    MAX_STOP_STRINGS MAX_TOKENS_PER_EXPERT_FP4_MOE MEDIA_CACHE MEDIA_CACHE_MAX_SIZE_MB MEDIA_CACHE_TTL_HOURS
    MEDIA_CONNECTOR MEDIA_FETCH_MAX_RETRIES MEDIA_LOADING_THREAD_COUNT MEDIA_URL_ALLOW_REDIRECTS
    MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS MLA_DISABLE MODEL_REDIRECT_PATH MOE_ROUTING_SIMULATION_STRATEGY
    MOE_SKIP_PADDING MOE_USE_DEEP_GEMM MOONCAKE_ABORT_REQUEST_TIMEOUT MOONCAKE_BOOTSTRAP_PORT
    MOONCAKE_CONNECTOR_TIMEOUT MOONCAKE_DISK_STAGING_USABLE_RATIO MOONCAKE_LOAD_RECV_THREADS MOONCAKE_STORE_TIER_LOG
    MQ_MAX_CHUNK_BYTES_MB MSGPACK_ZERO_COPY_THRESHOLD MULTI_STREAM_GEMM_TOKEN_THRESHOLD
    MXFP4_EMULATION_DEQUANT_AT_LOAD MXFP8_EMULATION_DEQUANT_AT_LOAD NCCL_INCLUDE_PATH NCCL_SO_PATH
    NIC_SELECTION_VARS NIXL_SIDE_CHANNEL_HOST NIXL_SIDE_CHANNEL_PORT NO_USAGE_STATS NVTX_SCOPES_FOR_PROFILING
    OBJECT_STORAGE_SHM_BUFFER_NAME P2P_HANDSHAKE_TIMEOUT_S P2P_IDLE_TIMEOUT_S P2P_MAX_PEERS P2P_SIDE_CHANNEL_HOST
    P2P_SIDE_CHANNEL_PORT PATTERN_MATCH_DEBUG PLUGINS PORT PP_LAYER_PARTITION PROCESS_NAME_PREFIX
    RAISE_ON_LOGIT_NANS RANDOMIZE_DP_DUMMY_INPUTS RAY_BUNDLE_INDICES RAY_DP_PACK_STRATEGY RAY_DP_PLACEMENT_NODE_IPS
    RAY_EXTRA_ENV_VARS_TO_COPY RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY RAY_PER_WORKER_GPUS REGEX_COMPILATION_TIMEOUT_S
    REPLICATE_EMBED REQUEST_BODY_LOG_LEVEL RINGBUFFER_WARNING_INTERVAL ROCM_AITER_MLA_ASM_PADDING
    ROCM_AITER_MOE_DISPATCH_POLICY ROCM_FP8_MFMA_PAGE_ATTN ROCM_FP8_PADDING ROCM_MOE_PADDING
    ROCM_MUSE_MOE_ONLINE_QUANT ROCM_MUSE_MOE_REDUCE_DTYPE ROCM_QUICK_REDUCE_CAST_BF16_TO_FP16
    ROCM_QUICK_REDUCE_MAX_SIZE_BYTES_MB ROCM_QUICK_REDUCE_MIN_SIZE_BYTES_MB ROCM_QUICK_REDUCE_QUANTIZATION
    ROCM_QUICK_REDUCE_QUANTIZATION_MIN_SIZE_KB ROCM_SHUFFLE_KV_CACHE_LAYOUT ROCM_SLEEP_MEM_CHUNK_SIZE ROCM_USE_AITER
    ROCM_USE_AITER_CUSTOM_AR ROCM_USE_AITER_FP4BMM ROCM_USE_AITER_FP8BMM ROCM_USE_AITER_FUSION_SHARED_EXPERTS
    ROCM_USE_AITER_LINEAR ROCM_USE_AITER_LINEAR_HIPBMM ROCM_USE_AITER_MHA ROCM_USE_AITER_MLA ROCM_USE_AITER_MOE
    ROCM_USE_AITER_MOE_A4W4_DSV4 ROCM_USE_AITER_MOE_SITUV2 ROCM_USE_AITER_RMSNORM ROCM_USE_AITER_TRITON_GEMM
    ROCM_USE_AITER_TRITON_ROPE ROCM_USE_AITER_TRITON_SPARSE_MLA ROCM_USE_AITER_UNIFIED_ATTENTION
    ROCM_USE_SKINNY_GEMM RPC_BASE_PATH RUST_FRONTEND_PATH SERVER_DEV_MODE SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD
    SKIP_MODEL_NAME_VALIDATION SKIP_P2P_CHECK SKIP_PRECOMPILED_VERSION_SUFFIX SKIP_VERSION_SUFFIX
    SPARSE_INDEXER_MAX_LOGITS_MB SSM_CONV_STATE_LAYOUT STEP5_SHARD_SP_SHARED_EXPERT SYSTEM_START_DATE TARGET_DEVICE
    TEST_FORCE_LOAD_FORMAT TOOL_JSON_ERROR_AUTOMATIC_RETRY TOOL_PARSE_REGEX_TIMEOUT_SECONDS TPU_USING_PATHWAYS
    TRACE_FUNCTION TRITON_FORCE_FIRST_CONFIG TRITON_JIT_WARMUP_NUM_THREADS TRITON_USE_TD TUNED_CONFIG_FOLDER
    USAGE_SOURCE USAGE_STATS_SERVER USE_AOT_COMPILE USE_BREAKABLE_CUDAGRAPH USE_BYTECODE_HOOK USE_DEEP_GEMM
    USE_DEEP_GEMM_E8M0 USE_DEEP_GEMM_TMA_ALIGNED_SCALES USE_DIRECT_DCP_A2A USE_DIRECT_DCP_KV_GATHER
    USE_DIRECT_DCP_Q_GATHER USE_EXPERIMENTAL_PARSER_CONTEXT USE_FASTOKENS USE_FLASHINFER_MOE_INT4
    USE_FLASHINFER_SAMPLER USE_FUSED_MOE_GROUPED_TOPK USE_HW_AGNOSTIC USE_LAYERNAME USE_MEGA_AOT_ARTIFACT
    USE_MODELSCOPE USE_NCCL_SYMM_MEM USE_OINK_OPS USE_PRECOMPILED USE_PRECOMPILED_RUST USE_RUST_BENCH
    USE_RUST_FRONTEND USE_SIMPLE_KV_OFFLOAD USE_SPINLOOP_EXT USE_STANDALONE_COMPILE USE_TRITON_AWQ
    USE_V2_MODEL_RUNNER V1_OUTPUT_PROC_CHUNK_SIZE V1_USE_OUTLINES_CACHE VIDEO_FETCH_TIMEOUT VIDEO_LOADER_BACKEND
    WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY WEIGHT_OFFLOADING_DISABLE_UVA WORKER_MULTIPROC_METHOD
    WORKER_SHUTDOWN_TIMEOUT_SECONDS WSL2_ENABLE_PIN_MEMORY XGRAMMAR_CACHE_MB XLA_CACHE_PATH XLA_CHECK_RECOMPILATION
    XLA_USE_SPMD XPU_FORCE_N_CONTIG_WEIGHT XPU_INC_WNA16_BACKEND XPU_PP_MICROBATCH XPU_USE_SAMPLER_KERNEL
    ZENTORCH_WEIGHT_PREPACK
"""
"""Of vLLM 0.33.0, without the VLLM_ before each: `environment_variables` in vllm/envs.py."""

ADDRESS = "the fleet chooses where a replica listens"
TLS = "the fleet gives each replica its certificate"
KEY = "the fleet gives each release its key, in the environment"
ONE_MACHINE = "a replica is one machine, with all its cards by tensor parallelism; ask for more cards with placement"
USERS_WORDS = "it would write what users ask or are answered into the log"

OURS = {
    **dict.fromkeys(
        ("host", "port", "uds", "root-path", "grpc", "grpc-port", "headless", "VLLM_HOST_IP", "VLLM_PORT"), ADDRESS
    ),
    **dict.fromkeys(
        ("ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs", "ssl-ciphers", "enable-ssl-refresh"), TLS
    ),
    **dict.fromkeys(("api-key", "VLLM_API_KEY"), KEY),
    **dict.fromkeys(
        (
            *("nnodes", "node-rank", "master-addr", "master-port", "pipeline-parallel-size", "tensor-parallel-size"),
            *("data-parallel-size", "data-parallel-size-local", "data-parallel-address", "data-parallel-rank"),
            *("data-parallel-start-rank", "data-parallel-rpc-port", "data-parallel-external-lb", "device-ids"),
            *("data-parallel-hybrid-lb", "data-parallel-multi-port-external-lb", "data-parallel-supervisor-port"),
        ),
        ONE_MACHINE,
    ),
    "model": "the release says which model it is",
    "served-model-name": "users call the model by the service's name",
    "middleware": "the guard of the key is the only one",
    **dict.fromkeys(("runner", "convert"), "set the kind of model"),
    "max-model-len": "set context_tokens",
    "max-num-seqs": "set parallel_requests",
    "shutdown-timeout": "set SKYFERRY_SHUTDOWN_SECONDS in the task",
    "config": "a file of further flags cannot be checked; give each as a flag of its own",
    "disable-log-stats": "without its metrics nobody knows when the engine is idle",
    "disable-fastapi-docs": "the engine's own pages stay closed",
    "enable-offline-docs": "the engine's own pages stay closed",
    "allowed-local-media-path": "users would read the machine's files",
    "VLLM_SERVER_DEV_MODE": "in dev mode whoever has the key may run methods of the workers",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "with it, what is read may run code",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "an adapter would get to users past all gates; release it",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "a redirect leads past the list of hosts that images may lie on",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "a replica whose engine has died has to end, to be replaced",
    "VLLM_MODEL_REDIRECT_PATH": "the release says which model it is",
    "VLLM_USE_RUST_FRONTEND": "the guard of the key is a middleware of the Python server",
    "VLLM_RUST_FRONTEND_PATH": "the guard of the key is a middleware of the Python server",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": USERS_WORDS,
    "VLLM_REQUEST_BODY_LOG_LEVEL": USERS_WORDS,
}


RUNNERS: Mapping[ModelKind, tuple[str, ...]] = {
    "embedding": ("--runner", "pooling", "--convert", "embed"),
    "rerank": ("--runner", "pooling", "--convert", "classify"),
}
"""Said and not left to vLLM, which goes by the files alone; other kinds generate."""


def start(given: LocalStart) -> LocalCommand:
    """As the task does, in plain HTTP for loopback."""
    return LocalCommand(
        words=[
            *(str(given.python.with_name("vllm")), "serve", str(given.weights)),
            *RUNNERS.get(given.settings.kind, ("--runner", "generate")),
            *("--host", given.host, "--port", str(given.port), "--middleware", "key_guard.KeyGuard"),
            *("--served-model-name", given.service),
            *("--max-model-len", str(given.settings.context_tokens)),
            *("--max-num-seqs", str(given.settings.parallel_requests)),
            *("--shutdown-timeout", "60", "--allowed-media-domains", "none.invalid"),
            *("--disable-fastapi-docs", "--disable-uvicorn-access-log"),
            *given.flags,
        ],
        environment={
            "VLLM_API_KEY": given.api_key,
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_SERVER_DEV_MODE": "0",
            "VLLM_MAX_N_SEQUENCES": "16",
            "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
            "PYTHONPATH": str(ROOT / "blocks" / "on_machine"),
            # Its build for processors looks for the tools beside its interpreter.
            "PATH": f"{given.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        },
    )


VLLM = KnownEngine(
    name="vllm",
    package="vllm",
    metrics={
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "prompt_tokens": "vllm:prompt_tokens_total",
        "generated_tokens": "vllm:generation_tokens_total",
        "timed_tokens": "vllm:inter_token_latency_seconds_count",
        "token_seconds": "vllm:inter_token_latency_seconds_sum",
        "queued_requests": "vllm:request_queue_time_seconds_count",
        "queue_seconds": "vllm:request_queue_time_seconds_sum",
        "preemptions": "vllm:num_preemptions_total",
        "kv_cache": "vllm:kv_cache_usage_perc",
    },
    task_mark=r"\bvllm\"? serve\b",
    task="deployments/engines/vllm.yaml",
    flags_of="0.33.0",
    flags=frozenset(FLAGS.split()),
    variables=frozenset(f"VLLM_{name}" for name in VARIABLES.split()),
    variables_prefix="VLLM_",
    ours=OURS,
    together={"tool-call-parser": "enable-auto-tool-choice", "enable-auto-tool-choice": "tool-call-parser"},
    unsized=frozenset(
        {"gpu-memory-utilization", "kv-cache-dtype", "kv-cache-memory-bytes", "cpu-offload-gb", "quantization", "dtype"}
        | {"speculative-config", "spec-model", "spec-method", "num-gpu-blocks-override", "enable-lora", "max-loras"}
        | {"max-num-batched-tokens", "block-size", "hf-overrides"}
    ),
    shows_requests=frozenset({"enable-log-requests", "enable-log-outputs", "max-log-len"}),
    local=start,
    starts_within_seconds=900,
    ends_within_seconds=90,
)
