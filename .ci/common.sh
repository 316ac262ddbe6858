# What `.ci/run` and `.ci/nightly` share: sourced, from the repository's root.

began=$SECONDS

# step "what" command…: runs it, with its time printed before and after.
step() {
    local what=$1 at=$SECONDS
    shift
    printf '\n=== %s (at %d s)\n' "$what" $((SECONDS - began))
    "$@"
    printf '=== %s: done in %d s\n' "$what" $((SECONDS - at))
}

# Ends a step that hangs; whatever is below it gets time to stop its own children first.
within() {
    timeout --kill-after=60 "$@"
}

install_packages() {
    [ -n "${CI_SKIP_INSTALL:-}" ] && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # gcc and cmake build libopus and the crypto library; chromium tests the room server, coturn and openssl the relays.
    apt-get install -y -qq --no-install-recommends build-essential cmake chromium coturn openssl >/dev/null
}

check_toolchain() {
    cargo --version
    cargo fmt --version
    cargo clippy --version
    node --version
    python3 --version
    # 1.22 or newer; its distribution's is too old on Debian 12.
    go version
}

# What a person says, unpacked from Debian's packages without installing them.
speech_recordings() {
    local folder=target/speech-recordings
    [ -d "$folder/usr/share/asterisk" ] && return
    mkdir -p "$folder"
    (cd "$folder" && apt-get download -qq asterisk-core-sounds-en asterisk-core-sounds-en-wav)
    local package
    for package in "$folder"/*.deb; do dpkg-deb -x "$package" "$folder"; done
}

# The official client's native library has been seen to abort the whole interpreter while it disconnects. Only that is tried again,
# once; a test that fails stays failed.
despite_an_abort() {
    local status=0
    "$@" || status=$?
    if [ "$status" -eq 134 ]; then
        echo "the official client aborted its process; once more"
        status=0
        "$@" || status=$?
    fi
    return "$status"
}
