#!/bin/sh
# Make installed packages ready to be copied into an image: settle.sh PYTHON FOLDER [PREFIX]
# FOLDER: where they lie now; PREFIX: what of that path the image does not have. Removes tests and old byte code, compiles, and
# gives every file one fixed time, so that the same versions make the same layer in every build.
set -eu
python=$1 folder=$2 prefix=${3:-}
# Tests of dependencies; numpy.testing, sqlalchemy.testing and torch.testing are imported by code and stay
find "$folder" -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} +
# The file system is read-only at run time: compiled here. Unchecked hashes need no time of the source; one process and a fixed
# seed make the same bytes again. The file that is left out is torch's own test of a later Python's syntax.
PYTHONHASHSEED=0 "$python" -m compileall -q -j 1 --invalidation-mode unchecked-hash -x /py312_intrinsics.py \
    ${prefix:+-s "$prefix" -p /} "$folder"
find "$folder" -exec touch --no-dereference --date=1980-01-01T00:00:00Z {} +
