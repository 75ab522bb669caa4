#!/bin/sh
# Fetch the torch and torchvision of constraints.txt as wheels: fetch_torch.sh PYTHON FOLDER
# TORCH_CPU_INDEX: where from; empty: pip's own configuration. TORCH_SHA256: the only hashes that are accepted, apart by blanks;
# empty: any. What came is written to FOLDER/torch-wheels.sha256 in any case, and kept in the image.
set -eu
python=$1 folder=$2
# Several builds carry one version, and a hash fits one of them; so these two are pinned by version, and by hash on request.
"$python" -m pip download --no-cache-dir --quiet --no-deps --only-binary :all: --dest "$folder" --requirement constraints.txt \
    ${TORCH_CPU_INDEX:+--index-url "$TORCH_CPU_INDEX"}
cd "$folder"
sha256sum -- *.whl > torch-wheels.sha256
cat torch-wheels.sha256
[ -z "${TORCH_SHA256:-}" ] || while read -r sum wheel; do
    case " $TORCH_SHA256 " in
        *" $sum "*) ;;
        *) echo "$wheel has SHA-256 $sum, which is not in TORCH_SHA256: check where it came from, or give the right hashes" >&2; exit 1 ;;
    esac
done < torch-wheels.sha256
