#!/bin/sh
# Install the torch and torchvision of constraints.txt, without what they depend on: install_torch.sh TOOLS ENVIRONMENT SUMS
# TORCH_CPU_INDEX: where from; empty: pip's own configuration. TORCH_SHA256: the only hashes that are accepted, apart by blanks;
# empty: any. What came is written to SUMS in any case, and kept in the image.
set -eu
tools=$1 environment=$2 sums=$(readlink -f "$3")
wheels=$(mktemp -d)
# Several builds carry one version, and a hash fits one of them; so these two are pinned by version, and by hash on request.
"$tools/bin/python" -m pip download --quiet --no-deps --only-binary :all: --dest "$wheels" --requirement constraints.txt \
    ${TORCH_CPU_INDEX:+--index-url "$TORCH_CPU_INDEX"}
(cd "$wheels" && sha256sum -- *.whl) | tee "$sums"
[ -z "${TORCH_SHA256:-}" ] || while read -r sum wheel; do
    case " $TORCH_SHA256 " in
        *" $sum "*) ;;
        *) echo "$wheel has SHA-256 $sum, not one of TORCH_SHA256: check where it came from, or give its hash" >&2; exit 1 ;;
    esac
done < "$sums"
"$tools/bin/python" -m pip --python "$environment/bin/python" install --quiet --no-deps --no-index --find-links "$wheels" \
    --requirement constraints.txt
rm -r "$wheels"
