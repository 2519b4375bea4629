#!/bin/sh
# Builds the version that others still run, once, into INTEROP_DIR/old (default target/interop/old); a second run finds it there.
set -eu
commit=08d390c
dir=${INTEROP_DIR:-target/interop}/old
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
[ -x "$dir/agent-relay-$commit" ] && exit 0
there() { git cat-file -e "$commit^{commit}" 2>/dev/null; }
if ! there && [ "$(git rev-parse --is-shallow-repository 2>/dev/null)" != false ]; then
  git fetch --quiet --unshallow 2>/dev/null || :
  there || { echo "interop: this clone has no history with $commit, so the pairs of versions are skipped; get it with: git fetch --unshallow"; exit 0; }
fi
there || { echo "interop: the history lacks $commit" >&2; exit 1; }
echo "interop: building $commit"
rm -rf "$dir/source"
mkdir -p "$dir/source"
git archive "$commit" | tar xf - -C "$dir/source"
(cd "$dir/source" && CARGO_TARGET_DIR="$dir/target" "${CARGO:-cargo}" build --locked --quiet --bin agent-relay)
cp "$dir/target/debug/agent-relay" "$dir/agent-relay-$commit.new"
mv "$dir/agent-relay-$commit.new" "$dir/agent-relay-$commit"
rm -rf "$dir/source" "$dir/target"
