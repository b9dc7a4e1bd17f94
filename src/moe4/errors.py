"""Every error that a user can meet, one class per cause.

    Moe4Error                     exit code 2 and one line on stderr, never a traceback
    ├── CheckpointError           the checkpoint cannot be read
    │   ├── MissingFileError        a file that the index or the config names is missing
    │   ├── TruncatedShardError     a shard is shorter than its header says, or has no valid header
    │   ├── UnsafePathError         an index names a path outside the checkpoint's folder
    │   ├── TemplateError           its chat template takes too much time or memory
    │   ├── TensorError             a tensor has the wrong shape or dtype, or is not finite
    │   └── UnsupportedModelError   moe4 cannot run its architecture layer by layer
    ├── HubError                  a repository on the hub cannot be found, read or reached
    ├── ArgumentError             an argument of a function of `moe4` has a wrong value
    ├── AccessError               the system does not allow a file or folder to be read or written
    ├── RecipeError               a recipe, option or group size is wrong or does not fit the model
    ├── CalibrationError          a calibration file or its content cannot be used
    ├── OutputError               the output folder cannot be written
    │   ├── OutputNotEmptyError     the folder holds something else
    │   ├── DiskSpaceError          the volume is too small for the release
    │   └── ResumeError             an unfinished run has another recipe, source or calibration
    ├── MemoryBudgetError         the work needs more memory than it may use
    ├── RankError                 in a run on several processes, one has died or sees another input
    ├── ProbeError                a release's expected answers cannot be made or read
    ├── EvaluationError           a task or its questions cannot be evaluated
    ├── ServeError                a server cannot be started or reached
    ├── DeployError               a deployment cannot work, or a manifest cannot be read
    ├── KernelError               a kernel was called with wrong ids, shapes or dtypes
    └── MissingDependencyError    an optional package is not installed

A message names what is wrong and where, what was expected, what was found, and what to do.

Exit codes of the command line:

    0    done
    1    a check failed: the release is damaged, the server's answers are wrong, the model does not fit
    2    bad input: a Moe4Error, a wrong option, a file or volume that cannot be used
    3    moe4 lint found no error, but did not examine something
    70   a bug in moe4; the message says how to report it
    130  interrupted
    141  the reader of standard output closed it
"""

INPUT_EXIT_CODE = 2
UNREAD_EXIT_CODE = 3  # of `moe4 lint`: no error, but something was not examined
FAULT_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130
PIPE_EXIT_CODE = 141


class Moe4Error(Exception):
    """Base of all errors that the input, the environment or the request causes, and never a bug of ours."""

    exit_code = INPUT_EXIT_CODE


class CheckpointError(Moe4Error):
    """The checkpoint cannot be read."""


class MissingFileError(CheckpointError):
    """A file that the index or the config names is missing."""


class TruncatedShardError(CheckpointError):
    """A shard is shorter than its header says, or has no valid header."""


class UnsafePathError(CheckpointError):
    """An index names a path outside the checkpoint's folder."""


class TemplateError(CheckpointError):
    """A chat template takes too much time or memory."""


class TensorError(CheckpointError):
    """A tensor has the wrong shape or dtype, or holds NaN or Inf."""


class UnsupportedModelError(CheckpointError):
    """moe4 cannot run this architecture layer by layer."""


class HubError(Moe4Error):
    """A repository on the hub cannot be found, read or reached."""


class ArgumentError(Moe4Error, ValueError):
    """An argument of a function of `moe4` has a wrong value."""


class AccessError(Moe4Error):
    """The system does not allow a file or folder to be read or written."""


class RecipeError(Moe4Error):
    """A recipe, option or group size is wrong, or does not fit the model."""


class CalibrationError(Moe4Error):
    """A calibration file or its content cannot be used."""


class OutputError(Moe4Error):
    """The output folder cannot be written."""


class OutputNotEmptyError(OutputError):
    """The output folder holds something else."""


class DiskSpaceError(OutputError):
    """The volume is too small for the release."""


class ResumeError(OutputError):
    """The unfinished run in the output folder has another recipe, source or calibration."""


class MemoryBudgetError(Moe4Error):
    """The work needs more memory than it may use."""


class RankError(Moe4Error):
    """In a run on several processes, one has died, hangs, or sees another input than the first."""


class ProbeError(Moe4Error):
    """A release's expected answers cannot be made, or their file is damaged."""


class EvaluationError(Moe4Error):
    """A task or its questions cannot be evaluated, or the harness failed."""


class ServeError(Moe4Error):
    """A server cannot be started or reached."""


class DeployError(Moe4Error):
    """A deployment cannot work, an option does not fit it, or a manifest cannot be read."""


class KernelError(Moe4Error, ValueError):
    """A kernel was called with wrong ids, shapes or dtypes."""


class MissingDependencyError(Moe4Error):
    """An optional package is not installed."""
