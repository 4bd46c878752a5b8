"""A C++ compiler that reads the headers of torch once and not for every file.

    pch_cxx.py STATE_FOLDER COMPILER [COMPILER_ARGUMENT ...] -- ARGUMENT ...

mmcv's files are short and include the whole of torch through pytorch_cpp_helper.hpp,
so that 15 of 17 seconds go to the same headers. Here the first file precompiles that
header, with the very flags that it was called with, and every file takes the result.
Debug information, which nobody reads in a wheel, is left out.

What a compiler refuses (another's precompiled header, flags that differ, a kernel that
gives it other addresses) is compiled as it would have been without us. Which files went
which way is in STATE_FOLDER/compiled. Runs with Python 3.8 and nothing else: it is
called by the build, in whatever environment that is.
"""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

HEADER = "pytorch_cpp_helper.hpp"
SOURCES = (".cpp", ".cc", ".cxx")
# What names this file's output and dependencies, with and without a value.
OWN_VALUES = ("-o", "-MF", "-MT", "-MQ")
OWN_FLAGS = ("-c", "-MD", "-MMD", "-MP")
# The text beside a precompiled header is read only by a compiler that refused it.
NOT_USED = "the precompiled header was not used"


def split(arguments):
    """Tell one file's own arguments from the flags that all files have.

    Returns:
        tuple: The source, or None where this is not the compilation of one C++ file,
        and the flags.
    """
    flags, sources = [], []
    own = iter(arguments)
    for argument in own:
        if argument in OWN_VALUES:
            next(own, None)
        elif not argument.startswith("-") and argument.endswith(SOURCES):
            sources.append(argument)
        elif argument not in OWN_FLAGS:
            flags.append(argument)
    if "-c" in arguments and len(sources) == 1:
        return sources[0], flags
    return None, flags


def find_header(flags):
    """The header that is worth precompiling, in the folders of ``-I``."""
    follows = False
    for flag in flags:
        folder = flag if follows else flag[2:] if flag.startswith("-I") else ""
        follows = flag in ("-I", "-isystem")
        if folder and (Path(folder) / HEADER).is_file():
            return Path(folder) / HEADER
    return None


def precompiled(state, compiler, flags, header):
    """The file to include, made by whoever comes first; the others wait for it.

    Returns:
        Path: Of the header as it is to be included, or None if none can be made.
    """
    key = hashlib.sha256("\0".join(compiler + flags).encode()).hexdigest()[:16]
    folder = state / key
    folder.mkdir(exist_ok=True)
    beside = folder / HEADER
    made, refused = folder / (HEADER + ".gch"), folder / "refused"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists() and not refused.exists():
            beside.write_text(f'#error "{NOT_USED}"\n')
            making = folder / "making"
            command = [*compiler, *flags, "-x", "c++-header", str(header)]
            done = subprocess.run([*command, "-o", str(making)], stderr=subprocess.PIPE)
            if done.returncode or not making.exists():
                refused.write_bytes(done.stderr)
            else:
                making.rename(made)
    return None if refused.exists() else beside


def compile_one(state, compiler, arguments, source, flags):
    """Compile a file with the precompiled header, or as it would have been without.

    Returns:
        int: The compiler's exit status.
    """
    compiler_flags = ["-g0"]
    header = find_header(flags)
    include = header and precompiled(state, compiler, flags + compiler_flags, header)
    how = "plain"
    if include:
        with_header = ["-Winvalid-pch", "-include", str(include)]
        done = subprocess.run(
            compiler + arguments + compiler_flags + with_header, stderr=subprocess.PIPE
        )
        if done.returncode == 0:
            how = "precompiled"
            sys.stderr.buffer.write(done.stderr)
        elif NOT_USED.encode() in done.stderr:
            # It will refuse the others as well.
            (include.parent / "refused").write_bytes(done.stderr)
    if how == "plain":
        done = subprocess.run(compiler + arguments + compiler_flags)
    if done.returncode == 0:
        with open(state / "compiled", "a") as record:
            record.write(f"{how} {source}\n")
    return done.returncode


def main():
    """Pass everything on, but for what can be made faster."""
    state, arguments = Path(sys.argv[1]), sys.argv[2:]
    end = arguments.index("--")
    compiler, arguments = arguments[:end], arguments[end + 1 :]
    # mmcv before 2.1 asks for C++14, and torch's headers since 2.1 refuse it.
    arguments = ["-std=c++17" if a == "-std=c++14" else a for a in arguments]
    source, flags = split(arguments)
    if source is None:
        return subprocess.run(compiler + arguments).returncode
    return compile_one(state, compiler, arguments, source, flags)


if __name__ == "__main__":
    sys.exit(main())
