#!/bin/sh
# Installs the real agents, once, into INTEROP_DIR (default target/interop); a second run finds them there.
# `install.sh versions` only tells which.
set -eu
# The tested versions stand in the code, once: what is tested here and what `doctor` says cannot differ.
root=$(cd "$(dirname "$0")/../.." && pwd)
version() {
  found=$(sed -n "$2" "$root/$1")
  case $found in
    [0-9]*.[0-9]*.[0-9]*) echo "$found" ;;
    *) echo "interop: no tested version in $1 by: sed -n '$2' (found: '$found')" >&2; return 1 ;;
  esac
}
preset() {
  version src/provider/acp/presets.rs "s/^ *known!(\"$1\", \[[^]]*\], \"[^\"]*\", \"\([^\"]*\)\".*/\1/p"
}
opencode=$(preset opencode)
adapter=$(preset claude-agent)
claude=$(version src/provider/claude/mod.rs 's/^pub const TESTED: &str = "\(.*\)";$/\1/p')
codex=$(version src/provider/codex/mod.rs 's/^pub const TESTED: &str = "\(.*\)";$/\1/p')
if [ "${1:-}" = versions ]; then
  printf '%s\n' "opencode $opencode" "claude-agent $adapter" "claude $claude" "codex $codex"
  exit 0
fi
dir=${INTEROP_DIR:-target/interop}
mkdir -p "$dir/bin"
dir=$(cd "$dir" && pwd)
command -v npm >/dev/null || { echo "interop: npm is missing; install it with: sudo apt-get install npm" >&2; exit 3; }
arch=$(uname -m)
case $arch in
  x86_64) cpu=x64 ;;
  aarch64) cpu=arm64 ;;
  *) echo "interop: no agents for $arch" >&2; exit 3 ;;
esac
# name, package, version: each in a folder of its own, complete when the mark stands there.
get() {
  [ -e "$dir/$1/done-$3" ] && return 0
  rm -rf "${dir:?}/$1"
  mkdir -p "$dir/$1"
  echo "interop: installing $2 $3"
  npm install --prefix "$dir/$1" --no-audit --no-fund --ignore-scripts --loglevel=error "$2@$3" >&2
  : >"$dir/$1/done-$3"
}
get node "node-linux-$cpu" 24.21.0
get opencode "opencode-linux-$cpu" "$opencode"
get claude-agent @agentclientprotocol/claude-agent-acp "$adapter"
get codex @openai/codex "$codex"
get claude "@anthropic-ai/claude-code-linux-$cpu" "$claude"
ln -sf "$dir/claude/node_modules/@anthropic-ai/claude-code-linux-$cpu/claude" "$dir/bin/claude"
# The script of the package, as npm puts it on PATH: the program itself is found behind it.
ln -sf "$dir/codex/node_modules/.bin/codex" "$dir/bin/codex"
ln -sf "$dir/opencode/node_modules/opencode-linux-$cpu/bin/opencode" "$dir/bin/opencode"
cat >"$dir/bin/claude-agent-acp" <<END
#!/bin/sh
exec "$dir/node/node_modules/node-linux-$cpu/bin/node" "$dir/claude-agent/node_modules/@agentclientprotocol/claude-agent-acp/dist/index.js" "\$@"
END
chmod +x "$dir/bin/claude-agent-acp"
