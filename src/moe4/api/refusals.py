"""Messages for calls that the system refused."""

import errno
import os

# These are bugs of ours; any other OSError comes from the machine's state.
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
    """Return whether the machine's state caused an exception, rather than a bug of ours."""
    return isinstance(error, OSError) and error.errno is not None and error.errno not in OWN_MISTAKES


def describe_refusal(error: OSError) -> str:
    """Return one line: the path, the system's reason, and what to do."""
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
