"""What to say of a call that the system refused."""

import errno
import os

# An OSError with one of these is a call of ours that makes no sense; any other is the state of the machine.
OWN_MISTAKES = (errno.EBADF, errno.EFAULT, errno.EINVAL)
REMEDIES = {
    errno.EACCES: "check the permissions, or run it as another user",
    errno.EPERM: "check the permissions, or run it as another user",
    errno.ENOSPC: "free some space, or write to another volume",
    errno.EDQUOT: "free some space, or write to another volume",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOENT: "check the path",
    errno.EIO: "check the disk",
}


def is_refusal(error: Exception) -> bool:
    """Say whether an exception is the machine's doing, not a mistake of ours."""
    return isinstance(error, OSError) and error.errno is not None and error.errno not in OWN_MISTAKES


def describe_refusal(error: OSError) -> str:
    """Return one line: the path, what the system says, what to do."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return "the working directory no longer exists; change to one that does"
    names = " -> ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if _is_path(name))
    reason = error.strerror or str(error)
    text = f"{names}: {reason}" if names else reason
    remedy = REMEDIES.get(error.errno or 0)
    return f"{text}; {remedy}" if remedy else text


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)
