# Sourced by the set-up scripts of the peers: environments with pinned packages, and names of converted models.
# Everything goes below one work folder; what is complete already is left alone. Messages go to stderr, the last line
# of a set-up script's stdout is the folder of the converted model.
set -euo pipefail

peers=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$(basename "$0")

say() { echo "$self: $*" >&2; }
die() { say "$*"; exit 1; }

# arguments CHECKPOINT WORK [--check]: sets checkpoint and work, absolute. With --check nothing is made.
arguments() {
  check_only=
  if [ $# -eq 3 ] && [ "$3" = --check ]; then check_only=1; elif [ $# -ne 2 ]; then
    die "usage: $self CHECKPOINT WORK_FOLDER [--check]"
  fi
  [ -s "$1/config.json" ] || die "$1: no config.json (a Hugging Face folder, or one made by qvl synth, is expected)"
  [ -s "$1/tokenizer.json" ] || die "$1: no tokenizer.json (qvl synth --tokenizer puts one there)"
  mkdir -p "$2"
  checkpoint=$(cd "$1" && pwd)
  work=$(cd "$2" && pwd)
}

# The same checkpoint gives the same key: its small files and the sizes of its weights.
checkpoint_key() {
  (cd "$checkpoint" && { cat config.json tokenizer.json; stat -c '%n %s' ./*.safetensors; }) | sha256sum | cut -c1-12
}

# missing WHAT: called before something is made.
missing() { [ -z "$check_only" ] || die "not set up: $1 is missing or of other versions"; }

# environment FOLDER REQUIREMENTS [PIP_OPTION...]: FOLDER/venv with exactly these packages. A changed file rebuilds it.
environment() {
  local folder=$1 requirements=$2
  shift 2
  local stamp
  stamp=$(sha256sum < "$requirements")
  if [ "$(cat "$folder/venv.stamp" 2> /dev/null)" = "$stamp" ]; then return; fi
  missing "$folder/venv"
  say "installing $(basename "$requirements") into $folder/venv"
  mkdir -p "$folder"
  rm -rf "$folder/venv" "$folder/venv.stamp"
  python3 -m venv "$folder/venv" || die "python3 -m venv failed (Debian: python3-venv)"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@" -r "$requirements" > "$folder/install.log" 2>&1 ||
    die "pip install -r $requirements failed: $(tail -n 1 "$folder/install.log") (all of it: $folder/install.log)"
  echo "$stamp" > "$folder/venv.stamp"
}

# One environment converts for all peers: it alone has PyTorch (about 7 GB with the libraries that its wheel asks for).
export_environment() {
  environment "$work/export" "$peers/requirements/export.txt"
  export_python=$work/export/venv/bin/python
}

# finish TEMPORARY FINAL: a model gets its name when it is complete.
finish() {
  rm -rf "$2"
  mv "$1" "$2"
}

# logged LOG COMMAND...: runs it, says on failure what the last line was.
logged() {
  local log=$1
  shift
  HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 DO_NOT_TRACK=1 "$@" > "$log" 2>&1 || {
    local status=$?
    [ $status -ne 137 ] || die "$(basename "$1") was killed, most likely for want of memory (log: $log)"
    die "failed with status $status: $(grep -v '^\s*$' "$log" | tail -n 1) (log: $log)"
  }
}
