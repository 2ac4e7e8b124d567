"""The command line: parse, call the library, print."""

from cwf_milvus.cli.program import main

__all__ = ["main"]
