"""The program of the child process: a llama.cpp server that ends with the process that started it.

This program runs as a file, not as a module of the package, and imports only the standard library and xllamacpp. It
reads its configuration from stdin as one line of JSON, because the API key must not appear in a command line. It writes
the server's address and context length to stdout as one line of JSON. The server ends when stdin is closed.
"""

import http.client
import json
import os
import signal
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit


def main() -> None:
    # The parent process decides when this process ends, but Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Redirect the output of native code to stderr: stdout must contain only the status line.
    status_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    configuration = json.loads(sys.stdin.buffer.readline() or "null")
    if configuration is None:
        return  # the parent ended before it sent the configuration
    threading.Thread(target=_exit_when_stdin_closes, daemon=True).start()
    if os.name == "posix":
        threading.Thread(target=_exit_when_parent_ends, args=(os.getppid(),), daemon=True).start()
    server = _start_server(configuration)
    url = server.listening_address
    status = {"url": url, "context_length": _read_context_length(url, configuration["api_key"])}
    with status_stream:
        status_stream.write(json.dumps(status) + "\n")
    threading.Event().wait()


def _exit_when_stdin_closes() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def _exit_when_parent_ends(parent_pid: int) -> None:
    """Exit when the parent process ends, which changes the parent's process id.

    Closing stdin is not enough: if a fork of the parent is still running, stdin stays open.
    """
    while os.getppid() == parent_pid:
        time.sleep(1)
    os._exit(0)


def _start_server(configuration: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = configuration["weights"]
    params.model_alias = {configuration["name"]}
    if configuration["adapter"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(configuration["adapter"], 1.0)]

    params.hostnames = ["127.0.0.1"]
    params.port = 0  # the operating system chooses a free port
    params.api_keys = [configuration["api_key"]]
    params.cors_origins = ""  # web pages must not read responses
    params.cors_credentials = False
    params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = params.ui = False
    params.offline = True

    # n_ctx is the size of the whole cache, which is divided evenly among the concurrent requests (slots).
    params.n_parallel = configuration["concurrency"]
    params.n_ctx = configuration["context_length"] * configuration["concurrency"]
    params.kv_unified = False
    params.cache_prompt = True
    # By default, up to 8 GiB of earlier prompts are cached in addition to the slots. This would not help: windows share
    # only the first lines of their prompts, which each slot caches anyway.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    # The server notices a closed connection only between batches. With the default of 2,048 tokens, it would notice it
    # later. A smaller batch is not slower, because the server computes only 512 tokens at a time (n_ubatch).
    params.n_batch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = configuration["threads"]
    params.verbosity = 1  # errors only
    return xllamacpp.Server(params)  # returns when the model is loaded and the port is open


def _read_context_length(url: str, api_key: str) -> int:
    """Return the context length per request. The server rounds it up, and limits it to that of the model's training."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {api_key}"})
    model_card = json.load(connection.getresponse())["data"][0]
    connection.close()
    return int(model_card["meta"]["n_ctx"])


if __name__ == "__main__":
    main()
