# Sourced by what makes the tests' own environments: Python packages in a venv, npm packages in a folder. Each is made once and kept
# while its list is the same; the copy of the list that says so is written last, so that one which was interrupted is made again.
# Say in ENVIRONMENT_NAME who speaks.

environment_die() {
  echo "${ENVIRONMENT_NAME:-environment}: $*" >&2
  exit 1
}

# python_environment LIST VENV: the packages of the requirements file LIST in VENV.
python_environment() {
  local list=$1 venv=$2 log
  if cmp -s "$list" "$venv/requirements.txt"; then return 0; fi
  command -v python3 >/dev/null || environment_die "python3 is needed (Debian: python3-venv)"
  mkdir -p "$(dirname "$venv")"
  rm -rf "$venv"
  log=$(mktemp)
  python3 -m venv "$venv" >"$log" 2>&1 || environment_die "python3 -m venv failed (Debian: python3-venv): $(tail -n 1 "$log"; rm -f "$log")"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r "$list" >"$log" 2>&1 ||
    environment_die "pip install failed: $(tail -n 1 "$log"; rm -f "$log")"
  rm -f "$log"
  cp "$list" "$venv/requirements.txt.new"
  mv "$venv/requirements.txt.new" "$venv/requirements.txt"
}

# npm_environment SOURCE FOLDER: FOLDER/node_modules as SOURCE/package-lock.json pins them. Made beside it and put in its place whole.
npm_environment() {
  local source=$1 folder=$2 work
  if cmp -s "$source/package-lock.json" "$folder/node_modules/.made-from"; then return 0; fi
  command -v npm >/dev/null || environment_die "npm is needed (Debian: npm)"
  mkdir -p "$folder"
  rm -rf "$folder"/npm.*
  work=$(mktemp -d "$folder/npm.XXXXXX")
  cp "$source/package.json" "$source/package-lock.json" "$work/"
  (cd "$work" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >"$work/log" 2>&1 ||
    environment_die "npm ci failed: $(tail -n 1 "$work/log"; rm -rf "$work")"
  cp "$source/package-lock.json" "$work/node_modules/.made-from"
  rm -rf "$folder/node_modules"
  mv "$work/node_modules" "$folder/node_modules"
  rm -rf "$work"
}
