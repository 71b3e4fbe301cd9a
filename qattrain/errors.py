"""Every mistake a user can make, as one family of exceptions.

QattrainError
  +-- ConfigError       a value, flag, key or file of the configuration
  +-- DataError         a dataset, an image: missing, truncated, corrupt, unreachable
  +-- CheckpointError   a checkpoint: missing, truncated, altered, foreign, of another version
  +-- TrainingError     a run that cannot go on: not-a-number loss, unwritable run folder
  +-- ExportError       a model that cannot become integers, or a file that does not equal it
  +-- ReportError       a picture or a page that cannot be made or written

Libraries raise them; only `qattrain.cli.main` catches them, prints the one line and exits with 1. A message says what
is wrong, the value found, what is allowed, and the remedy, on one line.
"""


class QattrainError(Exception):
    """Base of all errors whose cause is the user's input or environment, not a bug."""


class ConfigError(QattrainError):
    """A value of the configuration is not allowed, or does not fit another one."""


class DataError(QattrainError):
    """A dataset or an image cannot be read as what it claims to be."""


class CheckpointError(QattrainError):
    """A checkpoint cannot be read, trusted or written."""


class TrainingError(QattrainError):
    """Training cannot start or go on."""


class ExportError(QattrainError):
    """A model has no integer form, or an exported file differs from it."""


class ReportError(QattrainError):
    """A picture or a page cannot be made or written."""
