#!/bin/sh
# Make an image's environment ready to be copied: finish.sh TOOLS ENVIRONMENT DISTRIBUTION PYPROJECT SBOM
# Checks that nothing is missing, writes the SBOM of what is installed, removes tests, compiles, sets all times to SOURCE_DATE_EPOCH.
set -eu
tools=$1 environment=$2 distribution=$3 pyproject=$4 sbom=$5
python=$environment/bin/python
"$tools/bin/python" -m pip --python "$python" check
mkdir -p "$(dirname "$sbom")"
# --output-reproducible leaves out the time and the serial number
"$tools/bin/cyclonedx-py" environment --output-reproducible --of JSON --pyproject "$pyproject" --mc-type application \
    --output-file "$sbom" "$python"
grep -q "\"name\": \"$distribution\"" "$sbom" || { echo "$sbom does not name $distribution" >&2; exit 1; }
# Tests of dependencies; sqlalchemy.testing, numpy.testing and torch.testing are imported by code and stay
find "$environment"/lib -depth -type d -name tests -exec rm -rf {} +
find "$environment" -depth -type d -name __pycache__ -exec rm -rf {} +
# The file system is read-only at run time: compiled here. Unchecked hashes need no time of the source; one process and a fixed
# seed make the same bytes again.
PYTHONHASHSEED=0 "$python" -m compileall -q -j 1 --invalidation-mode unchecked-hash "$environment"/lib
find "$environment" "$(dirname "$sbom")" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
