# Sourced by what takes single packages from another suite of Debian than this machine's. They are downloaded with a private
# package list from this machine's own mirror; nothing is installed or changed in the system's apt.

# The Debian archive this machine uses, "http://deb.debian.org/debian/"; security and foreign archives are left out.
debian_mirror() {
  local codename uri release component origin
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  while read -r uri release component origin; do
    [ "$release" = "$codename" ] && [ "$component" = main ] || continue
    [ -z "$origin" ] || [ "$origin" = Debian ] || continue
    echo "$uri"
    return
  done < <(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' 'Created-By: Packages' 2>/dev/null)
  echo http://deb.debian.org/debian/
}

# debian_list SUITE WORK: reads the package list of SUITE into the folder WORK, for what follows. 1 and one line of why.
debian_list() {
  local suite=$1 work=$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror tool
  for tool in apt-get dpkg; do command -v "$tool" >/dev/null || { echo "$tool is needed (Debian)" >&2; return 1; }; done
  [ -s "$keyring" ] || { echo "$keyring is missing (Debian: debian-archive-keyring)" >&2; return 1; }
  mirror=$(debian_mirror)
  mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
  : >"$work/state/status"
  echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
  debian_apt=(-qq -o "Dir::State=$work/state" -o "Dir::State::status=$work/state/status" -o "Dir::Cache=$work/cache"
    -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Sandbox::User=)
  apt-get "${debian_apt[@]}" update >"$work/apt.log" 2>&1 ||
    { echo "the package list of $suite could not be read from $mirror: $(tail -n 1 "$work/apt.log")" >&2; return 1; }
}

# debian_download FOLDER PACKAGE...: the .deb files of packages of the list that debian_list read. 1 and one line of why.
debian_download() {
  local folder=$1 work
  shift
  mkdir -p "$folder"
  work=$(mktemp)
  (cd "$folder" && apt-get "${debian_apt[@]}" download "$@" >"$work" 2>&1) ||
    { echo "$* could not be downloaded: $(tail -n 1 "$work"; rm -f "$work")" >&2; return 1; }
  rm -f "$work"
}

# debian_depends PACKAGE: the first package that PACKAGE depends on.
debian_depends() { apt-cache "${debian_apt[@]}" depends "$1" | sed -n 's/^ *Depends: *//p' | head -n 1; }
