# Sourced by the scripts here: folders outside of the clone, named by the hash of what they are made from.

# cache_folder NAME FILE...: print the folder for what is made from these files, which may not exist yet.
cache_folder() {
    name=$1
    shift
    cache="${XDG_CACHE_HOME:-$HOME/.cache}/nodediag"
    mkdir -p "$cache"
    echo "$cache/$name-$(cat "$@" | sha256sum | cut -c 1-16)"
}

# take_lock FOLDER: wait until no other process makes this folder, then hold that until the script ends.
take_lock() {
    exec 9>"$1.lock"
    flock 9
}

# debian_sources SUITE: print the sources of a Debian release, at the mirrors that this machine's apt uses.
debian_sources() {
    # Container images often come without apt's lists, and then it names no mirror.
    [ -n "$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages')" ] || apt-get -qq update >&2
    for label in Debian Debian-Security; do
        uri=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Identifier: Packages' | sed -n "s/^$label //p" | head -n 1)
        suite=$1
        if [ "$label" = Debian-Security ]; then suite="$1-security"; fi
        if [ -n "$uri" ]; then echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main"; fi
    done
}

# logged LOG COMMAND...: run a command whose output matters only if it fails.
logged() {
    log=$1
    shift
    if ! "$@" >>"$log" 2>&1; then
        tail -n 30 "$log" >&2
        echo "failed: $*" >&2
        return 1
    fi
}
