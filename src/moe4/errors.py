"""Every error a user can meet, one class per cause.

    Moe4Error                     exit code 2, one line on stderr, never a traceback
    ├── CheckpointError           the source checkpoint cannot be read as one
    │   ├── MissingFileError        a file the index or the config names is not there
    │   ├── TruncatedShardError     a shard is shorter than its header says
    │   ├── UnsafePathError         an index names a path outside the checkpoint's folder
    │   ├── TemplateError           its chat template takes too much time or memory
    │   ├── TensorError             a tensor has the wrong shape or dtype, or is not finite
    │   └── UnsupportedModelError   an architecture moe4 cannot stream
    ├── HubError                  a repository on the hub that cannot be found, read or reached
    ├── ArgumentError             an argument of a function of `moe4` that cannot be what it is
    ├── AccessError               a file or folder that the system does not let be read or written
    ├── RecipeError               a recipe, option or group size that cannot be followed
    ├── CalibrationError          a calibration file or its content cannot be used
    ├── OutputError               the output folder cannot be written
    │   ├── OutputNotEmptyError     it holds something else
    │   ├── DiskSpaceError          the volume is too small for the release
    │   └── ResumeError             it was begun with another recipe, source or calibration
    ├── MemoryBudgetError         the work needs more memory than it may have
    ├── RankError                 a process of a run on several has died or sees another input
    ├── ProbeError                a release's expected answers that cannot be made or read
    ├── EvaluationError           a task, or its questions, that cannot be evaluated
    ├── ServeError                a release or server that cannot be started or reached
    ├── DeployError               a deployment that cannot work, or a manifest that cannot be read
    ├── KernelError               an expert call with ids, shapes or dtypes the kernel refuses
    └── MissingDependencyError    an optional package is not installed

A message names what is wrong and where, what was expected, what was found, and what to do.

Exit codes of the command line:

    0    done
    1    a check failed: the release is damaged, the server's answers are wrong, the model does not fit
    2    bad input: a Moe4Error, an option that makes no sense, a file or volume that cannot be used
    3    moe4 lint found no error, and did not look at something
    70   a fault of moe4's own, which it asks to report
    130  interrupted
    141  the reader of standard output has left
"""

INPUT_EXIT_CODE = 2
UNREAD_EXIT_CODE = 3  # of `moe4 lint`: no error, and something was not looked at
FAULT_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130
PIPE_EXIT_CODE = 141


class Moe4Error(Exception):
    """Base of all errors caused by input, environment or request; never by a bug of ours."""

    exit_code = INPUT_EXIT_CODE


class CheckpointError(Moe4Error):
    """The source checkpoint cannot be read as one."""


class MissingFileError(CheckpointError):
    """A file that the index or the config names is not there."""


class TruncatedShardError(CheckpointError):
    """A shard is shorter than its header says, or its header is not one."""


class UnsafePathError(CheckpointError):
    """An index names a path outside the checkpoint's folder."""


class TemplateError(CheckpointError):
    """A chat template takes more time or memory than any should."""


class TensorError(CheckpointError):
    """A tensor has the wrong shape or dtype, or holds NaN or Inf."""


class UnsupportedModelError(CheckpointError):
    """The architecture is not one moe4 can stream."""


class HubError(Moe4Error):
    """A repository on the hub that cannot be found, read or reached."""


class ArgumentError(Moe4Error, ValueError):
    """An argument of one of moe4's functions has a value that it cannot have."""


class AccessError(Moe4Error):
    """The system does not let a file or folder be read or written."""


class RecipeError(Moe4Error):
    """A recipe, option or group size that cannot be followed."""


class CalibrationError(Moe4Error):
    """A calibration file, or what it holds, cannot be used."""


class OutputError(Moe4Error):
    """The output folder cannot be written."""


class OutputNotEmptyError(OutputError):
    """The output folder holds something else."""


class DiskSpaceError(OutputError):
    """The volume is too small for the release."""


class ResumeError(OutputError):
    """The output was begun with another recipe, source or calibration."""


class MemoryBudgetError(Moe4Error):
    """The work needs more memory than it may have."""


class RankError(Moe4Error):
    """A process of a run on several has died, hangs, or sees another input than the first."""


class ProbeError(Moe4Error):
    """A release's expected answers that cannot be made, or a file of them that is damaged."""


class EvaluationError(Moe4Error):
    """A task, or its questions, that cannot be evaluated; or a harness that failed."""


class ServeError(Moe4Error):
    """A release or server that cannot be started or reached."""


class DeployError(Moe4Error):
    """A deployment that cannot work, an option that does not fit it, or a manifest that cannot be read."""


class KernelError(Moe4Error, ValueError):
    """An expert call with ids, shapes or dtypes that the kernel refuses."""


class MissingDependencyError(Moe4Error):
    """An optional package is not installed."""
