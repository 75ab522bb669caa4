#!/bin/sh
# Check an image's environment and write the SBOM of what is installed in it: check.sh TOOLS ENVIRONMENT PYPROJECT SBOM
set -eu
tools=$1 environment=$2 pyproject=$3 sbom=$4
"$tools/bin/python" -m pip --python "$environment/bin/python" check
mkdir -p "$(dirname "$sbom")"
# --output-reproducible leaves out what differs from run to run
"$tools/bin/cyclonedx-py" environment --output-reproducible --of JSON --pyproject "$pyproject" --mc-type application \
    --output-file "$sbom" "$environment/bin/python"
