"""A real HTTP server that answers like a reasoning model behind an OpenAI-compatible API, faults included.

`marked_passages`: queries, passages and the oracle that ranks them. `fault_plan`: what fails. `responses`: the
text of one response. `streaming` and `server`: HTTP. `request_log`: what was received. `running`: ways to run it.

    python -m tests.fakes.model_server --port 0 --cut 0.28 --http-429 0.11:6

prints its base URL and serves until its standard input is closed. `POST /control` changes the plan of a running server,
`GET /log` returns the requests that it received, `DELETE /log` clears them.
"""
