"""Command line `xai-audit`; nothing heavy is imported until a command needs it."""

from xai_callbacks.cli.main import main

__all__ = ["main"]
