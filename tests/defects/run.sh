#!/bin/sh
# Plants each defect of this folder in a copy of the tree and runs the test that must catch it.
# A patch names its test in a line "# test: <arguments of cargo test>". Usage: run.sh [name...]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cargo=${CARGO:-cargo}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT INT TERM
copy() {
  (cd "$top" && git ls-files -z -co --exclude-standard | xargs -0 tar cf - --ignore-failed-read 2>/dev/null) | tar xf - -C "$tree"
}
copy
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$top/target}/defects"
caught=0
missed=0
for patch in "$here"/*.patch; do
  name=$(basename "$patch" .patch)
  if [ $# -gt 0 ]; then
    case " $* " in *" $name "*) ;; *) continue ;; esac
  fi
  test=$(sed -n 's/^# test: //p' "$patch")
  (cd "$tree" && git apply --whitespace=nowarn "$patch") || { echo "$name: the patch does not apply"; missed=$((missed + 1)); continue; }
  if ! (cd "$tree" && $cargo test --locked -q --no-run $test >"$tree/build.log" 2>&1); then
    echo "$name: does not build"; tail -20 "$tree/build.log"; missed=$((missed + 1))
  elif (cd "$tree" && timeout 300 $cargo test --locked -q $test >"$tree/test.log" 2>&1); then
    echo "$name: MISSED by: cargo test $test"; missed=$((missed + 1))
  else
    echo "$name: caught by: cargo test $test"; caught=$((caught + 1))
  fi
  (cd "$tree" && git apply -R --whitespace=nowarn "$patch")
done
echo "$caught caught, $missed missed"
[ "$missed" -eq 0 ]
