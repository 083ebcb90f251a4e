# Sourced by the scripts in tools/ and .ci/: goes to the root of the repository, times steps.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=${CARGO_TARGET_DIR:-target}
# One cache of compiled kernels for all profiles and features.
export VIVACE_KERNEL_CACHE=${VIVACE_KERNEL_CACHE:-$target/kernels}

step_lines=()
# step NAME COMMAND...: runs it and says how long it took; ends the script if it fails.
step() {
    local name=$1 start=$SECONDS status=0
    shift
    echo "== $name"
    "$@" || status=$?
    step_lines+=("$(printf '%5d s  %s' $((SECONDS - start)) "$name")")
    if [ "$status" -ne 0 ]; then
        step_summary
        echo "== $name failed with exit code $status" >&2
        exit "$status"
    fi
}

step_summary() {
    echo "== seconds per step"
    printf '%s\n' "${step_lines[@]}"
}
