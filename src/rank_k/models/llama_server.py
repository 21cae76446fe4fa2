"""The child's program: one llama.cpp server, for as long as the process that started it lives.

Run as a file, not as a part of the package: it imports the standard library and xllamacpp alone. One line of
JSON on stdin says what to serve, with the API key, which so stands in no command line; one line of JSON on
stdout answers with address and context. The end of stdin is the end of the server.
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
    # Whoever started us decides when we end. A Ctrl-C at the terminal reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What native code writes to stdout must not be taken for our answer.
    status_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    configuration = json.loads(sys.stdin.buffer.readline() or "null")
    if configuration is None:
        return  # the parent was gone before it could say anything
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
    """Stdin stays open if the parent has forked and its copy lives on, so its process id is watched as well."""
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
    params.port = 0  # the system picks a free one, so that two servers never want the same
    params.api_keys = [configuration["api_key"]]
    params.cors_origins = ""  # no web page may read an answer
    params.cors_credentials = False
    params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = params.ui = False
    params.offline = True

    # n_ctx is the whole of the cache and is cut evenly between the slots.
    params.n_parallel = configuration["concurrency"]
    params.n_ctx = configuration["context_length"] * configuration["concurrency"]
    params.kv_unified = False
    params.cache_prompt = True
    # By default up to 8 GiB of former prompts are kept besides the slots. Windows share little but their first
    # lines, which a slot has anyway.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    # A client that hangs up is noticed between batches: with the default of 2,048 a long prompt would be
    # worked through first. 512 is what is computed at a time in any case (n_ubatch).
    params.n_batch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = configuration["threads"]
    params.verbosity = 1  # errors only
    return xllamacpp.Server(params)  # returns when the model is loaded and the port open


def _read_context_length(url: str, api_key: str) -> int:
    """Tokens per slot as the server has it: rounded up to its step, capped at what the model was trained for."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {api_key}"})
    model_card = json.load(connection.getresponse())["data"][0]
    connection.close()
    return int(model_card["meta"]["n_ctx"])


if __name__ == "__main__":
    main()
