#!/usr/bin/env bash
# All tests: most of them side by side, and beside those the ones that count everything on the machine, in groups that
# each believe to be alone on it.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=.venv/bin/python
# These count processes, mounts, namespaces and links of the whole machine before and after.
GROUPS_ALONE=(
    "tests/attacks/test_matrix.py tests/attacks/test_command.py tests/attacks/test_layers.py"
    "$(ls -d tests/attacks/test_*.py | grep -v "_matrix\|_command\|_layers" | tr '\n' ' ')"
    "tests/chaos tests/compat tests/unit/test_bench_run.py"
    "tests/unit/test_oci_live.py tests/unit/test_image_unpack.py tests/unit/test_templates_image.py $(echo tests/acceptance/test_images*.py)"
)
# Two of them at a time: they wait more than they compute.
LANES=("0 2" "1 3")
LOGS=$(mktemp -d)
running=()
failed=0
# Ending a group's first process ends all it started: they are in a namespace of processes of its own.
trap 'kill "${running[@]}" 2>/dev/null; rm -rf "$LOGS"' EXIT

# One lane: its groups one after the other, each with its output kept aside.
lane() {
    local group=0 status=0
    trap 'kill "$group" 2>/dev/null; exit 1' TERM
    for n in $1; do
        tools/apart.sh "$PYTHON" -m pytest -p no:cacheprovider ${GROUPS_ALONE[n]} >"$LOGS/$n" 2>&1 &
        group=$!
        wait "$group" || status=1
    done
    return "$status"
}

# As an ordinary user there are no namespaces to be alone in: then one after the other, in the end.
if [ "$(id -u)" = 0 ]; then
    for n in "${!GROUPS_ALONE[@]}"; do echo "apart: ${GROUPS_ALONE[n]}"; done
    for groups in "${LANES[@]}"; do
        lane "$groups" &
        running+=($!)
    done
fi

# The longest files first, the others in their order: the unit tests, many and short, fill the gaps at the end.
"$PYTHON" -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder \
    tests/acceptance/test_builds.py tests/e2b/test_matrix.py tests \
    $(printf -- '--ignore=%s ' tests/attacks ${GROUPS_ALONE[*]}) || failed=1

for lane in ${running[@]+"${running[@]}"}; do
    wait "$lane" || failed=1
done
running=()
for n in "${!GROUPS_ALONE[@]}"; do
    if [ "$(id -u)" = 0 ]; then cat "$LOGS/$n"; else "$PYTHON" -m pytest ${GROUPS_ALONE[n]} || failed=1; fi
done
exit "$failed"
