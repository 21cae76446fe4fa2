"""Checks of the integrations against the real frameworks: scripts, each run in an environment that has the framework.

    python -m tests.integrations.frameworks.check_langchain URL

`URL` is a loopback model server's. They end with an error where something is not as it should be.
"""
