"""llama.cpp, as blocks/on_machine/llama_cpp.py starts it: https://github.com/ggml-org/llama.cpp/tree/master/tools/server."""

from blocks.engines.known import KnownEngine, LocalCommand, LocalStart
from blocks.files import ROOT

FLAGS = """
    batch-size ubatch-size threads threads-batch poll predict keep seed n-gpu-layers main-gpu cache-ram cache-reuse
    ctx-checkpoints rope-freq-base rope-freq-scale slot-prompt-similarity chat-template flash-attn cache-type-k
    cache-type-v cache-prompt cont-batching swa-full warmup check-tensors
"""
"""Of llama-server's, those that the program passes on, by their names there; a test compares the two."""

PAGES = "the engine's own pages stay closed"
TLS = "the fleet gives each replica its certificate"

OURS = {
    **dict.fromkeys(("host", "port", "reuse-port", "api-prefix"), "the fleet chooses where a replica listens"),
    **dict.fromkeys(("api-key", "api-key-file"), "the fleet gives each release its key, in the environment"),
    **dict.fromkeys(("ssl-key-file", "ssl-cert-file", "certificate", "private-key"), TLS),
    **dict.fromkeys(("model", "hf-repo", "model-url", "weights"), "the release says which model it is"),
    **dict.fromkeys(("ui", "webui", "path", "slots", "props"), PAGES),
    "alias": "users call the model by the service's name",
    "ctx-size": "set context_tokens",
    "context-tokens": "set context_tokens",
    "parallel": "set parallel_requests",
    "kv-unified": "each request has a whole context of its own",
    "context-shift": "a prompt is never cut",
    "fit": "a replica has the context that was ordered, or none",
    "metrics": "without its metrics nobody knows when the engine is idle",
    "log-verbosity": "its warnings quote from requests that it cannot parse",
    "verbose": "its warnings quote from requests that it cannot parse",
}


def start(given: LocalStart) -> LocalCommand:
    return LocalCommand(
        words=[
            *(str(given.python), "-m", "blocks.on_machine.llama_cpp"),
            *("--weights", str(given.weights), "--host", given.host, "--port", str(given.port)),
            *("--context-tokens", str(given.settings.context_tokens)),
            *("--parallel", str(given.settings.parallel_requests)),
            *("--kind", given.settings.kind),
            *("--alias", given.service),
            *given.flags,
        ],
        environment={
            "SKYFERRY_API_KEY": given.api_key,
            "PYTHONPATH": str(ROOT),
            # Where it aborts, its last words are why, and no page of a debugger's.
            "GGML_NO_BACKTRACE": "1",
        },
    )


LLAMA_CPP = KnownEngine(
    name="llama.cpp",
    package="xllamacpp",
    metrics={
        "running": "llamacpp:requests_processing",
        "waiting": "llamacpp:requests_deferred",
        "prompt_tokens": "llamacpp:prompt_tokens_total",
        "generated_tokens": "llamacpp:tokens_predicted_total",
        "timed_tokens": "llamacpp:tokens_predicted_total",
        "token_seconds": "llamacpp:tokens_predicted_seconds_total",
    },
    task_mark=r"skyferry/llama_cpp\.py\b",
    task="deployments/engines/llama_cpp.yaml",
    flags=frozenset(FLAGS.split()),
    ours=OURS,
    unsized=frozenset({"batch-size", "ubatch-size", "cache-ram", "cache-type-k", "cache-type-v", "n-gpu-layers"}),
    weights="one GGUF file",
    local=start,
)
