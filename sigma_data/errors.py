"""Errors that a user can cause: each message is one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations


def reason_of(error: Exception) -> str:
    """What went wrong, for a message that names the file: an OSError's words without its number and its path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class SigmaError(Exception):
    """Base of every error with a message for the user; the command line exits with status 2."""


class ConfigError(SigmaError):
    """An option, a source string or a configuration file is invalid."""


class SourceError(SigmaError):
    """A source as a whole cannot be read (a single bad row is a `Rejection`, never this)."""


class CorpusError(SigmaError):
    """A corpus on disk is missing, unfinished, damaged, or of another configuration."""


class ShardError(CorpusError):
    """A tar is not a shard as `sigma_data.corpus.shard` writes it."""


class BuildError(SigmaError):
    """A build cannot continue: no space, a source that changed, a worker that died."""


class SequenceError(SigmaError):
    """A sample cannot be laid out as a sequence of the model."""


class LoaderError(SigmaError):
    """Training data cannot be read: too many unreadable images, a worker that died or does not answer."""


class TrainError(SigmaError):
    """A training run cannot continue: non-finite losses, a rank that died."""
