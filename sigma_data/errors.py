"""The errors a user can meet: each says in one sentence what is wrong, where, and what to do."""

from __future__ import annotations


class SigmaError(Exception):
    """Base of every error worded for the person at the keyboard; the command line exits with 2."""


class ConfigError(SigmaError):
    """An option, a source string or a configuration file does not fit."""


class SourceError(SigmaError):
    """A source as a whole cannot be read (a single bad row is a `Rejection`, never this)."""


class CorpusError(SigmaError):
    """A corpus on disk is missing, unfinished, damaged, or belongs to another configuration."""


class ShardError(CorpusError):
    """A tar is not the strict shard that `sigma_data.corpus.shard` writes."""


class BuildError(SigmaError):
    """A build cannot go on: no space, a source that changed underneath, a worker that died."""


class SequenceError(SigmaError):
    """A sample cannot be laid out as a sequence of the model."""


class LoaderError(SigmaError):
    """Training data cannot be read on: too many bad pictures, a worker that died or does not answer."""


class TrainError(SigmaError):
    """A training run cannot go on: losses that are no numbers, a rank that died."""
